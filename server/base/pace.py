"""Turns of the event loop for others in the course of long work."""

import asyncio
import time

_SLICE = 0.001
"""Seconds of work after which the event loop gets a turn for others."""


class Pace:
    """Gives way to others now and then in the course of long work."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = time.perf_counter()

    async def rest(self) -> None:
        """Between two steps: gives way where the last turn is long ago."""
        if time.perf_counter() - self._since > _SLICE:
            await asyncio.sleep(0)
            self._since = time.perf_counter()
