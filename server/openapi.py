"""The REST wires as one OpenAPI 3.1 document (https://spec.openapis.org/oas/v3.1.1).

A front says what only it knows: its addresses, the wire's names of the params and the form of its answers.
Everything else is taken from the methods that serve them.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal, TypeAlias

from pydantic import TypeAdapter

from server.errors import ServiceError
from server.registry import JsonSchema, Method

Schema: TypeAlias = dict[str, Any]
"""JSON Schema 2020-12."""

_REFERENCE = "#/components/schemas/"


class Schemas:
    """The schemas of a registry's params and results, as the operations refer to them."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self.methods = methods
        self.components: dict[str, Schema] = {}
        self._params: dict[str, Schema] = {}

    def members(self, method: str) -> dict[str, Schema]:
        """The members of a method's params by their names, each complete in itself."""
        return dict(self._model(method).get("properties", {}))

    def required(self, method: str) -> frozenset[str]:
        """The members that a method must be given."""
        return frozenset(self._model(method).get("required", ()))

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

    def _model(self, method: str) -> Schema:
        if method not in self._params:
            schema = TypeAdapter(self.methods[method].params).json_schema(schema_generator=JsonSchema)
            self._params[method] = _sent(_tidy(_inlined(schema, schema.pop("$defs", {}))))
        return self._params[method]


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
    """Without pydantic's titles."""

    def tidy(part: Schema) -> Schema:
        return {name: value for name, value in part.items() if name != "title"}

    tidied: Schema = _rewritten(schema, tidy)
    return tidied


def _sent(schema: Schema) -> Schema:
    """What may be sent: in no text a NUL, which Postgres cannot store and every front refuses."""

    def without_nul(part: Schema) -> Schema:
        kind = part.get("type")
        says_more = {"pattern", "format", "enum", "const"} & part.keys()
        if "string" in (kind if isinstance(kind, list) else [kind]) and not says_more:
            return part | {"pattern": r"^[^\u0000]*$"}
        return part

    sent: Schema = _rewritten(schema, without_nul)
    return sent


def written(schema: Schema) -> Schema:
    """The schema of a value that is written as text, in a path or query: without null, which text has not."""
    branches = [part for part in schema.get("anyOf", ()) if part.get("type") != "null"]
    if not branches:
        return schema
    rest = {name: part for name, part in schema.items() if name != "anyOf"}
    return branches[0] | rest if len(branches) == 1 else {**rest, "anyOf": branches}


def nullable(schema: Schema) -> Schema:
    """The same or null."""
    inner = {name: part for name, part in schema.items() if name != "description"}
    outer = {name: part for name, part in schema.items() if name == "description"}
    return outer | {"anyOf": [inner, {"type": "null"}]}


