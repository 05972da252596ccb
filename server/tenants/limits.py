"""How many calls a key or an instance may make: a fixed window for each, counted in this process's memory.

Each worker counts for itself, so a key gets up to the limit from each of them. The wires decide what is
counted, and what an answer says about it.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left to a key, or an instance, after a call."""

    granted: bool
    limit: int
    remaining: int
    # Seconds until the window ends and the limit holds anew.
    resets_in: int
    # Seconds of a whole window.
    window: int


class RateLimiter:
    """Counts the calls of each key, or instance, in windows that begin with its first call."""

    def __init__(
        self, limit: int, *, window: float = 60.0, keys: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            limit: calls in a window; 0 for no limit.
            window: seconds.
            keys: how many are remembered at most. One that has to make room begins anew, so that a
                flood of keys costs accuracy and not memory.
            clock: seconds from anywhere.
        """
        self._limit = limit
        self._window = window
        self._keys = keys
        self._clock = clock
        # Key -> end of its window and calls in it, in the order in which the windows end.
        self._counts: OrderedDict[int, list[float]] = OrderedDict()

    def spend(self, key_id: int, own_limit: int | None = None) -> Allowance | None:
        """Count a call of a key, or an instance, by its id.

        Args:
            own_limit: its own, instead of everybody's; 0 for no limit.

        Returns:
            whether it is granted and what is left; None where there is no limit.
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
        left = max(0, int(limit - count[1]))  # a limit may have been lowered in its window
        return Allowance(granted, limit, left, math.ceil(count[0] - now), math.ceil(self._window))
