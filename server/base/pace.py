"""Yielding to the event loop during long work."""

import asyncio
import time

_SLICE = 0.001
"""Seconds of work after which other tasks get a turn."""


class Pace:
    """Lets other tasks run during long work."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = time.perf_counter()

    async def rest(self) -> None:
        """Call this between two steps: yields if the last turn is long ago."""
        if time.perf_counter() - self._since > _SLICE:
            await asyncio.sleep(0)
            self._since = time.perf_counter()
