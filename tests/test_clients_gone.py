"""Clients that disconnect during a request: no internal error, no traceback, no counted refusal."""

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from conftest import ADMIN, Client, Log, until
from processes import connected
from processes import request as raw_request

CALL = json.dumps({"method": "getUserByEmail", "params": {"email": ADMIN}}).encode()
CREATE = json.dumps({"method": "createUser", "params": {"email": "new@example.com"}}).encode()

Leave = Callable[[asyncio.StreamWriter], Awaitable[None]]


async def close(writer: asyncio.StreamWriter) -> None:
    """An orderly end (FIN)."""
    writer.close()


async def reset(writer: asyncio.StreamWriter) -> None:
    """A reset (RST)."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def half_close(writer: asyncio.StreamWriter) -> None:
    """The end of what is sent, while the other direction stays open."""
    writer.write_eof()
    await asyncio.sleep(0.1)


async def refusals(client: Client) -> list[str]:
    """What /metrics counts of requests that became no call."""
    async with client.http.get(client.url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    return [line for line in lines if line.startswith("officerpc_refusals_total")]


async def alive(client: Client) -> bool:
    await client.call("getUserByEmail", {"email": ADMIN})
    return True


def unseen(logged: Log) -> None:
    """Nothing in the log is worse than a line for information, and nothing quotes a traceback."""
    for entry in logged.lines():
        assert entry["level"] in ("debug", "info"), entry
        assert "traceback" not in entry and entry["event"] not in ("bug", "internal"), entry


LEAVING = pytest.mark.parametrize("leave", [close, reset, half_close])
BODIES: dict[str, Any] = {
    "of a given length": (b"Content-Length: 1000", b'{"method": "createUser", "params": {"email": "x'),
    "in chunks": (b"Transfer-Encoding: chunked", b'400\r\n{"method": "createUser'),
    "between two chunks": (b"Transfer-Encoding: chunked", b'5\r\n{"met\r\n'),
    "compressed": (b"Content-Length: 1000\r\nContent-Encoding: gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\3"),
    "not begun": (b"Content-Length: 1000", b""),
    "a large one": (b"Content-Length: 1000000", b'{"method": "' + b"x" * 300_000),
}


@LEAVING
@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize(
    "path", ["/rpc", "/online-office/user/create", "/integration-api/v1/dashboard/users"]
)
async def test_in_the_middle_of_a_body(
    path: str, kind: str, leave: Leave, client: Client, logged: Log, db: asyncpg.Connection
) -> None:
    header, beginning = BODIES[kind]
    before = await refusals(client)
    head = [b"POST " + path.encode() + b" HTTP/1.1", b"Host: x", b"Content-Type: application/json", header]
    # Without a key, a body is looked at too, but not beyond its first 64 KiB.
    keys = [client.key.encode(), *([b"x"] if path == "/rpc" and kind != "a large one" else [])]
    for key in keys:
        async with connected(client.url) as (_, writer):
            writer.write(b"\r\n".join([*head, b"x-api-key: " + key]) + b"\r\n\r\n" + beginning)
            await writer.drain()
            await asyncio.sleep(0.05)  # the server is reading the body
            await leave(writer)

        async def noticed() -> bool:
            return any(entry["event"] == "client_gone" for entry in logged.lines())

        await until(noticed)
    unseen(logged)
    assert await refusals(client) == before
    assert await alive(client)
    assert await db.fetchval("SELECT count(*) FROM users") == 1


@LEAVING
async def test_before_its_answer(leave: Leave, client: Client, logged: Log, db: asyncpg.Connection) -> None:
    """The work is done, whoever waits for it (design: a call that has begun completes)."""
    async with connected(client.url) as (_, writer):
        writer.write(raw_request(CREATE, b"x-api-key: " + client.key.encode()))
        await writer.drain()
        await leave(writer)

    async def settled() -> bool:
        return any(entry["event"] in ("call", "client_gone") for entry in logged.lines())

    await until(settled)
    unseen(logged)
    assert await alive(client)


@LEAVING
async def test_while_a_large_answer_is_written(leave: Leave, client: Client, logged: Log) -> None:
    """More than the sockets hold, so that the server waits for the client to read."""
    batch = json.dumps([{"jsonrpc": "2.0", "id": n, "method": "rpc.discover"} for n in range(10)]).encode()
    async with connected(client.url) as (reader, writer):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        writer.write(raw_request(batch, b"x-api-key: " + client.key.encode()))
        await writer.drain()
        await reader.readexactly(1000)
        await leave(writer)
    assert await alive(client)
    unseen(logged)


@LEAVING
async def test_between_pipelined_requests(leave: Leave, client: Client, logged: Log) -> None:
    one = raw_request(CALL, b"x-api-key: " + client.key.encode()).replace(b"Connection: close\r\n", b"")
    async with connected(client.url) as (_, writer):
        writer.write(one * 20 + one[:-10])
        await writer.drain()
        await leave(writer)
    assert await alive(client)
    unseen(logged)
