"""Windows of calls, by a clock of the test's own."""

from server.limits import RateLimiter


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_window_begins_with_the_first_call() -> None:
    clock = Clock()
    limiter = RateLimiter(2, window=60, keys=10, clock=clock)

    def spend(key: int) -> tuple[bool, int, int]:
        allowance = limiter.spend(key)
        assert allowance is not None and allowance.limit == 2
        return allowance.granted, allowance.remaining, allowance.resets_in

    assert spend(1) == (True, 1, 60)
    clock.now += 20.5
    assert spend(1) == (True, 0, 40)
    assert spend(1) == (False, 0, 40)
    assert spend(2) == (True, 1, 60)
    clock.now += 39.5
    assert spend(1) == (True, 1, 60)
    assert spend(2) == (True, 0, 21)


def test_memory_is_bounded() -> None:
    limiter = RateLimiter(1, keys=3, clock=Clock())
    for key in range(100):
        allowance = limiter.spend(key)
        assert allowance is not None and allowance.granted
    assert len(limiter._counts) == 3
    assert not limiter.spend(99).granted  # type: ignore[union-attr]


def test_no_limit() -> None:
    assert RateLimiter(0, keys=1).spend(1) is None
