"""The one place that talks to Postgres: pool, transactions, named queries, migrations, driver errors."""

import asyncio
import contextlib
import functools
import hashlib
import re
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeAlias

import aiosql
import asyncpg
import orjson
import structlog
from aiosql.adapters.asyncpg import AsyncPGAdapter
from asyncpg import exceptions as pg

from server.errors import (
    ConnectionLost,
    Contention,
    Invalid,
    NotBegun,
    OutcomeUnknown,
    ServiceError,
    Unavailable,
    from_constraint,
)
from server.pool import DRIVER_ERRORS, Pool
from server.settings import Settings

log = structlog.get_logger()
Row: TypeAlias = Any
"""An asyncpg.Record: columns by name."""

# Any constant serves, as long as every officerpc uses the same.
_MIGRATION_LOCK = 0x0FF1CE
# Seconds after which a connection is asked whether it lives before one statement is all that it is given.
_RESTED = 1.0
READ_TRIES = 4
"""How often something is read while connections turn out to be lost."""
# How a connection is lost while a statement runs.
_LOST = (
    OSError, pg.InternalClientError, pg.PostgresConnectionError, pg.AdminShutdownError, pg.CrashShutdownError
)  # fmt: skip


class NamedQuery(NamedTuple):
    """One statement of sql/queries with the order in which its parameters go."""

    name: str
    sql: str
    params: tuple[str, ...]


class Migration(NamedTuple):
    """One file of sql/migrations."""

    version: int
    name: str
    checksum: str
    statements: tuple[str, ...]


def _sql_dir() -> Path:
    """The SQL files: inside the package where it is installed, beside it in a checkout."""
    packaged = Path(__file__).parent / "sql"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "sql"


@functools.cache
def load_queries() -> dict[str, NamedQuery]:
    """Every named query of sql/queries/*.sql."""
    adapter = AsyncPGAdapter()  # type: ignore[no-untyped-call]
    queries: dict[str, NamedQuery] = {}
    for path in sorted((_sql_dir() / "queries").glob("*.sql")):
        loaded = aiosql.from_path(path, lambda: adapter, encoding="utf-8")
        for name in loaded.available_queries:
            if name.endswith("_cursor"):  # aiosql adds one to every select
                continue
            if name in queries:
                raise ValueError(f"two queries are called {name}")
            sql = getattr(loaded, name).sql
            queries[name] = NamedQuery(name, sql, tuple(adapter.var_sorted[name]))
    return queries


def load_migrations() -> list[Migration]:
    """The migrations in order; statements are separated by a semicolon and an empty line."""
    migrations = []
    for path in sorted((_sql_dir() / "migrations").glob("*.sql")):
        text = path.read_text(encoding="utf-8")
        statements = tuple(part.strip() for part in re.split(r";\s*?\n\s*\n", text.strip()) if part.strip())
        checksum = hashlib.sha256(text.encode()).hexdigest()
        migrations.append(Migration(int(path.name[:4]), path.stem[5:], checksum, statements))
    return migrations


class MigrationError(Exception):
    """The schema is not one that this program can work on."""


