"""Memory of answers: batches with large answers, and clients that do not read."""

import asyncio
import gc
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psutil
import pytest
from conftest import Client, Serve, insert_key, until
from processes import parsed, request

from server.base.models import Params
from server.base.unsent import SHARE, Unsent
from server.methods.registry import Example, Method, method
from server.serving.connections import _Connection
from server.tenants.call import Call

LARGE = 200_000

# A method that answers as many bytes as it is asked for.
LARGE_METHODS: dict[str, Method] = {}


class Length(Params):
    bytes: int = LARGE


@method(
    "large",
    result=str,
    scope="docs:read",
    writes=False,
    registry=LARGE_METHODS,
    examples=(Example("", {}, ""),),
)
async def large(call: Call, params: Length) -> Any:
    """Answer much."""
    return "x" * params.bytes


@method(
    "counted",
    result=int,
    scope="docs:read",
    writes=False,
    registry=LARGE_METHODS,
    examples=(Example("", {}, 0),),
)
async def counted(call: Call, params: Params) -> Any:
    """Count how often it was called."""
    RAN.append(1)
    return len(RAN)


RAN: list[int] = []


@pytest.fixture(autouse=True)
def _not_run() -> None:
    RAN.clear()


@pytest.fixture
def deaf() -> Iterator[Any]:
    """Opens connections that send and never read."""
    with ExitStack() as opened:

        def send(client: Client, *requests: bytes) -> socket.socket:
            made = opened.enter_context(socket.socket())
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            parts = urlsplit(client.url)
            made.connect((parts.hostname, parts.port))
            made.sendall(b"".join(requests))
            return made

        yield send


