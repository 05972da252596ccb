"""Jobs: work that a call leaves behind, done once its transaction has committed.

A job is a row that is written in the caller's transaction. It is done at least once: again after a failure,
with growing pauses, and again by another worker when its own dies with it. After TRIES it is parked: kept,
logged and counted, until an operator has it tried again.
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
"""How often a job is begun before it is parked; the pauses between add up to five hours and a half."""
FIRST_PAUSE = 5.0
"""Seconds between the first two tries: doubled each time, with a fifth of jitter."""
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
    return jittered(min(FIRST_PAUSE * 2.0 ** (max(tries, 1) - 1), worker.LONGEST_PAUSE), 0.2)


class Jobs(worker.Worker):
    """Does jobs, as one worker. Those of kinds of another release are left alone."""

    away = "queue_waits_for_database"
    unsettled = "job_not_noted"
    find, claim = "find_due_jobs", "claim_jobs"
    lane = "kind"
    start = (-1, "")

    def __init__(self, services: Services) -> None:
        # Kinds that fail leave room for others of their instance.
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
            with contextlib.suppress(Exception):  # it is parked and logged all the same
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
    """Which tries of which jobs, for the statements about several."""
    keys = [(row["instance_id"], row["id"], row["attempts"]) for row in rows]
    return dict(zip(("instance_ids", "job_ids", "attempts"), map(list, zip(*keys, strict=True)), strict=True))
