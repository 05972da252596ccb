"""Jobs: work that a call enqueues, done after the commit of its transaction.

A job is a row, written in the caller's transaction. It is done at least once: it is retried after a failure,
with growing pauses, and by another worker after its worker died. After TRIES it is parked: stored, logged and
counted, until an operator retries it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson

from server.base.metrics import Metrics
from server.base.settings import Settings
from server.jobs import worker
from server.jobs.windows import Lane, Limits, Windows
from server.jobs.worker import Tried, jittered
from server.outside.graph import Graph
from server.postgres.db import Connection, Database, Row
from server.postgres.listening import listen

TRIES = 15
"""Tries before a job is parked. The pauses between add up to five and a half hours."""
FIRST_PAUSE = 5.0
"""Seconds between the first two tries; doubled each time, with a fifth of jitter."""
TIME_LIMIT = 120.0
"""Seconds of one try at most."""
AT_ONCE, IN_ALL = 10, 20
"""Parallel jobs of one worker: of one instance, and in all."""
CHANNEL = "officerpc_jobs"
"""The channel on which enqueue_job notifies the workers. NOTIFY can get lost: they also poll every second."""


@dataclass(frozen=True, slots=True)
class Services:
    """What jobs use."""

    settings: Settings
    database: Database
    metrics: Metrics
    graph: Graph = field(default_factory=Graph)


Handler: TypeAlias = Callable[[Services, dict[str, Any]], Awaitable[None]]

JOBS: dict[str, Handler] = {}
"""Kind -> handler."""
PARKED: dict[str, Handler] = {}
"""Kind -> handler that runs before the job is parked."""


def job(kind: str, *, parked: Handler | None = None) -> Callable[[Handler], Handler]:
    """Register `async def handler(services, payload)` for a kind of job.

    It may run more than once for one job, so it must be idempotent.

    Args:
        kind: for enqueue; stored with queued jobs across releases.
        parked: run before the job is parked, to store the failure. It may fail.

    Raises:
        ValueError: at import: the kind is taken.
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
    """Enqueue a job. It is done only if the caller's transaction commits.

    Args:
        db: the caller's connection, within its transaction.
        kind: a registered one.
        payload: JSON, with the instance_id of a tenant's job. It is stored in clear until the job is done,
            so it must hold no secrets.
        after: seconds to wait at least.
    """
    if kind not in JOBS:
        raise ValueError(f"there is no job {kind}")
    instance_id = payload.get("instance_id", 0)
    await db.run(
        "enqueue_job", instance_id=instance_id, kind=kind, payload=orjson.dumps(payload), delay=after
    )


async def work(services: Services) -> None:
    """Do jobs until cancelled. Running jobs then have shutdown_timeout (settings) to finish."""
    jobs = Jobs(services)
    listening = asyncio.create_task(listen(services.database, CHANNEL, jobs.hear))
    try:
        await jobs.run()
    finally:
        listening.cancel()
        await services.graph.close()


def pause_after(tries: int) -> float:
    """Seconds before the next try."""
    return jittered(min(FIRST_PAUSE * 2.0 ** (max(tries, 1) - 1), worker.LONGEST_PAUSE), 0.2)


class Jobs(worker.Worker):
    """Does jobs, as one worker. Jobs of kinds of another release are skipped."""

    away = "queue_waits_for_database"
    unsettled = "job_not_noted"
    find, claim = "find_due_jobs", "claim_jobs"
    lane = "kind"
    start = (-1, "")

    def __init__(self, services: Services) -> None:
        # A kind that fails leaves room for other kinds of its instance.
        windows = Windows(IN_ALL, Limits(AT_ONCE, AT_ONCE, AT_ONCE), Limits(1, AT_ONCE, AT_ONCE))
        super().__init__(services.database, services.metrics, windows, services.settings.shutdown_timeout)
        self._services = services

    def hear(self, payload: str) -> None:
        """A job was enqueued: its instance and kind, as enqueue_job writes them."""
        instance_id, _, kind = payload.partition(" ")
        self.tell([(int(instance_id), kind)])

    def knows(self, lane: Lane) -> bool:
        return lane[1] in JOBS

    async def look(self) -> bool:
        async with self.database.round(), self.database.connection() as db:
            await db.value("adopt_old_jobs")
        return await super().look()

    async def do(self, row: Row) -> None:
        async with asyncio.timeout(TIME_LIMIT):
            await JOBS[row["kind"]](self._services, orjson.loads(row["payload"]))

    def pause(self, tries: int) -> float | None:
        return pause_after(tries) if tries < TRIES else None

    async def note_parked(self, row: Row) -> None:
        if row["kind"] in PARKED:
            with contextlib.suppress(Exception):  # the job is parked and logged anyway
                async with asyncio.timeout(TIME_LIMIT):
                    await PARKED[row["kind"]](self._services, orjson.loads(row["payload"]))

    async def renew(self, rows: list[Row]) -> None:
        async with self.database.statement() as db:
            await db.run("renew_leases", lease=worker.LEASE, **_keys(rows))

    async def settle(self, tried: list[Tried]) -> None:
        outcomes, pauses = [one.outcome for one in tried], [one.pause for one in tried]
        async with self.database.statement() as db:
            keys = _keys(one.row for one in tried)
            await db.run("settle_jobs", outcomes=outcomes, due_ins=pauses, **keys)


def _keys(rows: Iterable[Row]) -> dict[str, list[Any]]:
    """The keys of tries, for statements about several."""
    keys = [(row["instance_id"], row["id"], row["attempts"]) for row in rows]
    return dict(zip(("instance_ids", "job_ids", "attempts"), map(list, zip(*keys, strict=True)), strict=True))
