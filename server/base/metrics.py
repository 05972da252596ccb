"""What happened, as facts; who looks at it is decided here: Prometheus and the log."""

import os
from typing import NamedTuple

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
    """One call of a method came to its end."""

    method: str
    code: str
    seconds: float
    request_id: str
    key_id: int
    instance: str | None
    # What our own or the driver's exception was, where the caller is told less.
    cause: str | None


class RefusalFact(NamedTuple):
    """One request was answered before it became a call."""

    wire: str
    code: str
    status: int
    request_id: str
    cause: str | None


class JobFact(NamedTuple):
    """One try of a job of the queue came to its end."""

    kind: str
    # done, retried (later, that is), parked, or stopped with its worker.
    outcome: str
    seconds: float
    # None for a delivery, which is no job of the queue.
    job_id: int | None
    tries: int
    cause: str | None
    # The webhook that a delivery goes to, by its id in its instance.
    instance: str | None = None
    webhook_id: int | None = None


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
            "officerpc_refusals", "Requests that never became a call.", ["wire", "code"], registry=registry
        )
        self._jobs = Counter(
            "officerpc_jobs", "Tries of jobs by kind and outcome.", ["kind", "outcome"], registry=registry
        )
        # labels() looks them up under a lock; there are few, so they are kept.
        self._kept: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._lag = Gauge(
            "officerpc_event_loop_lag_seconds",
            "The longest the event loop was late in its last minute.",
            registry=registry,
            multiprocess_mode="livemax",
        )

        self._unsent = Gauge(
            "officerpc_unsent_bytes",
            "Bytes of answers that clients have not read yet, and of batches that run.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._unread = Gauge(
            "officerpc_webhooks_unread_seconds",
            "Age of the oldest event that a webhook has not read.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._due = Gauge(
            "officerpc_webhooks_due_seconds",
            "For how long the delivery that waits longest has been due.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )

        self._halted = Gauge(
            "officerpc_feed_halted_seconds",
            "Age of the transaction that holds the feed of changes and webhooks back; 0: it ended.",
            ["pid", "application"],
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._halting: tuple[str, str] | None = None

    def call(self, fact: CallFact) -> None:
        """A call ended, well or not."""
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
        """A request was refused at the door."""
        self._refusals.labels(fact.wire, fact.code).inc()
        log.info(
            "refused",
            wire=fact.wire,
            code=fact.code,
            status=fact.status,
            request_id=fact.request_id,
            **({"cause": fact.cause} if fact.cause else {}),
        )

    def job(self, fact: JobFact) -> None:
        """A try of a job ended, well or not."""
        self._jobs.labels(fact.kind, fact.outcome).inc()
        tell = {"retried": log.warning, "parked": log.error}.get(fact.outcome, logs.info)
        tell(
            "job",
            kind=fact.kind,
            outcome=fact.outcome,
            ms=round(fact.seconds * 1000, 2),
            **({"job_id": fact.job_id} if fact.job_id is not None else {}),
            **({"webhook_id": fact.webhook_id} if fact.webhook_id is not None else {}),
            tries=fact.tries,
            **({"instance": fact.instance} if fact.instance else {}),
            **({"cause": fact.cause} if fact.cause else {}),
        )

    def lag(self, seconds: float) -> None:
        """How late the event loop was at worst, lately."""
        self._lag.set(seconds)

    def unsent(self, size: int) -> None:
        """How many bytes of answers this process holds."""
        self._unsent.set(size)

    def webhooks_unread(self, seconds: float) -> None:
        """How old the oldest event is that a webhook has not read; 0 where all have read all."""
        self._unread.set(seconds)

    def webhooks_due(self, seconds: float) -> None:
        """For how long a delivery has been due at most; 0 where none is."""
        self._due.set(seconds)

    def feed_halted(self, by: tuple[str, str] | None, seconds: float = 0.0) -> None:
        """Which transaction (process id and application) holds the feed back for so long; None: none does."""
        if self._halting is not None and self._halting != by:
            self._halted.labels(*self._halting).set(0.0)
        self._halting = by
        if by is not None:
            self._halted.labels(*by).set(seconds)

    def exposition(self) -> bytes:
        """The Prometheus text format, over all workers."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        gathered = CollectorRegistry()
        MultiProcessCollector(gathered)  # type: ignore[no-untyped-call]
        return generate_latest(gathered)
