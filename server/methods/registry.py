"""The registry: every method by its name, with its models, scope and documentation."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel

from server.base.error_codes import ERROR_CODES
from server.base.errors import MemberForbidden, ServiceError
from server.tenants.principals import SCOPES


@dataclass(frozen=True, slots=True)
class Example:
    """Params that work and the result they give; tests/test_examples.py runs each."""

    name: str
    params: dict[str, Any]
    result: Any


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """A registered method."""

    name: str
    handler: Callable[..., Awaitable[Any]]
    params: type[BaseModel]
    result: Any
    scope: str
    writes: bool
    operator: bool
    # Whether operators may call it about a suspended instance, as they may read and manage it.
    while_suspended: bool
    # Runs before a connection is taken: hashing, and whatever else is slow. Its result goes to the handler.
    prepare: Callable[..., Awaitable[Any]] | None
    # Whether these params are done by one statement, which writes the event too (Call.single). It needs no
    # transaction around it: one round trip is enough.
    single: Callable[[Any], bool] | None
    # Whether its answer is kept under an idempotency key, for the retries of the call.
    keeps_answer: bool
    # Members that need a scope of their own when they are given another value than their default.
    member_scopes: Mapping[str, str]
    # Not in the OneOffice document.
    extension: bool
    # Its params may hold a picture, and be as much longer.
    with_picture: bool
    # It is about many users: few of one instance run at once.
    many: bool
    summary: str
    description: str
    # All codes that a call of it can be answered with, in the order of ERROR_CODES.
    errors: tuple[str, ...]
    examples: tuple[Example, ...]


METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    result: Any,
    scope: str,
    writes: bool,
    examples: tuple[Example, ...],
    errors: tuple[type[ServiceError] | str, ...] = (),
    prepare: Callable[..., Awaitable[Any]] | None = None,
    single: Callable[[Any], bool] | None = None,
    keeps_answer: bool = True,
    member_scopes: Mapping[str, str] | None = None,
    operator: bool = False,
    while_suspended: bool | None = None,
    extension: bool = True,
    with_picture: bool = False,
    many: bool = False,
    registry: dict[str, Method] = METHODS,
) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]]:
    """Register `async def handler(call, params)`; its docstring is the documentation.

    Args:
        name: as callers write it.
        result: the type of the answer.
        scope: what a key needs, one of auth.SCOPES.
        writes: run in a transaction (true) or as single statements (false).
        examples: at least one.
        errors: what it can answer with beyond what any call can: codes, or kinds for their own codes.
        prepare: `async def prepare(call, params)`, run before a connection is taken; what it returns
            is the handler's third argument.
        single: `def single(params)`: whether the handler makes one statement for these params, which writes
            the event too.
        keeps_answer: False where an answer says what holds at this moment, such as that a password is right:
            sent again under its idempotency key, the call is done again.
        member_scopes: scopes that single members need.
        operator: only for operator keys.
        while_suspended: whether operators may call it about a suspended instance; by default where it writes
            nothing and its scope is one of reading.
        extension: not part of the OneOffice document.
        with_picture: its params may hold a picture.
        many: about many users, of one instance: few of these run at once for each.
        registry: where to; tests have their own.

    Raises:
        ValueError: at import, for an unknown scope or error code, a name that is taken, or no example.
    """
    for needed in (scope, *(member_scopes or {}).values()):
        if needed not in SCOPES:
            raise ValueError(f"{name}: unknown scope {needed}")
    if name in registry or not examples:
        raise ValueError(f"{name} is taken or has no example")
    own = {error if isinstance(error, str) else error.code for error in errors}
    if member_scopes:
        own.add(MemberForbidden.code)
    if unknown := own - ERROR_CODES.keys():
        raise ValueError(f"{name}: unknown error codes {sorted(unknown)}")
    sources = {"call", *(["write"] if writes else []), *(["kept"] if writes and keeps_answer else [])}
    codes = tuple(code for code, entry in ERROR_CODES.items() if entry.source in sources or code in own)

    def register(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        params = get_type_hints(handler)["params"]
        summary, _, rest = inspect.cleandoc(handler.__doc__ or "").partition("\n")
        if not summary:
            raise ValueError(f"{name} has no docstring")
        registry[name] = Method(
            name,
            handler,
            params,
            result,
            scope,
            writes,
            operator,
            not writes and scope.endswith(":read") if while_suspended is None else while_suspended,
            prepare,
            single,
            keeps_answer,
            member_scopes or {},
            extension,
            with_picture,
            many,
            summary,
            rest.strip(),
            codes,
            examples,
        )
        return handler

    return register


DRY_RUN = "dryRun"
"""The member of the params that turns a call that writes into a rehearsal."""


def without_dry_run(params: object) -> tuple[object, object]:
    """The params without the member that asks for a dry run, and its value: False without it."""
    if not isinstance(params, dict) or DRY_RUN not in params:
        return params, False
    return {name: value for name, value in params.items() if name != DRY_RUN}, params[DRY_RUN]
