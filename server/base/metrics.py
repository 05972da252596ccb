"""Facts about calls and jobs, for Prometheus and the log."""

import os
from functools import partial
from typing import Any, NamedTuple

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

from server.base import logs

log = structlog.get_logger("officerpc")


class CallFact(NamedTuple):
    """A call of a method that ended."""

    method: str
    code: str
    seconds: float
    request_id: str
    key_id: int
    instance: str | None
    # The type of the exception, if the answer does not show it.
    cause: str | None


class RefusalFact(NamedTuple):
    """A request that was refused before it became a call."""

    wire: str
    code: str
    status: int
    request_id: str
    cause: str | None


class JobFact(NamedTuple):
    """A try of a job or a delivery that ended."""

    kind: str
    # done, retried (will be), parked, or stopped (with its worker).
    outcome: str
    seconds: float
    # None for a delivery.
    job_id: int | None
    tries: int
    cause: str | None
    # The instance and the webhook of a delivery.
    instance: str | None = None
    webhook_id: int | None = None


class Metrics:
    """Counts and logs facts."""

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
            "officerpc_refusals", "Requests that never became a call.", ["wire", "code"], registry=registry
        )
        self._jobs = Counter(
            "officerpc_jobs", "Tries of jobs by kind and outcome.", ["kind", "outcome"], registry=registry
        )
        # labels() takes a lock, so its few results are kept.
        self._kept: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        newest = partial(Gauge, registry=registry, multiprocess_mode="livemostrecent")
        self.lag = Gauge(
            "officerpc_event_loop_lag_seconds",
            "The longest the event loop was late in its last minute.",
            registry=registry,
            multiprocess_mode="livemax",
        ).set
        self.unsent = Gauge(
            "officerpc_unsent_bytes",
            "Bytes of answers that clients have not read yet, and of batches that run.",
            registry=registry,
            multiprocess_mode="livesum",
        ).set
        self.webhooks_unread = newest(
            "officerpc_webhooks_unread_seconds", "Age of the oldest event that a webhook has not read."
        ).set
        self.webhooks_due = newest(
            "officerpc_webhooks_due_seconds", "For how long the delivery that waits longest has been due."
        ).set
        self._halted = newest(
            "officerpc_feed_halted_seconds",
            "Age of the transaction that holds the feed of changes and webhooks back; 0: it ended.",
            ["pid", "application"],
        )
        self._halting: tuple[str, str] | None = None

    def call(self, fact: CallFact) -> None:
        """A call ended, with or without an error."""
        kept = self._kept.get((fact.method, fact.code))
        if kept is None:
            kept = (self._calls.labels(fact.method, fact.code), self._seconds.labels(fact.method))
            self._kept[fact.method, fact.code] = kept
        kept[0].inc()
        kept[1].observe(fact.seconds)
        logs.info(
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
        """A request was refused before it became a call."""
        self._refusals.labels(fact.wire, fact.code).inc()
        log.info("refused", **_known(fact._asdict()))

    def job(self, fact: JobFact) -> None:
        """A try of a job ended, with or without success."""
        self._jobs.labels(fact.kind, fact.outcome).inc()
        write = {"retried": log.warning, "parked": log.error}.get(fact.outcome, logs.info)
        members = _known(fact._asdict())
        write("job", ms=round(members.pop("seconds") * 1000, 2), **members)

    def feed_halted(self, by: tuple[str, str] | None, seconds: float = 0.0) -> None:
        """The transaction (process id and application) that holds the feed back, and its age; None: none."""
        if self._halting is not None and self._halting != by:
            self._halted.labels(*self._halting).set(0.0)
        self._halting = by
        if by is not None:
            self._halted.labels(*by).set(seconds)

    def exposition(self) -> bytes:
        """The Prometheus text format, for all workers."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        gathered = CollectorRegistry()
        MultiProcessCollector(gathered)  # type: ignore[no-untyped-call]
        return generate_latest(gathered)


def _known(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}
