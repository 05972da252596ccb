"""Migrations of the schema."""

import asyncio
import contextlib
import functools
import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import asyncpg
import structlog
from asyncpg import exceptions as pg

from server.postgres import citus
from server.postgres.queries import sql_dir

log = structlog.get_logger()

LOCK_TIMEOUT = 2
"""Seconds that a migration waits for a lock; later writes of the table wait behind it."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between two tries of a migration."""
# Any constant, the same in every officerpc.
_MIGRATION_LOCK = 0x0FF1CE
# Seconds between two tries to get it.
_FIRST_LOOK, _LAST_LOOK = 0.02, 0.5
# The first line of a migration that leaves the schema usable for earlier programs (expand and contract).
_COMPATIBLE = re.compile(r"\A-- compatible since (\d{4})\n")
# The line before an index that is to be built concurrently.
_MARK = re.compile(r"^-- concurrently\n(?=CREATE (UNIQUE )?INDEX )", re.MULTILINE)
_MARKED = re.compile(r"^-- concurrently\nCREATE (UNIQUE )?INDEX ", re.MULTILINE)
_CONCURRENT = re.compile(r"^CREATE (UNIQUE )?INDEX CONCURRENTLY IF NOT EXISTS (?P<name>\w+)", re.MULTILINE)


class Migration(NamedTuple):
    """One file of sql/migrations."""

    version: int
    name: str
    checksum: str
    statements: tuple[str, ...]
    # Programs that know the migrations up to this one can run on the new schema; None: no earlier ones can.
    compatible_since: int | None = None


class _Step(NamedTuple):
    """Statements of a migration that run in one transaction, or one that builds an index concurrently."""

    migration: Migration
    statements: tuple[str, ...]
    # The name of the index; None: a transaction.
    builds: str | None
    # How many statements of the migration have run after this step.
    done: int

    @property
    def is_last(self) -> bool:
        return self.done == len(self.migration.statements)


def load_migrations() -> list[Migration]:
    """The migrations in order."""
    return [
        parse_migration(path.stem, path.read_text(encoding="utf-8"))
        for path in sorted((sql_dir() / "migrations").glob("*.sql"))
    ]


def parse_migration(stem: str, text: str) -> Migration:
    """A file of sql/migrations; statements are separated by a semicolon and an empty line.

    `-- concurrently` in the line before CREATE INDEX makes it CREATE INDEX CONCURRENTLY IF NOT EXISTS:
    servers can write meanwhile. The checksum leaves these lines out: they can be added to a migration that
    databases have.

    `-- compatible since 0027` in the first line: programs that know the migrations up to 0027 can start and
    run on the new schema, as is needed to replace servers one after the other.
    """
    checksum = hashlib.sha256(_MARK.sub("", text).encode()).hexdigest()
    text = _MARKED.sub(r"CREATE \1INDEX CONCURRENTLY IF NOT EXISTS ", text)
    statements = tuple(part.strip() for part in re.split(r";\s*?\n\s*\n", text.strip()) if part.strip())
    compatible = _COMPATIBLE.match(text)
    return Migration(int(stem[:4]), stem[5:], checksum, statements, compatible and int(compatible[1]))


class MigrationError(Exception):
    """The schema does not fit this program."""


@contextlib.asynccontextmanager
async def migration_lock(connection: "asyncpg.Connection") -> AsyncIterator[None]:
    """Hold the advisory lock of migrations during the block.

    Polled: a statement that waits for it has a snapshot, and the holder's concurrent index waits for those.
    """
    pause = _FIRST_LOOK
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _MIGRATION_LOCK):
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LAST_LOOK)
    try:
        yield
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _MIGRATION_LOCK)


async def migrate(connection: "asyncpg.Connection", migrations: list[Migration]) -> list[str]:
    """Apply missing migrations, each in a transaction except for concurrent indexes, under an advisory lock.

    After an interruption the next call continues. While another transaction, such as pg_dump's, locks a table
    that a migration changes, the migration is tried again; each failed try is logged. On a distributed
    database new tables are placed on their nodes in the same transaction.

    Args:
        connection: direct, not through a transaction pooler.
        migrations: all, as from load_migrations.

    Returns:
        the names of the migrations that were applied.

    Raises:
        MigrationError: the file of an applied migration has changed, the database has an unknown one that is
            not compatible with this program or is half distributed, or the role lacks privileges.
    """
    applied: list[str] = []
    pause, waited = FIRST_PAUSE, None
    while True:
        async with migration_lock(connection):
            try:
                step = await _apply(connection, migrations, applied)
            except pg.InsufficientPrivilegeError as error:
                raise MigrationError(
                    f"{error}: officerpc migrate is to be run as the role that owns the tables"
                ) from None
        if step is None:
            return applied
        pause, waited = FIRST_PAUSE if step != waited else min(pause * 2, LONGEST_PAUSE), step
        # So that the writes that wait behind it can run. Without the lock, because servers of older versions
        # do not poll for it: with a concurrent index that is a deadlock.
        log.error("migration_waits_for_lock", migration=step.migration.name, next_try_seconds=pause)
        await asyncio.sleep(pause)


