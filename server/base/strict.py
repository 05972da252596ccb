"""The base of models of input: strict types, no unknown members."""

from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, JsonValue, model_validator
from pydantic_core import CoreSchema, core_schema

_MAX_EXACT = 2**53
"""A larger JSON number with a fraction may be rounded (RFC 8259, section 6)."""


def whole(value: Any) -> Any:
    """A float such as 1.0 as an integer; any other value unchanged."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_EXACT:
        return int(value)
    return value


def _with_whole_numbers(schema: Any) -> Any:
    """A pydantic-core schema with whole before each integer, which JSON Schema does not show."""
    if isinstance(schema, (list, tuple)):
        return type(schema)(_with_whole_numbers(part) for part in schema)
    if not isinstance(schema, dict):
        return schema
    match schema:
        case {"type": "int"}:
            return core_schema.no_info_before_validator_function(whole, schema)
        case {"type": "function-before", "function": {"function": function}} if function is whole:
            return schema
        case {"type": "union", "choices": choices}:
            # Errors name the branch of a union; an integer's keeps its name.
            named = [
                (_with_whole_numbers(choice), "int")
                if isinstance(choice, dict) and choice["type"] == "int"
                else _with_whole_numbers(choice)
                for choice in choices
            ]
            return schema | {"choices": named}
    # The values of these are no schemas.
    kept = ("metadata", "serialization", "cls", "config", "default", "expected")
    return {key: part if key in kept else _with_whole_numbers(part) for key, part in schema.items()}


class Strict(BaseModel):
    """Converts no types: no text to a number, no boolean to an integer.

    1.0 and 1e2 are integers, as in JSON Schema (draft 2020-12, section 6.1.1): many clients send all numbers
    as floats. Members of type Any keep the float.

    Null for an optional member whose type has no null means that it is left out. In
    `sessionsLimit: int | None` null is a value.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: object) -> object:
        if isinstance(given, dict) and None in given.values():
            left_out = _without_null(cls)
            return {name: value for name, value in given.items() if value is not None or name not in left_out}
        return given

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = _with_whole_numbers(handler(source))
        return schema


@cache
def _without_null(model: type[Strict]) -> frozenset[str]:
    """The optional members of a model whose types have no null."""
    return frozenset(
        field.alias or name
        for name, field in model.model_fields.items()
        if not field.is_required() and not _takes_null(field.annotation)
    )


def _takes_null(annotation: Any) -> bool:
    if annotation in (None, NoneType, Any, object, JsonValue):
        return True
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _takes_null(parts[0])
    return origin in (Union, UnionType) and any(map(_takes_null, parts))
