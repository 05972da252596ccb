"""Pools of threads for work that would block the event loop, with fair shares of the instances."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from server.base.shares import CURRENT_SHARE, Shares

T = TypeVar("T")


class BoundedPool:
    """A pool of threads with fair shares, and a limited queue for each instance."""

    def __init__(self, name: str, slots: Shares) -> None:
        """
        Args:
            name: prefix of the names of the threads.
            slots: one for each thread.
        """
        self._slots, self.of_one = slots, slots.of_one
        self._executor = ThreadPoolExecutor(slots.size, name, initializer=_yield_to_others)

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """The result of work(*args), in the share of the running task.

        Raises:
            Unavailable: too many jobs are waiting; try again after a second.
        """
        share, loop = CURRENT_SHARE.get(), asyncio.get_running_loop()
        await self._slots.take(share)

        def ended(_: "Future[T]") -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._slots.give_back, share)

        try:
            running = self._executor.submit(work, *args)
        except BaseException:
            self._slots.give_back(share)
            raise
        # After a cancellation the thread goes on: it keeps its slot until it ends.
        running.add_done_callback(ended)
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """Cancel waiting jobs and end the threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _yield_to_others() -> None:
    # These threads can fill every core: at a lower priority they get about a tenth of one that the event loop
    # or Postgres needs (sched(7)). Look-ups stay fast, and logins go on.
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
