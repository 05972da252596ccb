"""Jobs: work that a call leaves behind, done once its transaction has committed.

A job is a row that is written in the caller's transaction. It is done at least once: again after a failure,
with growing pauses, and again by another worker when its own dies with it. After TRIES it is parked: kept,
logged and counted, until an operator has it tried again.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import orjson

from server.base.errors import ServiceError
from server.base.logs import cause_of
from server.base.metrics import JobFact, Metrics
from server.base.settings import Settings
from server.jobs import worker
from server.jobs.windows import Lane, Limits, Windows
from server.outside.graph import Graph
from server.postgres.db import Connection, Database, Row
from server.postgres.listening import listen

TRIES = 15
"""How often a job is begun before it is parked; the pauses between add up to five hours and a half."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 3600.0
"""Seconds between two tries: doubled each time, with a fifth of jitter."""
TIME_LIMIT = 120.0
"""Seconds that one try may take."""
AT_ONCE, IN_ALL = 10, 20
"""Jobs that one worker does at the same time: of one instance, and of all."""
CHANNEL = "officerpc_jobs"
"""Where enqueue_job notifies the workers. It is a hint, which may get lost: they also look every second."""


@dataclass(frozen=True, slots=True)
class Services:
    """What a job has to work with."""

    settings: Settings
    database: Database
    metrics: Metrics
    graph: Graph = field(default_factory=Graph)


Handler: TypeAlias = Callable[[Services, dict[str, Any]], Awaitable[None]]

JOBS: dict[str, Handler] = {}
"""Kind -> what does it."""
PARKED: dict[str, Handler] = {}
"""Kind -> what notes that it has been parked."""


class Hopeless(Exception):
    """no further try will help: the job is parked at once"""


class Later(Exception):
    """another try may help, but no sooner than the other side said"""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__()


class Suspended(Later):
    """the job's instance is suspended: it is tried again hourly, without an end, until that is over"""

    def __init__(self) -> None:
        super().__init__(LONGEST_PAUSE)


def job(kind: str, *, parked: Handler | None = None) -> Callable[[Handler], Handler]:
    """Register `async def handler(services, payload)` for a kind of job.

    It may run more than once for one job, so what it does twice must come to the same.

    Args:
        kind: what enqueue calls it; jobs in the queue keep it across releases.
        parked: run once it is parked, for whoever waits for its outcome. It may fail to run.

    Raises:
        ValueError: at import, for a kind that is taken.
    """
    if kind in JOBS:
        raise ValueError(f"there is a job {kind} already")

    def register(handler: Handler) -> Handler:
        JOBS[kind] = handler
        if parked is not None:
            PARKED[kind] = parked
        return handler

    return register


async def enqueue(db: Connection, kind: str, payload: dict[str, Any], *, after: float = 0) -> None:
    """Leave a job behind: done if the caller's transaction commits, never if it does not.

    Args:
        db: the caller's connection, within its transaction.
        kind: a registered one.
        payload: JSON; with instance_id where it concerns a tenant. It is kept in clear until the job is
            done, so it holds no secrets.
        after: seconds to wait at least.
    """
    if kind not in JOBS:
        raise ValueError(f"there is no job {kind}")
    instance_id = payload.get("instance_id", 0)
    await db.run(
        "enqueue_job", instance_id=instance_id, kind=kind, payload=orjson.dumps(payload), delay=after
    )


async def work(services: Services) -> None:
    """Do jobs until cancelled; those that run then get the settings' shutdown_timeout to finish."""
    jobs = Jobs(services)
    listening = asyncio.create_task(listen(services.database, CHANNEL, jobs.hear))
    try:
        await jobs.run()
    finally:
        listening.cancel()
        await services.graph.close()


def pause_after(tries: int) -> float:
    """Seconds before the next try."""
    return worker.jittered(min(FIRST_PAUSE * 2.0 ** (max(tries, 1) - 1), LONGEST_PAUSE), 0.2)


class Tried(NamedTuple):
    """One try of a job and what it came to."""

    row: Row
    # As settle_jobs has it.
    outcome: str
    # Seconds until the next try.
    pause: float
    fact: JobFact

    @property
    def succeeded(self) -> bool:
        """Whether nothing is left to be done."""
        return self.outcome == "done"


