"""What every model of a caller's input is: strict about types, without members that nobody declared."""

from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_MAX_EXACT = 2**53
"""Beyond it a JSON number with a fraction may have been rounded (RFC 8259, section 6)."""


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_EXACT:
        return int(value)
    return value


def _with_whole_numbers(schema: Any) -> Any:
    """The same schema, of pydantic-core, with _whole before each integer. JSON Schema does not show it."""
    if isinstance(schema, (list, tuple)):
        return type(schema)(_with_whole_numbers(part) for part in schema)
    if not isinstance(schema, dict):
        return schema
    match schema:
        case {"type": "int"}:
            return core_schema.no_info_before_validator_function(_whole, schema)
        case {"type": "function-before", "function": {"function": function}} if function is _whole:
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
    # What stands under these is no schema.
    kept = ("metadata", "serialization", "cls", "config", "default", "expected")
    return {key: part if key in kept else _with_whole_numbers(part) for key, part in schema.items()}


class Strict(BaseModel):
    """Takes no type for another: no text for a number, no boolean for an integer.

    1.0 and 1e2 are integers, as in JSON Schema (draft 2020-12, section 6.1.1): many clients write every
    number with a fraction. Members of any type keep the number as it came.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = _with_whole_numbers(handler(source))
        return schema
