"""Events: every change has one, in its transaction, and events cannot be changed."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from conftest import FAST_HASHES, Client, Serve, until

from server.base.settings import Settings
from server.cli.session import Session
from server.directory.upkeep import purge_expired
from server.postgres.queries import load_queries
from server.serving.bootstrap import bootstrap
from server.tenants.keys import new_key


async def test_a_change_is_written_down(client: Client, db: asyncpg.Connection) -> None:
    """Who, what, when, from where, for which request: and without the password."""
    async with await client.post(
        {"method": "createUser", "params": {"email": "jane@example.com", "password": "Sesame-4711"}},
        headers={"X-Request-Id": "order-17"},
    ) as response:
        assert response.status == 200
    row = await db.fetchrow("SELECT * FROM events ORDER BY xid DESC, place LIMIT 1")
    assert (row["type"], row["user_id"], row["method"]) == ("user.created", 2, "createUser")
    assert (row["instance_id"], row["request_id"], row["address"]) == (1, "order-17", "127.0.0.1")
    assert row["key_name"] and row["key_id"] > 0
    assert "Sesame" not in str(dict(row))


async def test_nothing_is_written_down_for_what_was_refused(client: Client, db: asyncpg.Connection) -> None:
    before = await db.fetchval("SELECT count(*) FROM events")
    await client.outcome("createUser", {"email": "admin@example.com"})
    await client.outcome("updateUserByEmail", {"email": "nobody@example.com", "isActive": False})
    await client.call("getUserByEmail", {"email": "admin@example.com"})
    assert await db.fetchval("SELECT count(*) FROM events") == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET key_name = 'somebody else'",
        "DELETE FROM events",
        "TRUNCATE events",
        "UPDATE events SET created_at = now() - interval '2 years'",
    ],
)
async def test_what_happened_cannot_be_altered(
    statement: str, client: Client, db: asyncpg.Connection
) -> None:
    """Security 30: not even by the role that owns the tables."""
    await client.call("createUser", {"email": "jane@example.com"})
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="events are not altered"):
        await db.execute(statement)


async def test_a_restored_dump_goes_on_behind_its_last_event(
    client: Client, database_url: str, db: asyncpg.Connection
) -> None:
    """A cluster of its own numbers its transactions anew; the next start of a server mends that."""
    await db.execute(
        "INSERT INTO events (instance_id, xid, place, type, method, key_id, key_name, request_id)"
        " SELECT 1, (event_xid()::text::bigint + 5000 + n)::text::xid8, 1, 'user.created', 'x', 1, 'x', 'x'"
        " FROM generate_series(1, 50) AS n"
    )
    last = await db.fetchval("SELECT max(xid::text::bigint) FROM events")
    mend = load_queries()["mend_event_clock"].sql
    assert await db.fetchval(mend) > 5000
    assert await db.fetchval(mend) is None
    await client.call("createUser", {"email": "jane@example.com"})
    assert await db.fetchval("SELECT max(xid::text::bigint) FROM events") > last
    seen = (await client.call("listChanges", {"limit": 100}))["events"]
    assert len(seen) >= 51 and seen[-1]["data"]["after"]["email"] == "jane@example.com"


async def nodes(db: asyncpg.Connection, statement: str) -> list[dict[str, Any]]:
    """Every node of a statement's plan."""
    (plan,) = json.loads(await db.fetchval(f"EXPLAIN (FORMAT JSON) {statement}"))
    found, waiting = [], [plan["Plan"]]
    while waiting:
        node = waiting.pop()
        found.append(node)
        waiting += node.get("Plans", [])
    return found


@pytest.mark.damages
async def test_a_start_looks_through_no_events(client: Client, db: asyncpg.Connection) -> None:
    """One probe of the primary key an instance, or else a server with many events would not start again."""
    await db.execute(
        "INSERT INTO instances (name, title) SELECT 'i' || n, '' FROM generate_series(1, 100) AS n"
    )
    await db.execute(
        "INSERT INTO events (instance_id, xid, place, type, method, key_id, key_name, request_id, created_at)"
        " SELECT n % 100, event_xid(), n, 'user.created', 'x', 1, 'x', 'x', now() - n * interval '1 second'"
        " FROM generate_series(1, 20000) AS n"
    )
    await db.execute("VACUUM ANALYZE events, instances")
    plan = await nodes(db, load_queries()["mend_event_clock"].sql)
    assert not [node for node in plan if "Sort" in node["Node Type"]]
    looks = [node for node in plan if node.get("Relation Name") == "events"]
    assert len(looks) == 2  # of all instances, and of what belongs to none
    for looked in looks:
        assert (looked["Index Name"], looked["Node Type"]) == ("events_pkey", "Index Only Scan")
        assert "instance_id" in looked["Index Cond"]


@pytest.mark.parametrize("instance_id", [0, 2])
async def test_the_last_event_may_be_any_instances(
    instance_id: int, client: Client, other: Client, db: asyncpg.Connection
) -> None:
    await db.execute(
        "INSERT INTO events (instance_id, xid, place, type, method, key_id, key_name, request_id, created_at)"
        " SELECT $1, (event_xid()::text::bigint + 5000)::text::xid8, 1, 'x', 'x', 1, 'x', 'x', now() - interval '1 day'",
        instance_id,
    )
    last = await db.fetchval("SELECT max(xid::text::bigint) FROM events")
    assert await db.fetchval(load_queries()["mend_event_clock"].sql) is not None
    await client.call("createUser", {"email": "jane@example.com"})
    assert await db.fetchval("SELECT max(xid::text::bigint) FROM events") > last


