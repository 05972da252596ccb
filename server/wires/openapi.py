"""The REST wires as one OpenAPI 3.1 document (https://spec.openapis.org/oas/v3.1.1).

A wire's declaration (mapping.py) gives paths, names of members and answers. The rest comes from its methods.
"""

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from importlib.metadata import version
from itertools import product
from typing import Any

from server.base import errors
from server.base.error_codes import ERROR_CODES
from server.methods.registry import Method
from server.wires.mapping import RestWire, Route, status_of
from server.wires.params import Member
from server.wires.schemas import Schema, Schemas, either, json_object, nullable, one_of, without_null

_YES: Schema = {"type": "string", "const": "true"}
_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {
        "description": "The id of the request, as in the log: the client's own if it sent a valid one.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,64}$"},
    },
    "X-Error-Code": {
        "description": "With every error: its stable code.",
        "schema": {"type": "string", "enum": list(ERROR_CODES)},
    },
    "X-Required-Scope": {"description": "The scope that the key lacks.", "schema": {"type": "string"}},
    "Retry-After": {
        "description": "Seconds after which the same request may succeed.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "RateLimit-Policy": {
        "description": "The limits of the key and its instance: q calls in a window of w seconds"
        " (draft-ietf-httpapi-ratelimit-headers-10).",
        "schema": {"type": "string", "examples": ['"key";q=600;w=60']},
    },
    "RateLimit": {
        "description": "What these limits leave: r calls, until the window ends in t seconds.",
        "schema": {"type": "string", "examples": ['"key";r=599;t=60']},
    },
    "Idempotency-Replayed": {
        "description": "true: this is the stored answer of the same call, which was sent before.",
        "schema": _YES,
    },
    "Dry-Run": {"description": "true: everything was checked and nothing was written.", "schema": _YES},
}  # fmt: skip
_OF_KEYS = ("RateLimit-Policy", "RateLimit")
_OF_WRITING = ("Idempotency-Replayed", "Dry-Run")
# Parameters of every operation that writes.
_WRITING: dict[str, Schema] = {
    "Idempotency-Key": {
        "description": "Safe retries: sent again with the same key within 24 hours, the request does nothing"
        " and gets the first answer.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        "examples": {"An order number": {"value": "order-17"}},
    },
    "Dry-Run": {
        "description": "true: check everything, answer as usual and write nothing.",
        "schema": {"type": "boolean"},
    },
}

# Errors without an operation (before the wire is known, or of unknown paths), of keys, and of bodies.
_OF_NO_OPERATION = (errors.BadHttp, errors.HeadersTooLarge, errors.UriTooLong, errors.WrongVerb)
_ABOUT_KEYS = (errors.Unauthenticated, errors.Forbidden)
_ABOUT_BODIES = (errors.Malformed, errors.TooLarge, errors.TooSlow, errors.WrongType)
# Not {"const": ""}: with it, openapi-python-client refuses every other value of a union.
_EMPTY: Schema = {"type": "string", "maxLength": 0}


def operation_id(verb: str, path: str) -> str:
    """The id of an operation, from its verb and path."""
    return "_".join([verb.lower(), *re.findall(r"[A-Za-z0-9-]+", path)])


def _path(wire: RestWire, route: Route) -> str:
    """The path of a route in the document, without regular expressions."""
    return wire.base + re.sub(r"{(\w+):[^}]*}", r"{\1}", route.path)


