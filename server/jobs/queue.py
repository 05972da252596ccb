"""The queue: work that a call leaves behind, done once its transaction has committed; and the purge.

A job is a row that is written in the caller's transaction (pgqueuer's tables, sql/migrations/0003_queue.sql).
It is done at least once: again after a failure, with growing pauses, and again by another worker when its
own dies with it. After TRIES it is parked: kept in the queue as failed, logged and counted.
"""

import asyncio
import contextlib
import functools
import logging
import random
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import orjson
import structlog
from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.adapters.persistence.queries import Queries
from pgqueuer.core.qm import QueueManager
from pgqueuer.domain.errors import RetryRequested
from pgqueuer.domain.models import Job
from pgqueuer.ports.driver import NotifyCallback

from server.base.metrics import JobFact, Metrics
from server.base.settings import Settings
from server.outside.graph import Graph
from server.postgres.db import Connection, Database

log = structlog.get_logger()
T = TypeVar("T")

TRIES = 15
"""How often a job is begun before it is parked; the pauses between add up to five hours and a half."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 3600.0
"""Seconds between two tries: doubled each time, with a fifth of jitter."""
TIME_LIMIT = 120.0
"""Seconds that one try may take."""
AT_ONCE = 10
"""Jobs that one worker does at the same time."""
POLL = 5.0
"""Seconds between two looks at the queue: NOTIFY is a hint, which may get lost."""
HEARTBEAT = 30.0
"""Seconds of silence after which another worker takes a job over."""
PATIENCE = 5.0
"""Seconds for one of the queue's own statements; a database that takes longer is taken to be away."""
NOTICE_EVERY = 0.05
"""Seconds: more notices than one in these are heard as one."""

PURGE_EVERY = 600.0
"""Seconds between two looks for what has expired, by each worker, with a fifth of jitter."""
_BATCH = 500


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
    await db.run("enqueue_job", kind=kind, payload=orjson.dumps(payload), delay=after)


async def work(services: Services) -> None:
    """Do jobs until cancelled; those that run then get the settings' shutdown_timeout to finish.

    A database that goes away is waited for, with growing pauses and one line in the log.
    """
    # It logs exceptions with all that they quote; what is worth knowing is logged below.
    logging.getLogger("pgqueuer").setLevel(logging.CRITICAL)
    loop = asyncio.get_running_loop()
    pause, away = 0.1, False
    try:
        while True:
            began = loop.time()
            try:
                if away and not await services.database.writes.proven():
                    # Taking a job is a write: while a standby is away, each try would leave a server process
                    # waiting.
                    raise ConnectionError("the database takes no writes")
                await _work_until_lost(services)
            except Exception as error:  # whatever it was: the driver's, the system's, a missing table
                if loop.time() - began > HEARTBEAT:  # it had worked for a while
                    pause, away = 0.1, False
                if not away:
                    log.warning("queue_waits_for_database", cause=_told(error))
                away = True
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311
            pause = min(pause * 2, 5.0)
    finally:
        await services.graph.close()


async def _work_until_lost(services: Services) -> None:
    """Do jobs over one connection, past any pooler, for as long as it lives."""
    connection = await services.database.direct()
    try:
        # pgqueuer sends jsonb as text that is JSON already, which our codec would wrap again.
        await connection.reset_type_codec("jsonb", schema="pg_catalog")
        manager = QueueManager(Queries(_Driver(connection)))
        for kind, handler in JOBS.items():
            manager.entrypoint(kind, on_failure="hold", accepts_context=False)(
                functools.partial(_do, services, handler)
            )
        connection.add_termination_listener(lambda *_: manager.shutdown.set())
        running = asyncio.create_task(
            manager.run(
                dequeue_timeout=timedelta(seconds=POLL),
                batch_size=AT_ONCE // 2,
                max_concurrent_tasks=AT_ONCE,
                shutdown_on_listener_failure=True,
                heartbeat_timeout=timedelta(seconds=HEARTBEAT),
                log_aggregation_interval=timedelta(0),
            )
        )
        try:
            await asyncio.shield(running)
        finally:
            manager.shutdown.set()
            await asyncio.wait({running}, timeout=services.settings.shutdown_timeout)
            running.cancel()  # its jobs, which put themselves back into the queue
            await asyncio.wait({running})
            with contextlib.suppress(asyncio.CancelledError):
                running.exception()
        raise ConnectionError("the queue's connection was lost")
    finally:
        connection.terminate()


async def _do(services: Services, handler: Handler, row: Job) -> None:
    """One try. However it fails, it ends with RetryRequested or, for good, with Hopeless."""
    began = time.perf_counter()
    tries, outcome, cause = 0, "done", None
    try:
        async with asyncio.timeout(TIME_LIMIT):
            async with services.database.connection() as db:
                tries = await db.value("count_tries", job_id=row.id)
            if tries > TRIES:  # its workers died with it, so that nobody has parked it
                raise Hopeless
            try:
                await handler(services, orjson.loads(row.payload or b"{}"))
            except Suspended:
                # A suspension may outlast all tries.
                async with services.database.connection() as db:
                    await db.run("forget_tries", job_id=row.id)
                tries = 0
                raise
    except asyncio.CancelledError:
        # The worker stops. pgqueuer would take the job for done with; it is to be done by another one.
        outcome, cause = "stopped", "CancelledError"
        raise RetryRequested(timedelta(0), outcome) from None
    except Exception as error:
        cause = _told(error)
        if isinstance(error, Hopeless) or tries >= TRIES:
            outcome = "parked"
            await _note_parked(services, row)
            raise Hopeless(cause) from None  # pgqueuer keeps the texts of exceptions: ours quotes nobody
        outcome = "retried"
        asked = min(error.seconds, LONGEST_PAUSE) if isinstance(error, Later) else 0.0
        raise RetryRequested(timedelta(seconds=max(pause_after(tries), asked)), cause) from None
    finally:
        services.metrics.job(
            JobFact(row.entrypoint, outcome, time.perf_counter() - began, row.id, tries, cause)
        )


