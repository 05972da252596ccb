"""Rate limits of keys and instances: a fixed window for each, counted in memory.

Each worker counts its own calls, so a key gets up to the limit from each worker. The wires decide which
calls count, and the headers of the answers.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Allowance:
    """The state of a window after a call."""

    granted: bool
    limit: int
    remaining: int
    # Seconds until the window ends.
    resets_in: int
    # Length of the window in seconds.
    window: int


class RateLimiter:
    """Counts the calls of each key, or instance, in windows that begin with a call."""

    def __init__(
        self, limit: int, *, window: float = 60.0, keys: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            limit: calls in a window; 0: unlimited.
            window: seconds.
            keys: most windows in memory. Beyond it the oldest is dropped, and its key begins a new one.
            clock: seconds.
        """
        self._limit = limit
        self._window = window
        self._keys = keys
        self._clock = clock
        # Key -> end of its window and calls in it, in the order in which the windows end.
        self._counts: OrderedDict[int, list[float]] = OrderedDict()

    def spend(self, key_id: int, own_limit: int | None = None) -> Allowance | None:
        """Count a call of a key, or an instance, by its id; None: unlimited.

        Args:
            own_limit: instead of the common limit; 0: unlimited.
        """
        limit = self._limit if own_limit is None else own_limit
        if not limit:
            return None
        now = self._clock()
        while self._counts and next(iter(self._counts.values()))[0] <= now:
            self._counts.popitem(last=False)
        count = self._counts.get(key_id)
        if count is None:
            if len(self._counts) >= self._keys:
                self._counts.popitem(last=False)
            count = self._counts[key_id] = [now + self._window, 0]
        granted = count[1] < limit
        count[1] += granted
        left = max(0, int(limit - count[1]))  # the limit may have been lowered during the window
        return Allowance(granted, limit, left, math.ceil(count[0] - now), math.ceil(self._window))
