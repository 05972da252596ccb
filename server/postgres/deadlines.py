"""Time limits on calls and on waiting."""

import asyncio
import time


class Deadlines:
    """What must end within so many seconds.

    One timer watches all of it: under uvloop one for each call would cost as much as a fifth of its query.
    """

    LOOK_EVERY = 0.25

    def __init__(self, seconds: float) -> None:
        """
        Args:
            seconds: the same for all, so that the first to begin is the first whose time is up.
        """
        self.seconds = seconds
        self.running: dict[Deadline, None] = {}
        self._watch: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """See to it that somebody looks as long as anything runs."""
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while self.running:  # what begins later starts this again
            await asyncio.sleep(min(self.LOOK_EVERY, self.seconds))
            now = time.monotonic()
            for deadline in self.running:
                if deadline.due > now:
                    break
                deadline.pass_()


class Deadline:
    """Cancels what runs within its block when its time is up: the block then raises TimeoutError."""

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
        # As asyncio.timeout does: whoever else cancelled the task meanwhile is heard.
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
