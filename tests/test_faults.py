"""Faults around the server: clients, connections, Postgres, clocks; and what answers and logs show of them.

Numbers are lines of the lists of faults and, if stated, of security. test_process.py tests processes that get signals.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
from conftest import ADMIN, Client, Serve, database_named, insert_key
from processes import (
    DroppingProxy,
    Officerpc,
    OwnPostgres,
    Raw,
    connected,
    emails,
    eventually,
    exchange,
    folder_for_postgres,
    parsed,
    request,
    running,
    small_disk,
    until_closed,
)

from server.base.models import Params, TenantParams
from server.base.settings import Settings
from server.base.tokens import digest
from server.methods.registry import METHODS, Example, Method, method
from server.postgres.writes import Writes
from server.serving.app import build
from server.serving.bootstrap import bootstrap
from server.tenants.call import Call
from server.tenants.keys import new_key

DUPLICATE = (400, 'duplicate key value violates unique constraint "users_email"')
JANE = {"email": "jane@example.com", "password": "demo1234"}
LOOK_UP = json.dumps({"method": "getUserByEmail", "params": {"email": ADMIN}}).encode()


async def answered(client: Client, name: str, params: Any = None) -> tuple[int, str | None, bool]:
    """Status, X-Error-Code, and whether the answer says when to try again."""
    async with await client.post({"method": name, "params": params or {}}) as response:
        await response.read()
        return response.status, response.headers.get("X-Error-Code"), "Retry-After" in response.headers


UNAVAILABLE = (503, "unavailable", True)
OK = (200, None, False)


async def status(client: Client, path: str) -> int:
    """Of a GET."""
    async with client.http.get(client.url + path) as response:
        return response.status


async def health(client: Client) -> tuple[int, int]:
    """Of /livez and /readyz."""
    return await status(client, "/livez"), await status(client, "/readyz")


def creation(email: str) -> bytes:
    return json.dumps({"method": "createUser", "params": {"email": email, "password": "demo1234"}}).encode()


def keyed(client: Client) -> bytes:
    """The header with a client's key."""
    return b"x-api-key: " + client.key.encode()


# --- methods that misbehave ---------------------------------------------------------------------------


class Nothing(TenantParams):
    """No params."""


class Number(Params):
    """A number."""

    number: int


@pytest.fixture
def methods() -> dict[str, Method]:
    """A registry for the test to add to."""
    return dict(METHODS)


def registered(
    methods: dict[str, Method], handler: Callable[..., Awaitable[Any]], *, writes: bool = True
) -> None:
    """Put a handler into a registry under the name test."""
    handler.__doc__ = "Misbehave."
    method(
        "test",
        result=Any,
        scope="users:write",
        writes=writes,
        examples=(Example("", {}, None),),
        registry=methods,
    )(handler)


# --- clients ------------------------------------------------------------------------------------------


async def test_2_a_client_vanishes(client: Client, db: asyncpg.Connection) -> None:
    """2: whatever moment it leaves at, the user is there whole or not at all, and can be asked for again."""
    asked = [f"gone{number}@example.com" for number in range(24)]
    for number, email in enumerate(asked):
        data = request(creation(email), keyed(client))
        async with connected(client.url) as (_, writer):
            hang_up_hard(writer)
            # Some leave in the middle of headers or body, some at once, some while the call runs.
            writer.write(data[: len(data) * (number % 8 + 1) // 8 + number % 2])
            await writer.drain()
            for _ in range(number):
                await asyncio.sleep(0)
    stored = await stored_at_rest(client, db)
    arrived_whole = {email for number, email in enumerate(asked) if number % 8 == 7}
    assert stored - {ADMIN} <= arrived_whole
    for email in asked:
        outcome = await client.outcome("createUser", {"email": email})
        assert outcome == DUPLICATE if email in stored else outcome[0] == 200, email
    assert await emails(db) == {ADMIN, *asked}


async def stored_at_rest(client: Client, db: asyncpg.Connection) -> set[str]:
    """Whom the database holds, once no call runs any more and none that was left alone begins."""
    running = client.dispatcher._deadlines.running

    async def unchanged() -> bool:
        before = await emails(db)
        await asyncio.sleep(0.2)
        return not running and await emails(db) == before

    await eventually(unchanged)
    return await emails(db)


def hang_up_hard(writer: asyncio.StreamWriter) -> None:
    """Reset the connection when it is closed."""
    plain: socket.socket = writer.get_extra_info("socket")
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def test_2_a_client_vanishes_while_its_call_waits(
    client: Client, db: asyncpg.Connection, database_url: str
) -> None:
    """2: a call that Postgres has begun is completed without its client."""
    other = await asyncpg.connect(database_url)
    async with other.transaction():
        await other.execute("LOCK TABLE users IN SHARE MODE")
        async with connected(client.url) as (_, writer):
            hang_up_hard(writer)
            writer.write(request(creation("gone@example.com"), keyed(client)))
            await eventually(lambda: waiting_calls(db))
    await other.close()
    await eventually(lambda: db.fetchval("SELECT count(*) = 2 FROM users"))
    assert await emails(db) == {ADMIN, "gone@example.com"}


async def waiting_calls(db: asyncpg.Connection) -> int:
    """How many calls wait for a lock."""
    return await db.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'officerpc' AND wait_event_type = 'Lock'"
    )


async def test_3_a_half_closed_client(client: Client, db: asyncpg.Connection) -> None:
    """3: it said that it sends no more; it is answered, or leaves the same as one that vanished."""
    async with connected(client.url) as (reader, writer):
        writer.write(request(creation("half@example.com"), keyed(client)))
        writer.write_eof()
        answer = await until_closed(reader)
    stored = await stored_at_rest(client, db)
    if answer:
        assert parsed(answer).status == 200 and "half@example.com" in stored
    outcome = await client.outcome("createUser", {"email": "half@example.com"})
    assert outcome == DUPLICATE if "half@example.com" in stored else outcome[0] == 200
    assert await emails(db) == {ADMIN, "half@example.com"}


async def test_4_twenty_parallel_creations_of_one_email(client: Client, db: asyncpg.Connection) -> None:
    """4: one 200, nineteen exact duplicates."""
    outcomes = await asyncio.gather(*(client.outcome("createUser", JANE) for _ in range(20)))
    assert sorted(outcome[0] for outcome in outcomes) == [200] + [400] * 19
    assert outcomes.count(DUPLICATE) == 19
    assert await emails(db) == {ADMIN, "jane@example.com"}


async def test_15_slow_headers(serve: Serve) -> None:
    """15: unfinished headers, sent in one piece or dripping, do not keep a connection."""
    client = await serve(keepalive_timeout=0.5)
    head = request(b"", keyed(client), target=b"/livez", verb=b"GET")
    kept_alive = head.replace(b"close", b"keep-alive")

    async def nothing_more(*pieces: bytes) -> bytes:
        async with connected(client.url) as (reader, writer):
            for piece in pieces:
                writer.write(piece)
            return await until_closed(reader)

    async def dripping() -> bytes:
        async with connected(client.url) as (reader, writer):

            async def drip() -> None:
                with contextlib.suppress(ConnectionError):
                    while True:
                        writer.write(b"x-header: more\r\n")
                        await writer.drain()
                        await asyncio.sleep(0.05)

            writer.write(head[:-2])
            task = asyncio.create_task(drip())
            try:
                return await until_closed(reader)
            finally:
                task.cancel()

    silent, unfinished, after_one, idle, dripped = await asyncio.gather(
        nothing_more(), nothing_more(head[:20]), nothing_more(kept_alive, head[:20]), nothing_more(kept_alive),
        dripping(),
    )  # fmt: skip
    assert (silent, unfinished) == (b"", b"")
    assert dripped == b"" or parsed(dripped).status == 400  # too many headers
    assert parsed(after_one).status == parsed(idle).status == 200


async def test_15_stalled_bodies(serve: Serve, db: asyncpg.Connection) -> None:
    """15: 408 and an end for a body that stops coming, or that comes a byte at a time."""
    client = await serve(body_timeout=0.5)
    whole = request(creation("slow@example.com"), keyed(client)).replace(
        b"Connection: close", b"X-Nothing: x"
    )
    chunked = request(b"", keyed(client)).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    for data in (whole[:-10], chunked.replace(b"Connection: close", b"X-Nothing: x") + b"10\r\n{"):
        assert_too_slow(await exchange(client.url, data))

    async with connected(client.url) as (reader, writer):

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for byte in whole[-20:-1]:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.05)

        writer.write(whole[:-20])
        task = asyncio.create_task(drip())
        assert_too_slow(parsed(await until_closed(reader)))
        await task
    assert await emails(db) == {ADMIN}


