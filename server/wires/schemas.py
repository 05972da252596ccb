"""JSON Schema 2020-12 of a registry's params and results, and the schemas that descriptions are made of."""

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
    """The schemas of a registry's params and results, as the operations refer to them."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self.methods = methods
        self.components: dict[str, Schema] = {}
        self._params: dict[str, tuple[dict[str, Schema], list[str]]] = {}

    def members(self, method: str) -> dict[str, Schema]:
        """The members of a method's params by their names, each complete in itself.

        A member of a member is called admin.email.
        """
        return self._model(method)[0]

    def required(self, method: str) -> frozenset[str]:
        """The members that a method must be given."""
        return frozenset(self._model(method)[1])

    def examples(self, method: str) -> dict[str, dict[str, Any]]:
        """Params that a method takes, by what they are; those of members too, as in `members`."""
        examples = {}
        for example in self.methods[method].examples:
            examples[example.name] = given = dict(example.params)
            for head, inner in example.params.items():
                if isinstance(inner, dict):
                    given |= {f"{head}.{name}": value for name, value in inner.items()}
        return examples

    def result(self, kind: Any) -> Schema:
        """The schema of an answer of this type; its models become components.

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
        """A reference to a schema under a name of its own.

        Raises:
            ValueError: another one has that name.
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
        """The codes that requests which these methods serve can be answered with.

        Args:
            methods: by their names.
            also: those of their wire.
        """
        given = {code for name in methods for code in self.methods[name].errors} | set(also)
        return tuple(
            code for code, known in ERROR_CODES.items() if code in given or known.source == "request"
        )


_VALUES = frozenset({"default", "examples", "const", "enum"})
"""Keywords that hold values, not schemas."""


def _rewritten(schema: Any, rewrite: Callable[[Schema], Schema]) -> Any:
    """A schema and all beneath it, each rewritten after what is beneath it."""
    if isinstance(schema, list):
        return [_rewritten(part, rewrite) for part in schema]
    if not isinstance(schema, dict):
        return schema
    whole = {}
    for name, part in schema.items():
        if name == "properties":
            whole[name] = {member: _rewritten(value, rewrite) for member, value in part.items()}
        else:
            whole[name] = part if name in _VALUES else _rewritten(part, rewrite)
    return rewrite(whole)


def _inlined(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    def inline(part: Schema) -> Schema:
        if "$ref" not in part:
            return part
        target = definitions[part["$ref"].removeprefix("#/$defs/")]
        rest = {name: value for name, value in part.items() if name != "$ref"}
        return _inlined(target, definitions) | rest

    inlined: Schema = _rewritten(schema, inline)
    return inlined


def _tidy(schema: Schema) -> Schema:
    """Without pydantic's titles, and with `items` in every array: generators of clients demand them."""

    def tidy(part: Schema) -> Schema:
        tidied = {name: value for name, value in part.items() if name != "title"}
        if part.get("type") == "array":
            tidied.setdefault("items", {})
        return tidied

    tidied: Schema = _rewritten(schema, tidy)
    return tidied


def _sent(schema: Schema) -> Schema:
    """What may be sent: no NUL, which Postgres cannot store; null for what may be left out."""

    def as_sent(part: Schema) -> Schema:
        kind = part.get("type")
        says_more = {"pattern", "format", "enum", "const"} & part.keys()
        if "string" in (kind if isinstance(kind, list) else [kind]) and not says_more:
            return part | {"pattern": r"^[^\u0000]*$"}
        if "properties" in part:
            needed = part.get("required", ())
            members = part["properties"].items()
            return part | {
                "properties": {name: one if name in needed else nullable(one) for name, one in members}
            }
        return part

    sent: Schema = _rewritten(schema, as_sent)
    return sent


def written(schema: Schema) -> Schema:
    """The schema of a value that is written as text, in a path or query: without null, which text has not."""
    branches = [part for part in schema.get("anyOf", ()) if part.get("type") != "null"]
    if not branches:
        return schema
    rest = {name: part for name, part in schema.items() if name != "anyOf"}
    return branches[0] | rest if len(branches) == 1 else {**rest, "anyOf": branches}


NULL: Schema = {"type": "null"}


def nullable(schema: Schema) -> Schema:
    """The same or null."""
    branches = schema.get("anyOf", [schema])
    if any(part.get("type") == "null" or "null" in part.get("type", ()) for part in branches):
        return schema
    inner = {name: part for name, part in schema.items() if name != "description"}
    outer = {name: part for name, part in schema.items() if name == "description"}
    return outer | {"anyOf": [*(inner["anyOf"] if set(inner) == {"anyOf"} else [inner]), NULL]}


def one_of(*values: str | int | bool | None) -> Schema:
    """One of these values: an enum for those of one type, several of them for several.

    Generators of clients take no enum of mixed types.
    """
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
    """An object with these members, and no others unless it is open."""
    return {
        "type": "object",
        "properties": dict(members),
        "required": sorted(required),
        "additionalProperties": is_open,
    }
