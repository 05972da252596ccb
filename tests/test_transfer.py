"""Import and export: batches, killed and continued imports, each row once, exports by page."""

import asyncio
import csv
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import asyncpg
import bcrypt
import pytest
from conftest import ADMIN, Client, footprint, until

from server.base.settings import Settings
from server.cli import export
from server.postgres.db import Database

HASH = "$argon2id$v=19$m=64,t=1,p=1$" + "A" * 22 + "$" + "A" * 43
MINE = ("--instance", "MYINSTANCE")


def write_users(file: Path, count: int, **members: Any) -> None:
    with file.open("w") as stream:
        for number in range(count):
            stream.write(
                json.dumps({"email": f"user{number}@example.com", "passwordHash": HASH} | members) + "\n"
            )


async def test_json_lines_with_rows_that_fail(officerpc: Any, tmp_path: Path, client: Client) -> None:
    """The file of failed rows has each as it was, with the reason, and can be imported once it is mended."""
    file = tmp_path / "users.jsonl"
    bcrypted = bcrypt.hashpw(b"demo1234", bcrypt.gensalt(4)).decode()
    rows = [
        json.dumps({"email": "a@example.com", "passwordHash": bcrypted}),
        "[]",
        "",
        '{"email": "broken@example.com"',
        json.dumps({"email": ADMIN}),
        json.dumps({"email": "a@example.com", "displayName": "again"}),
        json.dumps({"email": "nonsense", "password": "demo1234"}),
        '{"email": "nul@example.com", "values": {"editorTemplates": "\\u0000"}}',
        json.dumps({"email": "z@example.com"}),
    ]
    file.write_text("\n".join(rows))
    done = await officerpc("users", "import", str(file), *MINE, "--json")
    assert (done.status, done.json["created"], done.json["failed"]) == (1, 2, 6)
    duplicate = 'duplicate key value violates unique constraint "users_email"'
    failed_file = tmp_path / "users.failed.jsonl"
    failed = [json.loads(line) for line in failed_file.read_text().splitlines()]
    assert failed == [
        {"line": "[]", "error": "not a JSON object"},
        {"line": '{"email": "broken@example.com"', "error": "the body is not valid JSON"},
        {"email": ADMIN, "error": duplicate},
        {"email": "a@example.com", "displayName": "again", "error": duplicate},
        {"email": "nonsense", "password": "demo1234", "error": "email: is not a valid e-mail address"},
        {"line": rows[7], "error": "the JSON holds a NUL character"},
    ]
    assert [failure["row"] for failure in done.json["failures"]] == [2, 3, 4, 5, 6, 7]
    assert failed_file.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "users.jsonl.state").exists()
    await client.call("login", {"email": "a@example.com", "password": "demo1234"})
    mended = json.dumps(failed[4] | {"email": "mended@example.com"})
    failed_file.write_text(mended + "\n")
    done = await officerpc("users", "import", str(failed_file), *MINE)
    assert done.status == 0 and "1 created, 0 failed" in done.out
    await client.call("login", {"email": "mended@example.com", "password": "demo1234"})
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "users.failed.jsonl", "users.jsonl",
    ]  # fmt: skip


