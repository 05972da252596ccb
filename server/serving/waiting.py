"""The start of a server whose database is not there yet: live, not ready, until it can be prepared."""

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

LONGEST_PAUSE = 5.0
"""Seconds between two tries."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections.

    Args:
        host: a name or an address, an IPv6 one with brackets or without; :: is all addresses, of IPv4 too.
        port: 0: any that is free.

    Raises:
        OSError: the address is taken, or none of this machine.
    """
    family, _, _, _, address = socket.getaddrinfo(
        host.removeprefix("[").removesuffix("]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    # The address :: without IPV6_V6ONLY takes IPv4 as well.
    both = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(address[:2], family=family, backlog=2048, dualstack_ipv6=both)


async def prepared(settings: Settings, listening: socket.socket, prepare: Callable[[], Awaitable[T]]) -> T:
    """What prepare() gives, tried until the database is there; meanwhile the port answers.

    Args:
        listening: of the server to be, which stays open.
        prepare: migrates and makes what the first start makes. It can be repeated.

    Raises:
        Exception: prepare's, where waiting does not help (see is_away).
    """
    # The workers take the port over: clients have to come to them by connections of their own.
    runner = Runner(create_waiting_app(settings), keeps_connections=False)
    await runner.setup()
    await web.SockSite(runner, listening.dup()).start()  # which closes its own
    try:
        return await _tried(prepare)
    finally:
        await runner.cleanup()


async def _tried(prepare: Callable[[], Awaitable[T]]) -> T:
    pause, told = 0.2, False
    while True:
        try:
            return await prepare()
        except Exception as error:
            if not is_away(error):
                raise
            if not told:
                log.warning("serve_waits_for_database", cause=str(error.__cause__ or error))
            told = True
        await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311
        pause = min(pause * 2, LONGEST_PAUSE)
