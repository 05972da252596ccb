"""Whether the database takes writes, known from a write that went through a moment ago."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger()

FRESH = 5.0
"""Seconds for which one write is proof enough that the next will go through."""
PATIENCE = 2.0
"""Seconds that a caller waits for a proof."""
LIMIT = 10.0
"""Seconds after which a proof that got no answer is given up, and the next caller begins another one."""
PAUSE = 1.0
"""Seconds after a failed proof before the next one begins."""


class Writes:
    """Remembers that writes work or may not work, and finds out with a write of its own.

    A write that found the disk full, or whose COMMIT was not answered in time (its standby is gone), puts
    all writes in doubt: the next ones wait for a proof and are refused without it, before they begin. They
    would fail in the same way, and each that waits for a standby holds a server process and its locks until
    that is back.
    """

    def __init__(self, prove: Callable[[bool], Awaitable[bool]]) -> None:
        """
        Args:
            prove: writes something and answers whether the database took it; told whether writes are in
                doubt, so that it must show that there is room as well.
        """
        self._prove = prove
        self._proven_at = self._failed_at = float("-inf")
        self._proving: asyncio.Task[bool] | None = None
        self._doubts = 0
        self.in_doubt = False

    def doubt(self, cause: str) -> None:
        """A write failed in a way in which others will, too.

        Args:
            cause: what it met, for the log.
        """
        if not self.in_doubt:
            log.warning("writes_in_doubt", cause=cause)
        self.in_doubt = True
        self._doubts += 1

    async def proven(self) -> bool:
        """Whether a write went through within FRESH seconds and none failed since, or one goes through now.

        One proof runs at a time, for all that wait. It is not cancelled when they stop waiting: its write
        could be at its COMMIT. For PAUSE seconds after one that failed the answer is no, without another one.
        """
        if not self.in_doubt and time.monotonic() - self._proven_at < FRESH:
            return True
        proving = self._proving
        if proving is None or proving.done():
            if time.monotonic() - self._failed_at < PAUSE:
                return False
            proving = self._proving = asyncio.create_task(self._find_out())
        done, _ = await asyncio.wait({proving}, timeout=PATIENCE)
        # Not of self._proving: another caller may have begun the next proof before this one woke up.
        return bool(done) and proving.result()

    async def _find_out(self) -> bool:
        doubts = self._doubts
        try:
            async with asyncio.timeout(LIMIT):
                taken = await self._prove(self.in_doubt)
        except (
            Exception
        ) as error:  # the driver's, ours, a missing table: whatever it was, nothing was written
            log.info("write_not_proven", cause=type(error).__name__)
            taken = False
        if not taken:
            self._failed_at = time.monotonic()
        elif doubts == self._doubts:
            if self.in_doubt:
                log.warning("writes_work_again")
            self._proven_at, self.in_doubt = time.monotonic(), False
        return taken

    async def close(self) -> None:
        """Give up a proof that still waits."""
        if self._proving is not None:
            self._proving.cancel()
            await asyncio.wait({self._proving})