def document(methods: Iterable[Method], wires: Iterable[RestWire]) -> dict[str, Any]:
    """Make the OpenAPI document of some wires. It takes tens of milliseconds.

    Raises:
        KeyError: a wire names an unknown method.
        ValueError: two schemas, or two operations, have the same name, or two paths differ only in the names
            of their parts.
    """
    schemas = Schemas({method.name: method for method in methods})
    wires = tuple(wires)
    paths: dict[str, dict[str, Any]] = {}
    shapes: dict[str, str] = {}
    responses: dict[str, Any] = {}
    for wire in wires:
        refusals = _refusals(wire, schemas)
        for route in wire.routes:
            path = _path(wire, route)
            shape = re.sub(r"{\w+}", "{}", path)
            if shapes.setdefault(shape, path) != path:
                raise ValueError(f"{path} and {shapes[shape]} are the same path")
            item = paths.setdefault(path, {})
            if route.verb.lower() in item:
                raise ValueError(f"two operations are {route.verb} {path}")
            item[route.verb.lower()] = _operation(wire, route, schemas, refusals, responses)
            if wire.mounts != ("",):
                item["servers"] = [{"url": mount or "/"} for mount in wire.mounts]
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
            "parameters": {name: {"name": name, "in": "header"} | rest for name, rest in _WRITING.items()},
            "headers": _HEADERS,
            "responses": responses,
            "securitySchemes": {
                header: {"type": "http", "scheme": "bearer", "description": "An API key."}
                if header == "Authorization"
                else {
                    "type": "apiKey",
                    "in": "header",
                    "name": header,
                    "description": "An API key; only one may be sent.",
                }
                for header in headers
            },
        },
    }


def _refusals(wire: RestWire, schemas: Schemas) -> dict[int, Any]:
    """Status -> Response Object of a wire's errors with this status."""
    served = [name for route in wire.routes for name in route.served_by()]
    impossible: tuple[type[Exception], ...] = _OF_NO_OPERATION + (() if wire.key_headers else _ABOUT_KEYS)
    if all(route.body is None and route.whole is None for route in wire.routes):
        impossible += _ABOUT_BODIES
    described: dict[int, list[str]] = {}
    for code in schemas.error_codes(served, wire.error_codes):
        if not issubclass(kind := errors.kind_of(code), impossible):
            status = status_of(kind, wire.errors)
            described.setdefault(status, []).append(f"- `{code}`: {ERROR_CODES[code].meaning}")
    return {
        status: {"description": "\n".join(texts), **_content(wire, schemas, wire.error_type(status))}
        for status, texts in sorted(described.items())
    }


def _content(wire: RestWire, schemas: Schemas, kind: Any) -> dict[str, Any]:
    return {} if kind is None else _json(wire, schemas.result(kind))


def _json(wire: RestWire, schema: Schema) -> dict[str, Any]:
    return {"content": {wire.media_type: {"schema": schema}}}


def _operation(
    wire: RestWire, route: Route, schemas: Schemas, refusals: Mapping[int, Any], shared: dict[str, Any]
) -> dict[str, Any]:
    """An Operation Object. Error responses that are the same in the whole wire are put into `shared`."""
    served = [schemas.methods[name] for name in route.served_by()]
    described = [served[0].description, *(other.summary for other in served[1:])]
    if wire.key_headers:
        scopes = dict.fromkeys(method.scope for method in served)
        described.append("Needs the scope " + " or ".join(f"`{scope}`" for scope in scopes) + ".")
    whole: dict[str, Any] = {
        "operationId": operation_id(route.verb, _path(wire, route)),
        "tags": [wire.name],
        "summary": served[0].summary,
        "description": "\n\n".join(text for text in described if text),
        "x-method": [method.name for method in served],
        "security": [{header: []} for header in wire.key_headers],
        "x-error-codes": list(schemas.error_codes(method.name for method in served)),
        "parameters": list(_parameters(wire, route, schemas)),
        "responses": {},
    }
    writes = any(method.writes for method in served)
    if writes:
        whole["parameters"] += [{"$ref": f"#/components/parameters/{name}"} for name in _WRITING]
    answers = {
        status: refusal
        for status, refusal in refusals.items()
        if route.needs_length or status != status_of(errors.LengthRequired, wire.errors)
    }
    answers |= route.responses or _successes(wire, route, schemas, refusals)
    for status, response in sorted(answers.items()):
        response = response | {"headers": _headers(wire, status, writes) | response.get("headers", {})}
        name = f"{wire.name}-{status}"
        if status >= 400 and shared.setdefault(name, response) == response:
            response = {"$ref": f"#/components/responses/{name}"}
        whole["responses"][str(status)] = response
    if route.whole is not None or (route.body and not (route.query and route.verb == "GET")):
        forms = list(_forms(wire, route, schemas)) if route.whole is None else [_whole(route, schemas)]
        bodies = [schema for schema, _ in forms]
        examples = {title: given for _, titled in forms for title, given in titled.items()}
        content = {"schema": bodies[0] if len(bodies) == 1 else {"anyOf": bodies}, **_examples(examples)}
        whole["requestBody"] = {
            "required": wire.needs_body or any(body.get("required") for body in bodies),
            "content": {wire.media_type: content},
        }
    return whole


