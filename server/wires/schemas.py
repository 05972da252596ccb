"""JSON Schemas (2020-12) for the OpenAPI document: params and results of methods, and helpers."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from pydantic import TypeAdapter

from server.base.error_codes import ERROR_CODES
from server.base.models import JsonSchema
from server.methods.registry import Method

Schema: TypeAlias = dict[str, Any]
"""JSON Schema 2020-12."""

_REFERENCE = "#/components/schemas/"


class Schemas:
    """The schemas of a registry's params and results. Those of results become components."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self.methods = methods
        self.components: dict[str, Schema] = {}
        self._params: dict[str, tuple[dict[str, Schema], list[str]]] = {}

    def members(self, method: str) -> dict[str, Schema]:
        """Name -> schema, without references, of each param of a method. A nested member is "admin.email"."""
        return self._model(method)[0]

    def required(self, method: str) -> frozenset[str]:
        """The required params of a method, named as in `members`."""
        return frozenset(self._model(method)[1])

    def examples(self, method: str) -> dict[str, dict[str, Any]]:
        """Title -> params of each example of a method, named as in `members`."""
        examples = {}
        for example in self.methods[method].examples:
            examples[example.name] = given = dict(example.params)
            for head, inner in example.params.items():
                if isinstance(inner, dict):
                    given |= {f"{head}.{name}": value for name, value in inner.items()}
        return examples

    def result(self, kind: Any) -> Schema:
        """The schema of an answer; its models become components.

        Raises:
            ValueError: two different models have the same name.
        """
        schema = TypeAdapter(kind).json_schema(
            mode="serialization", ref_template=_REFERENCE + "{model}", schema_generator=JsonSchema
        )
        for name, definition in schema.pop("$defs", {}).items():
            self.component(name, _tidy(definition))
        return self.component(schema["title"], _tidy(schema)) if "title" in schema else _tidy(schema)

    def component(self, name: str, schema: Schema) -> Schema:
        """Make a schema a component, and return a reference to it.

        Raises:
            ValueError: another component has that name.
        """
        name = re.sub(r"[^A-Za-z0-9._-]", "_", name)  # as pydantic does
        if self.components.setdefault(name, schema) != schema:
            raise ValueError(f"two schemas are called {name}")
        return {"$ref": _REFERENCE + name}

    def _model(self, method: str) -> tuple[dict[str, Schema], list[str]]:
        if method not in self._params:
            schema = TypeAdapter(self.methods[method].params).json_schema(schema_generator=JsonSchema)
            schema = _sent(_tidy(_inlined(schema, schema.pop("$defs", {}))))
            members, required = schema.get("properties", {}), list(schema.get("required", ()))
            for head, inner in tuple(members.items()):
                members |= {f"{head}.{name}": part for name, part in inner.get("properties", {}).items()}
                required += [f"{head}.{name}" for name in inner.get("required", ())]
            self._params[method] = members, required
        return self._params[method]

    def error_codes(self, methods: Iterable[str], also: Iterable[str] = ()) -> tuple[str, ...]:
        """The error codes that requests for these methods can get.

        Args:
            methods: their names.
            also: the codes of the wire itself.
        """
        codes = {code for name in methods for code in self.methods[name].errors} | set(also)
        return tuple(
            code for code, entry in ERROR_CODES.items() if code in codes or entry.source == "request"
        )


_VALUES = frozenset({"default", "examples", "const", "enum"})
"""Keywords with values, not schemas."""


def _rewritten(schema: Schema, rewrite: Callable[[Schema], Schema]) -> Schema:
    """Rewrite a schema and all schemas in it, the inner ones first."""

    def inner(part: Any) -> Any:
        if isinstance(part, list):
            return [inner(item) for item in part]
        return _rewritten(part, rewrite) if isinstance(part, dict) else part

    whole = {}
    for name, part in schema.items():
        if name == "properties":
            whole[name] = {member: inner(value) for member, value in part.items()}
        else:
            whole[name] = part if name in _VALUES else inner(part)
    return rewrite(whole)


def _inlined(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    def inline(part: Schema) -> Schema:
        if "$ref" not in part:
            return part
        target = definitions[part["$ref"].removeprefix("#/$defs/")]
        rest = {name: value for name, value in part.items() if name != "$ref"}
        return _inlined(target, definitions) | rest

    return _rewritten(schema, inline)


def _tidy(schema: Schema) -> Schema:
    """Without pydantic's titles, and with `items` in every array, which generators of clients require."""

    def tidy(part: Schema) -> Schema:
        tidied = {name: value for name, value in part.items() if name != "title"}
        if part.get("type") == "array":
            tidied.setdefault("items", {})
        return tidied

    return _rewritten(schema, tidy)


def _sent(schema: Schema) -> Schema:
    """With null for optional members, and without NUL in texts, which Postgres cannot store."""

    def as_sent(part: Schema) -> Schema:
        kind = part.get("type")
        is_limited = {"pattern", "format", "enum", "const"} & part.keys()
        if "string" in (kind if isinstance(kind, list) else [kind]) and not is_limited:
            return part | {"pattern": r"^[^\u0000]*$"}
        if "properties" in part:
            required = part.get("required", ())
            members = part["properties"].items()
            return part | {
                "properties": {name: one if name in required else nullable(one) for name, one in members}
            }
        return part

    return _rewritten(schema, as_sent)


def without_null(schema: Schema) -> Schema:
    """The schema without null, which a path or a query cannot contain."""
    branches = [part for part in schema.get("anyOf", ()) if part.get("type") != "null"]
    if not branches:
        return schema
    rest = {name: part for name, part in schema.items() if name != "anyOf"}
    return branches[0] | rest if len(branches) == 1 else {**rest, "anyOf": branches}


NULL: Schema = {"type": "null"}


def either(schema: Schema, other: Schema) -> Schema:
    """The schema or another one, with the description of the first."""
    inner = {name: part for name, part in schema.items() if name != "description"}
    outer = {name: part for name, part in schema.items() if name == "description"}
    return outer | {"anyOf": [*(inner["anyOf"] if set(inner) == {"anyOf"} else [inner]), other]}


def nullable(schema: Schema) -> Schema:
    """The schema or null."""
    branches = schema.get("anyOf", [schema])
    is_nullable = any(part.get("type") == "null" or "null" in part.get("type", ()) for part in branches)
    return schema if is_nullable else either(schema, NULL)


def one_of(*values: str | int | bool | None) -> Schema:
    """One of these values: an enum for each type, as generators of clients refuse enums of mixed types."""
    kinds = {str: "string", bool: "boolean", int: "integer"}
    enums: list[Schema] = []
    for kind, name in kinds.items():
        if found := [value for value in values if type(value) is kind]:
            whole = kind is bool and len(found) == 2
            only: Schema = {"const": found[0]} if len(found) == 1 else {"enum": found}
            enums.append({"type": name} | ({} if whole else only))
    if None in values:
        enums.append(NULL)
    return enums[0] if len(enums) == 1 else {"anyOf": enums}


def json_object(members: Mapping[str, Schema], required: Iterable[str], *, is_open: bool = False) -> Schema:
    """An object with these members; with others too only if `is_open`."""
    return {
        "type": "object",
        "properties": dict(members),
        "required": sorted(required),
        "additionalProperties": is_open,
    }