class Jobs(worker.Worker[Tried]):
    """Does jobs, as one worker."""

    away = "queue_waits_for_database"
    unsettled = "job_not_noted"
    lane = "kind"
    start = (-1, "")

    def __init__(self, services: Services) -> None:
        limits = Limits(1, AT_ONCE, AT_ONCE)
        grace = services.settings.shutdown_timeout
        super().__init__(services.database, services.metrics, Windows(IN_ALL, limits, limits), grace)
        self._services = services

    def hear(self, payload: str) -> None:
        """A job was enqueued: its instance and kind, as enqueue_job writes them."""
        instance_id, _, kind = payload.partition(" ")
        if kind in JOBS:
            self.tell([(int(instance_id), kind)])

    async def find_due(self, db: Connection, after: Lane, looks: int) -> list[Row]:
        """See Worker. Kinds of another release are left alone."""
        await db.value("adopt_old_jobs")
        rows = await db.all("find_due_jobs", after_instance=after[0], after_kind=after[1], looks=looks)
        return [dict(row) | {"is_due": row["is_due"] and row["kind"] in JOBS} for row in rows]

    async def claim(self, db: Connection, lanes: list[Lane], shares: list[int]) -> list[Row]:
        """See Worker."""
        instances, kinds = [of for of, _ in lanes], [kind for _, kind in lanes]
        return await db.all(
            "claim_jobs", lease=worker.LEASE, instance_ids=instances, kinds=kinds, shares=shares
        )

    async def attempt(self, row: Row) -> Tried:
        """See Worker. A job that the worker's end cuts off is tried again at once, by another one."""
        began = time.perf_counter()
        kind, tries = row["kind"], row["attempts"] - row["first_attempt"]
        outcome, pause, cause = "done", 0.0, None
        payload = orjson.loads(row["payload"])
        async with self._renewing(row):
            try:
                async with asyncio.timeout(TIME_LIMIT):
                    if tries > TRIES:  # its workers died with it, so that nobody has parked it
                        raise Hopeless
                    await JOBS[kind](self._services, payload)
            except asyncio.CancelledError:
                outcome, cause = "stopped", "CancelledError"
            except Suspended as error:
                outcome, pause, cause, tries = "suspended", error.seconds, cause_of(error), 0
            except Exception as error:
                cause = cause_of(error)
                if isinstance(error, Hopeless) or tries >= TRIES:
                    outcome = "parked"
                    await self._note_parked(kind, payload)
                else:
                    asked = min(error.seconds, LONGEST_PAUSE) if isinstance(error, Later) else 0.0
                    outcome, pause = "retried", max(pause_after(tries), asked)
        said = "retried" if outcome == "suspended" else outcome
        fact = JobFact(kind, said, time.perf_counter() - began, row["id"], tries, cause)
        return Tried(row, outcome, pause, fact)

    @contextlib.asynccontextmanager
    async def _renewing(self, row: Row) -> AsyncIterator[None]:
        """Keep the lease of a try that takes long, as well as that works."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(worker.LEASE / 3)
                with contextlib.suppress(ServiceError):
                    async with self.database.round(), self.database.connection() as db:
                        await db.run(
                            "renew_lease", instance_id=row["instance_id"], job_id=row["id"],
                            attempt=row["attempts"], lease=worker.LEASE,
                        )  # fmt: skip

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()

    async def _note_parked(self, kind: str, payload: dict[str, Any]) -> None:
        if kind in PARKED:
            with contextlib.suppress(Exception):  # it is parked and logged all the same
                async with asyncio.timeout(TIME_LIMIT):
                    await PARKED[kind](self._services, payload)

    async def settle(self, tried: list[Tried]) -> None:
        """See Worker."""
        async with self.database.statement() as db:
            await db.run(
                "settle_jobs",
                instance_ids=[one.row["instance_id"] for one in tried],
                job_ids=[one.row["id"] for one in tried],
                attempts=[one.row["attempts"] for one in tried],
                outcomes=[one.outcome for one in tried],
                due_ins=[one.pause for one in tried],
            )
