"""Migrations of the schema."""

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator
from typing import NamedTuple

import asyncpg
import structlog
from asyncpg import exceptions as pg

from server.postgres import citus
from server.postgres.queries import sql_dir

log = structlog.get_logger()

LOCK_TIMEOUT = 2
"""Seconds that a migration waits for a lock; later writes of the table wait behind it."""
LONGEST_PAUSE = 30.0
"""Seconds between two tries of a migration."""
# Any constant, the same in every officerpc.
_MIGRATION_LOCK = 0x0FF1CE


class Migration(NamedTuple):
    """One file of sql/migrations."""

    version: int
    name: str
    checksum: str
    statements: tuple[str, ...]


def load_migrations() -> list[Migration]:
    """The migrations in order; statements are separated by a semicolon and an empty line."""
    migrations = []
    for path in sorted((sql_dir() / "migrations").glob("*.sql")):
        text = path.read_text(encoding="utf-8")
        statements = tuple(part.strip() for part in re.split(r";\s*?\n\s*\n", text.strip()) if part.strip())
        checksum = hashlib.sha256(text.encode()).hexdigest()
        migrations.append(Migration(int(path.name[:4]), path.stem[5:], checksum, statements))
    return migrations


class MigrationError(Exception):
    """The schema does not fit this program."""


@contextlib.asynccontextmanager
async def migration_lock(connection: "asyncpg.Connection") -> AsyncIterator[None]:
    """Hold the advisory lock of migrations during the block. It is reentrant."""
    await connection.execute("SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)
    try:
        yield
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _MIGRATION_LOCK)


async def migrate(connection: "asyncpg.Connection", migrations: list[Migration]) -> list[str]:
    """Apply missing migrations, each in a transaction, under an advisory lock.

    While another transaction, such as pg_dump's, locks a table that a migration changes, the migration is
    tried again; each failed try is logged. On a distributed database new tables are placed on their nodes in
    the same transaction.

    Args:
        connection: direct, not through a transaction pooler.
        migrations: all, as from load_migrations.

    Returns:
        the names of the migrations that were applied.

    Raises:
        MigrationError: the file of an applied migration has changed, the database has an unknown one or is
            half distributed, or the role lacks privileges.
    """
    async with migration_lock(connection):
        try:
            return await _apply(connection, migrations)
        except pg.InsufficientPrivilegeError as error:
            raise MigrationError(
                f"{error}: officerpc migrate is to be run as the role that owns the tables"
            ) from None


async def pending(connection: "asyncpg.Connection", migrations: list[Migration]) -> list[Migration]:
    """The migrations that are not applied yet.

    Raises:
        MigrationError: as migrate does.
    """
    if await citus.is_half_distributed(connection):
        raise MigrationError("the database is half distributed: run officerpc distribute again")
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return migrations
    rows = await connection.fetch("SELECT version, checksum FROM schema_migrations")
    applied = {row["version"]: row["checksum"] for row in rows}
    if unknown := sorted(set(applied) - {migration.version for migration in migrations}):
        raise MigrationError(f"the database holds migration {unknown[-1]}, which this program does not know")
    for migration in migrations:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise MigrationError(f"migration {migration.version} was applied from another file")
    return [migration for migration in migrations if migration.version not in applied]


async def _apply(connection: "asyncpg.Connection", migrations: list[Migration]) -> list[str]:
    missing = await pending(connection, migrations)
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        await connection.execute(
            "CREATE TABLE schema_migrations (version integer PRIMARY KEY, name text NOT NULL,"
            " checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
    for migration in missing:
        pause = 1.0
        while not await _took_its_locks(connection, migration):
            log.error("migration_waits_for_lock", migration=migration.name, next_try_seconds=pause)
            await asyncio.sleep(pause)  # so that the writes that wait behind it can run
            pause = min(pause * 2, LONGEST_PAUSE)
    return [migration.name for migration in missing]


async def _took_its_locks(connection: "asyncpg.Connection", migration: Migration) -> bool:
    """Apply a migration; False, with nothing applied, if it did not get its locks in time."""
    is_distributed = await citus.is_distributed(connection)
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'")
            for setting in citus.SAFE_SETTINGS if is_distributed else ():
                await connection.execute(setting)
            for statement in migration.statements:
                await connection.execute(statement)
                if is_distributed:
                    await citus.place_new(connection)
            await connection.execute(
                "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
                migration.version,
                migration.name,
                migration.checksum,
            )
    except pg.LockNotAvailableError:
        return False
    return True
