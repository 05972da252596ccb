"""The start: listen, and wait for the database. Meanwhile the server is live, not ready."""

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from aiohttp import web

from server.base.settings import Settings
from server.postgres.db import is_away
from server.serving.app import create_waiting_app
from server.serving.connections import Runner

log = structlog.get_logger()
T = TypeVar("T")

_MAX_PAUSE = 5.0
"""Seconds between two tries."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections.

    Args:
        host: a name or an address, IPv6 with or without brackets; :: is all addresses, IPv4 too.
        port: 0: any free port.

    Raises:
        OSError: the address is in use, or not one of this machine.
    """
    family, _, _, _, address = socket.getaddrinfo(
        host.removeprefix("[").removesuffix("]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    # :: without IPV6_V6ONLY accepts IPv4 too.
    both = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(address[:2], family=family, backlog=2048, dualstack_ipv6=both)


async def prepared(settings: Settings, listening: socket.socket, prepare: Callable[[], Awaitable[T]]) -> T:
    """The result of prepare(), which is retried until the database is available.

    Meanwhile the server answers with 503.

    Args:
        listening: the socket of the server; it stays open.
        prepare: can be repeated.

    Raises:
        Exception: prepare's, if waiting cannot help (see is_away).
    """
    # keeps_connections: the workers will have the port, and clients must connect to them.
    runner = Runner(create_waiting_app(settings), keeps_connections=False)
    await runner.setup()
    await web.SockSite(runner, listening.dup()).start()  # which closes its duplicate
    try:
        return await _retry(prepare)
    finally:
        await runner.cleanup()


async def _retry(prepare: Callable[[], Awaitable[T]]) -> T:
    pause, is_logged = 0.2, False
    while True:
        try:
            return await prepare()
        except Exception as error:
            if not is_away(error):
                raise
            if not is_logged:
                log.warning("serve_waits_for_database", cause=str(error.__cause__ or error))
            is_logged = True
        await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311
        pause = min(pause * 2, _MAX_PAUSE)
