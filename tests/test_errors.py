"""Driver errors as error answers, and the catalogue of error codes."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from asyncpg import exceptions as pg
from conftest import Client

from server.base.error_codes import ERROR_CODES
from server.base.errors import (
    CONSTRAINTS,
    KINDS,
    Conflict,
    ConnectionLost,
    Contention,
    Invalid,
    ServiceError,
    Unavailable,
    from_constraint,
    kind_of,
)
from server.base.models import Params
from server.methods.registry import METHODS, Example, method
from server.postgres.db import translated
from server.rpc.openrpc import document, rpc_number

ROOT = Path(__file__).parent.parent


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
        # Citus, of rows that it copied to a shard.
        (
            pg.InternalServerError('duplicate key value violates unique constraint "users_email_102012"'),
            Conflict,
        ),
    ],
)
def test_driver_errors(raised: Exception, kind: type[ServiceError]) -> None:
    error = translated(raised)
    assert isinstance(error, kind)
    assert error.retryable == issubclass(kind, Unavailable)


@pytest.mark.parametrize(
    "raised",
    [
        pg.UndefinedColumnError("x"),
        asyncpg.DataError("x"),
        pg.NotNullViolationError("x"),
        pg.InternalServerError("x"),
        KeyError("x"),
    ],
)
def test_bugs_stay_what_they_are(raised: Exception) -> None:
    assert translated(raised) is raised


def test_the_docstring_is_the_default_message() -> None:
    assert Unavailable().message == "the service is busy or its database is away, try again"
    assert Unavailable("x", retry_after=3).retry_after == 3


def kinds(kind: type[ServiceError] = ServiceError) -> list[type[ServiceError]]:
    """A kind of error and all beneath it."""
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in kinds(child))]


def test_codes_are_never_shared() -> None:
    codes = [kind.code for kind in kinds()]
    assert len(codes) == len(set(codes))


# --- the catalogue ------------------------------------------------------------------------------------


def raised_codes() -> Iterator[tuple[str, str | None, str]]:
    """Every code that the program uses: the code, the kind that it is given to, and where.

    They are the code of each kind, and the argument `code=` of one.
    """
    names = set()
    for known in kinds():
        names.add(known.__name__)
        yield known.code, None, known.__name__
    for path in sorted((ROOT / "server").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            match node:
                case ast.Call(
                    func=ast.Name(kind) | ast.Attribute(ast.Name(kind), "of"), keywords=keywords
                ) if kind in names:
                    for keyword in keywords:
                        match keyword:
                            case ast.keyword("code", ast.Constant(str(code))):
                                yield code, kind, where
    for name, (given, code, _, _) in CONSTRAINTS.items():
        yield code, given.__name__, name


def test_every_code_stands_in_the_catalogue_with_its_kind() -> None:
    for code, given, where in raised_codes():
        assert code in ERROR_CODES, f"{where}: {code} is not in ERROR_CODES"
        # As the documents tell it, so it is raised.
        assert given is None or kind_of(code).__name__ == given, f"{where}: {code} is not raised as {given}"


def test_the_catalogue_has_no_unused_entry() -> None:
    assert set(ERROR_CODES) == {code for code, _, _ in raised_codes()}


def test_every_entry_is_complete() -> None:
    for code, entry in ERROR_CODES.items():
        assert entry.meaning.endswith(".") and entry.remedy.endswith("."), code
        assert (entry.kind is None) == (code in KINDS), (
            f"{code}: a kind of its own, or one that it belongs to"
        )
        assert entry.kind is None or entry.kind in KINDS, code
        assert 400 <= entry.status <= 503, code


@functools.cache
def params_of(name: str) -> set[str]:
    """The members of a method's params, and those of their members."""
    found: set[str] = set()
    levels: list[Any] = [METHODS[name].params.model_json_schema()]
    while levels:
        level = levels.pop()
        if isinstance(level, dict):
            found |= level.get("properties", {}).keys()
        if isinstance(level, (dict, list)):
            levels += level.values() if isinstance(level, dict) else level
    return found


@pytest.mark.parametrize("code", ERROR_CODES)
def test_meanings_and_remedies_name_methods_and_params_that_exist(code: str) -> None:
    """A param is one of a method that gives the code, or of a method that the remedy names.

    A code of every HTTP request is of no method: its remedy can name any method and any param.
    """
    entry = ERROR_CODES[code]
    words = set(re.findall(r"\b[a-z][a-z0-9]*(?:[A-Z][A-Za-z0-9]*)+\b", f"{entry.meaning} {entry.remedy}"))
    givers = {name for name in METHODS if code in METHODS[name].errors} or METHODS.keys()
    params = set().union(*map(params_of, givers | (words & METHODS.keys())))
    assert words <= METHODS.keys() | params


