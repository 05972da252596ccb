"""Removing what has had its time."""

import asyncio

import structlog

from server.base.logs import cause_of
from server.base.settings import Settings
from server.jobs.worker import jittered
from server.postgres.db import Database

log = structlog.get_logger()

PURGE_EVERY = 600.0
"""Seconds between two looks for what has expired, by each worker, with a fifth of jitter."""
_BATCH = 500
_PURGES = {
    "users": "purge_retained_users",
    "sessions": "purge_expired_sessions",
    "plans": "end_expired_plans",
    "codes": "purge_expired_codes",
    "answers": "purge_old_answers",
    "login_failures": "purge_login_failures",
    "documents": "purge_old_documents",
    "jobs": "purge_parked_jobs",
    "events": "purge_old_events",
    "deliveries": "purge_old_deliveries",
    "deliveries_of_deleted": "purge_deleted_webhooks_deliveries",
    "webhooks": "purge_deleted_webhooks",
    "secrets": "forget_old_secrets",
}


async def purge_expired(database: Database, settings: Settings) -> dict[str, int]:
    """Remove what has expired or was kept for long enough, and end plans of users, batch by batch.

    Each statement says for how long. Workers do not wait for one another: rows that another one holds are
    skipped.

    Returns:
        how many of each.

    Raises:
        Unavailable: a batch took longer than one round of a background task may.
    """
    gone = {}
    for what, query in _PURGES.items():
        values = {"default_days": settings.retention_days} if what == "users" else {}
        gone[what], taken = 0, _BATCH
        while taken == _BATCH:
            async with database.round(), database.connection() as connection:
                taken = len(await connection.all(query, row_limit=_BATCH, **values))
            gone[what] += taken
    return gone


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
