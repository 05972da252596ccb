"""The commands of officerpc, against the test's database."""

import asyncio
import csv
import importlib.metadata
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
from conftest import ADMIN, Client

from server.tenants.keys import new_key
from server.tenants.principals import SCOPES, TENANT_SCOPES

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


async def test_users_without_an_email_are_not_exported(
    officerpc: Any, tmp_path: Path, client: Client, operator: Client
) -> None:
    """The copy has the names of the others, with the display names that they were given."""
    await operator.call("createInstance", {"name": "COPY", "admin": {"email": "boss@copy.example"}})
    people = [
        {"email": "ann@example.com", "firstName": "Ann", "lastName": "Lee"},
        {"email": "desk@example.com", "lastName": "Kim", "displayName": "Sales desk"},
        {"email": "plain@example.com"},
    ]
    await client.call("createUsers", {"users": people})
    profile = {"firstname": "Cher", "lastname": "-"}
    for login in ("cher", "x\u202ey"):
        await client.call("createMember", {"login": login, "sponsorId": 1, "profile": profile})
    exported = await officerpc("users", "export", *MINE)
    assert exported.err.splitlines() == ["skipped, has no e-mail: cher", "skipped, has no e-mail: x\\u202ey"]
    target = tmp_path / "users.jsonl"
    target.write_text(exported.out)
    copied = await officerpc("users", "import", str(target), "--instance", "COPY", "--json")
    assert (copied.status, copied.json["created"]) == (0, 4)
    for person in people:
        email = {"email": person["email"]}
        found, copy = [
            await operator.call("getUser", email | {"instance": instance})
            for instance in ("MYINSTANCE", "COPY")
        ]
        for member in ("displayName", "fields", "profile", "values", "isAdmin", "isActive", "login"):
            assert copy[member] == found[member], member


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


# --- what tenants wrote, on a terminal and in a spreadsheet -----------------------------------------------

HOSTILE = {
    "[/oops]": "[/oops]",  # markup of the library that prints tables
    "[link=https://evil.example]click": "[link=https://evil.example]click",
    ":smile:": ":smile:",
    "over\u202eridden": "over\\u202eridden",  # turns the reading direction
    "nothing \u2028 below": "nothing \\u2028 below",
}
"""Display names that the server takes, and how a terminal shows each."""


async def test_names_are_no_markup_and_no_control_sequences(officerpc: Any, client: Client) -> None:
    for number, name in enumerate(HOSTILE):
        await client.call("createUser", {"email": f"u{number}@example.com", "displayName": name})
    listed = await officerpc("users", "list", *MINE, COLUMNS="200")
    assert listed.status == 0, listed.err
    for shown in HOSTILE.values():
        assert shown in listed.out
    for number, shown in enumerate(HOSTILE.values()):
        one = await officerpc("users", "get", f"u{number}@example.com", *MINE)
        assert shown in one.out
    as_json = await officerpc("users", "list", *MINE, "--json")
    names = [json.loads(line)["displayName"] for line in as_json.out.splitlines()]
    assert set(HOSTILE) <= set(names)
    assert not {"\u202e", "\u2028"} & set(as_json.out)


async def test_control_characters_that_got_into_the_database_are_shown_as_escapes(
    officerpc: Any, client: Client, db: asyncpg.Connection
) -> None:
    await client.call("createUser", {"email": "jane@example.com"})
    await db.execute("UPDATE users SET display_name = $1 WHERE id = 2", "\x1b]0;title\x07\x9b31m\x7f")
    for words in (("users", "list", *MINE), ("users", "list", *MINE, "--json"), ("users", "export", *MINE)):
        finished = await officerpc(*words)
        assert finished.status == 0
        assert not set("\x1b\x07\x9b\x7f") & set(finished.out)
    exported = [json.loads(line) for line in finished.out.splitlines()]
    assert exported[1]["displayName"] == "\x1b]0;title\x07\x9b31m\x7f"


async def test_errors_repeat_no_control_sequence(officerpc: Any) -> None:
    finished = await officerpc("users", "get", "a@example.com", "--instance", "[red]\x1b[31m")
    assert (finished.status, finished.err) == (1, "officerpc: there is no instance [red]\\x1b[31m\n")


