"""Upkeep: remove expired rows batch by batch, and end plans after their last day."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from itertools import groupby
from typing import Any

import structlog

from server.base.logs import cause_of
from server.base.settings import Settings
from server.directory.rows import purge
from server.events.changes import Change
from server.events.emit import emit, system_actor
from server.jobs.worker import jittered
from server.postgres.db import Connection, Database, Row

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


async def purge_expired(database: Database, settings: Settings) -> dict[str, int]:
    """Run the statements below; each has its rule in sql/queries/upkeep.sql.

    Users are removed instance by instance. Two workers at the same time do not remove a row twice.

    Returns:
        the number of rows of each kind.

    Raises:
        Unavailable: a batch exceeded the time limit of a background round.
    """
    kept = {"default_days": settings.retention_days}
    async with database.round(), database.connection() as db:
        instances = await db.all("find_retained_instances", **kept)
    gone = {"users": 0}
    for row in instances:
        gone["users"] += await _purge(database, "hold_retained_users", **row, **kept)
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
        gone[what] = await _purge(database, query)
    return gone


async def _purge(database: Database, query: str, **values: Any) -> int:
    """Run one statement batch by batch, and return the number of rows."""
    gone, taken = 0, _BATCH
    while taken == _BATCH:
        taken = await _purge_batch(database, query, values)
        gone += taken
    return gone


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
        except Exception as error:  # the next run may succeed
            log.warning("purge_postponed", cause=cause_of(error))
        else:
            if any(gone.values()):
                log.info("purged", **gone)
