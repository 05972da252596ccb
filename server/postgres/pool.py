"""Database connections between two uses: a bounded number, handed from call to call."""

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
"""A connection that idled longer is not trusted: a firewall may have dropped it without a word."""


class DriverConnection(asyncpg.Connection):  # type: ignore[misc]
    """asyncpg's connection, which never asks Postgres to cancel what may be committing.

    With synchronous replication a COMMIT waits for the standby. Postgres ends that wait on a CancelRequest by
    committing locally: everybody then sees rows that are lost at a failover. asyncpg sends a CancelRequest
    when a task that waits for an answer is cancelled, or its timeout passes, or the connection is closed
    meanwhile. Where the statement may be committing, this class drops the connection instead: the server
    process goes on waiting, nobody sees its rows until the standby has them, and its locks stay.

    Outside a transaction each statement commits at its end, so only a statement within a transaction is
    cancelled, COMMIT excepted. statement_timeout need not be switched off for it: Postgres stops that timer
    before it commits.
    """

    _is_commit = False

    def execute(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """As asyncpg's. Its Transaction sends BEGIN, COMMIT and ROLLBACK through here."""
        self._is_commit = query == "COMMIT;"
        return super().execute(query, *args, timeout=timeout)

    def _cancel_current_command(self, *waiters: Any) -> None:
        if self.is_in_transaction() and not self._is_commit:
            super()._cancel_current_command(*waiters)
        else:  # later: asyncpg's protocol still works on the connection when it has called this
            self._loop.call_soon(self.terminate)

    def get_reset_query(self) -> str:
        """Empty: officerpc leaves no session state behind, so giving back costs no round trip."""
        return ""


class Pool:
    """Hands connections out and takes them back.

    asyncpg's own pool opens connections, mends those that were left in the middle of work and replaces lost
    ones. What it costs to go through it, two tasks and two timers a call, is a fifth of a look-up: so a
    connection that comes back in order goes straight to the next call and never sees it.
    """

    def __init__(self, opened: asyncpg.Pool, size: int, wait: float, waiting: int) -> None:
        """
        Args:
            opened: with the same size.
            size: connections at most.
            wait: seconds for one to become free.
            waiting: calls of one instance that may wait for one.
        """
        self._opened = opened
        self._waits = Deadlines(wait)
        # A slot for each connection that is used, or is being opened or mended after use. One instance gets
        # two thirds of them: what keeps those busy, such as a lock, leaves the others to the others.
        self._slots = Shares(
            size=size,
            of_one=max(1, size - max(1, size // 3)),
            waiting=waiting,
            refusal="too many calls are waiting for the database, try again",
        )
        self._idle: list[tuple[asyncpg.Connection, float]] = []
        # By those in use, the seconds that they had idled for, and whose share their slot is of.
        self._used: dict[asyncpg.Connection, tuple[float, int]] = {}
        # Those that were used while all were to be opened anew, and the tasks that see to it.
        self._old: set[asyncpg.Connection] = set()
        self._mending: set[asyncio.Task[None]] = set()

    async def take(self) -> asyncpg.Connection:
        """A connection, the one that was used last if any is free, from the share of the running task.

        Raises:
            TimeoutError: none became free in time.
            Unavailable: too many calls of the instance are waiting already.
            Exception: the driver's, if none can be opened.
        """
        share = CURRENT_SHARE.get()
        if not self._slots.take_now(share):
            with Deadline(self._waits):
                await self._slots.take(share)
        while self._idle:
            connection, since = self._idle.pop()
            with contextlib.suppress(pg.InterfaceError):  # closed, and asyncpg's pool has heard of it
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
        """Seconds for which a connection that is used now had not been: it may have been lost meanwhile."""
        return self._used[connection][0]

    def give_back(self, connection: asyncpg.Connection) -> None:
        """A connection that is as it was taken, for the next call."""
        if connection in self._old:
            task = asyncio.get_running_loop().create_task(self.mend(connection))
            self._mending.add(task)
            task.add_done_callback(self._mending.discard)
            return
        _, share = self._used.pop(connection)
        self._idle.append((connection, time.monotonic()))
        self._slots.give_back(share)

    async def mend(self, connection: asyncpg.Connection) -> None:
        """A connection that was left in the middle of work: asyncpg's pool resets or drops it."""
        used = self._used.pop(connection, None)
        self._old.discard(connection)
        try:
            # Shielded and bounded: a call that was cancelled or timed out still frees its connection.
            await self._opened.release(connection, timeout=2)
        except DRIVER_ERRORS as error:
            log.warning("connection_dropped", error=type(error).__name__)
        finally:
            if used is not None:
                self._slots.give_back(used[1])

    async def drop_idle(self) -> None:
        """Close the connections that nobody uses: one was found lost, and what ended it may have ended all.

        The server may have said so and not yet closed them, which shows only at their next use. Each would
        cost a call one of its attempts.
        """
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            with contextlib.suppress(pg.InterfaceError):  # asyncpg's pool has heard that it is closed
                connection.terminate()
            await self.mend(connection)

    async def renew(self) -> None:
        """Let every connection be opened anew, those in use when they come back."""
        await self._opened.expire_connections()
        self._old |= self._used.keys()
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            await self.mend(connection)

    async def close(self, seconds: float) -> None:
        """Close all; a database that does not answer within so many seconds is left behind."""
        try:
            async with asyncio.timeout(seconds):
                await self.renew()
                await self._opened.close()
        except (TimeoutError, *DRIVER_ERRORS):
            self._opened.terminate()
