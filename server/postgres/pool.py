"""The pool of database connections."""

import asyncio
import contextlib
import time
from typing import Any

import asyncpg
import structlog
from asyncpg import exceptions as pg

from server.base.shares import CURRENT_SHARE, Shares
from server.postgres.deadlines import Deadline, Deadlines

log = structlog.get_logger()

DRIVER_ERRORS = (pg.PostgresError, pg.InterfaceError, pg.InternalClientError, OSError)
IDLE_SECONDS = 300
"""A connection that was idle longer is not used again: a firewall may have dropped it silently."""


class DriverConnection(asyncpg.Connection):  # type: ignore[misc]
    """asyncpg's connection, which never asks Postgres to cancel a statement that may be committing.

    With synchronous replication a COMMIT waits for the standby. On a CancelRequest Postgres stops waiting and
    commits locally: the rows become visible, and are lost at a failover. asyncpg sends a CancelRequest when a
    waiting task is cancelled, its timeout passes, or the connection is closed. If the statement may be
    committing, this class drops the connection instead: the server process goes on waiting, its rows stay
    invisible until the standby has them, and its locks stay.

    Outside a transaction each statement commits at its end, so only statements within a transaction are
    cancelled, except COMMIT. statement_timeout may stay on: Postgres stops that timer before it commits.
    """

    _is_commit = False

    def execute(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """As in asyncpg, whose Transaction sends BEGIN, COMMIT and ROLLBACK by it."""
        self._is_commit = query == "COMMIT;"
        return super().execute(query, *args, timeout=timeout)

    def _cancel_current_command(self, *waiters: Any) -> None:
        if self.is_in_transaction() and not self._is_commit:
            super()._cancel_current_command(*waiters)
        else:  # later: asyncpg's protocol still uses the connection after this call
            self._loop.call_soon(self.terminate)

    def get_reset_query(self) -> str:
        """Empty: officerpc leaves no session state to reset."""
        return ""


class Pool:
    """Hands connections out and takes them back.

    asyncpg's own pool opens connections, and resets or replaces broken ones. It takes two tasks and two
    timers a call, a fifth of the time of a look-up: so a clean connection goes straight to the next call.
    """

    def __init__(self, opened: asyncpg.Pool, size: int, wait: float, waiting: int) -> None:
        """
        Args:
            opened: asyncpg's pool, of the same size.
            size: maximum number of connections.
            wait: maximum seconds to wait for a free connection.
            waiting: how many calls of one instance may wait.
        """
        self._opened = opened
        self._waits = Deadlines(wait)
        # A slot for each connection in use, also while it is opened or mended. One instance gets at most two
        # thirds: if they all wait, for a lock for example, the rest stays free for other instances.
        self._slots = Shares(
            size=size,
            of_one=max(1, size - max(1, size // 3)),
            waiting=waiting,
            refusal="too many calls are waiting for the database, try again",
        )
        self._idle: list[tuple[asyncpg.Connection, float]] = []
        # The connections in use: seconds idle before checkout, and the share of the slot.
        self._used: dict[asyncpg.Connection, tuple[float, int]] = {}
        # Connections that were in use at renew(), and the tasks that replace them.
        self._old: set[asyncpg.Connection] = set()
        self._mending: set[asyncio.Task[None]] = set()

    async def take(self) -> asyncpg.Connection:
        """A connection, the most recently used one that is free, in the share of the running task.

        Raises:
            TimeoutError: none became free in time.
            Unavailable: too many calls of the instance are waiting.
            Exception: the driver's, if no connection can be opened.
        """
        share = CURRENT_SHARE.get()
        if not self._slots.take_now(share):
            with Deadline(self._waits):
                await self._slots.take(share)
        while self._idle:
            connection, since = self._idle.pop()
            with contextlib.suppress(pg.InterfaceError):  # closed, and released from asyncpg's pool
                idled = time.monotonic() - since
                if idled < IDLE_SECONDS and not connection.is_closed():
                    self._used[connection] = idled, share
                    return connection
                connection.terminate()
        try:
            connection = await self._opened.acquire()
        except BaseException:
            self._slots.give_back(share)
            raise
        self._used[connection] = 0.0, share
        return connection

    def idled(self, connection: asyncpg.Connection) -> float:
        """Seconds that a connection in use was idle before checkout."""
        return self._used[connection][0]

    def give_back(self, connection: asyncpg.Connection) -> None:
        """Give a clean connection back, for the next call."""
        if connection in self._old:
            task = asyncio.get_running_loop().create_task(self.mend(connection))
            self._mending.add(task)
            task.add_done_callback(self._mending.discard)
            return
        _, share = self._used.pop(connection)
        self._idle.append((connection, time.monotonic()))
        self._slots.give_back(share)

    async def mend(self, connection: asyncpg.Connection) -> None:
        """Give a connection back that may be broken: asyncpg's pool resets or drops it."""
        used = self._used.pop(connection, None)
        self._old.discard(connection)
        try:
            # release is shielded and limited: a cancelled call still frees its connection.
            await self._opened.release(connection, timeout=2)
        except DRIVER_ERRORS as error:
            log.warning("connection_dropped", error=type(error).__name__)
        finally:
            if used is not None:
                self._slots.give_back(used[1])

    async def drop_idle(self) -> None:
        """Close the idle connections after one was found lost: the others are probably lost too.

        Some would show it only at their next use, and each would cost a call one of its attempts.
        """
        for connection, _ in self._idle:
            with contextlib.suppress(pg.InterfaceError):  # released from asyncpg's pool already
                connection.terminate()
        await self._mend_idle()

    async def renew(self) -> None:
        """Replace every connection, those in use when they are given back."""
        await self._opened.expire_connections()
        self._old |= self._used.keys()
        await self._mend_idle()

    async def _mend_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            await self.mend(connection)

    async def close(self, seconds: float) -> None:
        """Close all connections, without a goodbye if the database does not answer in time."""
        try:
            async with asyncio.timeout(seconds):
                await self.renew()
                await self._opened.close()
        except (TimeoutError, *DRIVER_ERRORS):
            self._opened.terminate()