def _whole(route: Route, schemas: Schemas) -> tuple[Schema, dict[str, Any]]:
    """The schema of a body that is one param, with examples."""
    assert route.whole is not None
    param = str(route.whole.param)
    examples = schemas.examples(route.method)
    schema = route.whole.format.schema(schemas.members(route.method)[param])
    return schema, {title: given[param] for title, given in examples.items() if param in given}


def _successes(wire: RestWire, route: Route, schemas: Schemas, refusals: Mapping[int, Any]) -> dict[int, Any]:
    """Status -> Response Object of each success."""
    success = _success(wire, route, schemas, refusals)
    headers: dict[str, Any] = {}
    if route.version is not None:
        headers["ETag"] = {"description": "The version.", "schema": {"type": "string"}}
    if route.location is not None:
        headers["Location"] = {"description": "Its address.", "schema": {"type": "string"}}
    if headers:
        success["headers"] = headers
    successes = {route.status: success}
    if route.version is not None and route.verb == "GET":
        successes[304] = {"description": "The client has this version.", "headers": headers}
    if route.body_for:
        wanted = " or ".join(route.body_for)
        successes[204] = {"description": f"Done; {wanted} would have the result.", "headers": headers}
    return successes


def _success(wire: RestWire, route: Route, schemas: Schemas, refusals: Mapping[int, Any]) -> dict[str, Any]:
    """The Response Object of a success."""
    kind = route.answer_type(schemas.methods[route.method].result)
    response: dict[str, Any] = {"description": "Done.", **_content(wire, schemas, kind)}
    if route.status in refusals:  # errors have this status too
        refusal = refusals[route.status]
        response["description"] = f"Done; or: {refusal['description']}"
        contents = [one["content"][wire.media_type]["schema"] for one in (response, refusal)]
        response |= _json(wire, {"anyOf": contents})
    if route.links is not None:
        response["links"] = {
            target: {"operationId": target, "parameters": dict(route.links.values)}
            for other in wire.routes
            if other.path.startswith(route.links.target)
            and (target := operation_id(other.verb, _path(wire, other)))
        }
    return response


def _headers(wire: RestWire, status: int, writes: bool) -> dict[str, Any]:
    """The headers of an answer with this status."""
    names = ["X-Request-Id", "X-Error-Code"]
    names += _OF_KEYS if wire.key_headers else ()
    names += _OF_WRITING if writes and status < 300 else ()
    names += ["Retry-After"] if status in (409, 429, 503) else []
    names += ["X-Required-Scope"] if status == 403 else []
    headers: dict[str, Any] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    return headers | {name: {"schema": schema} for name, schema in wire.header_schemas.items()}