def assert_too_slow(answer: Raw) -> None:
    assert (answer.status, answer.header("X-Error-Code")) == (408, "request_timeout")
    assert answer.header("Connection") == "close"


async def test_15_a_body_that_nobody_waits_for(client: Client) -> None:
    """15: where the key is wrong, the answer comes before the body and the connection ends."""
    data = request(LOOK_UP, b"x-api-key: wrong").replace(b"Connection: close", b"X-Nothing: x")
    assert (await exchange(client.url, data[:-5])).status == 401


async def test_16_no_file_descriptors_left(database_url: str, db: asyncpg.Connection) -> None:
    """16: it refuses, recovers when clients leave, and does not fill the log meanwhile."""
    key = await insert_key(db)
    with running(database_url) as officerpc:
        served = await officerpc.serve()
        (worker,) = served.workers()
        data = request(LOOK_UP, b"x-api-key: " + key.encode())
        assert (await exchange(served.url, data)).status == 200
        limit = worker.num_fds() + 10
        worker.rlimit(psutil.RLIMIT_NOFILE, (limit, limit))
        before = served.log.count("\n")
        async with contextlib.AsyncExitStack() as clients:
            for _ in range(60):
                await clients.enter_async_context(connected(served.url))
            await eventually(lambda: worker.num_fds() >= limit - 1)
            assert all([await refused_or_hanging(served.url, data) for _ in range(3)])
            assert served.process.poll() is None

        async def works() -> bool:
            with contextlib.suppress(OSError, IndexError):
                return (await exchange(served.url, data)).status == 200
            return False

        await eventually(works)
        assert [worker.pid for worker in served.workers()] == [worker.pid]
        assert served.log.count("\n") - before < 60
        assert await served.stop() == 0


async def refused_or_hanging(url: str, data: bytes) -> bool:
    """Ask where nobody can be let in."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(0.3), connected(url) as (reader, writer):
            writer.write(data)
            return not await reader.read()
    return True


# --- Postgres -----------------------------------------------------------------------------------------


TERMINATE = """
SELECT pid, pg_terminate_backend(pid)
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


async def test_5_idle_connections_are_terminated(client: Client, db: asyncpg.Connection) -> None:
    """5: nobody notices."""
    await asyncio.gather(*(client.call("createUser", {"email": f"u{n}@example.com"}) for n in range(8)))
    for number in range(3):
        backends = [row["pid"] for row in await db.fetch(TERMINATE)]
        assert backends
        await eventually(lambda backends=backends: not any(psutil.pid_exists(pid) for pid in backends))
        assert await answered(client, "createUser", {"email": f"later{number}@example.com"}) == OK
        backends = [row["pid"] for row in await db.fetch(TERMINATE)]
        await eventually(lambda backends=backends: not any(psutil.pid_exists(pid) for pid in backends))
        assert await answered(client, "getUserByEmail", {"email": ADMIN}) == OK
        assert await answered(client, "updateUserByEmail", {"email": ADMIN, "displayName": "A"}) == OK
    assert await status(client, "/readyz") == 200


async def test_5_the_server_says_that_it_ends_an_idle_connection(client: Client) -> None:
    """5: and has not yet ended it. asyncpg then refuses to send, so that nothing can have happened."""
    await client.call("createUser", {"email": "u@example.com"})
    fields = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
    said = b"E" + struct.pack("!i", len(fields) + 4) + fields
    for name, params in (
        ("createUser", JANE),
        ("updateUserByEmail", {"email": ADMIN, "displayName": "In a transaction"}),
        ("getUserByEmail", {"email": ADMIN}),
    ):
        for connection, _ in client.dispatcher._database.pool._idle:
            connection._con._protocol.data_received(said)
        assert await answered(client, name, params) == OK


