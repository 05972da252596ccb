"""Concurrent deliveries: few at first, more to receivers that accept them, shared between tenants."""

from collections import Counter
from itertools import islice

import pytest

from server.jobs.windows import Due, Limits, Windows

A, B = (1, 1), (2, 1)


def windows(at_once: int = 100) -> Windows:
    return Windows(at_once, per_instance=Limits(8, 8, 20), each=Limits(1, 4, 10))


def send(it: Windows, shares: Counter[tuple[int, int]], taken: bool | None) -> None:
    """Begin so many, and end them all unless taken is None."""
    for ref, count in shares.items():
        for _ in range(count):
            it.begin(ref)
    for ref, count in shares.items():
        for _ in range(count if taken is not None else 0):
            it.end(ref, bool(taken))


def test_it_grows_with_what_is_taken_and_shrinks_with_what_fails() -> None:
    """Also when all that were under way have ended before the next ones begin."""
    it, seen = windows(), []
    for taken in (True, True, True, False, True, True):
        shares = it.share_out([A])
        seen.append(shares[A])
        send(it, shares, taken)
    assert seen == [4, 8, 10, 10, 1, 2]


def test_a_tenant_has_no_more_than_its_window() -> None:
    it = windows()
    hooks = [(1, number) for number in range(1, 51)]
    for expected in (8, 16, 20, 20):
        shares = it.share_out(hooks)
        assert shares.total() == expected and max(shares.values()) == 1
        send(it, shares, True)
    send(it, it.share_out(hooks), False)
    assert it.share_out(hooks).total() == 8


def test_places_go_first_to_whoever_has_fewest() -> None:
    it = windows(at_once=6)
    assert it.share_out([A, B]) == {A: 3, B: 3}
    send(it, Counter({A: 4}), None)
    assert it.share_out([A, B]) == {B: 2}
    assert it.share_out([(1, 2), B]) == {B: 2}
    send(it, Counter({B: 2}), None)
    assert it.share_out([A, B, (3, 1)]) == {}
    it.end(A, True)
    assert it.share_out([A, (3, 1)]) == {(3, 1): 1}


def test_among_equals_the_first_comes_first() -> None:
    assert windows(at_once=2).share_out([(5, 1), (3, 1), (4, 1)]) == {(5, 1): 1, (3, 1): 1}
    assert windows(at_once=2).share_out([(1, 7), (1, 3), (1, 5)]) == {(1, 7): 1, (1, 3): 1}


@pytest.mark.slow
def test_it_forgets_what_is_idle_when_there_are_too_many() -> None:
    it = windows(at_once=50_000)
    send(it, Counter({A: 4}), True)
    send(it, Counter({B: 4}), None)
    send(it, Counter({(number, 1): 1 for number in range(3, 10_050)}), True)
    assert it.share_out([A]) == {A: 4}
    assert it.share_out([B]) == {}


def test_tenants_without_room_do_not_hide_those_behind_them() -> None:
    """Also where only the first few of all webhooks are looked at."""
    it, due = windows(), Due()
    send(it, Counter({(1, number): 1 for number in range(1, 9)}), None)
    due.add((1, number) for number in range(1, 51))
    due.add([B])
    assert it.share_out(islice(due.of(it), 10)) == {B: 4}
    it.end((1, 1), True)
    assert list(islice(due.of(it), 2)) == [(1, 1), (1, 2)]


def test_whoever_was_served_stands_last() -> None:
    it, due = windows(), Due()
    due.add([(1, 1), (1, 2), (2, 1), (1, 1)])
    due.take([(1, 1)])
    assert list(due.of(it)) == [(2, 1), (1, 2)]
    due.add([(1, 1)])
    assert list(due.of(it)) == [(2, 1), (1, 2), (1, 1)]
    due.take([(2, 1), (1, 2), (1, 1)])
    assert not due