async def test_failed_rows_hold_no_formula_and_can_be_imported(officerpc: Any, tmp_path: Path) -> None:
    """However often they fail: each text is what it was in the first file."""
    names = {
        "=HYPERLINK(1)": "'=HYPERLINK(1)", "+973 1": "'+973 1", "-5": "'-5", "@SUM(A1)": "'@SUM(A1)",
        "plain": "plain", "'quoted": "'quoted", "'=x": "''=x", "''=x": "'''=x", "'": "'", "''": "''",
    }  # fmt: skip
    source = tmp_path / "users.csv"
    with source.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["email", "displayName"])
        writer.writerows((f"bad{number}", name) for number, name in enumerate(names))
    for _ in range(2):
        assert (await officerpc("users", "import", str(source), *MINE)).status == 1
        source = source.with_name(f"{source.stem}.failed.csv")
        with source.open(newline="") as stream:
            rows = list(csv.reader(stream))[1:]
        assert [row[1] for row in rows] == list(names.values())
    mended = tmp_path / "mended.csv"
    text = source.read_text()
    for number in range(len(names)):
        text = text.replace(f"bad{number}", f"good{number}@example.com")
    mended.write_text(text)
    assert (await officerpc("users", "import", str(mended), *MINE)).status == 0
    exported = (await officerpc("users", "export", *MINE)).out.splitlines()[1:]
    assert [json.loads(line)["displayName"] for line in exported] == list(names)


async def test_cells_of_other_files_are_taken_as_they_are(
    officerpc: Any, tmp_path: Path, client: Client
) -> None:
    """An apostrophe before - is part of a password, where no import of ours wrote the file."""
    source = tmp_path / "users.csv"
    source.write_text("email,password,displayName\nann@example.com,'-secret1,'=x\n")
    assert (await officerpc("users", "import", str(source), *MINE)).status == 0
    await client.call("login", {"email": "ann@example.com", "password": "'-secret1"})
    assert (await client.call("getUserByEmail", {"email": "ann@example.com"}))["displayName"] == "'=x"


# --- tables, help and settings ----------------------------------------------------------------------------


async def test_tables_fit_80_columns(officerpc: Any, client: Client) -> None:
    await client.call("createUser", {"email": "jane@example.com", "displayName": "Jane Doe"})
    await officerpc("keys", "create", "shop", "--scope", "users:read")
    await officerpc("keys", "create", "ops", "--operator")
    await client.call("createWebhook", {"url": "https://hooks.example.com/x", "types": ["user.created"]})
    for words, rows in (
        (("keys", "list"), 3), (("users", "list", *MINE), 2), (("instances", "list"), 1),
        (("webhooks", "list", *MINE), 1), (("audit", *MINE, "--type", "user.created"), 2),
    ):  # fmt: skip
        finished = await officerpc(*words, COLUMNS="80")
        lines = finished.out.rstrip().splitlines()
        assert finished.status == 0 and max(map(len, lines)) <= 80, words
        assert len(lines) <= 1 + 3 * rows, finished.out
    assert "1 of " in (await officerpc("keys", "list", COLUMNS="80")).out


async def test_times_are_dates_for_people_and_unix_seconds_for_machines(
    officerpc: Any, client: Client
) -> None:
    listed = (await officerpc("users", "list", *MINE, "--json")).json
    moment = datetime.fromtimestamp(listed["createdAt"], UTC)
    assert f"{moment:%Y-%m-%d %H:%M}" in (await officerpc("users", "list", *MINE)).out
    assert f"{moment:%Y-%m-%d %H:%M} UTC" in (await officerpc("instances", "get", "MYINSTANCE")).out


async def test_keys_of_deleted_instances_show_no_inner_names(officerpc: Any, operator: Client) -> None:
    await operator.call("createInstance", {"name": "GONE", "admin": {"email": "boss@gone.example"}})
    made = (await officerpc("keys", "create", "theirs", "-i", "GONE", "--json")).json
    await operator.call("deleteInstance", {"instance": "GONE"})
    (listed,) = [key for key in (await officerpc("keys", "list", "--json")).json if key["id"] == made["id"]]
    assert listed["instances"] == []
    table = (await officerpc("keys", "list", COLUMNS="200")).out
    assert "none (deleted)" in table and "~" not in table


