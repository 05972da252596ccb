"""From what the driver raises to what the caller is told."""

import asyncpg
import pytest
from asyncpg import exceptions as pg

from server.db import translated
from server.errors import (
    Conflict,
    ConnectionLost,
    Contention,
    Invalid,
    ServiceError,
    Unavailable,
    from_constraint,
)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ("users_email", 'duplicate key value violates unique constraint "users_email"'),
        # A sharded cluster names the shard's constraint, in the message alone.
        (None, 'duplicate key value violates unique constraint "users_email_102012"'),
        ("users_email_102012", "whatever"),
    ],
)
def test_a_constraint_is_known_by_its_name(constraint: str | None, message: str) -> None:
    error = from_constraint(constraint, message)
    assert isinstance(error, Conflict)
    assert error.code == "duplicate_email"
    assert error.message == 'duplicate key value violates unique constraint "users_email"'
    assert error.fields[0].field == "email"


@pytest.mark.parametrize("constraint", ["mailboxes_role", "unheard_of", "users_emails"])
def test_an_unlisted_constraint_is_a_bug(constraint: str) -> None:
    assert from_constraint(constraint, "") is None


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (pg.SerializationError("x"), Contention),
        (pg.DeadlockDetectedError("x"), Contention),
        (pg.InvalidCachedStatementError("x"), Contention),
        (pg.AdminShutdownError("x"), ConnectionLost),
        (pg.CrashShutdownError("x"), Unavailable),
        (pg.CannotConnectNowError("x"), Unavailable),
        (pg.TooManyConnectionsError("x"), Unavailable),
        (pg.DiskFullError("x"), Unavailable),
        (pg.QueryCanceledError("x"), Unavailable),
        (pg.LockNotAvailableError("x"), Unavailable),
        (pg.ReadOnlySQLTransactionError("x"), Unavailable),
        (pg.ConnectionDoesNotExistError("x"), ConnectionLost),
        (pg.ConnectionFailureError("x"), Unavailable),
        (pg.InterfaceError("connection is closed"), ConnectionLost),
        (pg.InternalClientError("cannot switch to state"), Unavailable),
        (ConnectionRefusedError(), Unavailable),
        (TimeoutError(), Unavailable),
        (pg.CharacterNotInRepertoireError("x"), Invalid),
    ],
)
def test_driver_errors(raised: Exception, kind: type[ServiceError]) -> None:
    error = translated(raised)
    assert isinstance(error, kind)
    assert error.retryable == issubclass(kind, Unavailable)


@pytest.mark.parametrize(
    "raised",
    [pg.UndefinedColumnError("x"), asyncpg.DataError("x"), pg.NotNullViolationError("x"), KeyError("x")],
)
def test_bugs_stay_what_they_are(raised: Exception) -> None:
    assert translated(raised) is raised


def test_the_docstring_is_the_default_message() -> None:
    assert Unavailable().message == "the service is busy or its database is away, try again"
    assert Unavailable("x", retry_after=3).retry_after == 3


def test_codes_are_never_shared() -> None:
    def kinds(kind: type[ServiceError]) -> list[type[ServiceError]]:
        return [kind, *(deeper for child in kind.__subclasses__() for deeper in kinds(child))]

    codes = [kind.code for kind in kinds(ServiceError)]
    assert len(codes) == len(set(codes))