def _parameters(wire: RestWire, route: Route, schemas: Schemas) -> Iterator[dict[str, Any]]:
    """The Parameter Objects of headers, path and query."""
    method = route.like or route.method
    known, needed = schemas.members(method), schemas.required(method)
    examples = schemas.examples(method)
    for name, described in wire.header_parameters.items():
        yield _parameter(name, "header", described, False)
    for name, member in route.sent.items():
        yield _parameter(name, "header", without_null(member.format.schema(known[str(member.param)])), False)
    if route.version is not None and route.verb == "GET":
        yield _parameter("If-None-Match", "header", {"type": "string"}, False)
    for part, choices in route.parts.items():
        schema: Schema = {"type": "string", "minLength": 1}
        values: dict[str, Any] = {}
        for choice in choices:
            is_only = len(choices) == 1
            part_schema = without_null(known[str(choice.param)])
            usual = {title: one for title in examples for one in part_schema.get("examples", ())[:1]}
            given = {
                title: params[choice.param] for title, params in examples.items() if choice.param in params
            }
            values |= {title: value if is_only else str(value) for title, value in (usual | given).items()}
            schema = choice.format.schema(part_schema) if is_only else schema
        yield _parameter(part, "path", schema, True, values)
    in_body: Container[str] = () if route.verb == "GET" else tuple(route.body or ())
    for name, member in (route.query or {}).items():
        if name in in_body:
            continue
        schema = without_null(member.format.schema({}) if member.param is None else known[member.param])
        required = member.param in needed or member.needed(route.query or ())
        is_list = schema.get("type") == "array"  # one value, separated by commas
        if "" in wire.omitted and not member.narrows and not is_list:
            schema = either(schema, _EMPTY)
        values = {title: given[member.param] for title, given in examples.items() if member.param in given}
        if member.param is None and required:
            values = dict.fromkeys(examples, _first_value(schema))
        listed = {"style": "form", "explode": False} if is_list else {}
        yield _parameter(name, "query", schema, required, values) | listed


def _first_value(schema: Schema) -> Any:
    if "examples" in schema:
        return schema["examples"][0]
    return schema["const"] if "const" in schema else _first_value(schema["anyOf"][0])


def _parameter(
    name: str, where: str, schema: Schema, required: bool, values: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    schema = dict(schema)
    description = schema.pop("description", None)
    return {
        "name": name,
        "in": where,
        "required": required,
        "schema": schema,
        **({"description": description} if description else {}),
        **_examples(values or {}),
    }


def _examples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"examples": {name: {"value": value} for name, value in values.items()}} if values else {}


def _forms(wire: RestWire, route: Route, schemas: Schemas) -> Iterator[tuple[Schema, dict[str, Any]]]:
    """The schemas of a body, with examples: one for each method and each way to name its params."""
    members = route.body or {}
    for method, asking in [
        (route.like or route.method, ""),
        *((name, flag) for flag, name in route.instead.items()),
    ]:
        known, needed = schemas.members(method), schemas.required(method)
        ways: dict[str, list[str]] = {}
        for name, member in members.items():
            if member.param in known:
                ways.setdefault(member.param, []).append(name)
        for names in product(*ways.values()):
            required = [name for name in names if members[name].param in needed]
            properties = {name: _sent(wire, members[name], known, name in required) for name in names}
            always = {}
            for name, member in members.items():
                if member.param is not None:
                    continue
                schema = member.format.schema({})
                if name in route.instead:
                    schema = one_of(1, True) if name == asking else one_of(0, False, None)
                if name == asking or member.needed(names):
                    required.append(name)
                    always[name] = 1 if name == asking else _first_value(schema)
                properties[name] = schema if name in required else nullable(schema)
            examples = {
                title: always
                | {name: given[param] for name in names if (param := str(members[name].param)) in given}
                for title, given in schemas.examples(method).items()
            }
            whole = json_object(properties, required, is_open=wire.ignores_unknown)
            yield (whole if required or not wire.needs_body else whole | {"minProperties": 1}), examples


def _sent(wire: RestWire, member: Member, known: Mapping[str, Schema], is_required: bool) -> Schema:
    """The schema of a member of a body."""
    schema = member.format.schema(without_null(known[str(member.param)]))
    if is_required:
        return schema
    return nullable(either(schema, _EMPTY) if "" in wire.omitted else schema)