async def test_csv_with_rows_that_fail(officerpc: Any, tmp_path: Path, client: Client) -> None:
    file = tmp_path / "users.csv"
    with file.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream)
        writer.writerow(["email", "displayName", "isAdmin", "profile", "error"])
        writer.writerow(["a@example.com", "Ä, the\n first", "true", '{"title": "Dr."}', ""])
        writer.writerow(["b@example.com", "B, the first", "true", '{"title": "Dr."}', "of the last time"])
        writer.writerow(["c@example.com", "C", "perhaps", ""])
        writer.writerow(["d@example.com", "D", "", "", "", "too", "many"])
        writer.writerow(["h@example.com", "x" * 140_000])
        writer.writerow([])
        writer.writerow(["e@example.com"])
    with file.open("ab") as stream:
        stream.write(b"f@example.com,\xff\ng@example.com,G\n")
    done = await officerpc("users", "import", str(file), *MINE, "--json")
    assert (done.status, done.json["created"], done.json["failed"]) == (1, 3, 5)
    limit = csv.field_size_limit(200_000)
    with (tmp_path / "users.failed.csv").open(newline="", errors="surrogateescape") as stream:
        failed = list(csv.reader(stream))
    csv.field_size_limit(limit)
    assert failed == [
        ["email", "displayName", "isAdmin", "profile", "error"],
        [
            "a@example.com",
            "Ä, the\n first",
            "true",
            '{"title": "Dr."}',
            "displayName: holds control characters",
        ],
        ["c@example.com", "C", "perhaps", "", "isAdmin: must be true or false"],
        ["d@example.com", "D", "", "", "has 7 cells, and the header 5", "too", "many"],
        ["h@example.com," + "x" * 140_000, "", "", "", "is not CSV"],
        ["f@example.com", "\udcff", "", "", "is not UTF-8"],
    ]
    assert b"f@example.com,\xff," in (tmp_path / "users.failed.csv").read_bytes()
    (tmp_path / "users.failed.csv").unlink()
    user = await client.call("getUserByEmail", {"email": "b@example.com"})
    assert (user["isAdmin"], user["profile"]["title"], user["displayName"]) == (True, "Dr.", "B, the first")
    for content, told in ((b"name\nx\n", "has no column email"), (b"\xff\n", "cannot be read as CSV")):
        file.write_bytes(content)
        done = await officerpc("users", "import", str(file), *MINE)
        assert done.status == 1 and told in done.err


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
async def test_killed_in_the_middle_and_run_again(
    suffix: str, officerpc_command: Any, tmp_path: Path, client: Client, db: asyncpg.Connection
) -> None:
    """Every row once, and each bad one once in the file of those that failed, wherever the kill fell."""
    file = tmp_path / f"users.{suffix}"
    rows = 6000
    if suffix == "jsonl":
        write_users(file, rows)
    else:
        lines = (f'user{number}@example.com,"{HASH}"' for number in range(rows))
        file.write_text("\n".join(["email,passwordHash", *lines, ""]))
    bad = 0
    with file.open("a") as stream:
        for number in (3, 4500, 5900):
            bad += 1
            row = (
                f"user{number}@example.com,\n"
                if suffix == "csv"
                else f'{{"email": "user{number}@example.com"}}\n'
            )
            stream.write(row)
    interrupted = 0
    for _ in range(30):
        command = officerpc_command("users", "import", str(file), *MINE, "--json")
        before = await db.fetchval("SELECT count(*) FROM users")
        while command.process.poll() is None and await db.fetchval("SELECT count(*) FROM users") == before:
            await asyncio.sleep(0.005)
        if command.process.poll() is None and interrupted < 4:
            command.process.kill()
            interrupted += 1
        if (ended := await command.finished()).status != -signal.SIGKILL:
            break
    assert interrupted == 4
    done = ended.json
    assert (done["created"], done["failed"]) == (rows, bad)
    assert await db.fetchval("SELECT count(*) FROM users") == rows + 1
    assert await db.fetchval("SELECT count(*) FROM events WHERE type = 'user.created'") == rows + 1
    failed = (tmp_path / f"users.failed.{suffix}").read_text().splitlines()
    assert len([line for line in failed if "@example.com" in line]) == bad
    assert not Path(f"{file}.state").exists()


async def test_what_was_sent_last_is_not_taken_for_a_failure(
    officerpc: Any, tmp_path: Path, client: Client, db: asyncpg.Connection
) -> None:
    """Killed between the commit and the note of it: those rows are there, and by whom is known. Those that
    were there before, or are in the file twice, did fail."""
    file = tmp_path / "users.jsonl"
    write_users(file, 5)
    with file.open("a") as stream:
        stream.write('{"email": "user1@example.com"}\n{"email": "admin@example.com"}\n')
    status = file.stat()
    (tmp_path / "users.jsonl.state").write_text(
        json.dumps(
            {"run": "r", "instance": "MYINSTANCE", "size": status.st_size, "modified": status.st_mtime_ns}
        )
    )
    done = await officerpc("users", "import", str(file), *MINE, "--json")
    assert (done.json["created"], done.json["failed"]) == (5, 2)
    before = await footprint(db)
    (tmp_path / "users.jsonl.state").write_text(
        json.dumps(
            {"run": "r", "instance": "MYINSTANCE", "size": status.st_size, "modified": status.st_mtime_ns}
        )
    )
    again = await officerpc("users", "import", str(file), *MINE, "--json")
    assert again.json == done.json
    assert await footprint(db) | {"events": 0} == before | {"events": 0}
    (tmp_path / "users.failed.jsonl").unlink()
    fresh = await officerpc("users", "import", str(file), *MINE, "--json")
    assert (fresh.json["created"], fresh.json["failed"]) == (0, 7)


