"""The registry: methods by name, with models, scope and documentation."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_type_hints

from pydantic import BaseModel

from server.base.error_codes import ERROR_CODES
from server.base.errors import MemberForbidden, ServiceError
from server.tenants.principals import SCOPES

Handler: TypeAlias = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Example:
    """Valid params and their result; tests/test_registry.py runs each."""

    name: str
    params: dict[str, Any]
    result: Any


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """A registered method. See method() for the members that are its arguments."""

    name: str
    handler: Handler
    params: type[BaseModel]
    result: Any
    scope: str
    writes: bool
    operator: bool
    while_suspended: bool
    prepare: Handler | None
    single: Callable[[Any], bool] | None
    keeps_answer: bool
    member_scopes: Mapping[str, str]
    extension: bool
    with_picture: bool
    many: bool
    summary: str
    description: str
    # Every error code of the method, in the order of ERROR_CODES.
    errors: tuple[str, ...]
    examples: tuple[Example, ...]


METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    result: Any = Literal[True],
    scope: str,
    writes: bool | None = None,
    examples: tuple[Example, ...],
    errors: tuple[type[ServiceError] | str, ...] = (),
    prepare: Handler | None = None,
    single: Callable[[Any], bool] | None = None,
    keeps_answer: bool = True,
    member_scopes: Mapping[str, str] | None = None,
    operator: bool = False,
    while_suspended: bool | None = None,
    extension: bool = True,
    with_picture: bool = False,
    many: bool = False,
    registry: dict[str, Method] = METHODS,
) -> Callable[[Handler], Handler]:
    """Register `async def handler(call, params)`; its docstring is the documentation.

    Args:
        name: in requests.
        result: type of the result.
        scope: required scope, one of SCOPES.
        writes: runs in a transaction (true) or as single statements (false); default: false if the scope
            ends in :read.
        examples: at least one.
        errors: codes beyond those that every call can get, or kinds of errors, for their own codes.
        prepare: `async def prepare(call, params)` for slow work such as hashing, run before a connection is
            taken. Its result is the handler's third argument.
        single: `def single(params)`: whether the handler runs only one statement for these params, which
            also writes the event (Call.single). It then runs without BEGIN and COMMIT: one round trip.
        keeps_answer: whether retries with the same idempotency key get the stored answer. False if the
            answer is only true at the moment, such as that of a password check: retries run again.
        member_scopes: member -> scope required to give it another value than its default.
        operator: needs an operator's key.
        while_suspended: whether operators may call it for a suspended instance; default: if it writes
            nothing and its scope ends in :read.
        extension: not part of the OneOffice document.
        with_picture: params may hold a picture, so the body may be longer.
        many: for many users; only a few such calls of an instance run at once.
        registry: for tests.

    Raises:
        ValueError: at import: unknown scope or error code, name already registered, no example or docstring.
    """
    for needed in (scope, *(member_scopes or {}).values()):
        if needed not in SCOPES:
            raise ValueError(f"{name}: unknown scope {needed}")
    reads = scope.endswith(":read")
    writes = not reads if writes is None else writes
    if name in registry or not examples:
        raise ValueError(f"{name} is taken or has no example")
    own = {error if isinstance(error, str) else error.code for error in errors}
    if member_scopes:
        own.add(MemberForbidden.code)
    if unknown := own - ERROR_CODES.keys():
        raise ValueError(f"{name}: unknown error codes {sorted(unknown)}")
    sources = {"call", *(["write"] if writes else []), *(["kept"] if writes and keeps_answer else [])}
    codes = tuple(code for code, entry in ERROR_CODES.items() if entry.source in sources or code in own)

    def register(handler: Handler) -> Handler:
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
            reads and not writes if while_suspended is None else while_suspended,
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
"""The member of the params that asks for a dry run."""


def without_dry_run(params: object) -> tuple[object, object]:
    """The params without dryRun, and its value (default False)."""
    if not isinstance(params, dict) or DRY_RUN not in params:
        return params, False
    return {name: value for name, value in params.items() if name != DRY_RUN}, params[DRY_RUN]