async def pending(connection: "asyncpg.Connection", migrations: list[Migration]) -> list[Migration]:
    """The migrations that are not applied yet, or not completely.

    Raises:
        MigrationError: as migrate does.
    """
    done = await _statements_done(connection, migrations)
    return [one for one in migrations if done.get(one.version, 0) < len(one.statements)]


async def _statements_done(connection: "asyncpg.Connection", migrations: list[Migration]) -> dict[int, int]:
    """How many statements of each migration have run, by version."""
    if await citus.is_half_distributed(connection):
        raise MigrationError("the database is half distributed: run officerpc distribute again")
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return {}
    # A table that an earlier version made may lack the last two columns.
    rows = await connection.fetch(
        "SELECT version, checksum, (to_jsonb(m) ->> 'statements_done')::integer AS done,"
        " (to_jsonb(m) ->> 'compatible_since')::integer AS compatible_since"
        " FROM schema_migrations AS m"
    )
    applied = {row["version"]: row for row in rows}
    newest = max(migration.version for migration in migrations)
    for version in sorted(applied.keys() - {migration.version for migration in migrations}, reverse=True):
        since = applied[version]["compatible_since"]
        if since is None or since > newest:
            raise MigrationError(f"the database holds migration {version}, which this program does not know")
    done = {}
    for version, _, checksum, statements, _ in migrations:
        if row := applied.get(version):
            if row["checksum"] != checksum:
                raise MigrationError(f"migration {version} was applied from another file")
            done[version] = len(statements) if row["done"] is None else row["done"]
    return done


async def _apply(
    connection: "asyncpg.Connection", migrations: list[Migration], applied: list[str]
) -> _Step | None:
    """Apply what is missing, and add its names to applied.

    Returns:
        the step that did not get its locks in time; None: all is applied.
    """
    done = await _statements_done(connection, migrations)
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        # statements_done: of a migration that is not complete. compatible_since: see Migration.
        await connection.execute(
            "CREATE TABLE schema_migrations (version integer PRIMARY KEY, name text NOT NULL,"
            " checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now(), statements_done integer,"
            " compatible_since integer)"
        )
    for migration in migrations:
        for step in _steps(migration, done.get(migration.version, 0)):
            try:
                await _run(connection, step)
            except (pg.LockNotAvailableError, pg.DeadlockDetectedError):
                return step
            if step.is_last:
                applied.append(migration.name)
    return None


def _steps(migration: Migration, done: int) -> Iterator[_Step]:
    """The steps of a migration after the first statements."""
    together: tuple[str, ...] = ()
    for number, statement in enumerate(migration.statements[done:], done + 1):
        if built := _CONCURRENT.search(statement):
            if together:
                yield _Step(migration, together, None, number - 1)
            yield _Step(migration, (statement,), built["name"], number)
            together = ()
        else:
            together += (statement,)
    if together:
        yield _Step(migration, together, None, len(migration.statements))


async def _run(connection: "asyncpg.Connection", step: _Step) -> None:
    is_distributed = await citus.is_distributed(connection)
    if step.builds is not None:
        await _build(connection, step, step.builds)
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'")
        if step.builds is None:
            for setting in citus.SAFE_SETTINGS if is_distributed else ():
                await connection.execute(setting)
            for statement in step.statements:
                await connection.execute(statement)
                if is_distributed:
                    await citus.place_new(connection)
        migration = step.migration
        if step.statements == migration.statements and migration.compatible_since is None:
            await connection.execute(
                "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
                *migration[:3],
            )
            return
        if step.done == len(step.statements):  # the first step
            await connection.execute(
                "ALTER TABLE schema_migrations ADD COLUMN IF NOT EXISTS statements_done integer,"
                " ADD COLUMN IF NOT EXISTS compatible_since integer"
            )
        await connection.execute(
            "INSERT INTO schema_migrations (version, name, checksum, statements_done, compatible_since)"
            " VALUES ($1, $2, $3, $4, $5)"
            " ON CONFLICT (version) DO UPDATE SET statements_done = excluded.statements_done",
            *migration[:3],
            None if step.is_last else step.done,
            migration.compatible_since,
        )


async def _build(connection: "asyncpg.Connection", step: _Step, index: str) -> None:
    """Build an index while others write. It waits for their transactions, and they do not wait for it."""
    told = asyncio.get_running_loop().call_later(
        LOCK_TIMEOUT,
        functools.partial(log.info, "migration_builds_index", migration=step.migration.name, index=index),
    )
    await connection.execute("SET lock_timeout = 0")
    await connection.execute("SET statement_timeout = 0")
    try:
        if await connection.fetchval(
            "SELECT NOT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)", index
        ):  # a build was interrupted
            await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {index}")
        await connection.execute(step.statements[0])
    finally:
        told.cancel()
        if not connection.is_closed():
            await connection.execute("RESET lock_timeout")
            await connection.execute("RESET statement_timeout")
