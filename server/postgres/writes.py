"""Whether the database accepts writes, known from a recent write."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger()

FRESH = 5.0
"""Seconds for which a successful write proves that the next one will succeed."""
PATIENCE = 2.0
"""Seconds that a caller waits for a proof."""
LIMIT = 10.0
"""Seconds after which a proof without an answer is given up. The next caller begins another one."""
PAUSE = 1.0
"""Seconds after a failed proof before the next one begins."""


class Writes:
    """A circuit breaker for writes.

    If the disk is full, or a COMMIT is not answered in time (its standby is gone), all writes are in doubt:
    the next ones need a proof, which is a small write, and are refused without it before they begin. They
    would fail too, and while they wait for a standby each holds a server process and its locks.
    """

    def __init__(self, prove: Callable[[bool], Awaitable[bool]]) -> None:
        """
        Args:
            prove: writes something and returns whether the database accepted it. Its argument is whether
                writes are in doubt: then it also tests for free disk space.
        """
        self._prove = prove
        self._proven_at = self._failed_at = float("-inf")
        self._proving: asyncio.Task[bool] | None = None
        self._doubts = 0
        self.in_doubt = False

    def doubt(self, cause: str) -> None:
        """Note that a write failed in a way in which others will too.

        Args:
            cause: for the log.
        """
        if not self.in_doubt:
            log.warning("writes_in_doubt", cause=cause)
        self.in_doubt = True
        self._doubts += 1

    async def proven(self) -> bool:
        """Whether a write succeeded within FRESH seconds and none failed since, or a proof succeeds now.

        One proof runs at a time, for all callers. It is not cancelled with them: it may be committing. For
        PAUSE seconds after a failed proof the answer is no, without another one.
        """
        if not self.in_doubt and time.monotonic() - self._proven_at < FRESH:
            return True
        proving = self._proving
        if proving is None or proving.done():
            if time.monotonic() - self._failed_at < PAUSE:
                return False
            proving = self._proving = asyncio.create_task(self._find_out())
        done, _ = await asyncio.wait({proving}, timeout=PATIENCE)
        # Not self._proving: another caller may have begun the next proof meanwhile.
        return bool(done) and proving.result()

    async def _find_out(self) -> bool:
        doubts = self._doubts
        try:
            async with asyncio.timeout(LIMIT):
                taken = await self._prove(self.in_doubt)
        except Exception as error:  # of the driver, ours, a missing table: nothing was written
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
        """Cancel a running proof."""
        if self._proving is not None:
            self._proving.cancel()
            await asyncio.wait({self._proving})
