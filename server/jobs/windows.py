"""How many tries run at the same time: for each lane, for each instance, and in all.

A lane is a part of an instance's work: the deliveries to one webhook, or the jobs of one kind. It begins with
few. Each try that succeeds allows one more, up to a limit, and each that fails halves the number, as TCP does
with its window: a fast receiver is kept busy, and one that hangs or fails has few places.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple, TypeAlias

Lane: TypeAlias = tuple[int, Any]
"""The instance's id, and what tells the lane from the others of the instance."""
_KEPT = 10_000
"""Windows that are remembered; beyond that, those with nothing under way are forgotten."""


class Limits(NamedTuple):
    """Bounds of a window."""

    least: int
    first: int
    most: int


class _Window:
    __slots__ = ("size", "under_way")

    def __init__(self, size: int) -> None:
        self.size = size
        self.under_way = 0


class Windows:
    """Those of one worker."""

    def __init__(self, at_once: int, per_instance: Limits, each: Limits) -> None:
        """
        Args:
            at_once: tries in all.
            per_instance: of one instance.
            each: of one lane.
        """
        self.at_once = at_once
        self._per_instance, self._each = per_instance, each
        # Of instances, by their ids, and of lanes.
        self._windows: dict[int | Lane, _Window] = {}
        self._under_way = 0

    def _limits(self, of: int | Lane) -> Limits:
        return self._each if isinstance(of, tuple) else self._per_instance

    def _window(self, of: int | Lane) -> _Window:
        return self._windows.get(of) or _Window(self._limits(of).first)

    def begin(self, lane: Lane) -> None:
        """One more try is under way."""
        self._under_way += 1
        if len(self._windows) > _KEPT:
            self._windows = {of: window for of, window in self._windows.items() if window.under_way}
        for of in (lane[0], lane):
            window = self._windows[of] = self._window(of)
            window.under_way += 1

    def end(self, lane: Lane, succeeded: bool) -> None:
        """A try has ended."""
        self._under_way -= 1
        for of in (lane[0], lane):
            window, limits = self._windows[of], self._limits(of)
            window.under_way -= 1
            window.size = (
                min(window.size + 1, limits.most) if succeeded else max(window.size // 2, limits.least)
            )

    def has_room(self, instance_id: int) -> bool:
        """Whether another try of an instance may begin, as far as its own window goes."""
        window = self._window(instance_id)
        return window.under_way < window.size

    def share_out(self, waiting: Iterable[Lane]) -> Counter[Lane]:
        """How many tries of each lane may begin.

        One at a time goes to the instance with the fewest under way, and there to the lane with the fewest;
        among equals, to the one that stands first.

        Args:
            waiting: lanes with something to do.
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
    """Lanes with something to do, by instance; what was served last stands last."""

    def __init__(self) -> None:
        self._instances: dict[int, dict[Lane, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._instances)

    def add(self, lanes: Iterable[Lane]) -> None:
        """Lanes stand last, but for those that stand there already."""
        for lane in lanes:
            self._instances.setdefault(lane[0], {})[lane] = None

    def take(self, lanes: Iterable[Lane]) -> None:
        """Lanes are served: they stand there no more, and others of their instances stand last."""
        for lane in lanes:
            rest = self._instances.pop(lane[0])
            del rest[lane]
            if rest:
                self._instances[lane[0]] = rest

    def of(self, windows: Windows) -> Iterator[Lane]:
        """Those of instances that have room, in their order.

        Whoever takes a bounded number of them sees all tenants in turn: lanes of an instance without room are
        not among them. Few instances are passed over, as each has some under way.
        """
        for instance_id, lanes in self._instances.items():
            if windows.has_room(instance_id):
                yield from lanes
