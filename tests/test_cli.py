"""The command line, run as operators run it, against the test's database."""

import asyncio
import csv
import json
from pathlib import Path
from typing import Any

import asyncpg
from conftest import ADMIN, Client

from server.auth import SCOPES

MINE = ("--instance", "MYINSTANCE")


async def test_users(officerpc: Any, client: Client) -> None:
    created = await officerpc(
        "users", "create", "jane@example.com", *MINE, "--display-name", "Jane", "--json",
        OFFICERPC_NEW_PASSWORD="demo1234",
    )  # fmt: skip
    assert created.status == 0 and created.json["id"] == 2
    await client.call("login", {"email": "jane@example.com", "password": "demo1234"})
    found = await officerpc("users", "get", "jane@example.com", *MINE, "--json")
    assert found.json["displayName"] == "Jane"
    listed = await officerpc("users", "list", *MINE, "--json")
    assert [json.loads(line)["email"] for line in listed.out.splitlines()] == [ADMIN, "jane@example.com"]
    table = await officerpc("users", "list", *MINE, COLUMNS="200")
    assert "jane@example.com" in table.out
    again = await officerpc("users", "create", "jane@example.com", *MINE)
    assert again.status == 1
    assert again.err == 'officerpc: duplicate key value violates unique constraint "users_email"\n'
    nowhere = await officerpc("users", "get", "jane@example.com", "--instance", "NOWHERE")
    assert (nowhere.status, nowhere.err) == (1, "officerpc: there is no instance NOWHERE\n")


async def test_what_export_writes_import_takes(officerpc: Any, tmp_path: Path, operator: Client) -> None:
    await operator.call("createInstance", {"name": "COPY", "admin": {"email": "boss@copy.example"}})
    source = tmp_path / "users.csv"
    with source.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["email", "displayName", "isAdmin", "profile", "password"])
        writer.writerow(["a@example.com", "Ä, the first", "true", '{"title": "Dr."}', "12345678"])
        writer.writerow(["b@example.com", "B", "", "", ""])
        writer.writerow([ADMIN, "taken", "", "", ""])
        writer.writerow(["nonsense", "bad", "", "", ""])
    imported = await officerpc("users", "import", str(source), *MINE, "--json")
    assert imported.status == 1
    assert imported.json == {
        "created": 2,
        "failed": 2,
        "notListed": 0,
        "failures": [
            {
                "row": 3,
                "email": ADMIN,
                "error": 'duplicate key value violates unique constraint "users_email"',
            },
            {"row": 4, "email": "nonsense", "error": "email: is not a valid e-mail address"},
        ],
    }
    exported = await officerpc("users", "export", *MINE)
    target = tmp_path / "users.jsonl"
    target.write_text(exported.out)
    copied = await officerpc("users", "import", str(target), "--instance", "COPY", "--json")
    assert (copied.status, copied.json) == (0, {"created": 3, "failed": 0, "failures": [], "notListed": 0})
    again = await officerpc("users", "export", "--instance", "COPY")
    assert [line for line in again.out.splitlines() if "boss@" not in line] == exported.out.splitlines()
    assert '"displayName":"Ä, the first"' in exported.out and "password" not in exported.out


async def test_keys(officerpc: Any, client: Client) -> None:
    created = (await officerpc("keys", "create", "shop", "--scope", "users:read", "--json")).json
    shop = client.using(created["key"])
    await shop.call("getUserByEmail", {"email": ADMIN})
    operators = (await officerpc("keys", "create", "ops", "--operator", "--json")).json
    assert (await client.using(operators["key"]).call("listInstances"))["next"] is None
    listed = (await officerpc("keys", "list", "--json")).json
    assert {created["id"], operators["id"]} <= {key["id"] for key in listed}
    rotated = (await officerpc("keys", "rotate", str(created["id"]), "--overlap", "0", "--json")).json
    await client.using(rotated["key"]).call("getUserByEmail", {"email": ADMIN})
    revoked = await officerpc("keys", "revoke", str(rotated["id"]), "--json")
    assert revoked.json == {"revoked": rotated["id"]}
    async with asyncio.timeout(10):
        for key in (created["key"], rotated["key"]):
            while (await client.using(key).outcome("getUserByEmail", {"email": ADMIN}))[0] != 401:
                await asyncio.sleep(0.01)