async def _note_parked(services: Services, row: Job) -> None:
    note = PARKED.get(row.entrypoint)
    if note is not None:
        with contextlib.suppress(Exception):  # it is parked and logged all the same
            async with asyncio.timeout(TIME_LIMIT):
                await note(services, orjson.loads(row.payload or b"{}"))


def pause_after(tries: int) -> float:
    """Seconds before the next try."""
    return min(FIRST_PAUSE * 2.0 ** (max(tries, 1) - 1), LONGEST_PAUSE) * random.uniform(0.8, 1.2)  # noqa: S311


def _told(error: BaseException) -> str:
    """What went wrong and where, without the error's text, which may quote addresses or rows."""
    for _ in range(10):  # deep enough, whatever causes what
        error = error.__cause__ or error
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in place)
    code = getattr(error, "code", None) or getattr(error, "sqlstate", None)
    return f"{type(error).__name__}{f' {code}' if code else ''}{where}"


class _Driver(AsyncpgDriver):
    """pgqueuer's driver, for a database that does not answer and for one that notifies too much."""

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        return await self._within_patience(super().fetch(query, *args))

    async def execute(self, query: str, *args: object) -> str:
        return await self._within_patience(super().execute(query, *args))

    async def notify(self, channel: str, payload: str) -> None:
        await self._within_patience(super().notify(channel, payload))

    async def _within_patience(self, statement: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(PATIENCE):
                return await statement
        except TimeoutError:
            self._connection.terminate()  # so that whatever waits behind it fails at once
            raise

    async def add_listener(self, channel: str, callback: NotifyCallback) -> None:
        """Listen, hearing a burst of changes as one: pgqueuer keeps each until it has looked at the queue."""
        loop = asyncio.get_running_loop()
        waiting = False

        def pass_on(payload: str | bytes | bytearray) -> None:
            nonlocal waiting
            waiting = False
            callback(payload)

        def hear(payload: str | bytes | bytearray) -> None:
            nonlocal waiting
            if "table_changed_event" not in str(payload):
                callback(payload)
            elif not waiting:
                waiting = True
                loop.call_later(NOTICE_EVERY, pass_on, payload)

        await super().add_listener(channel, hear)


async def purge_expired(database: Database, settings: Settings) -> dict[str, int]:
    """Remove users whose retention is over, sessions and codes that have expired, answers kept for retries,
    failed logins that are forgiven, old documents, the log of the queue and what was parked in it long ago,
    events after a year, deliveries of webhooks after a month and their old secrets, webhooks that were
    deleted; and end plans of users, batch by batch.

    Users are removed instance by instance. Of what two workers find at the same time, the second
    finds nothing left.
    """
    kept = {"default_days": settings.retention_days}
    async with database.connection() as connection:
        instances = await connection.all("find_retained_instances", **kept)
    gone = {"users": 0}
    for row in instances:
        gone["users"] += await _purge(database, "purge_retained_users", **row, **kept)
    for what, query in (
        ("sessions", "purge_expired_sessions"),
        ("plans", "end_expired_plans"),
        ("codes", "purge_expired_codes"),
        ("answers", "purge_old_answers"),
        ("login_failures", "purge_login_failures"),
        ("documents", "purge_old_documents"),
        ("jobs", "purge_parked_jobs"),
        ("job_log", "purge_job_log"),
        ("events", "purge_old_events"),
        ("deliveries", "purge_old_deliveries"),
        ("deliveries_of_deleted", "purge_deleted_webhooks_deliveries"),
        ("webhooks", "purge_deleted_webhooks"),
        ("secrets", "forget_old_secrets"),
    ):
        gone[what] = await _purge(database, query)
    return gone


async def _purge(database: Database, query: str, **values: Any) -> int:
    """Run one of the purges batch by batch; how many rows it took."""
    gone, taken = 0, _BATCH
    while taken == _BATCH:
        async with database.connection() as connection:
            taken = len(await connection.all(query, row_limit=_BATCH, **values))
        gone += taken
    return gone


async def keep_purging(database: Database, settings: Settings) -> None:
    """purge_expired now and then, until cancelled."""
    while True:
        await asyncio.sleep(PURGE_EVERY * random.uniform(0.8, 1.2))  # noqa: S311
        try:
            gone = await purge_expired(database, settings)
        except Exception as error:  # the next look may go better
            log.warning("purge_postponed", cause=_told(error))
        else:
            if any(gone.values()):
                log.info("purged", **gone)
