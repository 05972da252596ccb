"""What runs beside the calls: taking what has had its time."""

import asyncio
import random

import structlog

from server.db import Database
from server.errors import ServiceError
from server.settings import Settings

log = structlog.get_logger()

PURGE_EVERY = 600.0
"""Seconds between two looks for what has expired, by each worker, with a fifth of jitter."""
_BATCH = 500


async def purge_expired(database: Database, settings: Settings) -> dict[str, int]:
    """Remove users whose retention is over and sessions that have expired, batch by batch.

    Workers do not wait for one another: rows that another one holds are skipped.
    """
    gone = {"users": 0, "sessions": 0}
    for what, query, values in (
        ("users", "purge_retained_users", {"default_days": settings.retention_days}),
        ("sessions", "purge_expired_sessions", {}),
    ):
        taken = _BATCH
        while taken == _BATCH:
            async with database.connection() as connection:
                taken = len(await connection.all(query, row_limit=_BATCH, **values))
            gone[what] += taken
    return gone


async def keep_purging(database: Database, settings: Settings) -> None:
    """purge_expired now and then, until cancelled."""
    while True:
        await asyncio.sleep(PURGE_EVERY * random.uniform(0.8, 1.2))  # noqa: S311
        try:
            gone = await purge_expired(database, settings)
        except ServiceError as error:
            log.warning("purge_postponed", code=error.code)
        else:
            if any(gone.values()):
                log.info("purged", **gone)
