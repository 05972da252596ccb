"""The one place that talks to Postgres: pool, transactions, named queries, driver errors."""

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
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

# Seconds after which a connection is asked whether it lives before one statement is all that it is given.
_RESTED = 1.0
TRIES = 4
"""How often something is read while connections turn out to be lost."""
# How a connection is lost while a statement runs.
_LOST = (
    OSError, pg.InternalClientError, pg.PostgresConnectionError, pg.AdminShutdownError, pg.CrashShutdownError
)  # fmt: skip


class Connection:
    """Named queries on one database connection, with or without a transaction around them.

    `async with database.connection() as connection` takes one of the pool's and gives it back.
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
        # Statements and transactions that may have written, begun by this process.
        self.writes_begun = 0
        self.pool: Pool
        self.writes = Writes(self._prove_writable)
        # Seconds for one round of a background task: those of a call, and enough for two slow statements.
        self._round_limit = max(settings.call_timeout, 2 * settings.statement_timeout)
        self._advised = False
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
            connection_class=DriverConnection,
            init=self._set_up,
            **options,
        )
        self.pool = Pool(opened, settings.pool_size, settings.acquire_timeout, settings.instance_queue)

    async def _set_up(self, raw: "asyncpg.Connection") -> None:
        await _set_codecs(raw)
        # Citus chooses the node of an instance when it plans, by the values of the parameters. Behind a
        # pooler nothing is set for the session.
        if await raw.fetchrow(
            "SELECT set_config('plan_cache_mode', 'force_custom_plan', $1)"
            " FROM pg_extension WHERE extname = 'citus'",
            self._pooler,
        ):
            self.queries = load_queries(citus=True)

    async def close(self) -> None:
        """Close the pool; a database that does not answer is left behind after two seconds."""
        await self.writes.close()
        await self.pool.close(2)

    def connection(self) -> Connection:
        """A connection in autocommit: each statement is a transaction of its own."""
        return Connection(self)

    async def look_up(self, name: str, /, **values: Any) -> Row | None:
        """The first row of a named query that only reads, or None.

        A connection may have been ended while it idled, as all the others may, which shows when it is used.
        """
        async with self._limited(self._settings.statement_timeout):
            return await self._tried(lambda connection: connection.one(name, **values))

    async def _tried(self, use: Callable[[Connection], Awaitable[T]]) -> T:
        """Do what may be done twice, on another connection where one turns out to be lost."""
        for _ in range(TRIES - 1):
            with contextlib.suppress(ConnectionLost):
                async with self.connection() as connection:
                    return await use(connection)
        async with self.connection() as connection:
            return await use(connection)

    def round(self) -> contextlib.AbstractAsyncContextManager[None]:
        """A limit of time for what a background task does with the database in one go.

        Calls have call_timeout. Without a limit a task would wait for good where Postgres's host has
        vanished, or where a COMMIT waits for a standby; see transaction for what becomes of that.

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
        """A connection for a single statement that writes: it is a transaction by itself.

        Raises:
            NotBegun: the connection had been lost before.
            OutcomeUnknown: the connection was lost, or time ran out, while it ran.
            Unavailable: writes are in doubt (see Writes), nothing was begun.
        """
        self.writes_begun += 1
        if self.writes.in_doubt:
            await self._check_writes()
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
                raise self._unknown(error) from error

    @contextlib.asynccontextmanager
    async def transaction(self, *, dry_run: bool = False) -> AsyncIterator[Connection]:
        """A connection in a transaction that commits at the end of the block, or rolls back on any error.

        Args:
            dry_run: roll back at the end too. Constraints are checked statement by statement: none waits for
                the commit.

        Raises:
            NotBegun: the connection had been lost before the transaction began.
            OutcomeUnknown: the connection was lost, or time ran out, while committing.
            Unavailable: writes are in doubt (see Writes), nothing was begun.
        """
        self.writes_begun += 1
        if self.writes.in_doubt:
            await self._check_writes()
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
                raise self._unknown(error) from error

    async def writable(self) -> bool:
        """Whether the database takes writes, which one has shown a moment ago (see Writes).

        If it only reads, it is connected to anew: the next one might take them.
        """
        row = await self.look_up("check_writable")
        writable = row is not None and row["writable"]
        if not writable:
            await self.pool.renew()
        return writable and await self.writes.proven()

    async def _prove_writable(self, in_doubt: bool) -> bool:
        async def prove(connection: Connection) -> bool:
            # First, as all proofs write the same row: while one waits for a standby the next ones fail at
            # its lock. Otherwise each would leave another server process waiting.
            written = bool(await connection.value("write_heartbeat"))
            if in_doubt:
                with contextlib.suppress(pg.InsufficientPrivilegeError):  # of temporary tables
                    await connection.run("try_for_room")
            return written

        # All callers wait for this, so it does not take from the share of the one that began it.
        with taking_from(PROOFS):
            return await self._tried(prove)

    async def _check_writes(self) -> None:
        """Refuse a write that would fail as those before it did."""
        if not await self.writes.proven():
            raise Unavailable(retry_after=1)

    async def direct(self) -> "asyncpg.Connection":
        """A connection of its own, past any pooler; the caller closes it."""
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
        if isinstance(error, asyncio.CancelledError):  # the call's time was up before the answer
            self.writes.doubt("no answer to a commit")
        return OutcomeUnknown()

    def raise_translated(self, error: BaseException) -> NoReturn:
        """Raise what a driver error stands for."""
        if isinstance(error, pg.ReadOnlySQLTransactionError):
            # A failover left us on a standby: connect anew, where target_session_attrs leads.
            self._renewing = asyncio.get_running_loop().create_task(self.pool.renew())
        elif isinstance(error, pg.DiskFullError | pg.PostgresIOError):
            self.writes.doubt(type(error).__name__)
        if (text := advice(error)) and not self._advised:
            self._advised = True
            log.error("connections_refused", advice=text)
        known = translated(error)
        if known is error:  # a bug: not its own cause
            raise error
        raise known from error


