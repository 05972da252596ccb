"""Work that would hold the event loop up, in threads: so many at once, so many waiting, no more."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from server.errors import Unavailable

T = TypeVar("T")


class BoundedPool:
    """A pool of threads with a bounded queue."""

    def __init__(self, name: str, *, threads: int, waiting: int, refusal: str) -> None:
        """
        Args:
            name: of the threads, as a debugger shows them.
            threads: how much runs at once.
            waiting: how much more may wait.
            refusal: what the next one is told.
        """
        self.threads = threads
        self._executor = ThreadPoolExecutor(threads, name, initializer=_yield_to_others)
        self._limit = threads + waiting
        self._refusal = refusal
        self._running = 0

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """The result of work(*args).

        Raises:
            Unavailable: too much is waiting; try again after a second.
        """
        if self._running >= self._limit:
            raise Unavailable(self._refusal, code="busy", retry_after=1)
        self._running += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)
        finally:
            self._running -= 1

    def close(self) -> None:
        """Drop what waits and end the threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _yield_to_others() -> None:
    # These threads can fill every core; a lower priority lets the event loop and Postgres go first.
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)