async def test_5_connections_are_terminated_under_load(serve: Serve, db: asyncpg.Connection) -> None:
    """5: calls in flight get 503 or succeed; what is answered `unavailable` has not happened."""
    client = await serve(pool_size=4)
    codes: dict[str, str | None] = {}

    async def creator(name: int) -> None:
        for number in range(12):
            email = f"u{name}-{number}@example.com"
            answer, code, _ = await answered(client, "createUser", {"email": email})
            assert answer in (200, 503), code
            codes[email] = code

    creators = asyncio.gather(*(creator(name) for name in range(8)))
    terminated = 0
    while not creators.done():
        terminated += len(await db.fetch(TERMINATE))
        await asyncio.sleep(0.02)
    await creators
    assert terminated > 0
    undone = {"unavailable", "connection_lost", "not_begun", "contention"}
    assert set(codes.values()) <= {None, "outcome_unknown"} | undone
    stored = await emails(db)
    assert stored >= {email for email, code in codes.items() if code is None}
    assert not stored & {email for email, code in codes.items() if code in undone}
    assert await answered(client, "createUser", {"email": "after@example.com"}) == OK


@contextlib.contextmanager
def own_postgres(postgres_url: str) -> Iterator[tuple[OwnPostgres, str]]:
    """A Postgres of its own with MYINSTANCE, and an API key for it."""

    async def fill(url: str) -> str:
        settings = Settings(argon2_memory=64, argon2_time=1)
        database, _, hasher, dispatcher = build(settings, url)
        await database.open()
        key = await bootstrap(settings, database, dispatcher, new_key())
        hasher.close()
        await database.close()
        assert key is not None
        return key

    with folder_for_postgres() as folder:
        server = asyncio.run(OwnPostgres.beside(postgres_url, folder))
        server.create()
        try:
            yield server, asyncio.run(fill(server.url))
        finally:
            server.thaw()
            if server.processes():
                server.stop()


@pytest.fixture(scope="module")
def own_server(postgres_url: str) -> Iterator[tuple[OwnPostgres, str]]:
    """One for all tests that harm it and mend it again."""
    with own_postgres(postgres_url) as made:
        yield made


@pytest.fixture
async def own(own_server: tuple[OwnPostgres, str], serve: Serve) -> AsyncIterator[tuple[OwnPostgres, Client]]:
    """That Postgres, and a client of a server on it with short timeouts."""
    postgres, key = own_server
    client = await serve(
        url=postgres.url, connect_timeout=0.5, acquire_timeout=0.5, statement_timeout=0.5, call_timeout=2
    )
    yield postgres, client.using(key)
    postgres.thaw()
    if not postgres.processes():
        postgres.start()


async def test_6_postgres_is_killed(own: tuple[OwnPostgres, Client]) -> None:
    """6: 503, /readyz red, /livez green; all is well again once it is back."""
    postgres, client = own
    await eventually(lambda: recovered(client))
    connection = await asyncpg.connect(postgres.url)
    await connection.execute("BEGIN; LOCK TABLE users IN SHARE MODE")
    flying = asyncio.create_task(answered(client, "createUser", {"email": "flying@example.com"}))
    await eventually(lambda: own_waiting_calls(connection))
    postgres.kill()
    assert (await flying)[:2] == (503, "outcome_unknown")  # its one statement may have been committed
    connection.terminate()
    for _ in range(3):
        assert await answered(client, "getUserByEmail", {"email": ADMIN}) == UNAVAILABLE
        assert await answered(client, "createUser", {"email": "never@example.com"}) == UNAVAILABLE
        assert await health(client) == (200, 503)
    postgres.start()
    await eventually(lambda: recovered(client))
    assert await health(client) == (200, 200)
    assert await answered(client, "createUser", {"email": "flying@example.com"}) == OK
    assert await client.outcome("getUserByEmail", {"email": "never@example.com"}) == (400, "not found")


async def own_waiting_calls(connection: asyncpg.Connection) -> int:
    await connection.execute("SELECT pg_stat_clear_snapshot()")
    return await waiting_calls(connection)


async def recovered(client: Client) -> bool:
    return await answered(client, "getUserByEmail", {"email": ADMIN}) == OK


async def test_8_postgres_is_frozen(own: tuple[OwnPostgres, Client]) -> None:
    """8: calls fail while it is, and work when it is thawed; /livez stays green."""
    postgres, client = own
    await eventually(lambda: recovered(client))
    postgres.freeze()
    calls = [answered(client, "getUserByEmail", {"email": ADMIN}) for _ in range(6)]
    calls += [answered(client, "createUser", {"email": f"frozen{number}@example.com"}) for number in range(6)]
    async with asyncio.timeout(60):
        assert {answer for answer, *_ in await asyncio.gather(*calls)} == {503}
        assert await health(client) == (200, 503)
    postgres.thaw()
    await eventually(lambda: recovered(client))
    connection = await asyncpg.connect(postgres.url)
    await emails(connection)
    await connection.close()


async def test_8_a_server_on_a_frozen_postgres_can_be_stopped(
    own_server: tuple[OwnPostgres, str],
) -> None:
    """8: SIGTERM ends it with status 0 even now."""
    postgres, key = own_server
    with running(postgres.url) as officerpc:
        served = await officerpc.serve(acquire_timeout=0.5, statement_timeout=0.5, connect_timeout=0.5)
        data = request(LOOK_UP, b"x-api-key: " + key.encode())
        assert (await exchange(served.url, data)).status == 200
        postgres.freeze()
        try:
            begun = [asyncio.create_task(exchange(served.url, data)) for _ in range(5)]
            done, _ = await asyncio.wait(begun, return_when=asyncio.FIRST_COMPLETED)
            assert {(await answer).status for answer in done} == {503}
            calls = [asyncio.create_task(exchange(served.url, data)) for _ in range(5)]
            assert await served.stop() == 0
            await asyncio.gather(*begun, *calls, return_exceptions=True)
        finally:
            postgres.thaw()