async def test_who_was_created_today(officerpc: Any, client: Client) -> None:
    await client.call("createUser", {"email": "jane@example.com"})
    asked = ("audit", *MINE, "--type", "user.created", "--json")
    today = (await officerpc(*asked, "--since", "today")).out.splitlines()
    assert [json.loads(line)["after"]["email"] for line in today] == ["jane@example.com", ADMIN]
    assert (await officerpc(*asked, "--until", "yesterday")).out == ""
    assert len((await officerpc(*asked, "--since", "2h", "--limit", "1")).out.splitlines()) == 1
    wrong = await officerpc(*asked, "--since", "whenever")
    assert wrong.status == 2 and "use today, yesterday, 90m" in wrong.err


async def test_webhooks_that_fail_are_seen(officerpc: Any, client: Client) -> None:
    made = await client.call("createWebhook", {"url": "https://hooks.example.com/x"})
    listed = (await officerpc("webhooks", "list", *MINE, "--json")).json
    assert [webhook["id"] for webhook in listed] == [made["id"]]
    assert (await officerpc("webhooks", "deliveries", str(made["id"]), *MINE)).out == "none\n"
    missing = await officerpc("webhooks", "deliveries", "99", *MINE)
    assert (missing.status, missing.err) == (1, "officerpc: 99: not found\n")


async def test_version_and_help(officerpc: Any) -> None:
    assert (await officerpc("--version")).out == f"{importlib.metadata.version('officerpc')}\n"
    for words in ((), ("users",), ("users", "import")):
        short, long = await officerpc(*words, "-h"), await officerpc(*words, "--help")
        assert short.status == 0 and short.out == long.out


async def test_an_unknown_setting_is_a_warning(officerpc: Any) -> None:
    finished = await officerpc("settings", "--json", OFFICERPC_POOLSIZE="20", OFFICERPC_NEW_PASSWORD="x")
    assert finished.status == 0
    assert finished.err == "OFFICERPC_POOLSIZE is not a setting: did you mean OFFICERPC_POOL_SIZE?\n"


async def test_a_bootstrap_key_with_a_wrong_checksum_is_refused(officerpc: Any) -> None:
    for chosen, status in (("orpc_" + "0" * 38, 1), (new_key(), 0), ("chosen-by-the-operator", 0)):
        assert (await officerpc("settings", OFFICERPC_BOOTSTRAP_API_KEY=chosen)).status == status


async def test_scopes_of_keys(officerpc: Any, client: Client) -> None:
    """What an upgrade brings is shown and granted; nothing is granted by itself."""
    made = (await officerpc("keys", "create", "shop", "--scope", "users:read", "--json")).json
    shop, user = client.using(made["key"]), {"email": "jane@example.com"}
    (lacking,) = [
        key for key in (await officerpc("keys", "scopes", "--json")).json if key["id"] == made["id"]
    ]
    assert "users:write" in lacking["lacks"] and "users:read" not in lacking["lacks"]
    assert (await shop.outcome("createUser", user))[0] == 403
    granted = (await officerpc("keys", "scopes", str(made["id"]), "--grant", "users:write", "--json")).json
    assert granted[0]["scopes"] == ["users:read", "users:write"]
    async with asyncio.timeout(10):
        while (await shop.outcome("createUser", user))[0] == 403:
            await asyncio.sleep(0.01)
    whole = (await officerpc("keys", "scopes", str(made["id"]), "--grant", "all", "--json")).json
    assert set(whole[0]["scopes"]) == set(TENANT_SCOPES) and whole[0]["lacks"] == []
    less = await officerpc("keys", "scopes", str(made["id"]), "--withdraw", "users:purge", COLUMNS="80")
    assert "users:purge" in less.out
    for words, told in (
        (("999",), "999: not found"),
        (("--grant", "users:read"), "give the id of the key to change"),
        ((str(made["id"]), "--grant", "nonsense"), f"must be one of {', '.join(SCOPES)}"),
    ):
        finished = await officerpc("keys", "scopes", *words)
        assert finished.status == 1 and told in finished.err
