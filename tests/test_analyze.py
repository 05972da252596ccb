"""ANALYZE of tables that have grown tenfold, so that no session keeps plans for empty tables."""

from typing import Any

import asyncpg
import pytest
from conftest import Client, Serve, until

from server.base.settings import Settings
from server.postgres.analyze import analyze_grown
from server.postgres.db import Database

HASH = "$argon2id$v=19$m=19456,t=2,p=1$" + "A" * 22 + "$" + "A" * 43
RANGE = "INSERT INTO users (instance_id, id, email, email_key, display_name, profile, app_values, settings, apps) SELECT 1, n, n, n, '', '{}', '{}', '{}', '{}' FROM generate_series($1::int, $2::int) AS n"


async def create(client: Client, name: str, count: int) -> None:
    users = [{"email": f"{name}{number}@example.com", "passwordHash": HASH} for number in range(count)]
    await client.call("createUsers", {"users": users})


async def estimate(db: asyncpg.Connection, table: str = "users") -> float:
    """The rows that the planner thinks a table has; -1 before the first ANALYZE."""
    return float(await db.fetchval("SELECT reltuples FROM pg_class WHERE oid = $1::text::regclass", table))


@pytest.fixture
async def database(database_url: str) -> Any:
    database = Database(Settings(), database_url)
    await database.open()
    yield database
    await database.close()


@pytest.mark.slow
async def test_a_filling_database_is_analyzed_as_it_goes(serve: Serve, db: asyncpg.Connection) -> None:
    """Also within one worker, whose connections keep what they planned while there were no users."""
    client = await serve(pool_size=1)
    await create(client, "first", 1)
    for batch in range(1, 5):
        await create(client, f"batch{batch}-", 500)

    async def analyzed() -> bool:
        return await estimate(db) >= 200 and await estimate(db, "mailboxes") >= 200

    await until(analyzed)

    async def read_by_email() -> int:
        await db.execute("SELECT pg_stat_clear_snapshot()")
        return int(
            await db.fetchval(
                "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'users_email'"
            )
        )

    async def inserted() -> int:
        return int(await db.fetchval("SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'users'"))

    # Connections report what they did within some seconds: of all users so far, so that before is complete.
    await until(lambda: reported(inserted, 2001))
    before = await read_by_email()
    await create(client, "last", 500)
    await until(lambda: reported(inserted, 2501))
    # Each user has ten foreign keys to it. By users_email each of their checks would read all users of the instance.
    assert await read_by_email() - before < 500 * 10


async def reported(count: Any, enough: int) -> bool:
    return bool(await count() >= enough)


@pytest.mark.slow
@pytest.mark.damages
async def test_each_table_once_until_it_has_grown_tenfold(database: Database, db: asyncpg.Connection) -> None:
    assert await analyze_grown(database) == []
    await db.execute(RANGE, 1000, 1999)
    assert await analyze_grown(database) == ["users"]
    assert await estimate(db) == 1001
    await db.execute(RANGE, 2000, 6000)
    assert await analyze_grown(database) == []
    await db.execute(RANGE, 6001, 20000)
    assert await analyze_grown(database) == ["users"]


@pytest.mark.damages
async def test_after_a_restore(serve: Serve, db: asyncpg.Connection) -> None:
    """A restored database has rows and no statistics; the server's start is enough."""
    await db.execute(RANGE, 1000, 2999)
    await serve()

    async def analyzed() -> bool:
        return await estimate(db) >= 2000

    await until(analyzed)


@pytest.mark.damages
async def test_an_analyze_amid_a_transaction_is_not_the_last(
    database: Database, db: asyncpg.Connection, database_url: str
) -> None:
    """It sees pages and none of their rows: a table like that looks empty until its next ANALYZE."""
    other = await asyncpg.connect(database_url)
    transaction = other.transaction()
    await transaction.start()
    await other.execute(RANGE, 1000, 2999)
    assert await analyze_grown(database) == ["users"]
    assert await estimate(db) < 1000
    await transaction.commit()
    await other.close()  # which reports its rows

    async def analyzed() -> bool:
        return await analyze_grown(database) == ["users"]

    await until(analyzed)
    assert await estimate(db) == 2001


@pytest.mark.damages
async def test_a_role_that_owns_no_tables_has_it_done(
    database: Database, db: asyncpg.Connection, database_url: str
) -> None:
    name = f"serving_{abs(hash(database_url))}"
    await db.execute(RANGE, 1000, 2999)
    await db.execute(f"CREATE ROLE {name}")
    try:
        await db.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}")
        await db.execute(f"SET ROLE {name}")
        await db.fetchval("SELECT analyze_table('users')")
        await db.execute("RESET ROLE")
        assert await estimate(db) == 2001
    finally:
        await db.execute(f"RESET ROLE; DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.mark.slow
async def test_an_import_has_it_done(officerpc: Any, db: asyncpg.Connection, tmp_path: Any) -> None:
    """No server need be running."""
    lines = [f'{{"email":"u{number}@example.com","passwordHash":"{HASH}"}}\n' for number in range(3000)]
    file = tmp_path / "users.jsonl"
    file.write_text("".join(lines))
    done = await officerpc("users", "import", str(file), "--instance", "MYINSTANCE")
    assert done.status == 0, done.err
    assert await estimate(db) >= 200