@pytest.mark.parametrize(
    ("params", "at"),
    [(JANE, b"jane@example.com"), (JANE | {"planId": 1}, DroppingProxy.COMMIT)],
    ids=["statement", "transaction"],
)
@pytest.mark.parametrize(
    ("after", "hang"), [(False, False), (True, False), (True, True)], ids=["before", "after", "silent"]
)
async def test_7_the_connection_is_lost_at_commit(
    after: bool,
    hang: bool,
    params: dict[str, Any],
    at: bytes,
    serve: Serve,
    database_url: str,
    db: asyncpg.Connection,
) -> None:
    """7: nobody can know, so the answer says that, and the server does not try again by itself."""
    with tempfile.TemporaryDirectory(prefix="officerpc-proxy-") as folder:
        proxy = DroppingProxy(database_url, Path(folder), after=after, hang=hang, at=at)
        async with proxy.running():
            client = await serve(url=proxy.url, call_timeout=1 if hang else 25)
            assert await answered(client, "createPlan", {"type": "recurring", "name": "A plan"}) == OK
            proxy.arm()
            code = await answered(client, "createUser", params)
            assert code == (503, "outcome_unknown", False)  # whoever just repeats it may do it twice
            assert proxy.commits == 1
            assert await emails(db) == ({ADMIN, "jane@example.com"} if after else {ADMIN})
            again = await client.outcome("createUser", params)
            assert again == DUPLICATE if after else again[0] == 200


@pytest.fixture
def replicated(postgres_url: str) -> Iterator[tuple[OwnPostgres, OwnPostgres, str]]:
    """A primary that commits when its standby has everything, that standby, and an API key."""
    with own_postgres(postgres_url) as (primary, key), folder_for_postgres() as folder:
        standby = primary.create_standby(folder)
        try:
            asyncio.run(wait_for_standby(primary.url))
            yield primary, standby, key
        finally:
            if standby.processes():
                standby.stop()


async def wait_for_standby(url: str) -> None:
    """Switch synchronous replication on, and wait until a standby takes part in it."""
    connection = await asyncpg.connect(url)
    await connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
    await connection.execute("SELECT pg_reload_conf()")
    await eventually(
        lambda: connection.fetchval("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")
    )
    await connection.close()


WAITS_FOR_STANDBY = """
SELECT count(*) FROM pg_stat_activity WHERE application_name = 'officerpc' AND wait_event = 'SyncRep'
"""
LOST = {"email": "lost@example.com"}


@pytest.mark.parametrize("keyed", [False, True], ids=["statement", "transaction"])
@pytest.mark.slow
async def test_7_the_standby_is_gone_at_commit(
    keyed: bool, replicated: tuple[OwnPostgres, OwnPostgres, str], serve: Serve
) -> None:
    """7: what no standby has is not acknowledged, neither by the first answer nor by a retry, and nobody sees it."""
    primary, standby, key = replicated
    # Were statement_timeout or lock_timeout to end a COMMIT, they would be the first to.
    short = {"statement_timeout": 0.5, "lock_timeout": 0.5, "acquire_timeout": 0.5, "call_timeout": 1.5}
    client = (await serve(url=primary.url, run_jobs=False, **short)).using(key)
    headers = {"headers": {"Idempotency-Key": "order-17"}} if keyed else {}
    await client.call("createUser", {"email": "kept@example.com"})
    standby.stop()
    async with await client.post({"method": "createUser", "params": LOST}, **headers) as response:
        assert (response.status, response.headers["X-Error-Code"]) == (503, "outcome_unknown")
    db = await asyncpg.connect(primary.url)
    assert await db.fetchval(WAITS_FOR_STANDBY) == 1
    for _ in range(2):
        async with await client.post({"method": "createUser", "params": LOST}, **headers) as response:
            assert response.status in (409, 503), await response.text()
    assert await client.outcome("getUserByEmail", LOST) == (400, "not found")
    assert await emails(db) == {ADMIN, "kept@example.com"}
    await db.close()

    primary.kill()
    standby.start()
    standby.promote()
    db = await asyncpg.connect(standby.url)
    assert await emails(db) == {ADMIN, "kept@example.com"}
    await db.close()
    client = (await serve(url=standby.url)).using(key)
    assert (await client.outcome("createUser", LOST, **headers))[0] == 200


@pytest.mark.slow
async def test_7_a_server_that_stops_while_the_standby_is_gone(
    replicated: tuple[OwnPostgres, OwnPostgres, str],
) -> None:
    """7: its end commits nothing either, and when the standby is back, what waited is there."""
    primary, standby, key = replicated
    db = await asyncpg.connect(primary.url)
    with running(primary.url) as officerpc:
        served = await officerpc.serve(shutdown_timeout=0.5, acquire_timeout=0.5)
        standby.stop()
        data = request(creation("waiting@example.com"), b"x-api-key: " + key.encode())
        asked = asyncio.create_task(exchange(served.url, data))
        await eventually(lambda: db.fetchval(WAITS_FOR_STANDBY))
        assert await served.stop() == 0
        await asyncio.gather(asked, return_exceptions=True)
    assert await db.fetchval(WAITS_FOR_STANDBY)
    assert await emails(db) == {ADMIN}
    standby.start()
    await eventually(lambda: db.fetchval("SELECT count(*) = 2 FROM users"))
    assert await emails(db) == {ADMIN, "waiting@example.com"}
    await db.close()


async def test_9_a_server_that_only_reads(client: Client, db: asyncpg.Connection) -> None:
    """9: writes 503, reads go on, /readyz red; once it takes writes again, so do we, by ourselves."""
    assert await health(client) == (200, 200)
    await set_read_only(db, "on")
    await eventually(lambda: readiness(client, 503))
    assert await answered(client, "createUser", JANE) == UNAVAILABLE
    assert await answered(client, "getUserByEmail", {"email": ADMIN}) == OK
    assert await health(client) == (200, 503)
    # Connections that were opened meanwhile can only read: whoever asks for readiness alone must see it.
    await db.execute(f'ALTER DATABASE "{await db.fetchval("SELECT current_database()")}"'
                     " SET default_transaction_read_only = off")  # fmt: skip
    await eventually(lambda: readiness(client, 200))
    assert await answered(client, "createUser", JANE) == OK


async def test_9_writes_alone_find_the_way_back(client: Client, db: asyncpg.Connection) -> None:
    """9: a refused write is enough to leave the connections that can only read."""
    await set_read_only(db, "on")

    async def created(email: str) -> bool:
        return await answered(client, "createUser", {"email": email}) == OK

    assert not await created("one@example.com")
    await set_read_only(db, "off", terminate=False)
    await eventually(lambda: created("two@example.com"))
    assert await emails(db) == {ADMIN, "two@example.com"}


async def set_read_only(db: asyncpg.Connection, value: str, *, terminate: bool = True) -> None:
    """What connections of the database are from now on; those that are open live on or end."""
    name = await db.fetchval("SELECT current_database()")
    await db.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {value}')
    if terminate:
        await db.execute(TERMINATE)


