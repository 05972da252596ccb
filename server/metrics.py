"""What happened, as facts; who looks at it is decided here: Prometheus and the log."""

import os
from dataclasses import dataclass

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

log = structlog.get_logger("officerpc")


@dataclass(frozen=True, slots=True)
class CallFact:
    """One call of a method came to its end."""

    method: str
    code: str
    seconds: float
    request_id: str
    key_id: int
    instance: str | None
    # What our own or the driver's exception was, where the caller is told less.
    cause: str | None


@dataclass(frozen=True, slots=True)
class RefusalFact:
    """One request was answered before it became a call."""

    front: str
    code: str
    status: int
    request_id: str
    cause: str | None


class Metrics:
    """Observes facts."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._calls = Counter(
            "officerpc_calls", "Calls by method and code.", ["method", "code"], registry=registry
        )
        self._seconds = Histogram(
            "officerpc_call_seconds",
            "Seconds a call took.",
            ["method"],
            registry=registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25),
        )
        self._refusals = Counter(
            "officerpc_refusals", "Requests that never became a call.", ["front", "code"], registry=registry
        )
        self._lag = Gauge(
            "officerpc_event_loop_lag_seconds",
            "The longest the event loop was late in its last minute.",
            registry=registry,
            multiprocess_mode="livemax",
        )

    def call(self, fact: CallFact) -> None:
        """A call ended, well or not."""
        self._calls.labels(fact.method, fact.code).inc()
        self._seconds.labels(fact.method).observe(fact.seconds)
        log.info(
            "call",
            method=fact.method,
            code=fact.code,
            ms=round(fact.seconds * 1000, 2),
            request_id=fact.request_id,
            key_id=fact.key_id,
            instance=fact.instance,
            **({"cause": fact.cause} if fact.cause else {}),
        )

    def refusal(self, fact: RefusalFact) -> None:
        """A request was refused at the door."""
        self._refusals.labels(fact.front, fact.code).inc()
        log.info(
            "refused",
            front=fact.front,
            code=fact.code,
            status=fact.status,
            request_id=fact.request_id,
            **({"cause": fact.cause} if fact.cause else {}),
        )

    def lag(self, seconds: float) -> None:
        """How late the event loop was at worst, lately."""
        self._lag.set(seconds)

    def exposition(self) -> bytes:
        """The Prometheus text format, over all workers."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        gathered = CollectorRegistry()
        MultiProcessCollector(gathered)  # type: ignore[no-untyped-call]
        return generate_latest(gathered)
