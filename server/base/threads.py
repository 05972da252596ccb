"""Work that would hold the event loop up, in threads: bounded, and shared out by instance."""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from server.base.shares import CURRENT_SHARE, Shares

T = TypeVar("T")


class BoundedPool:
    """A pool of threads, shared out by instance, with a bounded queue for each."""

    def __init__(
        self,
        name: str,
        *,
        threads: int,
        of_one: int,
        waiting: int,
        waiting_in_all: int = sys.maxsize,
        refusal: str,
    ) -> None:
        """
        Args:
            name: of the threads, as a debugger shows them.
            threads: how much runs at once.
            of_one: how much of that may be of one instance.
            waiting: how much more of one instance may wait.
            waiting_in_all: how much more of all instances together may.
            refusal: what the next one is told.
        """
        self.of_one = of_one
        self._executor = ThreadPoolExecutor(threads, name, initializer=_yield_to_others)
        self._slots = Shares(
            size=threads, of_one=of_one, waiting=waiting, waiting_in_all=waiting_in_all, refusal=refusal
        )

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """The result of work(*args), from the share of the running task.

        Raises:
            Unavailable: too much of the instance is waiting; try again after a second.
        """
        share, loop = CURRENT_SHARE.get(), asyncio.get_running_loop()
        await self._slots.take(share)

        def ended(_: "Future[T]") -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._slots.give_back, share)

        try:
            running = self._executor.submit(work, *args)
        except BaseException:
            self._slots.give_back(share)
            raise
        # Whoever is cancelled leaves a thread that works on: its slot is free when it is.
        running.add_done_callback(ended)
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """Drop what waits and end the threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _yield_to_others() -> None:
    # These threads can fill every core; a lower priority lets the event loop and Postgres go first. Where all
    # want a core, this one gets them a tenth of it (sched(7)): look-ups hardly notice, and logins go on.
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