async def held(client: Client) -> float:
    """The gauge of bytes that clients have not read."""
    async with client.http.get(client.url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    (line,) = [line for line in lines if line.startswith("officerpc_unsent_bytes ")]
    return float(line.split()[1])


async def closed(connection: socket.socket) -> bool:
    """Whether the server, which runs in this process too, has closed its end."""
    ends = (connection.getpeername(), connection.getsockname())
    return not any(
        found.status == psutil.CONN_ESTABLISHED and (found.laddr, found.raddr) == ends
        for found in psutil.Process().net_connections("tcp")
    )


def keep_alive(sent: bytes) -> bytes:
    return sent.replace(b"Connection: close\r\n", b"")


def call_of(client: Client, body: Any) -> bytes:
    """A request to /rpc that leaves the connection open."""
    return keep_alive(request(json.dumps(body).encode(), b"x-api-key: " + client.key.encode()))


def items(name: str, count: int, **params: Any) -> list[dict[str, Any]]:
    return [{"jsonrpc": "2.0", "id": place, "method": name, "params": params} for place in range(count)]


# --- batches ------------------------------------------------------------------------------------------


async def test_answers_of_a_batch_are_bounded(serve: Serve) -> None:
    """The item that goes beyond the limit is answered whole; those after it are not run, and say so."""
    client = await serve(LARGE_METHODS, batch_answer_limit=2 * LARGE)
    batch = [*items("large", 5), *items("counted", 3)]
    async with await client.post(batch) as response:
        answers = await response.json()
    assert response.status == 200
    assert [len(answer["result"]) for answer in answers[:2]] == [LARGE, LARGE]
    assert [answer["id"] for answer in answers] == [0, 1, 2, 3, 4, 0, 1, 2]
    for answer in answers[2:]:
        assert answer["error"]["code"] == -32030
        assert answer["error"]["data"]["code"] == "batch_full" and answer["error"]["data"]["retryable"]
    assert RAN == []
    async with await client.post(batch[2:4]) as response:  # the rest in another one
        assert [len(answer["result"]) for answer in await response.json()] == [LARGE, LARGE]


async def test_notifications_of_a_full_batch(serve: Serve) -> None:
    """They are run unless an item before them was refused: then who resends from there on loses nothing."""
    client = await serve(LARGE_METHODS, batch_answer_limit=1024)
    notification = {"jsonrpc": "2.0", "method": "counted"}
    async with await client.post([*items("large", 1), notification]) as response:
        assert len(await response.json()) == 1
    assert len(RAN) == 1
    async with await client.post([*items("large", 2), notification]) as response:
        assert len(await response.json()) == 2
    assert len(RAN) == 1


async def test_items_that_were_not_run_do_not_count_as_calls(serve: Serve) -> None:
    client = await serve(LARGE_METHODS, batch_answer_limit=1024, key_rate_limit=3)
    async with await client.post(items("large", 50)) as response:
        assert response.headers["RateLimit"].startswith('"key";r=2;')


async def test_discover_a_hundred_times(client: Client) -> None:
    """5 kB in were 42 MB out: now it is the limit and one answer more."""
    async with await client.post(items("rpc.discover", 100)) as response:
        body = await response.read()
    answers = json.loads(body)
    size = len(json.dumps(answers[0], separators=(",", ":")).encode())
    assert len(body) < 4 * 1024 * 1024 + 2 * size
    assert answers[0]["result"]["openrpc"] and answers[-1]["error"]["data"]["code"] == "batch_full"
    assert await held(client) == 0


# --- clients that do not read -------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["a batch", "pipelined, without a key"])
async def test_a_client_that_does_not_read_is_dropped(what: str, serve: Serve, deaf: Any) -> None:
    client = await serve(write_timeout=0.5)
    if what == "a batch":
        sent = [call_of(client, items("rpc.discover", 100))]
    else:
        sent = [b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 60]
    connections = [deaf(client, *sent) for _ in range(5)]
    await until(lambda: held(client))
    for connection in connections:
        await until(lambda connection=connection: closed(connection))
    assert await held(client) == 0


async def test_a_client_that_reads_slowly_is_not(serve: Serve) -> None:
    """It makes progress in each write timeout, and gets all of its answer."""
    client = await serve(LARGE_METHODS, write_timeout=0.5)
    parts = urlsplit(client.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1024)
    body = json.dumps({"method": "large", "params": {"bytes": 12_000_000}}).encode()
    writer.write(request(body, b"x-api-key: " + client.key.encode()))
    await until(lambda: held(client))
    data = b""
    while more := await reader.read(500_000):
        data += more
        await asyncio.sleep(0.05)
    writer.close()
    assert len(parsed(data).body) == 12_000_002
    assert await held(client) == 0


async def test_a_client_that_reads_bytes_one_by_one_is_dropped(serve: Serve, deaf: Any) -> None:
    client = await serve(LARGE_METHODS, write_timeout=0.5)
    connection = deaf(client, call_of(client, {"method": "large", "params": {"bytes": 12_000_000}}))
    await until(lambda: held(client))
    while not await closed(connection):
        connection.recv(1)
        await asyncio.sleep(0.05)
    assert await held(client) == 0


async def test_pipelined_requests_wait_at_the_client(serve: Serve, deaf: Any) -> None:
    """Few are taken in while an answer waits to be read: each may have headers of a megabyte."""
    client = await serve(LARGE_METHODS)
    connection = deaf(client, call_of(client, {"method": "large", "params": {"bytes": 12_000_000}}))
    await until(lambda: held(client))
    connection.setblocking(False)
    headers = b"".join(b"X-Header-%d: %s\r\n" % (number, b"x" * 7500) for number in range(8))
    loop, more = asyncio.get_running_loop(), b"GET /livez HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n"
    sending = asyncio.create_task(loop.sock_sendall(connection, more * 400))
    queued = [found for found in gc.get_objects() if isinstance(found, _Connection) and found._messages]
    while not sending.done() and not any(found._buffer_paused for found in queued):
        await asyncio.sleep(0.01)
        queued = [found for found in gc.get_objects() if isinstance(found, _Connection) and found._messages]
    sending.cancel()
    (found,) = queued
    # Those of one piece that the socket gave, 256 KiB, and no more pieces after it.
    assert 4 <= len(found._messages) <= 12


async def test_a_flood_of_unread_answers(
    serve: Serve, deaf: Any, db: asyncpg.Connection, operator: Client
) -> None:
    """Over the limit the instance that holds most loses its oldest; a slow reader of another one stays."""
    await operator.call("createInstance", {"name": "OTHER", "admin": {"email": "boss@other.example"}})
    client = await serve(LARGE_METHODS, unsent_limit=50_000_000)
    other = client.using(await insert_key(db, instances=("OTHER",)))
    ask = {"method": "large", "params": {"bytes": 9_000_000}}
    slow = deaf(other, call_of(other, ask))
    await until(lambda: held(client))
    connections = []
    for _ in range(8):
        connections.append(deaf(client, call_of(client, ask)))
        await asyncio.sleep(0.1)
    await until(lambda: closed(connections[3]))
    assert [await closed(connection) for connection in connections] == [True] * 4 + [False] * 4
    assert not await closed(slow)
    assert await held(client) < 50_000_000
    reader, writer = await asyncio.open_connection(sock=slow)
    data = await reader.readuntil(b"\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 200") and len(await reader.readexactly(9_000_002)) == 9_000_002
    writer.close()


# --- the count ----------------------------------------------------------------------------------------


class Waiting:
    dropped = False

    def drop(self) -> None:
        self.dropped = True


def test_the_oldest_of_whoever_holds_most() -> None:
    told: list[int] = []
    unsent = Unsent(100, told.append)
    first, second, third, fourth = (Waiting() for _ in range(4))
    unsent.wait(1, first, 30)
    unsent.wait(2, second, 30)
    unsent.wait(2, third, 30)
    unsent.wait(3, fourth, 30)
    assert [waiting.dropped for waiting in (first, second, third, fourth)] == [False, True, False, False]
    assert unsent.held == 90
    for owner, waiting in ((1, first), (2, second), (2, third), (3, fourth)):
        unsent.done(owner, waiting)
    assert unsent.held == 0 == told[-1] and max(told) == 120


def test_batches_of_one_owner_leave_room_for_those_of_another() -> None:
    unsent = Unsent(100, lambda held: None)
    assert unsent.grow(1, 100 // SHARE)
    assert not unsent.grow(1, 1)
    assert unsent.grow(2, 100 // SHARE)
    unsent.shrink(1, 100 // SHARE + 1)
    assert unsent.grow(1, 1)


def test_a_batch_goes_before_those_who_do_not_read() -> None:
    unsent = Unsent(100, lambda held: None)
    slow = Waiting()
    unsent.wait(1, slow, 90)
    assert unsent.grow(2, 20) and slow.dropped and unsent.held == 20
    assert unsent.grow(3, 20) and unsent.grow(4, 20) and unsent.grow(5, 20) and unsent.grow(6, 20)
    assert not unsent.grow(7, 1)