def test_an_unknown_code_fails_where_it_is_first_used() -> None:
    with pytest.raises(KeyError):
        Conflict("x", code="no_such_code")
    with pytest.raises(ValueError, match="no_such_code"):
        type("Odd", (ServiceError,), {"code": "no_such_code"})
    with pytest.raises(ValueError, match="no_such_code"):
        method(
            "x", scope="docs:read", writes=False, result=None, examples=(Example("x", {}, None),),
            errors=("no_such_code",), registry={},
        )  # fmt: skip


def test_openrpc_tells_every_code_and_which_method_gives_it() -> None:
    described = document(tuple(METHODS.values()))
    components = described["components"]["errors"]
    assert list(components) == list(ERROR_CODES)
    for code, error in components.items():
        entry = ERROR_CODES[code]
        assert error["code"] == rpc_number(code) and error["message"] == entry.meaning
        assert error["data"] == {
            "code": code, "retryable": entry.retryable, "remedy": entry.remedy, "httpStatus": entry.status,
        }  # fmt: skip
    by_name = {entry["name"]: entry["errors"] for entry in described["methods"]}
    given = {name: {error["data"]["code"] for error in errors} for name, errors in by_name.items()}
    assert {"duplicate_email", "seats_exhausted", "idempotency_conflict", "unavailable"} <= given[
        "createUser"
    ]
    assert "not_found" in given["getUserByEmail"] and "still_running" not in given["getUserByEmail"]
    assert set().union(*given.values()) <= set(ERROR_CODES)
    of_methods = {
        code for code, entry in ERROR_CODES.items() if entry.source in ("call", "write", "method")
    } - {"conflict"}
    assert of_methods <= set().union(*given.values()), "a code that no method declares"


async def test_a_method_that_gives_another_code_than_declared_is_found(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With results checked, as in all tests: whatever a test provokes is held against the declaration."""

    async def handler(call: Any, params: Params) -> None:
        """Fail with a code that is not declared."""
        raise Conflict("x", code="webhook_off")

    registry: dict[str, Any] = {}
    example = (Example("x", {}, None),)
    method("odd", scope="docs:read", writes=False, result=None, examples=example, registry=registry)(handler)
    client: Client = await serve(registry)
    assert await client.outcome("odd") == (500, "internal error")


async def test_the_error_object_has_the_documented_number_and_code(client: Client) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "getUserByEmail", "params": {"email": "no@example.com"}}
    async with await client.post(body) as response:
        error = (await response.json())["error"]
    assert (error["code"], error["data"]["code"]) == (rpc_number("not_found"), "not_found")


def reference_table() -> str:
    """The catalogue as it stands in server/methods/README.md."""
    rows = ["| code | status | retry | meaning | what to do |", "| --- | --- | --- | --- | --- |"]
    for code, entry in ERROR_CODES.items():
        retry = "yes" if entry.retryable else "no"
        rows.append(f"| `{code}` | {entry.status} | {retry} | {entry.meaning} | {entry.remedy} |")
    return "\n".join(rows)


def test_the_reference_has_the_catalogue() -> None:
    text = (ROOT / "server" / "methods" / "README.md").read_text()
    found = text.partition("\n## Error codes\n")[2].partition("\n## ")[0]
    table = "\n".join(line for line in found.splitlines() if line.startswith("|"))
    assert table == reference_table(), f"put this table there:\n{reference_table()}"


async def test_officerpc_errors(officerpc: Any) -> None:
    listed = await officerpc("errors", "--json")
    assert [entry["code"] for entry in listed.json] == list(ERROR_CODES)
    one = (await officerpc("errors", "duplicate_group", "--json")).json
    assert one["givenBy"] == [
        "createGroup", "updateGroup", "createScimGroup", "replaceScimGroup", "patchScimGroup",
    ]  # fmt: skip
    assert (one["status"], one["rpcCode"], one["retryable"]) == (400, -32009, False)
    shown = (await officerpc("errors", "contention")).out
    assert ERROR_CODES["contention"].meaning in shown and "any method" in shown
    table = (await officerpc("errors")).out
    assert all(code in table for code in ERROR_CODES)
    unknown = await officerpc("errors", "no_such_code")
    assert (unknown.status, unknown.err) == (1, "officerpc: there is no error code no_such_code\n")