def translated(error: BaseException) -> BaseException:
    """The ServiceError a driver error stands for; the error itself if it is a bug of ours."""
    match error:
        case ServiceError():
            return error
        # XX000 is what Citus reports for a violation by rows that it copies to a shard.
        case pg.IntegrityConstraintViolationError() | pg.InternalServerError():
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
            | pg.ObjectNotInPrerequisiteStateError()  # ALLOW_CONNECTIONS is false
            | pg.PostgresIOError()
            | OSError()
            | TimeoutError()
        ):
            return Unavailable(retry_after=1)
    return error


def pass_on_cancelling(error: Exception) -> None:
    """Stop if this task is to stop: a commit that is cancelled says that its outcome is unknown instead."""
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError from error


def is_away(error: BaseException) -> bool:
    """Whether a database may yet come: nobody listens, it is starting, it has no primary, it is full.

    Not so where it refuses who connects, or how, or knows no such database, nor where the operating system
    refuses something else than a connection, such as reading a file.

    Args:
        error: the driver's, or what it was translated into.
    """
    cause = error.__cause__ if isinstance(error, ServiceError) else error
    if isinstance(cause, pg.InvalidAuthorizationSpecificationError | pg.InvalidCatalogNameError):
        return False
    if isinstance(cause, OSError) and not _is_of_connecting(cause):
        return False
    return isinstance(translated(error), Unavailable) and advice(error) is None


_UNREACHED = (None, errno.ENOENT, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH)
"""Of a host or a Unix socket (ENOENT) that is not there. None: asyncio tried several addresses of a host."""


def _is_of_connecting(error: OSError) -> bool:
    """Whether a connection failed in a way that may pass. An error with a file name is about that file."""
    if isinstance(error, ConnectionError | TimeoutError | gaierror):
        return True
    return not isinstance(error, SSLError) and error.filename is None and error.errno in _UNREACHED


def advice(error: BaseException) -> str | None:
    """What an operator has to set, where a pooler refuses what each connection of the pool asks for."""
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