async def test_another_file_is_not_gone_on_with(
    officerpc: Any, tmp_path: Path, db: asyncpg.Connection
) -> None:
    file = tmp_path / "users.jsonl"
    write_users(file, 2)
    state = tmp_path / "users.jsonl.state"
    before = await footprint(db)
    for text, told in (
        (json.dumps({"run": "r", "instance": "MYINSTANCE", "size": 1, "modified": 1}), "has changed since"),
        ("{}", "cannot be read"),
        ("{", "cannot be read"),
    ):
        state.write_text(text)
        done = await officerpc("users", "import", str(file), *MINE)
        assert done.status == 1 and told in done.err.replace("\n", " ")
        assert state.read_text() == text
    assert await footprint(db) == before
    nowhere = await officerpc("users", "import", str(file), "--instance", "NOWHERE")
    assert (nowhere.status, nowhere.err) == (1, "officerpc: there is no instance NOWHERE\n")


async def test_rows_that_failed_are_not_written_over(
    officerpc: Any, tmp_path: Path, db: asyncpg.Connection
) -> None:
    file, failed = tmp_path / "users.jsonl", tmp_path / "users.failed.jsonl"
    file.write_bytes(b'{"email": "nonsense"}\n{"email": "\xff"}\n')
    failed.touch()  # empty: of an import that was killed before it began
    failed.chmod(0o644)
    assert (await officerpc("users", "import", str(file), *MINE)).status == 1
    kept = failed.read_bytes()
    assert [json.loads(line).get("line") for line in kept.splitlines()] == [None, '{"email": "\\xff"}']
    assert failed.stat().st_mode & 0o777 == 0o600
    before = await footprint(db)
    write_users(file, 2)
    again = await officerpc("users", "import", str(file), *MINE)
    assert again.status == 1 and "has failed rows of an earlier import" in again.err
    assert failed.read_bytes() == kept and not Path(f"{file}.state").exists()
    assert await footprint(db) == before
    failed.rename(tmp_path / "mine.jsonl")
    assert (await officerpc("users", "import", str(file), *MINE)).status == 0


async def test_failed_rows_that_were_taken_while_it_waited(officerpc: Any, tmp_path: Path) -> None:
    """What is left of the file is no hole of NUL characters."""
    file = tmp_path / "users.csv"
    file.write_text("email,displayName\na@example.com,A\nnonsense,B\n")
    status = file.stat()
    state = {
        "run": "r", "instance": "MYINSTANCE", "size": status.st_size, "modified": status.st_mtime_ns,
        "offset": 34, "rows": 1, "created": 0, "failed": 1, "failed_bytes": 99,
    }  # fmt: skip
    Path(f"{file}.state").write_text(json.dumps(state))
    assert (await officerpc("users", "import", str(file), *MINE, "--json")).json["failed"] == 2
    assert (tmp_path / "users.failed.csv").read_text().splitlines() == [
        "email,displayName,error", "nonsense,B,email: is not a valid e-mail address",
    ]  # fmt: skip


async def test_what_csv_can_say(officerpc: Any, tmp_path: Path, client: Client) -> None:
    """Members that are not text as JSON, and booleans in the spelling of spreadsheets."""
    file = tmp_path / "users.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["email", "isAdmin", "isActive", "onlySeesReadable", "quotas", "displayName"])
        writer.writerow(["a@example.com", "TRUE", "FALSE", "False", '{"mail": 100, "files": null}', "TRUE"])
    done = await officerpc("users", "import", str(file), *MINE, "--json")
    assert (done.status, done.json["created"]) == (0, 1)
    user = await client.call("getUserByEmail", {"email": "a@example.com"})
    assert (user["isAdmin"], user["isActive"], user["displayName"]) == (True, False, "TRUE")
    quotas = await client.call("getQuotasByEmail", {"email": "a@example.com"})
    assert (quotas["mail"]["limit"], quotas["files"]["isDefault"]) == (100, True)


