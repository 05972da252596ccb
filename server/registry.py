"""The registry: every method by its name, with its models, scope and documentation."""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    ValidationError,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from server.auth import SCOPES, Caller, Instance, KeyRing
from server.db import Connection, Database
from server.error_codes import ERROR_CODES
from server.errors import Conflict, FieldError, Invalid, MemberForbidden, ServiceError
from server.events import EVENTS, Change, user_changes
from server.passwords import PasswordHasher
from server.pictures import Pictures
from server.settings import Settings
from server.strict import Strict


class Params(Strict):
    """What every params model is."""

    model_config = ConfigDict(frozen=True)


NO_CONTROLS: dict[str, JsonValue] = {"pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$"}
"""For a type that a validator of ours keeps free of control characters: the same in JSON Schema."""


class TenantParams(Params):
    """Params of a method that works within one instance."""

    instance: str | int | None = Field(
        None, description="The instance by its name; left out, the key's default.", examples=["MYINSTANCE"]
    )


class JsonSchema(GenerateJsonSchema):
    """JSON Schema of params and results, without defaults of null and without titles of members.

    Such a default only says what may be left out, as `required` does: null is refused there, or a value. And
    generators of clients take two schemas of one title for one type.
    """

    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        described = super().default_schema(schema)
        if described.get("default", ...) is None:
            del described["default"]
        return described


class Unchecked(Params):
    """Params of a method that says what is wrong with the params of another: theirs, good or bad.

    The schema has the members of the other model, none of them required.
    """

    model_config = ConfigDict(extra="allow")

    checked_by: ClassVar[type[Params]]

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        own = handler(core)
        whole = handler.resolve_ref_schema(own)
        whole["properties"] = handler.resolve_ref_schema(handler(cls.checked_by.__pydantic_core_schema__))[
            "properties"
        ]
        whole.pop("required", None)
        return own