class Connection:
    """Named queries on one database connection, with or without a transaction around them.

    `async with database.connection() as connection` takes one of the pool's and gives it back.
    """

    __slots__ = ("_database", "_queries", "raw")
    raw: "asyncpg.Connection"

    def __init__(self, database: "Database", queries: dict[str, NamedQuery]) -> None:
        self._database = database
        self._queries = queries

    async def __aenter__(self) -> "Connection":
        try:
            self.raw = await self._database.pool.take()
        except Exception as error:
            self._database.raise_translated(error)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or (isinstance(error, ServiceError) and not isinstance(error, Unavailable)):
            self._database.pool.give_back(self.raw)
        else:
            await self._database.pool.mend(self.raw)
            if isinstance(error, DRIVER_ERRORS):
                self._database.raise_translated(error)

    def _bind(self, name: str, values: dict[str, Any]) -> tuple[str, Iterable[Any]]:
        query = self._queries[name]
        if len(values) != len(query.params):
            raise TypeError(f"{name} takes {', '.join(query.params)}")
        return query.sql, [values[param] for param in query.params]

    async def one(self, name: str, /, **values: Any) -> Row | None:
        """The first row of a named query, or None."""
        sql, args = self._bind(name, values)
        return await self.raw.fetchrow(sql, *args)

    async def value(self, name: str, /, **values: Any) -> Any:
        """The first column of the first row of a named query, or None."""
        sql, args = self._bind(name, values)
        return await self.raw.fetchval(sql, *args)

    async def all(self, name: str, /, **values: Any) -> list[Row]:
        """Every row of a named query."""
        sql, args = self._bind(name, values)
        rows: list[Row] = await self.raw.fetch(sql, *args)
        return rows

    async def run(self, name: str, /, **values: Any) -> None:
        """A named query that returns nothing."""
        sql, args = self._bind(name, values)
        await self.raw.fetch(sql, *args)


class _PooledConnection(asyncpg.Connection):  # type: ignore[misc]
    """Nothing of ours leaves session state behind, so giving a connection back costs no round trip."""

    def get_reset_query(self) -> str:
        return ""


async def _set_codecs(raw: "asyncpg.Connection") -> None:
    await raw.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: b"\x01" + orjson.dumps(value),  # 1 is the version of jsonb's binary form
        decoder=lambda data: orjson.loads(data[1:]),
        format="binary",
    )


