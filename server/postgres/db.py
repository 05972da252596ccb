"""Access to Postgres: connections, transactions, named queries, and the driver's errors."""

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from socket import gaierror
from ssl import SSLError
from typing import Any, NoReturn, TypeAlias, TypeVar

import asyncpg
import orjson
import structlog
from asyncpg import exceptions as pg

from server.base.errors import (
    ConnectionLost,
    Contention,
    Invalid,
    NotBegun,
    OutcomeUnknown,
    ServiceError,
    Unavailable,
    from_constraint,
)
from server.base.settings import Settings
from server.base.shares import PROOFS, taking_from
from server.postgres.pool import DRIVER_ERRORS, DriverConnection, Pool
from server.postgres.queries import load_queries
from server.postgres.writes import Writes

log = structlog.get_logger()
T = TypeVar("T")
Row: TypeAlias = Any
"""An asyncpg.Record: columns by name."""

# Seconds of idling after which a connection is tested before it runs a single statement.
_RESTED = 1.0
TRIES = 4
"""How often a read is tried on lost connections."""
# Errors of a connection that is lost during a statement.
_LOST = (
    OSError, pg.InternalClientError, pg.PostgresConnectionError, pg.AdminShutdownError, pg.CrashShutdownError
)  # fmt: skip


class Connection:
    """Runs named queries on one connection of the pool, with or without a transaction.

    `async with database.connection() as connection` takes the connection and gives it back.
    """

    __slots__ = ("_database", "raw")
    raw: "asyncpg.Connection"

    def __init__(self, database: "Database") -> None:
        self._database = database

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
            if isinstance(translated(error), ConnectionLost):
                await self._database.pool.drop_idle()
            if isinstance(error, DRIVER_ERRORS):
                self._database.raise_translated(error)

    def _bind(self, name: str, values: dict[str, Any]) -> tuple[str, Iterable[Any]]:
        query = self._database.queries[name]
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
        self.queries = load_queries()
        # Writes that this process has begun.
        self.writes_begun = 0
        self.pool: Pool
        self.writes = Writes(self._prove_writable)
        # Seconds for one round of a background task: as long as a call, and at least two slow statements.
        self._round_limit = max(settings.call_timeout, 2 * settings.statement_timeout)
        self._advised = False
        self._renewing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Create the pool. Connections open at their first use: the server can start before its database."""
        settings = self._settings
        options: dict[str, Any] = (
            {"statement_cache_size": 0}
            if self._pooler
            else {
                "server_settings": {
                    "application_name": "officerpc",
                    # Statements are short and written for one plan with any parameters: JIT, custom plans
                    # and parallel workers would cost more than they save.
                    "jit": "off",
                    "plan_cache_mode": "force_generic_plan",
                    "max_parallel_workers_per_gather": "0",
                    "statement_timeout": str(int(settings.statement_timeout * 1000)),
                    "lock_timeout": str(int(settings.lock_timeout * 1000)),
                    "idle_in_transaction_session_timeout": str(int(settings.idle_transaction_timeout * 1000)),
                },
                "max_cached_statement_lifetime": 0,
                # asyncpg would plan statements of more than 15 KiB anew in each call: search_scim_users.
                "max_cacheable_statement_size": 0,
            }
        )
        opened = await asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=settings.pool_size,
            max_queries=10_000_000,
            timeout=settings.connect_timeout,
            # No command_timeout: a timer for each statement costs a tenth of a call. Postgres's
            # statement_timeout ends slow statements. If Postgres does not answer at all, the timer of
            # dispatch ends calls; look_up and direct have their own.
            connection_class=DriverConnection,
            init=self._set_up,
            **options,
        )
        self.pool = Pool(opened, settings.pool_size, settings.acquire_timeout, settings.instance_queue)

    async def _set_up(self, raw: "asyncpg.Connection") -> None:
        await _set_codecs(raw)
        # Citus plans a statement for the node of its instance, which it knows from the parameter values.
        # It need not hide shards in the catalogues: asyncpg looks types up on each new connection, which
        # takes two seconds then, and 0.03 without. Behind a pooler this is for this transaction only.
        if await raw.fetchrow(
            "SELECT set_config('plan_cache_mode', 'force_custom_plan', $1),"
            " set_config('citus.override_table_visibility', 'off', $1)"
            " FROM pg_extension WHERE extname = 'citus'",
            self._pooler,
        ):
            self.queries = load_queries(citus=True)

    async def close(self) -> None:
        """Close the pool, within two seconds even if the database does not answer."""
        await self.writes.close()
        await self.pool.close(2)

    def connection(self) -> Connection:
        """A connection in autocommit mode."""
        return Connection(self)

    async def look_up(self, name: str, /, **values: Any) -> Row | None:
        """The first row of a named query that only reads, or None. Retried if an idle connection was lost."""
        async with self._limited(self._settings.statement_timeout):
            return await self._tried(lambda connection: connection.one(name, **values))

    async def _tried(self, use: Callable[[Connection], Awaitable[T]]) -> T:
        """Do something that is safe to repeat, again on another connection if one is lost."""
        for _ in range(TRIES - 1):
            with contextlib.suppress(ConnectionLost):
                async with self.connection() as connection:
                    return await use(connection)
        async with self.connection() as connection:
            return await use(connection)

    def round(self) -> contextlib.AbstractAsyncContextManager[None]:
        """A time limit for one round of a background task, as call_timeout is for calls.

        Without it a task would wait forever if Postgres's host is gone or a COMMIT waits for a standby.

        Raises:
            Unavailable: the time is up.
        """
        return self._limited(self._round_limit)

    @contextlib.asynccontextmanager
    async def _limited(self, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise Unavailable(retry_after=1) from error

    @contextlib.asynccontextmanager
    async def statement(self) -> AsyncIterator[Connection]:
        """A connection for one writing statement, which is a transaction by itself.

        Raises:
            NotBegun: the connection was lost before the statement was sent.
            OutcomeUnknown: the connection was lost, or the time was up, while it ran.
            Unavailable: writes are in doubt (see Writes); nothing was done.
        """
        await self._begin_write()
        async with self.connection() as connection:
            if self.pool.idled(connection.raw) > _RESTED:
                with _nothing_done():
                    await connection.value("check_writable")
            try:
                yield connection
            except pg.ProtocolError as error:  # in an answer
                raise OutcomeUnknown() from error
            except (pg.InterfaceError, pg.InternalClientError) as error:
                # Before anything is sent asyncpg finds the connection closed, or refuses to write
                # (_ensure_connected, _set_state) because the server ended the session while it was idle.
                if isinstance(translated(error), ConnectionLost):
                    raise NotBegun(retry_after=1) from error
                raise
            except (*_LOST, asyncio.CancelledError) as error:
                raise self._unknown(error) from error

    @contextlib.asynccontextmanager
    async def transaction(self, *, dry_run: bool = False) -> AsyncIterator[Connection]:
        """A connection in a transaction that commits at the end of the block, or rolls back on any error.

        Args:
            dry_run: always roll back. No constraint is deferred to the commit.

        Raises:
            NotBegun: the connection was lost before the transaction began.
            OutcomeUnknown: the connection was lost, or the time was up, during the commit.
            Unavailable: writes are in doubt (see Writes); nothing was done.
        """
        await self._begin_write()
        async with self.connection() as connection:
            transaction = connection.raw.transaction()
            with _nothing_done():
                await transaction.start()
            try:
                yield connection
            except BaseException:
                # Limited: a frozen server would never answer.
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
                raise self._unknown(error) from error

    async def writable(self) -> bool:
        """Whether the database accepts writes (see Writes).

        If it is read-only, all connections are opened again: another server may be the primary now.
        """
        row = await self.look_up("check_writable")
        writable = row is not None and row["writable"]
        if not writable:
            await self.pool.renew()
        return writable and await self.writes.proven()

    async def _prove_writable(self, in_doubt: bool) -> bool:
        async def prove(connection: Connection) -> bool:
            # First, because all proofs write the same row: while one waits for a standby, the next ones fail
            # at its lock instead of leaving more server processes waiting.
            written = bool(await connection.value("write_heartbeat"))
            if in_doubt:
                with contextlib.suppress(pg.InsufficientPrivilegeError):  # of temporary tables
                    await connection.run("try_for_room")
            return written

        # All callers wait for this: it has a share of its own.
        with taking_from(PROOFS):
            return await self._tried(prove)

    async def _begin_write(self) -> None:
        """Count a write, and refuse it if earlier ones failed and this would too."""
        self.writes_begun += 1
        if self.writes.in_doubt and not await self.writes.proven():
            raise Unavailable(retry_after=1)

    async def direct(self) -> "asyncpg.Connection":
        """A connection outside the pool and past any pooler; the caller closes it."""
        try:
            connection = await asyncpg.connect(
                self._direct_url,
                timeout=self._settings.connect_timeout,
                connection_class=DriverConnection,
            )
            await _set_codecs(connection)
        except Exception as error:
            raise translated(error) from error
        return connection

    def _unknown(self, error: BaseException) -> OutcomeUnknown:
        if isinstance(error, asyncio.CancelledError):  # the call's time was up
            self.writes.doubt("no answer to a commit")
        return OutcomeUnknown()

    def raise_translated(self, error: BaseException) -> NoReturn:
        """Raise the ServiceError for a driver error."""
        if isinstance(error, pg.ReadOnlySQLTransactionError):
            # After a failover this server is a standby: connect again, by target_session_attrs.
            self._renewing = asyncio.get_running_loop().create_task(self.pool.renew())
        elif isinstance(error, pg.DiskFullError | pg.PostgresIOError):
            self.writes.doubt(type(error).__name__)
        if (text := advice(error)) and not self._advised:
            self._advised = True
            log.error("connections_refused", advice=text)
        known = translated(error)
        if known is error:  # a bug of ours
            raise error
        raise known from error


@contextlib.contextmanager
def _nothing_done() -> Iterator[None]:
    """Raise NotBegun if the connection is lost within the block, which writes nothing."""
    try:
        yield
    except DRIVER_ERRORS as error:
        if isinstance(translated(error), ConnectionLost):
            raise NotBegun(retry_after=1) from error
        raise


def translated(error: BaseException) -> BaseException:
    """The ServiceError for a driver error; the error itself if it is a bug of ours."""
    match error:
        case ServiceError():
            return error
        # Citus reports XX000 for a violation by rows that it copies to a shard.
        case pg.IntegrityConstraintViolationError() | pg.InternalServerError():
            return from_constraint(error.constraint_name, str(error)) or error
        case pg.SerializationError() | pg.DeadlockDetectedError() | pg.InvalidCachedStatementError():
            return Contention(retry_after=1)
        case pg.CharacterNotInRepertoireError() | pg.UntranslatableCharacterError():
            return Invalid("a text holds a character that cannot be stored")
        case pg.PostgresConnectionError() | pg.AdminShutdownError() | pg.CrashShutdownError():
            return ConnectionLost(retry_after=1)
        # InternalClientError: the server ended the session while it was idle. ValueError: a bad argument.
        case pg.InternalClientError() | pg.InterfaceError() if not isinstance(error, ValueError):
            return ConnectionLost(retry_after=1)
        case (
            pg.OperatorInterventionError()
            | pg.InsufficientResourcesError()
            | pg.LockNotAvailableError()
            | pg.IdleInTransactionSessionTimeoutError()
            | pg.ReadOnlySQLTransactionError()
            | pg.InvalidAuthorizationSpecificationError()
            | pg.InvalidCatalogNameError()
            | pg.ObjectNotInPrerequisiteStateError()  # ALLOW_CONNECTIONS is false
            | pg.PostgresIOError()
            | OSError()
            | TimeoutError()
        ):
            return Unavailable(retry_after=1)
    return error


def pass_on_cancelling(error: Exception) -> None:
    """Raise CancelledError if this task is cancelled: a cancelled commit raised OutcomeUnknown instead."""
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError from error


def is_away(error: BaseException) -> bool:
    """Whether waiting for the database may help: nothing listens, it is starting, has no primary, is full.

    Waiting does not help if the login, the way of connecting or the database name is wrong, or if the
    operating system refuses something else, such as reading a file.

    Args:
        error: the driver's error or its translation.
    """
    cause = error.__cause__ if isinstance(error, ServiceError) else error
    if isinstance(cause, pg.InvalidAuthorizationSpecificationError | pg.InvalidCatalogNameError):
        return False
    if isinstance(cause, OSError) and not _is_of_connecting(cause):
        return False
    return isinstance(translated(error), Unavailable) and advice(error) is None


_UNREACHED = (None, errno.ENOENT, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH)
"""Of a missing host or Unix socket (ENOENT). None: asyncio tried several addresses of a host."""


def _is_of_connecting(error: OSError) -> bool:
    """Whether connecting failed for a reason that may pass. An error with a file name is about that file."""
    if isinstance(error, ConnectionError | TimeoutError | gaierror):
        return True
    return not isinstance(error, SSLError) and error.filename is None and error.errno in _UNREACHED


def advice(error: BaseException) -> str | None:
    """What the operator has to set, if a pooler refuses the startup parameters."""
    for _ in range(10):
        if isinstance(error, pg.ProtocolViolationError) and "startup parameter" in str(error):
            return (
                f"{error}: there is a pooler at OFFICERPC_DATABASE_URL. Set OFFICERPC_DATABASE_DIRECT_URL to"
                " the address of Postgres itself, and pool_mode = transaction in pgbouncer"
            )
        if error.__cause__ is None:
            break
        error = error.__cause__
    return None
