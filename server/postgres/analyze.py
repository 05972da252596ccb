"""Statistics for the planner: tables that have grown tenfold are analyzed at once.

Sessions keep generic plans, those of the foreign keys' triggers among them. A plan made while a table was
nearly empty reads far too many rows once the table has grown, and is kept until the next ANALYZE. Autovacuum
looks only once a minute, and after a restore it knows of no changes at all.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog

from server.base.errors import Unavailable
from server.postgres.db import Database, pass_on_cancelling

log = structlog.get_logger()

LOOK_EVERY = 0.1
"""Seconds between two looks while tables are written to; each takes the database about half a millisecond."""
PAUSE = 60.0
"""Seconds after a failure, such as an ANALYZE that takes longer than a statement may."""


async def analyze_grown(database: Database) -> list[str]:
    """Run ANALYZE on every table that has grown tenfold since its last one.

    One that another session is at is left to it.

    Returns:
        the names of the tables.
    """
    done: list[str] = []
    async with database.connection() as connection:
        # Each in a transaction of its own: locks are short, and none holds up the feed of changes.
        while True:
            async with database.round():
                row = await connection.one("find_grown_table", others=done)
                if row is None:
                    return done
                await connection.run("analyze_table", name=row["name"])
            done.append(row["name"])


async def keep_analyzing(database: Database) -> None:
    """analyze_grown at the start and as this process writes, until cancelled."""
    seen, said = -1, False
    while True:
        pause = LOOK_EVERY
        if database.writes_begun != seen:
            seen = database.writes_begun
            try:
                if done := await analyze_grown(database):
                    log.info("analyzed", tables=done)
                said = False
            except Exception as error:  # autovacuum gets there later
                pass_on_cancelling(error)
                pause = LOOK_EVERY * 50 if isinstance(error, Unavailable) else PAUSE
                if not said:
                    log.warning("not_analyzed", cause=type(error).__name__)
                said = True
                seen = -1
        await asyncio.sleep(pause)


@contextlib.asynccontextmanager
async def analyzing(database: Database) -> AsyncIterator[None]:
    """keep_analyzing for as long as the block lasts."""
    task = asyncio.create_task(keep_analyzing(database))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
