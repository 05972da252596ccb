"""Health, metrics, logs and background tasks."""

import asyncpg
import pytest
from conftest import ADMIN, Client, Log, Serve, database_named

from server.base.errors import Unavailable
from server.base.settings import Settings
from server.directory.upkeep import PurgeIncomplete, purge_expired
from server.postgres.db import Database


async def test_health(client: Client) -> None:
    for path, answer in (("/livez", {"status": "alive"}), ("/readyz", {"status": "ready"})):
        async with client.http.get(client.url + path) as response:
            assert (response.status, await response.json()) == (200, answer)


async def test_metrics(client: Client) -> None:
    await client.call("getUserByEmail", {"email": ADMIN})
    await client.outcome("getUserByEmail", {"email": "nobody@example.com"})
    await client.outcome("dropTables")
    await client.using("wrong").outcome("getUserByEmail")
    async with client.http.get(client.url + "/metrics") as response:
        assert response.content_type == "text/plain"
        text = await response.text()
    assert 'officerpc_calls_total{code="ok",method="getUserByEmail"} 1.0' in text
    assert 'officerpc_calls_total{code="not_found",method="getUserByEmail"} 1.0' in text
    assert 'officerpc_calls_total{code="unknown_method",method="unknown"} 1.0' in text
    assert 'officerpc_refusals_total{code="unauthenticated",wire="rpc"} 1.0' in text
    assert 'officerpc_call_seconds_count{method="getUserByEmail"} 2.0' in text


async def test_a_call_is_one_line_of_the_log(client: Client, logged: Log) -> None:
    await client.call("getUserByEmail", {"email": ADMIN}, headers={"X-Request-Id": "order-1"})
    (entry,) = [entry for entry in logged.lines() if entry["event"] == "call"]
    assert entry["request_id"] == "order-1"
    assert (entry["method"], entry["code"], entry["instance"]) == ("getUserByEmail", "ok", "MYINSTANCE")
    assert ADMIN not in logged.text.decode()


async def test_what_has_had_its_time_is_purged(
    client: Client, serve: Serve, db: asyncpg.Connection, database_url: str
) -> None:
    """Users by the retention of their instance, or the server's; sessions and codes by their expiry; answers
    kept for retries after a day; and what the queue leaves: documents after a week, parked jobs after a month."""
    for name in ("old", "recent", "living"):
        await client.call("createUser", {"email": f"{name}@example.com", "password": "demo1234"})
        await client.call("login", {"email": f"{name}@example.com", "password": "demo1234"})
    for name in ("old", "recent"):
        await client.call("deleteUserByEmail", {"email": f"{name}@example.com"})
    await db.execute(
        "UPDATE users SET deleted_at = now() - interval '31 days' WHERE email_key = 'old@example.com'"
    )
    await db.execute(
        "UPDATE users SET deleted_at = now() - interval '29 days' WHERE email_key = 'recent@example.com'"
    )
    await db.execute("UPDATE sessions SET expires_at = now() - interval '1 second'")
    for age in (1, 8, 31):
        await db.execute(
            "WITH code AS (INSERT INTO codes (instance_id, digest, user_id, purpose, expires_at)"
            " VALUES (1, $1::text::bytea, 1, 'reset', now() + make_interval(days => 2 - $2))),"
            " document AS (INSERT INTO documents (instance_id, id, entity, action, user_id, created_at)"
            " VALUES (1, gen_random_uuid(), 'user', 'x', 1, now() - make_interval(days => $2))),"
            " answer AS (INSERT INTO idempotency_keys (instance_id, key_id, name, request, created_at)"
            " VALUES (1, 1, $1::text::bytea, '', now() - make_interval(days => $2, mins => -1)))"
            " INSERT INTO jobs (instance_id, kind, state, due_at)"
            " VALUES (0, 'x', 'parked', now() - make_interval(days => $2)),"
            " (0, 'x', 'waiting', now() - make_interval(days => $2))",
            str(age),
            age,
        )
    settings = Settings()
    database = Database(settings, database_url)
    await database.open()
    gone = {
        "users": 1, "sessions": 1, "plans": 0, "codes": 2, "answers": 2, "login_failures": 0, "documents": 2,
        "jobs": 1, "events": 0, "deliveries": 0, "deliveries_of_deleted": 0,
        "webhooks": 0, "secrets": 0,
    }  # fmt: skip
    assert await purge_expired(database, settings) == gone
    nothing = dict.fromkeys(gone, 0)
    assert await purge_expired(database, settings) == nothing
    assert await db.fetchval("SELECT count(*) FROM jobs") == 5
    await db.execute("""UPDATE instances SET settings = settings || '{"retentionDays": 7}'""")
    assert await purge_expired(database, settings) == nothing | {"users": 1}
    assert await db.fetchval("SELECT count(*) FROM users") == 2
    await database.close()


async def test_a_purge_goes_on_after_an_error(
    client: Client, other: Client, db: asyncpg.Connection, database_url: str, logged: Log
) -> None:
    """Of an instance or a statement, here as of statement_timeout; whoever called it knows afterwards."""
    for tenant in (client, other):
        await tenant.call("createUser", {"email": "old@example.com", "password": "demo1234"})
        await tenant.call("deleteUserByEmail", {"email": "old@example.com"})
        await tenant.call("createUser", {"email": "new@example.com", "password": "demo1234"})
        await tenant.call("login", {"email": "new@example.com", "password": "demo1234"})
    await db.execute("UPDATE users SET deleted_at = now() - interval '31 days' WHERE deleted_at IS NOT NULL")
    await db.execute("UPDATE sessions SET expires_at = now() - interval '1 second'")
    await db.execute(
        "INSERT INTO codes (instance_id, digest, user_id, purpose, expires_at)"
        " SELECT n, 'x', 1, 'reset', now() - interval '1 second' FROM generate_series(1, 2) AS n"
    )
    await db.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN RAISE EXCEPTION 'too slow' USING ERRCODE = 'query_canceled'; END $$"
    )
    for table, which in (("users", "old.instance_id = 1"), ("sessions", "true")):
        await db.execute(
            f"CREATE TRIGGER fails BEFORE DELETE ON {table} FOR EACH ROW WHEN ({which}) EXECUTE FUNCTION fail()"
        )
    settings = Settings()
    database = Database(settings, database_url)
    await database.open()
    with pytest.raises(PurgeIncomplete, match="users, sessions") as failure:
        await purge_expired(database, settings)
    assert failure.value.failed == {"users": 1, "sessions": 1}
    assert {what: number for what, number in failure.value.gone.items() if number} == {"users": 1, "codes": 2}
    failed = [line for line in logged.lines() if line["event"] == "purge_failed"]
    assert [(line["step"], line.get("instance_id")) for line in failed] == [("users", 1), ("sessions", None)]
    assert all("57014" in line["cause"] for line in failed)
    await db.execute("DROP TRIGGER fails ON users; DROP TRIGGER fails ON sessions")
    gone = await purge_expired(database, settings)
    assert {what: number for what, number in gone.items() if number} == {"users": 1, "sessions": 2}
    await database.close()


async def test_a_purge_ends_when_the_database_is_away(postgres_url: str, logged: Log) -> None:
    """The other steps would fail too."""
    settings = Settings()
    database = Database(settings, database_named(postgres_url, "no_such_database"))
    await database.open()
    with pytest.raises(Unavailable):
        await purge_expired(database, settings)
    assert [line["step"] for line in logged.lines() if line["event"] == "purge_failed"] == ["users"]
    await database.close()
