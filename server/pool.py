"""Database connections between two uses: a bounded number, handed from call to call."""

import asyncio
import contextlib
import time
from collections import deque
from typing import Any

import asyncpg
import structlog
from asyncpg import exceptions as pg

from server.deadlines import Deadline, Deadlines

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

    def __init__(self, opened: asyncpg.Pool, size: int, wait: float) -> None:
        """
        Args:
            opened: with the same size.
            size: connections at most.
            wait: seconds for one to become free.
        """
        self._opened = opened
        self._size = size
        self._waits = Deadlines(wait)
        # Places taken of that size: by a connection that is used, idles here, or is being opened.
        self._places = 0
        self._idle: list[tuple[asyncpg.Connection, float]] = []
        # By those in use, the seconds that they had idled for.
        self._used: dict[asyncpg.Connection, float] = {}
        # Those that were used while all were to be opened anew, and the tasks that see to it.
        self._old: set[asyncpg.Connection] = set()
        self._mending: set[asyncio.Task[None]] = set()
        # Who waits is given a connection, or None for the place of one, to open it.
        self._waiting: deque[asyncio.Future[asyncpg.Connection | None]] = deque()

    async def take(self) -> asyncpg.Connection:
        """A connection, the one that was used last if any is free.

        Raises:
            TimeoutError: none became free in time.
            Exception: the driver's, if none can be opened.
        """
        while self._idle:
            connection, since = self._idle.pop()
            with contextlib.suppress(pg.InterfaceError):  # closed, and asyncpg's pool has heard of it
                idled = time.monotonic() - since
                if idled < IDLE_SECONDS and not connection.is_closed():
                    self._used[connection] = idled
                    return connection
                connection.terminate()
            self._places -= 1
        if self._places < self._size:
            self._places += 1
        elif connection := await self._wait():
            return connection
        try:
            connection = await self._opened.acquire()
        except BaseException:
            self._free_place()
            raise
        self._used[connection] = 0.0
        return connection

    def idled(self, connection: asyncpg.Connection) -> float:
        """Seconds for which a connection that is used now had not been: it may have been lost meanwhile."""
        return self._used[connection]

    def give_back(self, connection: asyncpg.Connection) -> None:
        """A connection that is as it was taken, for the next call."""
        if connection in self._old:
            task = asyncio.get_running_loop().create_task(self.mend(connection))
            self._mending.add(task)
            task.add_done_callback(self._mending.discard)
            return
        del self._used[connection]
        if waiting := self._next():
            self._used[connection] = 0.0
            waiting.set_result(connection)
        else:
            self._idle.append((connection, time.monotonic()))

    async def mend(self, connection: asyncpg.Connection) -> None:
        """A connection that was left in the middle of work: asyncpg's pool resets or drops it."""
        self._used.pop(connection, None)
        self._old.discard(connection)
        try:
            # Shielded and bounded: a call that was cancelled or timed out still frees its connection.
            await self._opened.release(connection, timeout=2)
        except DRIVER_ERRORS as error:
            log.warning("connection_dropped", error=type(error).__name__)
        finally:
            self._free_place()

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

    async def _wait(self) -> asyncpg.Connection | None:
        turn: asyncio.Future[asyncpg.Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            with Deadline(self._waits):
                return await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # its turn came as it gave up: the next one's
                given = turn.result()
                self.give_back(given) if given else self._free_place()
            raise

    def _next(self) -> "asyncio.Future[asyncpg.Connection | None] | None":
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # otherwise it gave up
                return turn
        return None

    def _free_place(self) -> None:
        if turn := self._next():
            turn.set_result(None)
        else:
            self._places -= 1