async def test_failures_that_are_not_listed_are_counted(officerpc: Any, tmp_path: Path) -> None:
    file = tmp_path / "users.jsonl"
    file.write_text("[]\n" * 1003)
    done = await officerpc("users", "import", str(file), *MINE, "--json")
    assert (done.status, done.json["failed"], len(done.json["failures"]), done.json["notListed"]) == (
        1, 1003, 1000, 3,
    )  # fmt: skip
    (tmp_path / "users.failed.jsonl").unlink()
    told = await officerpc("users", "import", str(file), *MINE)
    assert "and 983 more" in told.out and str(tmp_path / "users.failed.jsonl") in told.err


async def test_interrupted_by_hand(
    officerpc: Any, officerpc_command: Any, tmp_path: Path, db: asyncpg.Connection
) -> None:
    file = tmp_path / "users.jsonl"
    write_users(file, 6000)
    command = officerpc_command("users", "import", str(file), *MINE)

    async def some() -> bool:
        return bool(await db.fetchval("SELECT count(*) > 1 FROM users"))

    await until(some)
    command.process.send_signal(signal.SIGINT)
    ended = await command.finished()
    assert ended.status == 130
    assert "interrupted: run it again to continue" in ended.err and "Traceback" not in ended.err
    done = await officerpc("users", "import", str(file), *MINE, "--json")
    assert (done.status, done.json["created"]) == (0, 6000)


async def test_a_user_who_is_renamed_while_others_are_exported(
    client: Client, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is in the export once, whichever way the new name sorts."""
    monkeypatch.setattr(export, "PAGE", 3)
    emails = [f"{letter}@example.com" for letter in "bcdefgh"]
    await client.call("createUsers", {"users": [{"email": email} for email in emails]})
    renames = [("b@example.com", "zb@example.com"), ("h@example.com", "aa@example.com")]
    database = Database(Settings(), database_url)
    await database.open()
    exported = []
    async for lines in export.exported_users(database, 1, pytest.fail):
        exported += [json.loads(line)["email"] for line in lines]
        if renames:
            for email, new in renames:
                await client.call("renameUserByEmail", {"email": email, "newEmail": new})
            renames = []
    await database.close()
    assert exported == [ADMIN, *emails[:-1], "aa@example.com"]


async def test_tables_are_not_cut(officerpc: Any, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    long = "x" * 60 + "@" + "y" * 60 + ".example.com"
    await client.call("createUser", {"email": long, "displayName": "z" * 90})
    for command in (("list",), ("get", long)):
        whole = await officerpc("users", *command, *MINE)
        assert long in whole.out and "z" * 90 in whole.out
    narrow = await officerpc("users", "list", *MINE, COLUMNS="100")
    assert "\N{HORIZONTAL ELLIPSIS}" not in narrow.out and max(map(len, narrow.out.splitlines())) <= 100
    assert narrow.out.count("x") >= 60 and narrow.out.count("z") == 90


@pytest.mark.slow
@pytest.mark.damages
async def test_export_keeps_one_page_in_memory(officerpc_memory: Any, db: asyncpg.Connection) -> None:
    """Ten times the users take no more of it than a page does."""
    few_lines, few = await officerpc_memory()
    await db.execute(
        "INSERT INTO users (instance_id, id, email, email_key, display_name, profile, app_values, settings, apps)"
        " SELECT 1, n, 'user' || n || '@example.com', 'user' || n || '@example.com', 'User ' || n,"
        """ '{"title": "Dr."}', '{"timezone": "Asia/Bahrain"}', '{84,213,10,92}', '{0,0,0}'"""
        " FROM generate_series(2, 40001) AS n"
    )
    many_lines, many = await officerpc_memory()
    assert (few_lines, many_lines) == (1, 40001)
    assert many - few < 8 * 2**10, f"{few} KiB for one user, {many} KiB for 40,001"


@pytest.fixture
def officerpc_memory(database_url: str) -> Any:
    """Exports, and gives the lines and the most memory in KiB."""

    async def run() -> tuple[int, int]:
        code = (
            "import resource, sys\nfrom server.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, "users", "export", *MINE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"OFFICERPC_DATABASE_URL": database_url},
        )  # fmt: skip
        out, err = await process.communicate()
        return out.count(b"\n"), int(err.split()[-1])

    return run
