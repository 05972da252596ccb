"""Upkeep: remove expired rows batch by batch, and end plans after their last day."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from itertools import groupby
from typing import Any

import structlog

from server.base.logs import cause_of
from server.base.settings import Settings
from server.directory.rows import purge
from server.events.changes import Change
from server.events.emit import emit, system_actor
from server.jobs.worker import jittered
from server.postgres.db import Connection, Database, Row, pass_on_cancelling

log = structlog.get_logger()

PURGE_EVERY = 600.0
"""Seconds between two runs of each worker, with a fifth of jitter."""
_BATCH = 500


async def _purge_users(db: Connection, instance_id: int, rows: Iterable[Row]) -> list[Change]:
    return await purge(db, instance_id, {row["user_id"]: row for row in rows})


async def _ended(_db: Connection, _instance_id: int, rows: Iterable[Row]) -> list[Change]:
    changes = []
    for row in rows:
        plan = {
            "planId": row["plan_id"], "name": row["name"], "validFrom": row["valid_from"].isoformat(),
            "validTo": row["valid_to"].isoformat(),
        }  # fmt: skip
        changes.append(Change("user.updated", row["user_id"], {"plan": plan}, {"plan": None}))
    return changes


_EMITTED: dict[str, tuple[str, Callable[[Connection, int, Iterable[Row]], Awaitable[list[Change]]]]] = {
    "hold_retained_users": ("retention", _purge_users),
    "end_expired_plans": ("planEnd", _ended),
}
"""Statement -> the method name in its events, and what makes the changes of an instance from its rows."""


class PurgeIncomplete(Exception):
    """some steps failed, as the log says; the others were done"""

    def __init__(self, gone: dict[str, int], failed: dict[str, int]) -> None:
        """
        Args:
            gone: the number of removed rows of each kind.
            failed: the number of errors of each kind: for users one for each instance.
        """
        self.gone = gone
        self.failed = failed
        super().__init__(", ".join(failed))


async def purge_expired(database: Database, settings: Settings) -> dict[str, int]:
    """Run the statements below; each has its rule in sql/queries/upkeep.sql.

    Users are removed instance by instance. Two workers at the same time do not remove a row twice. After an
    error of one instance or one statement the others still run, if the database accepts writes.

    Returns:
        the number of rows of each kind.

    Raises:
        PurgeIncomplete: of some instances or statements not all rows were removed.
        Unavailable: the database is away.
    """
    gone: Counter[str] = Counter()
    failed: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def step(what: str, **about: Any) -> AsyncIterator[None]:
        """Count and log an error of the block."""
        try:
            yield
        except Exception as error:
            pass_on_cancelling(error)
            failed[what] += 1
            log.warning("purge_failed", step=what, cause=cause_of(error), **about)
            if not await database.writable():  # the next steps would fail too
                raise

    kept = {"default_days": settings.retention_days}
    instances: list[Row] = []
    async with step("users"), database.round(), database.connection() as db:
        instances = await db.all("find_retained_instances", **kept)
    gone["users"] = 0
    for row in instances:
        async with step("users", instance_id=row["instance_id"]):
            async for taken in _purge(database, "hold_retained_users", **row, **kept):
                gone["users"] += taken
    for what, query in (
        ("sessions", "purge_expired_sessions"),
        ("plans", "end_expired_plans"),
        ("codes", "purge_expired_codes"),
        ("answers", "purge_old_answers"),
        ("login_failures", "purge_login_failures"),
        ("documents", "purge_old_documents"),
        ("jobs", "purge_parked_jobs"),
        ("events", "purge_old_events"),
        ("deliveries", "purge_old_deliveries"),
        ("deliveries_of_deleted", "purge_deleted_webhooks_deliveries"),
        ("webhooks", "purge_deleted_webhooks"),
        ("secrets", "forget_old_secrets"),
    ):
        gone[what] = 0
        async with step(what):
            async for taken in _purge(database, query):
                gone[what] += taken
    if failed:
        raise PurgeIncomplete(dict(gone), dict(failed))
    return dict(gone)


async def _purge(database: Database, query: str, **values: Any) -> AsyncIterator[int]:
    """Run one statement batch by batch; the number of rows of each."""
    taken = _BATCH
    while taken == _BATCH:
        taken = await _purge_batch(database, query, values)
        yield taken


async def _purge_batch(database: Database, query: str, values: dict[str, Any]) -> int:
    if query not in _EMITTED:
        async with database.round(), database.connection() as db:
            return len(await db.all(query, row_limit=_BATCH, **values))
    method, changes_of = _EMITTED[query]
    async with database.round(), database.transaction() as db:
        rows = [values | dict(row) for row in await db.all(query, row_limit=_BATCH, **values)]
        rows.sort(key=lambda row: (row["instance_id"], row["user_id"]))
        actor = system_actor(method, method)
        for instance_id, group in groupby(rows, key=lambda row: row["instance_id"]):
            await emit(db, instance_id, actor, await changes_of(db, instance_id, group))
        return len(rows)


async def keep_purging(database: Database, settings: Settings) -> None:
    """Run purge_expired regularly until cancelled."""
    while True:
        await asyncio.sleep(jittered(PURGE_EVERY, 0.2))
        try:
            gone = await purge_expired(database, settings)
        except PurgeIncomplete as error:  # the next run tries again
            log.warning("purge_incomplete", failed=error.failed, **error.gone)
        except Exception as error:
            log.warning("purge_postponed", cause=cause_of(error))
        else:
            if any(gone.values()):
                log.info("purged", **gone)