class Database:
    """A bounded pool of connections and the named queries that run on them."""

    def __init__(self, settings: Settings, url: str) -> None:
        """
        Args:
            settings: sizes and timeouts (seconds).
            url: where Postgres (or a transaction pooler) listens.
        """
        self._settings = settings
        self._url = url
        self._pooler = settings.database_direct_url is not None
        self._direct_url = (
            settings.database_direct_url.get_secret_value() if settings.database_direct_url else url
        )
        self._queries = load_queries()
        # Statements and transactions that may have written, begun by this process.
        self.writes = 0
        self.pool: Pool
        self._renewing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Make the pool. Connections open on first use, so a server can start while its database is away."""
        settings = self._settings
        options: dict[str, Any] = (
            {"statement_cache_size": 0}
            if self._pooler
            else {
                "server_settings": {
                    "application_name": "officerpc",
                    # Every statement is short, and written for one plan whatever its parameters are: neither
                    # compiling nor planning it anew nor workers for it would pay.
                    "jit": "off",
                    "plan_cache_mode": "force_generic_plan",
                    "max_parallel_workers_per_gather": "0",
                    "statement_timeout": str(int(settings.statement_timeout * 1000)),
                    "lock_timeout": str(int(settings.lock_timeout * 1000)),
                    "idle_in_transaction_session_timeout": str(int(settings.idle_transaction_timeout * 1000)),
                },
                "max_cached_statement_lifetime": 0,
            }
        )
        opened = await asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=settings.pool_size,
            max_queries=10_000_000,
            timeout=settings.connect_timeout,
            # No command_timeout: a timer for each statement costs a tenth of a call. The server's own
            # statement_timeout ends slow ones; for a server that does not answer at all, dispatch has one
            # timer for all calls, and look_up and direct have theirs.
            connection_class=_PooledConnection,
            init=_set_codecs,
            **options,
        )
        self.pool = Pool(opened, settings.pool_size, settings.acquire_timeout)

    async def close(self) -> None:
        """Close the pool; a database that does not answer is left behind after two seconds."""
        await self.pool.close(2)

    def connection(self) -> Connection:
        """A connection in autocommit: each statement is a transaction of its own."""
        return Connection(self, self._queries)

    async def look_up(self, name: str, /, **values: Any) -> Row | None:
        """The first row of a named query that only reads, or None.

        A connection may have been ended while it idled, as all the others may, which shows when it is used.
        """
        try:
            async with asyncio.timeout(self._settings.statement_timeout):
                for _ in range(READ_TRIES - 1):
                    with contextlib.suppress(ConnectionLost):
                        async with self.connection() as connection:
                            return await connection.one(name, **values)
                async with self.connection() as connection:
                    return await connection.one(name, **values)
        except TimeoutError as error:
            raise Unavailable(retry_after=1) from error

    @contextlib.asynccontextmanager
    async def statement(self) -> AsyncIterator[Connection]:
        """A connection for a single statement that writes: it is a transaction by itself.

        Raises:
            NotBegun: the connection had been lost before.
            OutcomeUnknown: the connection was lost, or time ran out, while it ran.
        """
        self.writes += 1
        async with self.connection() as connection:
            if self.pool.idled(connection.raw) > _RESTED:
                # A transaction would see at its beginning that it is lost, when nothing has been done yet.
                try:
                    await connection.value("check_writable")
                except DRIVER_ERRORS as error:
                    if isinstance(translated(error), ConnectionLost):
                        raise NotBegun(retry_after=1) from error
                    raise
            try:
                yield connection
            except pg.InterfaceError as error:
                if isinstance(translated(error), ConnectionLost):  # found closed, nothing was sent
                    raise NotBegun(retry_after=1) from error
                raise
            except pg.ProtocolError as error:  # of an answer
                raise OutcomeUnknown() from error
            except pg.InternalClientError as error:
                # The server had said while it idled that it ends it: asyncpg's protocol is out of step then,
                # and refuses before it writes (_ensure_connected, _set_state).
                raise NotBegun(retry_after=1) from error
            except (*_LOST, asyncio.CancelledError) as error:
                raise OutcomeUnknown() from error

    @contextlib.asynccontextmanager
    async def transaction(self, *, dry_run: bool = False) -> AsyncIterator[Connection]:
        """A connection in a transaction that commits at the end of the block, or rolls back on any error.

        Args:
            dry_run: roll back at the end too. Constraints are checked statement by statement: none waits for
                the commit.

        Raises:
            NotBegun: the connection had been lost before the transaction began.
            OutcomeUnknown: the connection was lost, or time ran out, while committing.
        """
        self.writes += 1
        async with self.connection() as connection:
            transaction = connection.raw.transaction()
            try:
                await transaction.start()
            except DRIVER_ERRORS as error:
                if isinstance(translated(error), ConnectionLost):
                    raise NotBegun(retry_after=1) from error
                raise
            try:
                yield connection
            except BaseException:
                # Bounded: a server that is frozen does not even hear that it should give up.
                with contextlib.suppress(*DRIVER_ERRORS):
                    async with asyncio.timeout(2):
                        await transaction.rollback()
                raise
            if dry_run:
                await transaction.rollback()
                return
            try:
                await transaction.commit()
            except (
                *_LOST, pg.InterfaceError, pg.OperatorInterventionError, asyncio.CancelledError
            ) as error:  # fmt: skip
                raise OutcomeUnknown() from error  # cancelled: the call's time was up before the answer

    async def writable(self) -> bool:
        """Whether the database takes writes. If not, it is connected to anew: the next one might."""
        async with self.connection() as connection:
            writable: bool = await connection.value("check_writable")
        if not writable:
            await self.pool.renew()
        return writable

    async def direct(self) -> "asyncpg.Connection":
        """A connection of its own, past any pooler; the caller closes it."""
        try:
            connection = await asyncpg.connect(self._direct_url, timeout=self._settings.connect_timeout)
            await _set_codecs(connection)
        except Exception as error:
            raise translated(error) from error
        return connection

    def raise_translated(self, error: BaseException) -> NoReturn:
        """Raise what a driver error stands for."""
        if isinstance(error, pg.ReadOnlySQLTransactionError):
            # A failover left us on a standby: connect anew, where target_session_attrs leads.
            self._renewing = asyncio.get_running_loop().create_task(self.pool.renew())
        known = translated(error)
        if known is error:  # a bug: not its own cause
            raise error
        raise known from error


def translated(error: BaseException) -> BaseException:
    """The ServiceError a driver error stands for; the error itself if it is a bug of ours."""
    match error:
        case ServiceError():
            return error
        case pg.IntegrityConstraintViolationError():
            return from_constraint(error.constraint_name, str(error)) or error
        case pg.SerializationError() | pg.DeadlockDetectedError() | pg.InvalidCachedStatementError():
            return Contention(retry_after=1)
        case pg.CharacterNotInRepertoireError() | pg.UntranslatableCharacterError():
            return Invalid("a text holds a character that cannot be stored")
        case pg.PostgresConnectionError() | pg.AdminShutdownError() | pg.CrashShutdownError():
            return ConnectionLost(retry_after=1)
        case pg.InterfaceError() if not isinstance(error, ValueError):
            return ConnectionLost(retry_after=1)
        case pg.InternalClientError():  # how a connection that the server ended shows at its next use
            return ConnectionLost(retry_after=1)
        case (
            pg.OperatorInterventionError()
            | pg.InsufficientResourcesError()
            | pg.LockNotAvailableError()
            | pg.IdleInTransactionSessionTimeoutError()
            | pg.ReadOnlySQLTransactionError()
            | pg.InvalidAuthorizationSpecificationError()
            | pg.InvalidCatalogNameError()
            | OSError()
            | TimeoutError()
        ):
            return Unavailable(retry_after=1)
    return error


def pass_on_cancelling(error: Exception) -> None:
    """Stop if this task is to stop: a commit that is cancelled says that its outcome is unknown instead."""
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError from error


@contextlib.asynccontextmanager
async def migration_lock(connection: "asyncpg.Connection") -> AsyncIterator[None]:
    """Only one of those who hold this at a time, in the whole database. It may be taken again within."""
    await connection.execute("SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)
    try:
        yield
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _MIGRATION_LOCK)


async def migrate(connection: "asyncpg.Connection", migrations: list[Migration]) -> list[str]:
    """Bring the schema up to date, one transaction a migration, under an advisory lock.

    Args:
        connection: direct, not through a transaction pooler.
        migrations: as load_migrations gives them.

    Returns:
        the names of the migrations that were applied.

    Raises:
        MigrationError: an applied migration is not the file it was, the database knows a later one, or the
            role may not apply those that are missing.
    """
    async with migration_lock(connection):
        try:
            return await _apply(connection, migrations)
        except pg.InsufficientPrivilegeError as error:
            raise MigrationError(
                f"{error}: officerpc migrate is to be run as the role that owns the tables"
            ) from None


async def _apply(connection: "asyncpg.Connection", migrations: list[Migration]) -> list[str]:
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        await connection.execute(
            "CREATE TABLE schema_migrations (version integer PRIMARY KEY, name text NOT NULL,"
            " checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
    rows = await connection.fetch("SELECT version, checksum FROM schema_migrations")
    applied = {row["version"]: row["checksum"] for row in rows}
    known = {migration.version for migration in migrations}
    if unknown := sorted(set(applied) - known):
        raise MigrationError(f"the database holds migration {unknown[-1]}, which this program does not know")
    done = []
    for migration in migrations:
        if migration.version not in applied:
            async with connection.transaction():
                for statement in migration.statements:
                    await connection.execute(statement)
                await connection.execute(
                    "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
                    migration.version,
                    migration.name,
                    migration.checksum,
                )
            done.append(migration.name)
        elif applied[migration.version] != migration.checksum:
            raise MigrationError(f"migration {migration.version} was applied from another file")
    return done
