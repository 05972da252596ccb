"""officerpc distribute and instances place: make test-citus."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import cluster
import pytest
from conftest import FAST_HASHES, until
from processes import Command, Finished

from server.base.settings import Settings
from server.postgres import citus, distribution, placement
from server.postgres.distribution import DistributionError, Progress
from server.postgres.migrations import Migration, MigrationError, load_migrations, migrate
from server.serving.app import build
from server.tenants.call import RequestContext
from server.tenants.principals import OPERATOR

FOREIGN_KEYS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated
FROM pg_constraint WHERE contype = 'f' AND conrelid::regclass::text = any($1) ORDER BY 1, 2
"""
TABLES = [*citus.REFERENCE_TABLES, *citus.TENANT_TABLES]


@pytest.fixture
async def url(migrated_url: str) -> str:
    """A migrated database with three instances of two users."""
    database, _, hasher, dispatcher = build(Settings(**FAST_HASHES), migrated_url)
    await database.open()
    for name in ("ACME", "BETA", "GAMMA"):
        made = {"name": name, "admin": {"email": f"boss@{name}.example"}}
        await dispatcher.call(OPERATOR, "createInstance", made, RequestContext("test"))
        made = {"instance": name, "email": f"jane@{name}.example"}
        await dispatcher.call(OPERATOR, "createUser", made, RequestContext("test"))
    hasher.close()
    dispatcher.pictures.close()
    await database.close()
    return migrated_url


@pytest.fixture
async def prepared(url: str, citus_ports: list[int]) -> str:
    """The same with the extension and the workers."""
    await cluster.prepare(citus_ports, urlsplit(url).path[1:])
    return url


