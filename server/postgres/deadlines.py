"""Time limits on calls and on waiting."""

import asyncio
import time


class Deadlines:
    """A time limit shared by many blocks, with one timer: a timer for each would cost a fifth of a query."""

    LOOK_EVERY = 0.25

    def __init__(self, seconds: float) -> None:
        """
        Args:
            seconds: the same for all, so the first block to begin is the first to expire.
        """
        self.seconds = seconds
        self.running: dict[Deadline, None] = {}
        self._watch: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Start the timer if it does not run."""
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while self.running:  # a later block starts this again
            await asyncio.sleep(min(self.LOOK_EVERY, self.seconds))
            now = time.monotonic()
            for deadline in self.running:
                if deadline.due > now:
                    break
                deadline.pass_()


class Deadline:
    """Cancels its block when the time is up: the block then raises TimeoutError."""

    __slots__ = ("_all", "_cancelling", "_passed", "_task", "due")

    def __init__(self, deadlines: Deadlines) -> None:
        self._all = deadlines
        self._passed = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self.due = time.monotonic() + self._all.seconds
        self._all.running[self] = None
        self._all.watch()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        del self._all.running[self]
        # As asyncio.timeout does: a cancellation by others still counts.
        if (
            self._passed
            and self._task.uncancel() <= self._cancelling
            and isinstance(error, asyncio.CancelledError)
        ):
            raise TimeoutError from error

    def pass_(self) -> None:
        """The time is up."""
        if not self._passed:
            self._passed = True
            self._task.cancel()
