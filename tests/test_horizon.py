"""Open transactions of this database, and no others, delay the feed and webhooks, and are named."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from conftest import Client, Log, Serve, database_named
from processes import eventually

WRITE = (
    "INSERT INTO events (instance_id, place, type, user_id, method, key_id, key_name, request_id)"
    " SELECT 1, place, 'user.updated', $1, 'x', 1, 'x', 'x' FROM generate_series(1, 2) AS place"
)


@pytest.fixture
async def elsewhere(postgres_url: str, database_url: str) -> AsyncIterator[str]:
    """The address of another database of the same Postgres."""
    server = await asyncpg.connect(postgres_url)
    name = "elsewhere"
    await server.execute(f"CREATE DATABASE {name}")
    yield database_named(postgres_url, name)
    await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await server.close()


@contextlib.asynccontextmanager
async def open_transaction(url: str, application: str = "report") -> AsyncIterator[asyncpg.Connection]:
    """One that has its number, and stays open as long as the block."""
    connection = await asyncpg.connect(url, server_settings={"application_name": application})
    transaction = connection.transaction()
    await transaction.start()
    await connection.fetchval("SELECT pg_current_xact_id()::text")
    yield connection
    await transaction.rollback()
    await connection.close()


async def changed(client: Client, cursor: str | None = None) -> list[Any]:
    """Whom the feed tells about."""
    page = await client.call("listChanges", {"cursor": cursor})
    return [event["data"]["userId"] for event in page["events"]]


async def test_a_transaction_of_another_database_halts_nothing(
    elsewhere: str, client: Client, database_url: str
) -> None:
    """However long it stays open; one of this database does."""
    cursor = (await client.call("listChanges", {"begin": "now"}))["cursor"]
    async with open_transaction(elsewhere):
        await client.call("createUser", {"email": "jane@example.com"})
        assert await changed(client, cursor) == [2]
        async with open_transaction(database_url):
            await client.call("createUser", {"email": "ann@example.com"})
            assert await changed(client, cursor) == [2]
        await eventually(lambda: all_changed(client, cursor, [2, 3]))


async def all_changed(client: Client, cursor: str, expected: list[int]) -> bool:
    return await changed(client, cursor) == expected


async def test_whose_transaction_it_is_every_role_can_see(
    elsewhere: str, db: asyncpg.Connection, database_url: str
) -> None:
    """A role without rights to see what others do finds the same horizon."""
    await db.execute("CREATE ROLE reader_of_the_feed LOGIN")
    try:
        await db.execute("GRANT SELECT ON event_clock TO reader_of_the_feed")
        reader = await asyncpg.connect(database_url, user="reader_of_the_feed")
        async with open_transaction(elsewhere):
            end = await reader.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
            reached = "SELECT event_horizon()::text::bigint >= $1"
            await eventually(lambda: reader.fetchval(reached, end))
        async with open_transaction(database_url) as own:
            number = await own.fetchval("SELECT pg_current_xact_id()::text::bigint")
            assert await reader.fetchval("SELECT event_horizon()::text::bigint") == number
        await reader.close()
    finally:
        await db.execute("DROP OWNED BY reader_of_the_feed")
        await db.execute("DROP ROLE reader_of_the_feed")


@pytest.mark.damages
async def test_the_feed_skips_nothing_while_another_database_writes(
    elsewhere: str, serve: Serve, db: asyncpg.Connection, database_url: str
) -> None:
    """Numbers of both databases mix, transactions of both are long and short: each event comes once, in order."""
    client = await serve(run_jobs=False)
    cursor = (await client.call("listChanges", {"begin": "now"}))["cursor"]
    each, writers = 20, 8
    done = asyncio.Event()

    async def write(url: str, statement: str, *values: Any) -> None:
        connection = await asyncpg.connect(url)
        async with connection.transaction():
            await connection.execute(statement, *values)
            await asyncio.sleep(random.uniform(0, 0.03))
        await connection.close()

    async def ours(writer: int) -> None:
        for number in range(each):
            await write(database_url, WRITE, writer * 1000 + number)

    async def theirs() -> None:
        while not done.is_set():
            await write(elsewhere, "SELECT pg_current_xact_id()")

    others = [asyncio.create_task(theirs()) for _ in range(4)]
    writing = [asyncio.create_task(ours(writer)) for writer in range(writers)]
    seen: list[str] = []

    async def read() -> bool:
        nonlocal cursor
        page = await client.call("listChanges", {"cursor": cursor, "limit": 7})
        seen.extend(event["data"]["id"] for event in page["events"])
        cursor = page["cursor"]
        return len(seen) >= writers * each * 2

    while not all(task.done() for task in writing):
        await read()
    await asyncio.gather(*writing)
    await eventually(read)
    done.set()
    await asyncio.gather(*others)
    stored = await db.fetch("SELECT id::text FROM events WHERE method = 'x' ORDER BY xid, place")
    assert seen == [row["id"] for row in stored]


async def test_what_halts_the_feed_is_named(
    serve: Serve, database_url: str, logged: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its process, application and age, in the log and in /metrics; and no longer once it has ended."""
    monkeypatch.setattr("server.events.webhooks.HALTED_AFTER", 0.01)
    monkeypatch.setattr("server.events.webhooks.METER_EVERY", 0.05)
    client = await serve(run_jobs=True)

    async def gauge() -> dict[str, float]:
        async with client.http.get(client.url + "/metrics") as response:
            lines = (await response.text()).splitlines()
        found = [line.rsplit(" ", 1) for line in lines if line.startswith("officerpc_feed_halted_seconds{")]
        return {name: float(value) for name, value in found}

    async with open_transaction(database_url, "report") as halting:
        pid = halting.get_server_pid()
        name = f'officerpc_feed_halted_seconds{{application="report",pid="{pid}"}}'

        async def named() -> bool:
            return (await gauge()).get(name, 0.0) > 0.01

        await eventually(named)
        lines = [line for line in logged.lines() if line["event"] == "feed_halted"]
        assert {(line["pid"], line["application"]) for line in lines} == {(pid, "report")}

    async def gone() -> bool:
        return (await gauge())[name] == 0.0

    await eventually(gone)
