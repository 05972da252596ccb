"""Statistics for the planner: a table that has grown tenfold is analyzed at once.

Sessions keep generic plans, also those of foreign key triggers. A plan that was made for a nearly empty table
is slow once the table has grown, and is kept until the next ANALYZE. Autovacuum looks once a minute, and does
not notice a restore.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog

from server.base.errors import Unavailable
from server.postgres.db import Database, pass_on_cancelling

log = structlog.get_logger()

LOOK_EVERY = 0.1
"""Seconds between two looks during writes; each takes the database about half a millisecond."""
PAUSE = 60.0
"""Seconds after a failure, such as an ANALYZE that exceeds statement_timeout."""


async def analyze_grown(database: Database) -> list[str]:
    """Run ANALYZE on every table that has grown tenfold since its last one, unless another session does.

    Returns:
        the names of the tables.
    """
    done: list[str] = []
    async with database.connection() as connection:
        # Each in its own transaction: short locks, and the feed of changes does not wait.
        while True:
            async with database.round():
                row = await connection.one("find_grown_table", others=done)
                if row is None:
                    return done
                await connection.run("analyze_table", name=row["name"])
            done.append(row["name"])


async def keep_analyzing(database: Database) -> None:
    """Run analyze_grown at the start and after writes of this process, until cancelled."""
    seen, said = -1, False
    while True:
        pause = LOOK_EVERY
        if database.writes_begun != seen:
            seen = database.writes_begun
            try:
                if done := await analyze_grown(database):
                    log.info("analyzed", tables=done)
                said = False
            except Exception as error:  # autovacuum will do it later
                pass_on_cancelling(error)
                pause = LOOK_EVERY * 50 if isinstance(error, Unavailable) else PAUSE
                if not said:
                    log.warning("not_analyzed", cause=type(error).__name__)
                said = True
                seen = -1
        await asyncio.sleep(pause)


@contextlib.asynccontextmanager
async def analyzing(database: Database) -> AsyncIterator[None]:
    """Run keep_analyzing during the block."""
    task = asyncio.create_task(keep_analyzing(database))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