async def readiness(client: Client, expected: int) -> bool:
    return await status(client, "/readyz") == expected


async def test_10_the_pool_is_exhausted(serve: Serve, methods: dict[str, Method]) -> None:
    """10: 503 instead of waiting for ever; and as before when a connection is free again."""
    begun, end = asyncio.Event(), asyncio.Event()

    async def hold(call: Call, params: Nothing) -> None:
        begun.set()
        await end.wait()

    registered(methods, hold)
    client = await serve(methods, pool_size=1, acquire_timeout=0.2)
    holding = asyncio.create_task(answered(client, "test"))
    await begun.wait()
    for name, params in (("getUserByEmail", {"email": ADMIN}), ("createUser", JANE)):
        assert await answered(client, name, params) == UNAVAILABLE
    assert await health(client) == (200, 503)
    end.set()
    assert await holding == OK
    assert await answered(client, "createUser", JANE) == OK


async def test_11_a_lock_that_is_not_released(serve: Serve, db: asyncpg.Connection) -> None:
    """11: 503, and the connection is free although the lock is still held."""
    client = await serve(pool_size=1, lock_timeout=0.2)
    async with db.transaction():
        await db.execute("SELECT FROM instance_counters FOR UPDATE")
        for _ in range(3):
            assert await answered(client, "createUser", JANE) == UNAVAILABLE
            assert await answered(client, "getUserByEmail", {"email": ADMIN}) == OK
    assert await answered(client, "createUser", JANE) == OK


async def test_11_a_statement_that_takes_too_long(serve: Serve, methods: dict[str, Method]) -> None:
    """11: Postgres cancels it, the caller gets 503, the connection serves on."""

    async def sleep(call: Call, params: Nothing) -> None:
        await call.db.raw.execute("SELECT pg_sleep(600)")

    registered(methods, sleep)
    client = await serve(methods, pool_size=1, statement_timeout=0.2)
    for _ in range(3):
        assert await answered(client, "test") == UNAVAILABLE
        assert await answered(client, "getUserByEmail", {"email": ADMIN}) == OK


async def test_11_a_transaction_that_idles(
    serve: Serve, methods: dict[str, Method], db: asyncpg.Connection
) -> None:
    """11: Postgres ends it, and what it had written is gone."""

    async def idle(call: Call, params: Nothing) -> None:
        await call.db.raw.execute("UPDATE users SET display_name = 'changed'")
        pid = call.db.raw.get_server_pid()
        await eventually(lambda: db.fetchval("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $1", pid))

    registered(methods, idle)
    client = await serve(methods, pool_size=1, idle_transaction_timeout=0.2)
    assert (await answered(client, "test"))[0] == 503
    assert await db.fetchval("SELECT count(*) FROM users WHERE display_name = 'changed'") == 0
    assert await answered(client, "getUserByEmail", {"email": ADMIN}) == OK


async def test_11_a_call_that_takes_too_long(
    serve: Serve, methods: dict[str, Method], db: asyncpg.Connection
) -> None:
    """11: its time runs out, the statement is cancelled at Postgres too, the connection is free."""

    async def sleep(call: Call, params: Nothing) -> None:
        await call.db.raw.execute("UPDATE users SET display_name = 'changed'")
        await call.db.raw.execute("SELECT pg_sleep(600)")

    registered(methods, sleep)
    client = await serve(methods, pool_size=1, call_timeout=0.3, statement_timeout=500)
    for _ in range(3):
        assert await answered(client, "test") == UNAVAILABLE
    assert await answered(client, "getUserByEmail", {"email": ADMIN}) == OK
    await eventually(
        lambda: db.fetchval(
            "SELECT count(*) = 0 FROM pg_stat_activity"
            " WHERE datname = current_database() AND state = 'active' AND query LIKE '%pg_sleep(600)'"
        )
    )
    assert await db.fetchval("SELECT count(*) FROM users WHERE display_name = 'changed'") == 0


async def test_12_a_deadlock(serve: Serve, methods: dict[str, Method], client: Client) -> None:
    """12: Postgres ends one of the two transactions, it is run again, and both calls succeed."""
    for email in ("one@example.com", "two@example.com"):
        await client.call("createUser", {"email": email})
    both_hold_one = asyncio.Barrier(2)
    attempts: list[int] = []

    async def lock_two(call: Call, params: Number) -> int:
        attempts.append(params.number)
        first, second = (2, 3) if params.number else (3, 2)
        update = "UPDATE users SET apps = apps || 1 WHERE id = $1"
        await call.db.raw.execute("SET LOCAL deadlock_timeout = '50ms'")
        await call.db.raw.execute(update, first)
        if attempts.count(params.number) == 1:
            await both_hold_one.wait()
        await call.db.raw.execute(update, second)
        return len(attempts)

    registered(methods, lock_two)
    client = await serve(methods)
    answers = await asyncio.gather(*(answered(client, "test", {"number": number}) for number in (0, 1)))
    assert answers == [OK, OK]
    assert len(attempts) == 3 and set(attempts) == {0, 1}
    for email in ("one@example.com", "two@example.com"):
        assert (await client.call("getUserByEmail", {"email": email}))["apps"] == [0, 0, 0, 1, 1]


RAISE = """
CREATE SEQUENCE tries;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('tries') <= {times} THEN
        RAISE EXCEPTION 'made by the test' USING ERRCODE = '{code}';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse AFTER INSERT ON file_folders FOR EACH STATEMENT EXECUTE FUNCTION refuse()
"""
"""The first so many creations fail at their end with a given SQLSTATE."""


