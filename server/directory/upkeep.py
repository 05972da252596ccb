"""Upkeep: what has expired is removed, batch by batch, and plans that are over are ended."""

import asyncio
from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple

import structlog

from server.base.logs import cause_of
from server.base.settings import Settings
from server.directory.rows import told_names
from server.events.changes import Change, identity
from server.events.emit import emit, system_actor
from server.jobs.worker import jittered
from server.postgres.db import Database, Row

log = structlog.get_logger()

PURGE_EVERY = 600.0
"""Seconds between two looks for what has expired, by each worker, with a fifth of jitter."""
_BATCH = 500


class _Told(NamedTuple):
    """What is emitted of each row that a statement returns."""

    # By which method the server does it.
    method: str
    change: Callable[[Row], Change]


def _purged(row: Row) -> Change:
    names = {"displayName": row["display_name"], "externalId": row["external_id"]}
    return Change("user.purged", row["user_id"], identity(told_names(row) | names), None)


def _ended(row: Row) -> Change:
    plan = {
        "planId": row["plan_id"], "name": row["name"], "validFrom": row["valid_from"].isoformat(),
        "validTo": row["valid_to"].isoformat(),
    }  # fmt: skip
    return Change("user.updated", row["user_id"], {"plan": plan}, {"plan": None})


_TOLD = {
    "hold_retained_users": _Told("retention", _purged),
    "end_expired_plans": _Told("planEnd", _ended),
}


async def purge_expired(database: Database, settings: Settings) -> dict[str, int]:
    """Remove users whose retention is over, sessions and codes that have expired, answers kept for retries,
    failed logins that are forgiven, old documents, jobs that were parked long ago,
    events after a year, deliveries of webhooks after a month and their old secrets, webhooks that were
    deleted; and end plans of users.

    Users are removed instance by instance. Where two workers find the same rows, the second one finds none
    left.

    Returns:
        how many of each.

    Raises:
        Unavailable: a batch took longer than one round of a background task may.
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
    """Run one of the purges batch by batch; how many rows it took."""
    gone, taken = 0, _BATCH
    while taken == _BATCH:
        taken = await _purge_batch(database, query, values)
        gone += taken
    return gone


async def _purge_batch(database: Database, query: str, values: dict[str, Any]) -> int:
    told = _TOLD.get(query)
    if told is None:
        async with database.round(), database.connection() as db:
            return len(await db.all(query, row_limit=_BATCH, **values))
    async with database.round(), database.transaction() as db:
        rows = [values | dict(row) for row in await db.all(query, row_limit=_BATCH, **values)]
        if rows and query == "hold_retained_users":
            ids, moment = [row["user_id"] for row in rows], rows[0]["moment"]
            await db.run("purge_users", instance_id=values["instance_id"], ids=ids, moment=moment)
        rows.sort(key=lambda row: (row["instance_id"], row["user_id"]))
        actor = system_actor(told.method, told.method)
        for instance_id, group in groupby(rows, key=lambda row: row["instance_id"]):
            await emit(db, instance_id, actor, [told.change(row) for row in group])
        return len(rows)


async def keep_purging(database: Database, settings: Settings) -> None:
    """purge_expired now and then, until cancelled."""
    while True:
        await asyncio.sleep(jittered(PURGE_EVERY, 0.2))
        try:
            gone = await purge_expired(database, settings)
        except Exception as error:  # the next look may go better
            log.warning("purge_postponed", cause=cause_of(error))
        else:
            if any(gone.values()):
                log.info("purged", **gone)