def json_object(members: Mapping[str, Schema], required: Iterable[str]) -> Schema:
    """An object with these members and no others."""
    return {
        "type": "object",
        "properties": dict(members),
        "required": sorted(required),
        "additionalProperties": False,
    }


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value in path, query or header, under the wire's name."""

    name: str
    where: Literal["path", "query", "header"]
    schema: Schema
    required: bool = False
    # Values that work, by what they are.
    examples: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered with one HTTP status."""

    description: str
    # Of the JSON in its body, if it has one.
    schema: Schema | None = None
    # What the body is instead of JSON: the bytes of one of these.
    media_types: tuple[str, ...] = ()
    # Those of this answer alone, by their names: what it always has, and what it may have.
    headers: Mapping[str, Schema] = field(default_factory=dict)
    at_times: Mapping[str, Schema] = field(default_factory=dict)


def refusals(
    statuses: Mapping[type[ServiceError], int], schema: Callable[[int], Schema | None]
) -> dict[int, Answer]:
    """The answers to what cannot be done, described by the kinds of error that they are for.

    Args:
        statuses: kind of error -> HTTP status.
        schema: the body that a status has.
    """
    described: dict[int, list[str]] = {}
    for kind, status in statuses.items():
        described.setdefault(status, []).append((kind.__doc__ or "").strip())
    return {
        status: Answer("; ".join(dict.fromkeys(texts)), schema(status))
        for status, texts in sorted(described.items())
    }


@dataclass(frozen=True, slots=True)
class Operation:
    """One verb at one address, and the methods of the registry that serve it."""

    verb: str
    path: str
    # The first gives the operation its description.
    methods: tuple[str, ...]
    answers: Mapping[int, Answer]
    parameters: tuple[Parameter, ...] = ()
    body: Schema | None = None
    # Bodies that work, by what they are.
    examples: Mapping[str, Any] = field(default_factory=dict)
    body_required: bool = True
    # Beneath which prefixes the path is served.
    servers: tuple[str, ...] = ("/",)
    # Whether it takes one of the wire's keys.
    keyed: bool = True
    # Where what a success tells can be used: by the status, and by the other operation's id, its
    # parameters as runtime expressions (OpenAPI 3.1.1, 4.8.20.4).
    links: Mapping[int, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wire:
    """A front as the document shows it."""

    name: str
    description: str
    # Headers that the key may stand in, one of them.
    key_headers: tuple[str, ...]
    operations: tuple[Operation, ...]


Describe: TypeAlias = Callable[[Schemas], Wire]
"""How a front describes itself: with schemas of the registry that it is to be served by."""

_REQUEST_ID = {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,64}$"}
_ERROR_CODE = {"type": "string", "pattern": "^[a-z0-9_]+$"}
_HEADERS: dict[str, Schema] = {
    "X-Request-Id": {
        "description": "The id that the log has too: the caller's own where it sent a short and plain one.",
        "required": True,
        "schema": _REQUEST_ID,
    },
    "X-Error-Code": {
        "description": "With every error: what went wrong, as a stable code.",
        "schema": _ERROR_CODE,
    },
    "Retry-After": {
        "description": "Seconds after which the same request may succeed.",
        "schema": {"type": "integer", "minimum": 0},
    },
}


def operation_id(verb: str, path: str) -> str:
    """The name of an operation in the document, made of its verb and its path."""
    return "_".join([verb.lower(), *re.findall(r"[A-Za-z0-9-]+", path)])


def document(methods: Iterable[Method], descriptions: Iterable[Describe]) -> dict[str, Any]:
    """The OpenAPI document of some fronts over a registry. Takes tens of milliseconds.

    Args:
        methods: the registry's.
        descriptions: of the fronts.

    Raises:
        KeyError: a front names a method that there is not.
        ValueError: two schemas, or two operations, have the same name, or two paths differ in nothing
            but the names of their parts.
    """
    schemas = Schemas({method.name: method for method in methods})
    wires = [describe(schemas) for describe in descriptions]
    paths: dict[str, dict[str, Any]] = {}
    shapes: dict[str, str] = {}
    refused: dict[str, Any] = {}
    for wire in wires:
        for operation in wire.operations:
            shape = re.sub(r"{\w+}", "{}", operation.path)
            if shapes.setdefault(shape, operation.path) != operation.path:
                raise ValueError(f"{operation.path} and {shapes[shape]} are one and the same")
            item = paths.setdefault(operation.path, {})
            if operation.verb.lower() in item:
                raise ValueError(f"two operations are {operation.verb} {operation.path}")
            item[operation.verb.lower()] = _operation(operation, wire, schemas, refused)
            if operation.servers != ("/",):
                item["servers"] = [{"url": server} for server in operation.servers]
    headers = {header: None for wire in wires for header in wire.key_headers}
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "officerpc",
            "version": version("officerpc"),
            "description": "The REST wires of officerpc. Each function is also a method of /rpc, which"
            " rpc.discover describes; x-method names it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": wire.name, "description": wire.description} for wire in wires],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "headers": _HEADERS,
            "responses": refused,
            "securitySchemes": {
                header: {
                    "type": "apiKey",
                    "in": "header",
                    "name": header,
                    "description": "An API key; only one may be sent.",
                }
                for header in headers
            },
        },
    }


def _operation(operation: Operation, wire: Wire, schemas: Schemas, refused: dict[str, Any]) -> dict[str, Any]:
    """An Operation Object; what a wire refuses in one way everywhere is put into `refused`, and named."""
    method = schemas.methods[operation.methods[0]]
    others = [schemas.methods[name] for name in operation.methods[1:]]
    described = [method.description, *(other.summary for other in others)]
    needs = dict.fromkeys(schemas.methods[name].scope for name in operation.methods)
    if operation.keyed:
        described.append("Needs the scope " + " or ".join(f"`{scope}`" for scope in needs) + ".")
    whole: dict[str, Any] = {
        "operationId": operation_id(operation.verb, operation.path),
        "tags": [wire.name],
        "summary": method.summary,
        "description": "\n\n".join(text for text in described if text),
        "x-method": list(operation.methods),
        "security": [{header: []} for header in wire.key_headers] if operation.keyed else [],
        "parameters": [_parameter(parameter) for parameter in operation.parameters],
        "responses": {},
    }
    for status, answer in sorted(operation.answers.items()):
        response = _answer(status, answer, operation.links.get(status))
        name = f"{wire.name}-{status}"
        if status >= 400 and refused.setdefault(name, response) == response:
            response = {"$ref": f"#/components/responses/{name}"}
        whole["responses"][str(status)] = response
    if operation.body is not None:
        whole["requestBody"] = {
            "required": operation.body_required,
            "content": {"application/json": {"schema": operation.body, **_examples(operation.examples)}},
        }
    return whole


def _parameter(parameter: Parameter) -> dict[str, Any]:
    schema = dict(parameter.schema)
    description = schema.pop("description", None)
    return {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.required or parameter.where == "path",
        "schema": schema,
        **({"description": description} if description else {}),
        **_examples(parameter.examples),
    }


def _examples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"examples": {name: {"value": value} for name, value in values.items()}} if values else {}


def _answer(status: int, answer: Answer, links: Mapping[str, Mapping[str, str]] | None) -> dict[str, Any]:
    names = ["X-Request-Id", "X-Error-Code"] + (["Retry-After"] if status in (429, 503) else [])
    headers: dict[str, Any] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    headers |= {name: {"required": True, "schema": schema} for name, schema in answer.headers.items()}
    headers |= {name: {"schema": schema} for name, schema in answer.at_times.items()}
    whole: dict[str, Any] = {"description": answer.description, "headers": headers}
    if answer.schema is not None:
        whole["content"] = {"application/json": {"schema": answer.schema}}
    elif answer.media_types:
        whole["content"] = {media_type: {} for media_type in answer.media_types}
    if links:
        whole["links"] = {
            target: {"operationId": target, "parameters": dict(values)} for target, values in links.items()
        }
    return whole
