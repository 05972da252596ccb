"""Base classes of params and results, and the validation of params."""

import unicodedata
from collections.abc import Sequence
from datetime import date
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    PlainSerializer,
    SerializationInfo,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from server.base.errors import FieldError, Invalid
from server.base.settings import Settings
from server.base.strict import Strict

M = TypeVar("M", bound=BaseModel)

IN_EVENTS = "in events"
"""Context of model_dump for events: SECRET members become HIDDEN."""
HIDDEN = "***"
"""Stands for a secret in an event."""


def _hidden(value: Any, info: SerializationInfo) -> Any:
    return HIDDEN if value is not None and info.context == IN_EVENTS else value


SECRET = PlainSerializer(_hidden)
"""Annotates the type of a secret, as in Annotated[str, SECRET]: passwords, hashes, tokens and codes. Events
show tenants' own data unchanged, whatever its members are called."""

WITH_SECRETS = "with secrets"
"""Context of model_dump for the database: without it secrets are left out."""

Host = Annotated[str, Field(pattern=r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?|::1)$")]


Id = Annotated[int, Field(ge=1, lt=2**63)]
"""The id of a row."""
Uuid = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


class Params(Strict):
    """Base of all params models."""

    model_config = ConfigDict(frozen=True)


NO_CONTROLS: dict[str, JsonValue] = {"pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$"}
"""What without_controls checks, in JSON Schema."""


def has_controls(text: str) -> bool:
    """Whether a text holds control characters."""
    return any(unicodedata.category(char) == "Cc" for char in text)


def without_controls(text: str) -> str:
    """A validator of text without control characters."""
    if has_controls(text):
        raise ValueError("holds control characters")
    return text


def is_date(text: str) -> bool:
    """Whether a text is a date, YYYY-MM-DD."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


class TenantParams(Params):
    """Params of a method of one instance."""

    instance: str | int | None = Field(
        None, description="The instance's name; default: that of the key.", examples=["MYINSTANCE"]
    )


def something_besides(*names: str) -> Any:
    """A validator for params that say what to change: at least one member besides these is given."""

    def check(params: M) -> M:
        if not params.model_fields_set - set(names):
            raise ValueError("name at least one member to change")
        return params

    return model_validator(mode="after")(check)


class JsonSchema(GenerateJsonSchema):
    """JSON Schema of params and results, without null defaults and without titles of members.

    A null default only means that the member is optional, which `required` says: null may not even be valid.
    Client generators take two schemas with the same title for one type.
    """

    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        described = super().default_schema(schema)
        if described.get("default", ...) is None:
            del described["default"]
        return described


class Unchecked(Params):
    """Params of a method that validates the params of another method.

    The schema has the members of the other model, all optional.
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
    """Base of all result models. They document the answers, and tests check every answer with them."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Failure(Result):
    """One member that createUser would refuse."""

    field: str
    message: str


MAX_MEMBERS = 200
"""Members of params at most; no method has so many."""


def positions(model: type[BaseModel]) -> list[str]:
    """The members in the order of positional params: the required ones first."""
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
    """Validate params.

    Args:
        model: a registered params model.
        params: parsed JSON: an object, a list (members by position; null leaves an optional one out) or None.
        known_bad: errors that are known already.
        settings: the server's, as the context of validators; default: the default settings.

    Raises:
        Invalid: it names every bad member.
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
"""Bad members that one error names."""

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
    """Every error of a validation, worded for the caller, without the values it sent."""
    found: dict[str, str] = {}
    for detail in error.errors(include_url=False, include_input=False):
        found.setdefault(_path(detail), _MESSAGES.get(detail["type"]) or _worded(detail))
        if len(found) == MAX_FAILURES:
            break
    return [FieldError(name, message) for name, message in found.items()]


def _path(detail: ErrorDetails) -> str:
    # The path in the caller's JSON, without the type names that union branches add.
    parts = [str(part)[:64] for part in detail["loc"] if part not in ("str", "int", "constrained-str")]
    return ".".join(parts) or "params"


_OPENINGS = {
    "Value error, ": "", "Input should be ": "must be ", "String should ": "must ", "List should ": "must ",
    "Dictionary should ": "must ",
}  # fmt: skip


def _worded(detail: ErrorDetails) -> str:
    message = detail["msg"]
    for opening, ours in _OPENINGS.items():
        if message.startswith(opening):
            return ours + message.removeprefix(opening)
    return message[:1].lower() + message[1:]
