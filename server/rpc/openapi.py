"""The REST wires as one OpenAPI 3.1 document (https://spec.openapis.org/oas/v3.1.1).

A front says what only it knows: its addresses, the wire's names of the params and the form of its answers.
Everything else is taken from the methods that serve them.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal, TypeAlias

from server.base.error_codes import ERROR_CODES
from server.base.errors import ServiceError, kind_of
from server.methods.registry import Method
from server.rpc.schemas import Schema, Schemas


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
    statuses: Mapping[type[ServiceError], int],
    schema: Callable[[int], Schema | None],
    codes: Iterable[str],
) -> dict[int, Answer]:
    """The answers to what cannot be done, each described by its error codes.

    Args:
        statuses: kind of error -> HTTP status; a kind that is not there has that of its parent.
        schema: the body that a status has.
        codes: those that can be given; one is left out where `statuses` has nothing nearer than ServiceError.
    """
    described: dict[int, list[str]] = {}
    for code in codes:
        kind = kind_of(code)
        nearest = next(known for known in kind.__mro__ if known in statuses)
        if nearest is not ServiceError or kind is ServiceError:
            described.setdefault(statuses[nearest], []).append(f"- `{code}`: {ERROR_CODES[code].meaning}")
    return {status: Answer("\n".join(texts), schema(status)) for status, texts in sorted(described.items())}


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
_HEADERS: dict[str, Schema] = {
    "X-Request-Id": {
        "description": "The id that the log has too: the caller's own where it sent a short and plain one.",
        "required": True,
        "schema": _REQUEST_ID,
    },
    "X-Error-Code": {
        "description": "With every error: what went wrong, as a stable code.",
        "schema": {"type": "string", "enum": list(ERROR_CODES)},
    },
    "X-Required-Scope": {
        "description": "The scope that the key lacks.",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds after which the same request may succeed.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "RateLimit-Policy": {
        "description": "The limits that the key is under: q calls in a window of w seconds"
        " (draft-ietf-httpapi-ratelimit-headers-10).",
        "schema": {"type": "string", "examples": ['"key";q=600;w=60']},
    },
    "RateLimit": {
        "description": "What they leave: r calls, until the window ends in t seconds.",
        "schema": {"type": "string", "examples": ['"key";r=599;t=60']},
    },
    "Idempotency-Replayed": {
        "description": "true: the answer is the stored one of the same call, sent before.",
        "schema": {"type": "string", "const": "true"},
    },
    "Dry-Run": {
        "description": "true: all was checked, and nothing was written.",
        "schema": {"type": "string", "const": "true"},
    },
}
_OF_KEYS = ("RateLimit-Policy", "RateLimit")
_OF_WRITING = ("Idempotency-Replayed", "Dry-Run")
# What every operation that writes takes.
_WRITING: dict[str, Schema] = {
    "Idempotency-Key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Makes a request that is sent twice within 24 hours one: the second is answered as the"
        " first, and does nothing.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        "examples": {"An order of the caller's": {"value": "order-17"}},
    },
    "Dry-Run": {
        "name": "Dry-Run",
        "in": "header",
        "description": "true: check everything and answer as usual, and write nothing.",
        "schema": {"type": "boolean"},
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
            "parameters": _WRITING,
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
        "x-error-codes": list(schemas.error_codes(operation.methods)),
        "parameters": [_parameter(parameter) for parameter in operation.parameters],
        "responses": {},
    }
    writes = any(schemas.methods[name].writes for name in operation.methods)
    if writes:
        whole["parameters"] += [{"$ref": f"#/components/parameters/{name}"} for name in _WRITING]
    for status, answer in sorted(operation.answers.items()):
        headers = (_OF_KEYS if operation.keyed else ()) + (_OF_WRITING if writes and status < 300 else ())
        response = _answer(status, answer, headers, operation.links.get(status))
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


def _answer(
    status: int, answer: Answer, at_times: Iterable[str], links: Mapping[str, Mapping[str, str]] | None
) -> dict[str, Any]:
    names = ["X-Request-Id", "X-Error-Code", *at_times]
    names += ["Retry-After"] if status in (409, 429, 503) else []
    names += ["X-Required-Scope"] if status == 403 else []
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