@pytest.mark.slow
@pytest.mark.damages
async def test_the_retention_looks_at_no_user_whose_time_has_not_come(
    client: Client, db: asyncpg.Connection
) -> None:
    """However many deleted users are kept for longer."""
    await db.execute(
        "INSERT INTO users (instance_id, id, email, email_key, display_name, profile, app_values, settings, apps, deleted_at)"
        " SELECT 1, n, n || '@example.com', n || '@example.com', '', '{}', '{}', '{}', '{}', now() - n * interval '1 second'"
        " FROM generate_series(2, 20000) AS n"
    )
    await db.execute("VACUUM ANALYZE users")
    await db.execute("SET plan_cache_mode = force_generic_plan")
    query = load_queries()["hold_retained_users"]
    assert query.params == ("instance_id", "default_days", "row_limit")
    await db.execute(f"PREPARE purge AS {query.sql}")
    looked = [node for node in await nodes(db, "EXECUTE purge (1, 30, 500)") if node.get("Alias") == "u"]
    assert [(node["Index Name"], "deleted_at" in node["Index Cond"]) for node in looked] == [
        ("users_deleted_since", True)
    ]


async def test_no_setting_silences_what_keeps_events(client: Client, db: asyncpg.Connection) -> None:
    await client.call("createUser", {"email": "jane@example.com"})
    await db.execute("SET session_replication_role = replica")
    for statement in ("UPDATE events SET key_name = 'x'", "DELETE FROM events", "TRUNCATE events"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="events are not altered"):
            await db.execute(statement)


@pytest.fixture
async def app_role(db: asyncpg.Connection, database_url: str) -> AsyncIterator[str]:
    """The URL of a role that owns no tables, made as scripts/deploy/role.sql says."""
    await db.execute("CREATE ROLE officerpc_app LOGIN")
    await db.execute((Path(__file__).parent.parent / "scripts" / "deploy" / "role.sql").read_text())
    parts = urlsplit(database_url)
    yield parts._replace(netloc=f"officerpc_app:{parts.password or ''}@{parts.hostname or ''}").geturl()
    await db.execute("DROP OWNED BY officerpc_app")
    await db.execute("DROP ROLE officerpc_app")


async def test_a_role_that_owns_no_tables_serves(
    app_role: str, serve: Serve, officerpc: Any, database_url: str, db: asyncpg.Connection, tmp_path: Path
) -> None:
    """And it can neither alter events, nor take away what keeps them, nor migrate."""
    assert (await officerpc("migrate", "--json", OFFICERPC_DATABASE_URL=app_role)).json == {"applied": []}
    session = Session(Settings(**FAST_HASHES, data_dir=tmp_path), app_role)
    await session.database.open()
    key = await bootstrap(session.settings, session.database, session.dispatcher, new_key())
    assert key is not None
    client = (await serve(url=app_role)).using(key)
    jane = {"email": "jane@example.com"}
    await client.call("createUser", jane | {"password": "demo1234"})
    await client.call("createUsers", {"users": [{"email": "ann@example.com"}]})
    await client.call("updateUserByEmail", jane | {"displayName": "J.", "avatar": "https://example.com/a"})
    await client.call("updateProfile", {"id": 2, "profile": {"firstname": "Jane"}})
    await client.call("login", jane | {"password": "demo1234"})
    await client.call("createGroup", {"name": "Sales"})
    await client.call("createWebhook", {"url": "https://hooks.example.com/"})
    await client.call("createApiKey", {"name": "shop", "scopes": ["users:read"]})
    await client.call("deleteUserByEmail", jane)
    assert len((await client.call("listAuditEvents"))["events"]) > 8

    async def done() -> bool:
        return not await db.fetchval("SELECT count(*) FROM documents WHERE result IS NULL")

    await until(done)  # by the queue
    await db.execute("UPDATE users SET deleted_at = now() - interval '1 year' WHERE deleted_at IS NOT NULL")
    await db.execute(
        "INSERT INTO events (instance_id, place, type, method, key_id, key_name, request_id, created_at)"
        " VALUES (1, 1, 'user.created', 'x', 1, 'x', 'x', now() - interval '367 days')"
    )
    gone = await purge_expired(session.database, session.settings)
    assert (gone["users"], gone["events"]) == (1, 1)
    session.hasher.close()
    await session.database.close()

    await db.execute("CREATE TABLE of_a_later_version (id bigint)")
    app = await asyncpg.connect(app_role)
    await app.execute("INSERT INTO of_a_later_version VALUES (1)")
    for statement in (
        "UPDATE events SET key_name = 'x'", "DELETE FROM events", "TRUNCATE events", "DROP TABLE events",
        "ALTER TABLE events DISABLE TRIGGER ALL", "SET session_replication_role = replica",
        "DELETE FROM schema_migrations",
        "CREATE OR REPLACE FUNCTION refuse_to_alter_events() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN old; END'",
    ):  # fmt: skip
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match=r"permission denied|must be owner"):
            await app.execute(statement)
    await app.close()
    await db.execute(
        "DELETE FROM schema_migrations WHERE version = (SELECT max(version) FROM schema_migrations)"
    )
    refused = await officerpc("migrate", OFFICERPC_DATABASE_URL=app_role)
    assert refused.status == 1 and "as the role that owns the tables" in refused.err
    assert "Traceback" not in refused.err


def test_one_writer() -> None:
    """Events are written by events/emit.py, and by the statement that creates users."""
    root = Path(__file__).parents[1]
    writers = [path.name for path in (root / "server").rglob("*.py") if "insert_events" in path.read_text()]
    assert writers == ["emit.py"]
    statements = [query.name for query in load_queries().values() if "INSERT INTO events" in query.sql]
    assert sorted(statements) == ["create_users", "insert_events"]