class Result(BaseModel):
    """What a result model is: it documents the wire, and the tests hold every answer against it."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Circumstances(NamedTuple):
    """What is known of a call beside who calls and what for."""

    request_id: str
    address: str | None = None
    # Makes a call that is sent twice one call.
    idempotency_key: str | None = None
    # What the caller calls itself, to know its own changes again.
    origin: str | None = None
    # Check everything and answer, and write nothing.
    dry_run: bool = False


@dataclass(slots=True)
class Call:
    """One call on its way through its method."""

    caller: Caller
    settings: Settings
    database: Database
    hasher: PasswordHasher
    pictures: Pictures
    keys: KeyRing
    circumstances: Circumstances
    methods: "Mapping[str, Method]"
    # The name of its method.
    method: str
    # Set by dispatch as the call proceeds. instance: for methods with TenantParams.
    # db: within the method alone, a transaction where the method writes.
    instance: Instance = field(init=False)
    db: Connection = field(init=False)
    # Run after a commit, never after a rollback.
    after_commit: list[Callable[[], None]] = field(default_factory=list)
    # What was changed, which dispatch writes down in the same transaction.
    changes: list[Change] = field(default_factory=list)
    # Whom the call is about, for the audit of one that changed nothing.
    subject: int | None = None
    # The handler's one statement writes its event itself; see Method.single.
    single: bool = False
    # Looks at what is stored once a conflict has ended the transaction; a more telling error, or None.
    explain: Callable[[Conflict], Awaitable[ServiceError | None]] | None = None

    async def find_instance(self, name: str | int | None) -> Instance:
        """The instance that the call names, or the key's default; see KeyRing.instance for the errors."""
        allowed = self.methods[self.method].while_suspended
        return await self.keys.instance(self.caller, name, while_suspended=allowed)

    def author(self) -> dict[str, Any]:
        """Who does what from where: those columns of an event."""
        return {
            "method": self.method, "key_id": self.caller.key_id, "key_name": self.caller.key_name,
            "request_id": self.circumstances.request_id, "address": self.circumstances.address,
            "origin": self.circumstances.origin,
        }  # fmt: skip

    def record(
        self,
        event: str,
        user_id: int | None = None,
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """Note a change. A call that notes none is written down by its method's name and params.

        Args:
            event: one of events.EVENTS.
            user_id: whom it is about.
            before, after: the members that changed, whole and without secrets; models are dumped with
                context=IN_EVENTS.
        """
        assert event in EVENTS, event
        self.changes.append(Change(event, user_id, dict(before or {}) or None, dict(after or {}) or None))

    def record_user(self, user_id: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Note what differs between two states of a user, as the SQL function user_state gives them."""
        self.subject = user_id
        self.changes += user_changes(user_id, before, after)

    def note(
        self,
        user_id: int | None = None,
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """Note a change that only the audit tells of, by the name of the method; see record."""
        self.changes.append(Change("", user_id, dict(before or {}) or None, dict(after or {}) or None))


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


MAX_MEMBERS = 200
"""Of params; no method has as many."""


def positions(model: type[BaseModel]) -> list[str]:
    """The members in the order in which they go by position: the required ones first."""
    model = getattr(model, "checked_by", model)
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    return sorted(fields, key=lambda name: not fields[name].is_required())


def validated(
    model: type[BaseModel],
    params: object,
    known_bad: Sequence[FieldError] = (),
    *,
    settings: Settings | None = None,
) -> Any:
    """Params as an instance of their model.

    Args:
        model: a registered params model.
        params: parsed JSON: an object, a list (members by position; null leaves an optional one out) or None.
        known_bad: what is wrong with them already.
        settings: the server's, where members are checked against them (the context of validators); without
            them their defaults hold.

    Raises:
        Invalid: naming every bad member.
    """
    if params is None:
        params = {}
    elif isinstance(params, list):
        names = positions(model)
        if len(params) > len(names):
            raise Invalid(f"params: at most {len(names)} by position")
        needed = {field.alias or name for name, field in model.model_fields.items() if field.is_required()}
        given = zip(names, params, strict=False)
        params = {name: value for name, value in given if value is not None or name in needed}
    elif not isinstance(params, dict):
        raise Invalid("params: must be an object")
    if len(params) > MAX_MEMBERS:
        raise Invalid(f"params: at most {MAX_MEMBERS} members")
    try:
        valid = model.model_validate(params, context=settings)
    except ValidationError as error:
        raise Invalid.of([*field_errors(error), *known_bad]) from error
    if known_bad:
        raise Invalid.of(known_bad)
    return valid


MAX_FAILURES = 100
"""Bad members that are named at once; nobody mends more by hand."""

_MESSAGES = {
    "missing": "is required",
    "extra_forbidden": "is not a member of this call",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
}


def field_errors(error: ValidationError) -> list[FieldError]:
    """Every failure of a validation, worded for the caller and never quoting what it sent."""
    found: dict[str, str] = {}
    for detail in error.errors(include_url=False, include_input=False):
        found.setdefault(_path(detail), _MESSAGES.get(detail["type"]) or _worded(detail))
        if len(found) == MAX_FAILURES:
            break
    return [FieldError(name, message) for name, message in found.items()]


def _path(detail: ErrorDetails) -> str:
    # The place in the caller's JSON: union branches add parts of their own, which end in a type's name.
    parts = [str(part)[:64] for part in detail["loc"] if part not in ("str", "int", "constrained-str")]
    return ".".join(parts) or "params"


def _worded(detail: ErrorDetails) -> str:
    message = detail["msg"]
    for opening in (
        "Value error, ",
        "Input should be ",
        "String should ",
        "List should ",
        "Dictionary should ",
    ):
        if message.startswith(opening):
            rest = message.removeprefix(opening)
            return {"Input should be ": "must be ", "Value error, ": ""}.get(opening, "must ") + rest
    return message[:1].lower() + message[1:]