@pytest.mark.parametrize("code", ["40001", "40P01"])
async def test_12_contention_is_tried_again(code: str, client: Client, db: asyncpg.Connection) -> None:
    """12: the whole transaction, and not for ever."""
    await db.execute(RAISE.format(times=2, code=code))
    assert (await client.call("createUser", JANE))["id"] == 2
    assert await db.fetchval("SELECT last_value FROM tries") == 3
    assert await emails(db) == {ADMIN, "jane@example.com"}

    await db.execute("SELECT setval('tries', 1, false)")
    await db.execute("CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                     f" PERFORM nextval('tries'); RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$")  # fmt: skip
    assert await answered(client, "createUser", {"email": "x@example.com"}) == (503, "contention", True)
    assert await db.fetchval("SELECT last_value FROM tries") == 4
    assert await emails(db) == {ADMIN, "jane@example.com"}


async def test_13_the_disk_is_full(client: Client, db: asyncpg.Connection) -> None:
    """13: 503 for writes, reads go on, and when there is room again it works."""
    await db.execute(RAISE.format(times=3, code="53100"))
    for _ in range(3):
        assert await answered(client, "createUser", JANE) == UNAVAILABLE
        assert await answered(client, "getUserByEmail", {"email": ADMIN}) == OK
    assert await answered(client, "createUser", JANE) == OK
    assert await emails(db) == {ADMIN, "jane@example.com"}


class Disk:
    """What a database is on, to be filled: a small file system of its own or, where nobody may mount one, a trigger."""

    FULL = "CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON {} FOR EACH STATEMENT EXECUTE FUNCTION full_disk()"
    TABLES = ("heartbeats", "users")

    def __init__(self, folder: Path | None, url: str) -> None:
        self.url = url
        self._filler = folder / "filler" if folder else None

    async def fill(self) -> None:
        """Leave no room."""
        if self._filler:
            with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
            return
        db = await asyncpg.connect(self.url)
        await db.execute("CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$"
                         " BEGIN RAISE EXCEPTION 'made by the test' USING ERRCODE = '53100'; END $$")  # fmt: skip
        for table in self.TABLES:
            await db.execute(self.FULL.format(table))
        await db.close()

    async def clear(self) -> None:
        """Make room again."""
        if self._filler:
            self._filler.unlink()
            return
        db = await asyncpg.connect(self.url)
        await db.execute("DROP FUNCTION full_disk CASCADE")
        await db.close()


@pytest.fixture
async def disk(postgres_url: str, database_url: str, db: asyncpg.Connection) -> AsyncIterator[Disk]:
    """One with a copy of the template on it, or the test's own database."""
    with tempfile.TemporaryDirectory(prefix="officerpc-disk-") as name, small_disk(Path(name), 60) as mounted:
        if not mounted:
            yield Disk(None, database_url)
            return
        files = Path(name, "files")
        files.mkdir()
        Path(name).chmod(0o777)
        owner = psutil.Process(db.get_server_pid()).uids().effective
        os.chown(files, owner, -1)
        server = await asyncpg.connect(postgres_url)
        await server.execute(f"CREATE TABLESPACE small LOCATION '{files}'")
        await server.execute(
            "CREATE DATABASE on_small TEMPLATE template_test TABLESPACE small STRATEGY file_copy"
        )
        try:
            yield Disk(Path(name), database_named(postgres_url, "on_small"))
        finally:
            await server.execute("DROP DATABASE on_small WITH (FORCE)")
            await server.execute("DROP TABLESPACE small")
            await server.close()


async def test_13_ready_means_that_writes_go_through(
    disk: Disk, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """13: with a disk that is really full /readyz is red until a write has found room again."""
    monkeypatch.setattr("server.postgres.writes.FRESH", 0.0)
    db = await asyncpg.connect(disk.url)
    client = (await serve(url=disk.url, run_jobs=False)).using(await insert_key(db))
    await db.close()
    assert await answered(client, "createUser", {"email": "before@example.com"}) == OK
    assert await health(client) == (200, 200)
    await disk.fill()
    number = 0

    async def refused() -> bool:  # there is some room in the pages of the tables
        nonlocal number
        number += 1
        users = [{"email": f"{number}-{user}@example.com"} for user in range(200)]
        return await answered(client, "createUsers", {"users": users}) == UNAVAILABLE

    await eventually(refused)
    for _ in range(3):
        assert await health(client) == (200, 503)
        assert await answered(client, "createUser", JANE) == UNAVAILABLE
        assert await answered(client, "getUserByEmail", {"email": ADMIN}) == OK
    await disk.clear()
    await eventually(lambda: readiness(client, 200))
    assert await answered(client, "createUser", JANE) == OK


async def test_13_readiness_writes_now_and_then(
    client: Client, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """13: one write is proof for some seconds, however often /readyz is asked."""
    monkeypatch.setattr("server.postgres.writes.FRESH", 3600.0)
    assert await health(client) == (200, 200)
    written = await db.fetchval("SELECT xmin::text::bigint FROM heartbeats")
    for _ in range(20):
        assert await health(client) == (200, 200)
    assert await db.fetchval("SELECT xmin::text::bigint FROM heartbeats") == written


async def refuse(in_doubt: bool) -> bool:
    """A proof that the database does not take."""
    await asyncio.sleep(0)
    return False


async def test_13_a_failed_proof_answers_all_that_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """13: also those that wake up when another caller has begun the next one."""
    monkeypatch.setattr("server.postgres.writes.PAUSE", 0.0)
    writes = Writes(refuse)
    writes.doubt("a test")

    async def ask_twice() -> list[bool]:
        return [await writes.proven(), await writes.proven()]

    assert await asyncio.gather(ask_twice(), ask_twice()) == [[False, False]] * 2


async def test_13_a_failed_proof_is_not_repeated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """13: however many writes are asked for meanwhile."""
    monkeypatch.setattr("server.postgres.writes.PAUSE", 3600.0)
    proofs = 0

    async def prove(in_doubt: bool) -> bool:
        nonlocal proofs
        proofs += 1
        return await refuse(in_doubt)

    writes = Writes(prove)
    writes.doubt("a test")
    for _ in range(20):
        assert not await writes.proven()
    assert proofs == 1
    monkeypatch.setattr("server.postgres.writes.PAUSE", 0.0)
    assert not await writes.proven()
    assert proofs == 2


@pytest.mark.slow
async def test_13_writes_wait_for_nobody_while_a_standby_is_gone(
    replicated: tuple[OwnPostgres, OwnPostgres, str], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """13: /readyz is red; a write that would wait for the standby is refused before it begins, and few wait."""
    monkeypatch.setattr("server.postgres.writes.LIMIT", 0.3)
    primary, standby, key = replicated
    short = {"lock_timeout": 0.5, "acquire_timeout": 0.5, "call_timeout": 1.0, "pool_size": 4}
    client = (await serve(url=primary.url, run_jobs=False, **short)).using(key)
    assert await health(client) == (200, 200)
    standby.stop()
    assert await answered(client, "createUser", LOST) == (503, "outcome_unknown", False)
    for number in range(4):
        assert await answered(client, "createPlan", {"type": "recurring", "name": f"{number}"}) == UNAVAILABLE
        assert await answered(client, "getUserByEmail", {"email": ADMIN}) == OK
    assert await health(client) == (200, 503)
    db = await asyncpg.connect(primary.url)
    assert await db.fetchval(WAITS_FOR_STANDBY) == 2  # the lost one and the proof
    standby.start()
    await eventually(lambda: readiness(client, 200))
    assert await emails(db) == {ADMIN, "lost@example.com"}
    await db.close()


@pytest.mark.parametrize("hours", [2, -2], ids=["ahead", "behind"])
async def test_17_the_clock_is_wrong(
    hours: int, serve: Serve, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """17: sessions and keys of an hour live and end by the database's clock."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)
    client = await serve(session_hours=1)
    now = await db.fetchval("SELECT floor(extract(EPOCH FROM now()))::bigint")
    created = await client.call("createUser", JANE)
    assert 0 <= created["createdAt"] - now < 600
    logged_in = await client.call("login", JANE)
    assert 0 <= logged_in["tokenExpiresAt"] - now - 3600 < 600
    session = {"token": logged_in["token"]}
    assert (await client.call("loginWithToken", session))["id"] == created["id"]
    key = await client.call("createApiKey", {"name": "x", "scopes": ["users:read"], "expiresIn": 3600})
    assert 0 <= key["expiresAt"] - now - 3600 < 600
    shop = client.using(key["key"])
    assert await answered(shop, "getUserByEmail", {"email": ADMIN}) == OK

    await db.execute("UPDATE sessions SET expires_at = now() - interval '1 second'")
    assert await client.outcome("loginWithToken", session) == (400, "Login or password is incorrect")
    await db.execute("UPDATE api_keys SET expires_at = now() + interval '1 second' WHERE id = $1", key["id"])
    await db.execute("SELECT pg_notify('officerpc_keys', '')")
    denied = (401, "unauthenticated", False)

    async def expired() -> bool:
        return await answered(shop, "getUserByEmail", {"email": ADMIN}) == denied

    await eventually(expired)


async def test_19_a_migration_while_serving(client: Client, db: asyncpg.Connection) -> None:
    """19: statements that were prepared before a column changed go on working, for reads and writes."""
    stop = asyncio.Event()
    count = 0

    async def caller(name: str) -> None:
        nonlocal count
        while not stop.is_set():
            count += 1
            email = f"{name}-{count}@example.com"
            assert await answered(client, "createUser", {"email": email, "displayName": "x"}) == OK
            assert (await client.call("getUserByEmail", {"email": email}))["displayName"] == "x"
            assert await answered(client, "updateUserByEmail", {"email": email, "apps": [count]}) == OK

    calls = asyncio.gather(*(caller(f"u{number}") for number in range(4)))
    for statement in (
        "ALTER TABLE users ADD COLUMN locale text NOT NULL DEFAULT 'en'",
        "ALTER TABLE users ALTER COLUMN avatar TYPE varchar(3000)",
        "ALTER TABLE users ALTER COLUMN avatar TYPE text",
        "ALTER TABLE mailboxes ADD COLUMN note text",
        "ALTER TABLE users DROP COLUMN locale",
    ):
        reached = count + 20
        await eventually(lambda reached=reached: count > reached or calls.done())
        await db.execute(statement)
    reached = count + 20
    await eventually(lambda: count > reached or calls.done())
    stop.set()
    await calls
    await emails(db)


# --- security -----------------------------------------------------------------------------------------


async def test_security_2_keys_that_do_not_work(client: Client, db: asyncpg.Connection) -> None:
    """Security 2: missing, malformed, unknown, revoked and expired keys are answered in the same bytes."""
    revoked, expired, elsewhere = [await insert_key(db) for _ in range(3)]
    await db.execute("UPDATE api_keys SET revoked_at = now() WHERE digest = $1", digest(revoked))
    await db.execute("UPDATE api_keys SET expires_at = now() WHERE digest = $1", digest(expired))
    await db.execute("UPDATE api_keys SET networks = '{192.0.2.0/24}' WHERE digest = $1", digest(elsewhere))
    keys = [
        b"",
        b"nonsense",
        b"x" * 4000,
        client.key[:-1].encode(),
        b"\xff\xfe\xfd",
        "schl\u00fcssel".encode(),
    ]
    keys += [key.encode() for key in (new_key(), revoked, expired, elsewhere)]
    answers = [await exchange(client.url, request(LOOK_UP))]
    answers += [await exchange(client.url, request(LOOK_UP, b"x-api-key: " + key)) for key in keys]
    assert {(answer.status, answer.body) for answer in answers} == {(401, b'"not-allowed"')}
    changing = ("Date", "X-Request-Id")
    without = {tuple(pair for pair in answer.headers if pair[0] not in changing) for answer in answers}
    assert len(without) == 1
    assert len({answer.header("X-Request-Id") for answer in answers}) == len(answers)


async def test_security_3_two_keys(client: Client) -> None:
    """Security 3: 400, even if it is the same key twice."""
    for second in (keyed(client), b"X-API-KEY: other"):
        answer = await exchange(client.url, request(LOOK_UP, keyed(client), second))
        assert (answer.status, answer.header("X-Error-Code")) == (400, "several_keys")


async def test_security_4_revocation(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Security 4: on the next request here; on other servers as soon as they hear of it, not when they forget."""
    monkeypatch.setattr("server.tenants.keys.TRUSTED_SECONDS", 3600.0)
    here, there = await serve(), await serve()
    await eventually(lambda: all(server.dispatcher.keys._listening for server in (here, there)))
    shop = await here.call("createApiKey", {"name": "shop", "scopes": ["users:read"]})
    clients = here.using(shop["key"]), there.using(shop["key"])
    for client in clients:
        for _ in range(3):
            assert await answered(client, "getUserByEmail", {"email": ADMIN}) == OK
    await here.call("revokeApiKey", {"id": shop["id"]})
    denied = (401, "unauthenticated", False)
    assert await answered(clients[0], "getUserByEmail", {"email": ADMIN}) == denied

    async def refused() -> bool:
        return await answered(clients[1], "getUserByEmail", {"email": ADMIN}) == denied

    await eventually(refused)


async def test_security_29_no_server_header(client: Client) -> None:
    """Security 29: whatever is asked, no answer says what it comes from, and each is JSON that may not be stored."""
    plain = request(LOOK_UP, keyed(client))
    asked = {
        "a call": plain,
        "no key": request(LOOK_UP),
        "bad JSON": request(b"{", keyed(client)),
        "a wrong type": request(LOOK_UP, keyed(client)).replace(b"application/json", b"text/plain"),
        "no route": request(LOOK_UP, target=b"/nowhere"),
        "a wrong verb": request(LOOK_UP, keyed(client), verb=b"DELETE"),
        "options": request(b"", verb=b"OPTIONS"),
        "too large": request(b" " * 2**21, keyed(client)),
        "alive": request(b"", target=b"/livez", verb=b"GET"),
        "ready": request(b"", target=b"/readyz", verb=b"GET"),
        "metrics": request(b"", target=b"/metrics", verb=b"GET"),
        "a notification": request(b'{"jsonrpc":"2.0","method":"rpc.discover"}', keyed(client)),
        "an expectation": request(LOOK_UP, keyed(client), b"Expect: a miracle"),
        "no HTTP": b"HELLO\r\n\r\n",
        "a long header": request(LOOK_UP, b"x-api-key: " + b"k" * 20000),
        "a bad length": plain.replace(b"Content-Length: ", b"Content-Length: x"),
        "an upgrade": request(LOOK_UP, keyed(client), b"Upgrade: h2c"),
    }
    for what, data in asked.items():
        answer = await exchange(client.url, data)
        assert answer.header("Server") is None, what
        assert answer.header("Cache-Control") == "no-store", what
        assert answer.header("X-Content-Type-Options") == "nosniff", what
        assert answer.header("X-Request-Id"), what
        if answer.status >= 400:
            assert answer.header("X-Error-Code"), what
            message = json.loads(answer.body)
            assert isinstance(message, str) and message.isprintable() and message, what


SECRET = "Sesame-open-4711"


async def test_security_29_a_key_with_a_control_character(logged: "Logged") -> None:
    """Security 29: 400 in JSON, and the value is neither in the answer nor in the log."""
    for value in (b"\x01", b"\x00", b"\x7f", b"\x1b[31m", b"\rx"):
        answer = await exchange(logged.url, request(LOOK_UP, b"x-api-key: " + SECRET.encode() + value))
        assert answer.status in (400, 401), value
        assert json.loads(answer.body) in ("this is not a valid HTTP request", "not-allowed")
        assert answer.header("Server") is None
        assert SECRET.encode() not in answer.body
    logged.done(SECRET)


async def test_security_30_what_is_logged(logged: "Logged", db: asyncpg.Connection) -> None:
    """Security 30: no passwords, keys, tokens, hashes or query strings, whether calls succeed or fail."""
    created = await logged.call("createUser", {"email": "jane@example.com", "password": SECRET})
    assert created["id"] == 2
    user = {"email": "jane@example.com", "password": SECRET}
    token = (await logged.call("login", user))["token"]
    await logged.call("loginWithToken", {"token": token})
    for name, params in (
        ("createUser", user),  # a duplicate, with its row in Postgres' message
        ("createUser", user | {"email": "not-an-address", "unknown": SECRET}),
        ("createUser", user | {"displayName": [SECRET]}),
        ("login", user | {"password": SECRET + "x"}),
        ("loginWithToken", {"token": SECRET}),
        ("resetPasswordByEmail", user | {"email": "nobody@example.com"}),
        ("noSuchMethod", user),
        (f"line\r\nbreak {'x' * 100}", user),
    ):
        await logged.call(name, params, failing=True)
    new = (await logged.call("createApiKey", {"name": "shop", "scopes": ["users:read"]}))["key"]
    newer = (await logged.call("rotateApiKey", {"id": 2}))["key"]
    await logged.post(b'{"method":"login","params":{"password":"' + SECRET.encode() + b'"')
    await logged.post(LOOK_UP, target=f"/rpc?password={SECRET}&x-api-key={new}".encode())
    await logged.post(LOOK_UP, target=f"/nowhere/{SECRET}?password={SECRET}".encode())
    await logged.post(LOOK_UP, b"X-Request-Id: " + SECRET.encode() + b" with\tblanks")
    await logged.post(
        json.dumps([{"jsonrpc": "2.0", "method": "createUser", "params": user, "id": 1}]).encode()
    )

    # A bug: the statement no longer fits the schema. Also a value that Postgres does not take.
    await db.execute("ALTER TABLE users ADD CONSTRAINT odd CHECK (display_name <> 'odd')")
    odd = {"email": "odd@example.com", "password": SECRET, "displayName": "odd"}
    assert await logged.call("createUser", odd, failing=True) == "internal error"
    stored = await db.fetchval("SELECT password_hash FROM credentials")
    await db.execute("ALTER TABLE credentials RENAME COLUMN password_hash TO hash")
    assert await logged.call("createUser", odd, failing=True) == "internal error"
    lines = logged.done(SECRET, token, new, newer, logged.key, stored, "$argon2id$", "odd@example.com")
    assert sum(line.get("event") == "bug" for line in lines) == 2
    assert sum(line.get("event") == "call" for line in lines) >= 12


class Logged:
    """A server in a process of its own that writes down all it can."""

    def __init__(self, officerpc: Officerpc, served: Any, key: str) -> None:
        self.url, self.key = served.url, key
        self._served = served

    async def post(self, body: bytes, *headers: bytes, target: bytes = b"/rpc") -> Raw:
        """Bytes as a request."""
        key = b"x-api-key: " + self.key.encode()
        return await exchange(self.url, request(body, key, *headers, target=target))

    async def call(self, name: str, params: Any, *, failing: bool = False) -> Any:
        """The answer to a call."""
        answer = await self.post(json.dumps({"method": name, "params": params}).encode())
        assert (answer.status != 200) == failing, answer
        return json.loads(answer.body)

    def done(self, *secrets: str) -> list[dict[str, Any]]:
        """Every line of the log: each is a JSON object, and none holds a secret."""
        log = self._served.log
        for secret in secrets:
            assert secret not in log
        return [json.loads(line) for line in log.splitlines()]


@pytest.fixture
async def logged(database_url: str, db: asyncpg.Connection) -> AsyncIterator[Logged]:
    key = await insert_key(db)
    with running(database_url) as officerpc:
        served = await officerpc.serve(log_level="debug")
        yield Logged(officerpc, served, key)