@pytest.fixture
async def coordinator(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


@pytest.fixture
def officerpc(url: str, tmp_path: Path) -> Any:
    """Runs `officerpc ...` on the database."""

    async def run(*words: str, **settings: str) -> Finished:
        return await Command(
            words, os.environ | {"OFFICERPC_DATABASE_URL": url} | settings, tmp_path
        ).finished()

    return run


async def state(connection: asyncpg.Connection) -> dict[str, Any]:
    """The foreign keys and the rows."""
    keys = [tuple(row) for row in await connection.fetch(FOREIGN_KEYS, TABLES)]
    rows = {table: await connection.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}
    return {"keys": keys, "rows": rows}


async def placed(connection: asyncpg.Connection) -> dict[str, str]:
    """The kind of each table that Citus knows."""
    rows = await connection.fetch(
        "SELECT table_name::text AS name, citus_table_type AS kind FROM citus_tables"
    )
    return {row["name"]: row["kind"] for row in rows}


EVERYTHING = dict.fromkeys(citus.REFERENCE_TABLES, "reference") | dict.fromkeys(
    citus.TENANT_TABLES, "distributed"
)


async def test_distribute(prepared: str, coordinator: asyncpg.Connection, officerpc: Any) -> None:
    """It shows the plan, and each table with its rows; then there is nothing to do."""
    before = await state(coordinator)
    planned = (await officerpc("distribute", "--dry-run", "--json")).json
    rows = {step["name"]: step["rows"] for step in planned["steps"] if step["rows"] is not None}
    assert rows == before["rows"] and rows["users"] == 6
    assert len(planned["nodes"]) == 2 and not planned["resumed"]
    assert await placed(coordinator) == {}
    shown = await officerpc("distribute", "--dry-run")
    assert shown.status == 0 and "distribute by instance_id  users" in shown.out

    done = await officerpc("distribute")
    assert done.status == 0, done.err
    assert "done: distribute by instance_id: users, 6 rows" in done.err
    assert done.out.splitlines()[-1] == f"distributed over {', '.join(planned['nodes'])}"
    assert await placed(coordinator) == EVERYTHING
    assert await state(coordinator) == before
    again = await officerpc("distribute")
    assert (again.status, again.out) == (0, "the database is distributed, nothing to do\n")
    assert (await officerpc("distribute", "--json")).json["done"] == []
    assert (await officerpc("migrate", "--json")).json == {"applied": []}


async def test_an_interrupted_run_is_continued(prepared: str, coordinator: asyncpg.Connection) -> None:
    """Wherever it was interrupted. Until it has finished, migrate and serve refuse the database."""
    before = await state(coordinator)
    left = 5
    runs = 0

    def interrupt(progress: Progress) -> None:
        nonlocal left
        left -= progress.is_done
        if left < 0:
            raise KeyboardInterrupt

    while True:
        runs += 1
        # Dropping all foreign keys is one step.
        left = 6 if runs > 1 else len(before["keys"])
        try:
            await distribution.distribute(coordinator, load_migrations(), interrupt)
            break
        except KeyboardInterrupt:
            with pytest.raises(MigrationError, match="officerpc distribute again"):
                await migrate(coordinator, load_migrations())
            assert (await distribution.plan(coordinator, load_migrations())).is_resumed
    assert runs > 8
    assert await placed(coordinator) == EVERYTHING
    assert await state(coordinator) == before
    assert await migrate(coordinator, load_migrations()) == []


async def test_a_process_that_is_killed_while_it_distributes(
    prepared: str, coordinator: asyncpg.Connection, officerpc: Any, url: str, tmp_path: Path
) -> None:
    """The table at which it was is as it was before."""
    before = await state(coordinator)
    async with coordinator.transaction():
        await coordinator.execute("LOCK TABLE events IN ROW EXCLUSIVE MODE")  # in the middle
        command = Command(("distribute",), os.environ | {"OFFICERPC_DATABASE_URL": url}, tmp_path)
        async with asyncio.timeout(60):
            while not await coordinator.fetchval(
                "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'events'::regclass)"
            ):
                await asyncio.sleep(0.1)
        command.process.kill()
        command.process.wait()
    assert "users" in await placed(coordinator) and "events" not in await placed(coordinator)
    refused = await officerpc("migrate")
    assert refused.status == 1 and "officerpc distribute again" in refused.err
    done = await officerpc("distribute", "--json")
    assert done.status == 0, done.err
    assert done.json["resumed"]
    assert await state(coordinator) == before


async def test_what_is_unknown_is_refused(
    prepared: str, coordinator: asyncpg.Connection, officerpc: Any
) -> None:
    """By name, before anything is changed."""
    await coordinator.execute(
        """
        CREATE TABLE reports (instance_id bigint, id bigint, PRIMARY KEY (instance_id, id));
        CREATE FUNCTION monthly(day date) RETURNS date LANGUAGE sql AS 'SELECT day';
        CREATE FUNCTION notice() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
        CREATE TRIGGER noticed AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION notice();
        CREATE SCHEMA crm;
        CREATE TABLE crm.customers (user_id bigint, tenant bigint,
            CONSTRAINT customers_user FOREIGN KEY (tenant, user_id) REFERENCES users (instance_id, id));
        ALTER TABLE webhooks ADD CONSTRAINT webhooks_clock FOREIGN KEY (id) REFERENCES heartbeats (id);
        """
    )
    refused = await officerpc("distribute")
    assert refused.status == 1
    assert refused.err == (
        "officerpc: not known to this officerpc: table reports, function monthly(date), function notice(),"
        " trigger noticed of users, foreign key customers_user of crm.customers, foreign key webhooks_clock of"
        " webhooks: drop them or move them to another schema\n"
    )
    assert await placed(coordinator) == {}
    await coordinator.execute(
        "DROP TABLE reports, crm.customers; DROP TRIGGER noticed ON users; DROP FUNCTION monthly(date), notice();"
        "ALTER TABLE webhooks DROP CONSTRAINT webhooks_clock"
    )
    await distribution.plan(coordinator, load_migrations())


async def test_what_must_be_there(
    url: str, coordinator: asyncpg.Connection, citus_ports: list[int], officerpc: Any
) -> None:
    """The extension, the coordinator, its address, a worker, all migrations, and no servers."""
    name = urlsplit(url).path[1:]
    refused = await officerpc("distribute")
    assert refused.status == 1 and "no extension citus" in refused.err
    await cluster.everywhere(
        citus_ports, *(f"CREATE EXTENSION IF NOT EXISTS {one}" for one in cluster.EXTENSIONS), database=name
    )
    with pytest.raises(DistributionError, match="citus_set_coordinator_host"):
        await distribution.plan(coordinator, load_migrations())
    await coordinator.execute("SELECT citus_set_coordinator_host('127.0.0.1', $1)", citus_ports[0])
    with pytest.raises(DistributionError, match="no worker"):
        await distribution.plan(coordinator, load_migrations())
    await cluster.prepare(citus_ports, name)
    worker = await asyncpg.connect(cluster.address(citus_ports[1], name))
    with pytest.raises(DistributionError, match="connect to the coordinator"):
        await distribution.plan(worker, load_migrations())
    await worker.close()
    await coordinator.execute("DELETE FROM schema_migrations WHERE name = 'citus'")
    with pytest.raises(DistributionError, match="not migrated: citus: run officerpc migrate first"):
        await distribution.plan(coordinator, load_migrations())
    citus_migration = next(one for one in load_migrations() if one.name == "citus")
    await coordinator.execute(
        "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
        citus_migration.version, citus_migration.name, citus_migration.checksum,
    )  # fmt: skip
    server = await asyncpg.connect(url, server_settings={"application_name": "officerpc"})
    refused = await officerpc("distribute")
    assert refused.status == 1 and "1 connections of officerpc are open" in refused.err
    await server.close()
    assert await placed(coordinator) == {}


# --- migrations of a distributed database -------------------------------------------------------------

NOTES = Migration(
    9000,
    "notes",
    "x",
    (
        "CREATE TABLE notes (instance_id bigint NOT NULL, id bigint NOT NULL, user_id bigint NOT NULL, text text,"
        " CONSTRAINT notes_pkey PRIMARY KEY (instance_id, id))",
        "ALTER TABLE notes ADD CONSTRAINT notes_user FOREIGN KEY (instance_id, user_id)"
        " REFERENCES users (instance_id, id) ON DELETE CASCADE",
        "CREATE TABLE tariffs (id bigint PRIMARY KEY)",
        "ALTER TABLE users ADD COLUMN note_count integer NOT NULL DEFAULT 0",
        "CREATE INDEX users_notes ON users (instance_id, note_count)",
        "CREATE FUNCTION short(words text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT left(words, 9) $$",
        "INSERT INTO notes SELECT instance_id, 1, id, email FROM users WHERE id = 1",
        "UPDATE users SET note_count = 1 WHERE id = 1",
    ),
)


@pytest.fixture
def with_notes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if this program knew the tables and the function of NOTES."""
    monkeypatch.setattr(citus, "TENANT_TABLES", (*citus.TENANT_TABLES, "notes"))
    monkeypatch.setattr(citus, "REFERENCE_TABLES", (*citus.REFERENCE_TABLES, "tariffs"))
    monkeypatch.setattr(citus, "NODE_FUNCTIONS", (*citus.NODE_FUNCTIONS, "short(text)"))
    monkeypatch.setitem(citus._KINDS, "notes", "tenant")
    monkeypatch.setitem(citus._KINDS, "tariffs", "reference")
    yield


@pytest.mark.usefixtures("with_notes")
async def test_a_migration_of_a_distributed_database(prepared: str, coordinator: asyncpg.Connection) -> None:
    """Its new tables and functions are placed in its transaction, before its next statement."""
    await distribution.distribute(coordinator, load_migrations())
    assert await migrate(coordinator, [*load_migrations(), NOTES]) == ["notes"]
    assert await placed(coordinator) == EVERYTHING | {"notes": "distributed", "tariffs": "reference"}
    assert await coordinator.fetchval("SELECT count(*) FROM notes") == 3
    assert await coordinator.fetchval("SELECT short(text) FROM notes WHERE instance_id = 2") == "boss@beta"
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await coordinator.execute("INSERT INTO notes VALUES (2, 2, 99, '')")
    assert (await distribution.plan(coordinator, [*load_migrations(), NOTES])).steps == []


@pytest.mark.usefixtures("with_notes")
async def test_a_migration_that_fails_leaves_nothing_behind(
    prepared: str, coordinator: asyncpg.Connection
) -> None:
    await distribution.distribute(coordinator, load_migrations())
    failing = NOTES._replace(statements=(*NOTES.statements, "SELECT 1/0"))
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(coordinator, [*load_migrations(), failing])
    assert await placed(coordinator) == EVERYTHING
    assert await migrate(coordinator, [*load_migrations(), NOTES]) == ["notes"]


async def test_every_later_migration_runs_on_a_distributed_database(citus_ports: list[int]) -> None:
    """Those after the first one that Citus can run. The schema is then the same as if it was distributed last."""
    migrations = load_migrations()
    schemas = []
    for count in (25, len(migrations)):
        name = f"test_later_{count}"
        await cluster.everywhere(citus_ports, f"CREATE DATABASE {name}")
        db = await asyncpg.connect(cluster.address(citus_ports[0], name))
        await migrate(db, migrations[:count])
        await cluster.prepare(citus_ports, name)
        await distribution.distribute(db, migrations[:count])
        assert len(await migrate(db, migrations)) == len(migrations) - count
        assert (await distribution.plan(db, migrations)).steps == []
        assert await placed(db) == EVERYTHING
        indexes = await db.fetch(
            "SELECT indexdef FROM pg_indexes WHERE tablename = any($1) ORDER BY 1", TABLES
        )
        columns = await db.fetch(
            "SELECT table_name, column_name, data_type FROM information_schema.columns"
            " WHERE table_name = any($1) ORDER BY 1, 2",
            TABLES,
        )
        keys = await db.fetch(FOREIGN_KEYS, TABLES)
        schemas.append(json.dumps([[str(row) for row in rows] for rows in (indexes, columns, keys)]))
        await db.close()
    assert schemas[0] == schemas[1]


# --- officerpc instances place ------------------------------------------------------------------------


@pytest.fixture
async def distributed(prepared: str, coordinator: asyncpg.Connection) -> str:
    """The same, distributed."""
    await distribution.distribute(coordinator, load_migrations())
    return prepared


async def test_place(distributed: str, coordinator: asyncpg.Connection, officerpc: Any) -> None:
    """On a shard of its own, then on another node, with all its rows and the triggers of its events."""
    before = await state(coordinator)
    planned = await officerpc("instances", "place", "BETA", "--dry-run", "--json")
    assert planned.status == 0, planned.err
    assert planned.json["steps"] == ["isolate"] and planned.json["from"] == planned.json["to"]
    assert planned.json["rows"]["users"] == 2 and planned.json["bytes"] > 0
    here = planned.json["from"]
    nodes = await coordinator.fetch(
        "SELECT nodename || ':' || nodeport AS name FROM pg_dist_node WHERE shouldhaveshards"
    )
    (other,) = {row["name"] for row in nodes} - {here}

    moved = await officerpc("instances", "place", "BETA", "--node", other, "--json")
    assert moved.status == 0, moved.err
    assert moved.json["steps"] == ["isolate", "move"] and moved.json["to"] == other
    alone = (await officerpc("instances", "place", "BETA", "--node", other)).out
    assert alone == f"BETA is on a shard of its own on {other}, nothing to do\n"
    back = await officerpc("instances", "place", "BETA", "--node", here)
    assert back.status == 0 and f"BETA is now on a shard of its own on {here}" in back.out
    assert await state(coordinator) == before
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await coordinator.execute("UPDATE events SET type = 'x' WHERE instance_id = 2")


async def test_place_refuses(
    url: str, coordinator: asyncpg.Connection, citus_ports: list[int], officerpc: Any
) -> None:
    """An instance or a node that does not exist, and a database that is not distributed."""
    early = await officerpc("instances", "place", "BETA")
    assert (early.status, early.err) == (
        1, "officerpc: the database is not distributed: see officerpc distribute\n"
    )  # fmt: skip
    await cluster.prepare(citus_ports, urlsplit(url).path[1:])
    await distribution.distribute(coordinator, load_migrations())
    nobody = await officerpc("instances", "place", "NOBODY")
    assert (nobody.status, nobody.err) == (1, "officerpc: there is no instance NOBODY\n")
    nowhere = await officerpc("instances", "place", "BETA", "--node", "192.0.2.1:5432")
    assert (
        nowhere.status == 1
        and "192.0.2.1:5432 is no node for tenants: choose one of 127.0.0.1:" in nowhere.err
    )
    several = await officerpc("instances", "place", "BETA", "--node", "127.0.0.1")
    assert several.status == 1 and "127.0.0.1 has several nodes" in several.err


# --- the feed while a shard moves ---------------------------------------------------------------------

WRITERS = 16


async def test_the_feed_skips_nothing_while_a_shard_moves(
    distributed: str, coordinator: asyncpg.Connection
) -> None:
    """Sixteen writers create users while the shard of their instance is moved to another node and back.

    A reader that follows the feed sees every user once, in the order in which each writer created them, and what a
    later reader sees. No call fails.
    """
    database, _, hasher, dispatcher = build(Settings(**FAST_HASHES, pool_size=WRITERS + 8), distributed)
    await database.open()
    is_moving = is_writing = True
    context = RequestContext("test")

    async def call(method: str, **params: Any) -> Any:
        return await dispatcher.call(OPERATOR, method, {"instance": "BETA"} | params, context)

    async def write(writer: int) -> list[int]:
        made: list[int] = []
        while is_moving:
            made.append((await call("createUser", email=f"u{len(made)}@w{writer}.example"))["id"])
        return made

    async def read(cursor: str | None = None) -> tuple[list[str], list[int]]:
        """The ids of all events from here on, and of the users that they say were created."""
        events: list[str] = []
        users: list[int] = []
        is_last = False
        while True:
            page = await call("listChanges", cursor=cursor, limit=7)
            cursor = page["cursor"]
            events += [event["data"]["id"] for event in page["events"]]
            users += [event["data"]["userId"] for event in page["events"] if event["type"] == "user.created"]
            if not page["more"]:
                if is_last:
                    return events, users
                is_last = not is_writing
                await asyncio.sleep(0.01)

    rows = await coordinator.fetch(
        "SELECT nodename || ':' || nodeport AS name FROM pg_dist_node WHERE shouldhaveshards"
    )
    await placement.place(coordinator, 2, None, lambda: asyncpg.connect(distributed))
    writers = [asyncio.create_task(write(number)) for number in range(WRITERS)]
    reader = asyncio.create_task(read())
    here = (await placement.plan(coordinator, 2, None)).node
    (other,) = {row["name"] for row in rows} - {here}

    async def moved(node: str) -> Any:
        # While an open transaction has read the shard of before, Citus cannot remove it, and refuses another move.
        with contextlib.suppress(asyncpg.InternalServerError):
            return await placement.place(coordinator, 2, node, lambda: asyncpg.connect(distributed))

    for node in (other, here):
        move = await until(lambda node=node: moved(node))  # type: ignore[misc]
        assert move.steps == ["move"]
    is_moving = False
    made = await asyncio.gather(*writers)
    is_writing = False
    followed, users = await reader
    later, _ = await read()
    hasher.close()
    dispatcher.pictures.close()
    await database.close()

    assert all(len(by_writer) > 3 for by_writer in made)
    assert followed == later and len(set(followed)) == len(followed)
    assert sorted(users) == sorted([1, 2, *(user for by_writer in made for user in by_writer)])
    place = {user: number for number, user in enumerate(users)}
    for by_writer in made:
        assert by_writer == sorted(by_writer, key=place.__getitem__)
    assert (await placement.plan(coordinator, 2, None)).placement.rows["users"] == len(users)