async def test_what_is_not_found_is_named(officerpc: Any) -> None:
    for words, told in (
        (("users", "get", "nobody@example.com", *MINE), "nobody@example.com: not found"),
        (("users", "export", "--instance", "NOWHERE"), "there is no instance NOWHERE"),
        (("instances", "get", "NOWHERE"), "there is no instance NOWHERE"),
        (("keys", "create", "x", "-i", "MYINSTANCE", "-i", "NOWHERE"), "there is no instance NOWHERE"),
        (("keys", "revoke", "999"), "999: not found"),
        (("keys", "create", "x", "--scope", "nonsense"), f"scopes.0: must be one of {', '.join(SCOPES)}"),
    ):
        finished = await officerpc(*words)
        assert (finished.status, finished.err) == (1, f"officerpc: {told}\n")


async def test_instances(officerpc: Any) -> None:
    created = await officerpc("instances", "create", "ACME", "--admin-email", "boss@acme.example", "--json")
    assert (created.status, created.json["adminId"]) == (0, 1)
    listed = await officerpc("instances", "list", "--json")
    assert [instance["name"] for instance in listed.json] == ["ACME", "MYINSTANCE"]
    assert (await officerpc("instances", "get", "ACME", "--json")).json["users"] == 1


async def test_verify_finds_and_repairs(officerpc: Any, client: Client, db: asyncpg.Connection) -> None:
    await client.call("createUser", {"email": "jane@example.com"})
    whole = await officerpc("verify", "--json")
    assert (whole.status, whole.json) == (0, {"checked": 2, "incomplete": [], "repaired": False})
    await db.execute("DELETE FROM mailboxes WHERE user_id = 2 AND role IN ('spam', 'drafts')")
    await db.execute("DELETE FROM calendars WHERE user_id = 2")
    lacking = [
        {"instance": "MYINSTANCE", "id": 2, "email": "jane@example.com",
         "missing": {"mailboxes": ["spam", "drafts"], "calendars": ["main"]}}
    ]  # fmt: skip
    found = await officerpc("verify", "--json")
    assert (found.status, found.json) == (1, {"checked": 2, "incomplete": lacking, "repaired": False})
    repaired = await officerpc("verify", "--repair", "--json")
    assert (repaired.status, repaired.json) == (0, {"checked": 2, "incomplete": lacking, "repaired": True})
    assert (await officerpc("verify", "--json")).status == 0
    user = await client.call("getUserByEmail", {"email": "jane@example.com"})
    assert (user["spam"], user["drafts"], user["mainCalendar"]) == (13, 14, 3)
    (event,) = (await client.call("listAuditEvents", {"method": "repairUser"}))["events"]
    assert (event["userId"], event["after"], event["keyName"]) == (2, lacking[0]["missing"], "officerpc")


async def test_migrate_settings_openrpc(officerpc: Any) -> None:
    assert (await officerpc("migrate", "--json")).json == {"applied": []}
    shown = (await officerpc("settings", "--json", OFFICERPC_PORT="9090")).json
    assert shown["OFFICERPC_PORT"] == 9090 and shown["OFFICERPC_DATABASE_URL"] == "**********"
    assert "Port to listen on." in (await officerpc("settings", COLUMNS="200")).out
    assert (await officerpc("openrpc")).json["openrpc"] == "1.2.6"
    bad = await officerpc("settings", OFFICERPC_PORT="http")
    assert bad.status == 1 and "OFFICERPC_PORT" in bad.err


async def test_a_database_that_is_away(officerpc: Any) -> None:
    ended = await officerpc("users", "list", *MINE, OFFICERPC_DATABASE_URL="postgresql://x@127.0.0.1:1/x")
    assert ended.status == 1 and "database is away" in ended.err and "Traceback" not in ended.err
