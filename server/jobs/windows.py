"""Limits of parallel tries: of each lane, of each instance, and in all.

A lane is a part of an instance's work: the deliveries to one webhook, or the jobs of one kind. As in TCP's
congestion control, its window begins small, each success adds one, up to a limit, and each failure halves it.
So a fast receiver is kept busy, and one that hangs or fails gets few tries.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple, TypeAlias

Lane: TypeAlias = tuple[int, Any]
"""The instance's id, and the key of the lane in the instance."""
_KEPT = 10_000
"""Most windows in memory; beyond that, windows without running tries are dropped."""


class Limits(NamedTuple):
    """Sizes of a window."""

    least: int
    first: int
    most: int


class _Window:
    __slots__ = ("size", "under_way")

    def __init__(self, size: int) -> None:
        self.size = size
        self.under_way = 0


class Windows:
    """The windows of one worker."""

    def __init__(self, at_once: int, per_instance: Limits, each: Limits) -> None:
        """
        Args:
            at_once: tries in all.
            per_instance: of one instance.
            each: of one lane.
        """
        self.at_once = at_once
        self._per_instance, self._each = per_instance, each
        # By instance id, and by lane.
        self._windows: dict[int | Lane, _Window] = {}
        self._under_way = 0

    def _limits(self, of: int | Lane) -> Limits:
        return self._each if isinstance(of, tuple) else self._per_instance

    def _window(self, of: int | Lane) -> _Window:
        return self._windows.get(of) or _Window(self._limits(of).first)

    def begin(self, lane: Lane) -> None:
        """Count a try that begins."""
        self._under_way += 1
        if len(self._windows) > _KEPT:
            self._windows = {of: window for of, window in self._windows.items() if window.under_way}
        for of in (lane[0], lane):
            window = self._windows[of] = self._window(of)
            window.under_way += 1

    def end(self, lane: Lane, succeeded: bool) -> None:
        """Count a try that ended, and resize its windows."""
        self._under_way -= 1
        for of in (lane[0], lane):
            window, limits = self._windows[of], self._limits(of)
            window.under_way -= 1
            window.size = (
                min(window.size + 1, limits.most) if succeeded else max(window.size // 2, limits.least)
            )

    def has_room(self, instance_id: int) -> bool:
        """Whether the window of an instance allows another try."""
        window = self._window(instance_id)
        return window.under_way < window.size

    def share_out(self, waiting: Iterable[Lane]) -> Counter[Lane]:
        """How many tries of each lane may begin.

        Each goes to the instance with the fewest running tries, and there to the lane with the fewest; the
        first one among equals.

        Args:
            waiting: lanes with waiting rows.
        """
        shares: Counter[Lane] = Counter()
        lanes: dict[int, list[tuple[int, int, Lane]]] = {}
        for order, lane in enumerate(waiting):
            lanes.setdefault(lane[0], []).append((self._window(lane).under_way, order, lane))
        instances = [(self._window(of).under_way, order, of) for order, of in enumerate(lanes)]
        heapify(instances)
        for queue in lanes.values():
            heapify(queue)
        room = self.at_once - self._under_way
        while room > 0 and instances:
            of_instance, place, instance_id = heappop(instances)
            if of_instance >= self._window(instance_id).size:
                continue
            queue = lanes[instance_id]
            of_lane, order, lane = heappop(queue)
            if of_lane < self._window(lane).size:
                shares[lane] += 1
                room -= 1
                of_instance += 1
                heappush(queue, (of_lane + 1, order, lane))
            if queue:
                heappush(instances, (of_instance, place, instance_id))
        return shares


class Due:
    """Lanes with waiting rows, by instance; the last served is the last in order."""

    def __init__(self) -> None:
        self._instances: dict[int, dict[Lane, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._instances)

    def add(self, lanes: Iterable[Lane]) -> None:
        """Append lanes; those that are here already keep their position."""
        for lane in lanes:
            self._instances.setdefault(lane[0], {})[lane] = None

    def take(self, lanes: Iterable[Lane]) -> None:
        """Remove served lanes, and move the other lanes of their instances to the end."""
        for lane in lanes:
            rest = self._instances.pop(lane[0])
            del rest[lane]
            if rest:
                self._instances[lane[0]] = rest

    def of(self, windows: Windows) -> Iterator[Lane]:
        """The lanes of instances with room, in order.

        Without the lanes of full instances, a bounded number of lanes reaches all tenants in turn. Few
        instances are skipped, because each of them has running tries.
        """
        for instance_id, lanes in self._instances.items():
            if windows.has_room(instance_id):
                yield from lanes
