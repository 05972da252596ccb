"""How many deliveries are under way at the same time: for each webhook, for each instance, and in all.

A webhook begins with few. Each delivery that is taken allows one more, up to a limit, and each that fails
halves the number, as TCP does with its window: a fast receiver is kept busy, and one that hangs or fails has
few places.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import NamedTuple, TypeAlias

Ref: TypeAlias = tuple[int, int]
"""A webhook: the instance's id and its own."""
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
            at_once: deliveries in all.
            per_instance: of one instance.
            each: to one webhook.
        """
        self._at_once = at_once
        self._limits: tuple[Limits, Limits] = (per_instance, each)
        self._instances: dict[int, _Window] = {}
        self._webhooks: dict[Ref, _Window] = {}
        self._under_way = 0

    def begin(self, ref: Ref) -> None:
        """One more delivery to a webhook is under way."""
        self._under_way += 1
        if len(self._webhooks) > _KEPT:
            self._instances = {of: window for of, window in self._instances.items() if window.under_way}
            self._webhooks = {of: window for of, window in self._webhooks.items() if window.under_way}
        self._instances.setdefault(ref[0], _Window(self._limits[0].first)).under_way += 1
        self._webhooks.setdefault(ref, _Window(self._limits[1].first)).under_way += 1

    def end(self, ref: Ref, taken: bool) -> None:
        """A delivery has ended."""
        self._under_way -= 1
        windows = self._instances[ref[0]], self._webhooks[ref]
        for window, limits in zip(windows, self._limits, strict=True):
            window.under_way -= 1
            window.size = min(window.size + 1, limits.most) if taken else max(window.size // 2, limits.least)

    def has_room(self, instance_id: int) -> bool:
        """Whether another delivery of an instance may begin, as far as its own window goes."""
        own = self._instances.get(instance_id)
        return own is None or own.under_way < own.size

    def share_out(self, waiting: Iterable[Ref]) -> Counter[Ref]:
        """How many deliveries of each webhook may begin.

        One at a time goes to the instance with the fewest under way, and there to the webhook with the
        fewest; among equals, to the one that stands first.

        Args:
            waiting: webhooks with deliveries to send.
        """
        shares: Counter[Ref] = Counter()
        webhooks: dict[int, list[tuple[int, int, Ref]]] = {}
        for order, ref in enumerate(waiting):
            window = self._webhooks.get(ref)
            if window is None or window.under_way < window.size:
                webhooks.setdefault(ref[0], []).append((window.under_way if window else 0, order, ref))
        instances = []
        for order, (instance_id, queue) in enumerate(webhooks.items()):
            heapify(queue)
            own = self._instances.get(instance_id)
            instances.append((own.under_way if own else 0, order, instance_id))
        heapify(instances)
        room = self._at_once - self._under_way
        while room > 0 and instances:
            of_instance, place, instance_id = heappop(instances)
            own = self._instances.get(instance_id)
            if of_instance >= (own.size if own else self._limits[0].first):
                continue
            queue = webhooks[instance_id]
            of_webhook, order, ref = heappop(queue)
            shares[ref] += 1
            room -= 1
            window = self._webhooks.get(ref)
            if of_webhook + 1 < (window.size if window else self._limits[1].first):
                heappush(queue, (of_webhook + 1, order, ref))
            if queue:
                heappush(instances, (of_instance + 1, place, instance_id))
        return shares


class Due:
    """Webhooks with deliveries to send, by instance; what was served last stands last."""

    def __init__(self) -> None:
        self._instances: dict[int, dict[Ref, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._instances)

    def add(self, webhooks: Iterable[Ref]) -> None:
        """Webhooks stand last, but for those that stand there already."""
        for ref in webhooks:
            self._instances.setdefault(ref[0], {})[ref] = None

    def take(self, webhooks: Iterable[Ref]) -> None:
        """Webhooks are served: they stand there no more, and others of their instances stand last."""
        for ref in webhooks:
            rest = self._instances.pop(ref[0])
            del rest[ref]
            if rest:
                self._instances[ref[0]] = rest

    def of(self, windows: Windows) -> Iterator[Ref]:
        """Those of instances that have room, in their order.

        Whoever takes a bounded number of them sees all tenants in turn: webhooks of an instance without room
        count for nothing, however many they are. Few instances are passed over, as each has some under way.
        """
        for instance_id, webhooks in self._instances.items():
            if windows.has_room(instance_id):
                yield from webhooks
