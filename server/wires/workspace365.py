"""Workspace 365's wire (seeds/002): users under /Provisioning/{EnvironmentName}/User/, and the environments.

The vendor's page on users is the seed; its page on environments lists the addresses under /Environment/, of
which those are here that the registry has a meaning for. Their answers, where that page leaves them open, are
our choice.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import hdrs, web

from server.base.errors import (
    CONSTRAINTS,
    BadExpectation,
    Conflict,
    FieldError,
    Forbidden,
    IdempotencyConflict,
    Invalid,
    LengthRequired,
    Malformed,
    MemberForbidden,
    NoRoute,
    NotFound,
    NotHeld,
    ServiceError,
    StillRunning,
    TooLarge,
    TooMany,
    TooSlow,
    Unauthenticated,
    Unavailable,
    UnknownMethod,
    UserDeleted,
    WrongType,
    WrongVerb,
)  # fmt: skip
from server.rpc.openapi import Answer, Operation, Parameter, Wire, operation_id, refusals
from server.rpc.schemas import Schema, Schemas, json_object, nullable, written
from server.tenants import access
from server.tenants.principals import Principal
from server.wires.http import (
    DISPATCHER,
    KEYS,
    Front,
    answer,
    authenticate,
    read_body,
    require_json,
    run,
)  # fmt: skip
from server.wires.parsing import parse_long_json

PREFIX = "/Provisioning"

STATUS: dict[type[ServiceError], int] = {
    ServiceError: 500,
    Invalid: 400,
    Malformed: 400,
    Conflict: 400,
    Unauthenticated: 403,
    Forbidden: 403,
    NotFound: 404,
    UnknownMethod: 404,
    NoRoute: 404,
    WrongVerb: 405,
    TooSlow: 408,
    StillRunning: 409,
    LengthRequired: 411,
    TooLarge: 413,
    WrongType: 415,
    BadExpectation: 417,
    IdempotencyConflict: 422,
    TooMany: 429,
    Unavailable: 503,
}
"""Kind of error -> status; a kind that is not here has that of its parent."""

TELLING = frozenset({400, 408, 409, 413, 415, 422})
"""Statuses whose answers say what to mend; all others have no body."""

WORDS = {
    CONSTRAINTS["users_email"][2]: "is taken by another user",
    CONSTRAINTS["instances_name"][2]: "is taken by another environment",
    UserDeleted.__doc__ or "": "is that of a deleted user: restore or purge that user first",
}


def error_response(request: web.Request, error: ServiceError) -> web.Response:
    """An array of validation results, or no body at all."""
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    if status not in TELLING:
        return answer(status, None)
    results = [_validation_result(*failed) for failed in error.fields]
    return answer(status, orjson.dumps(results or [_validation_result("params", error.message)]))


def _validation_result(name: str, message: str) -> dict[str, Any]:
    if name == "params":  # the body as a whole
        return {"MemberNames": [], "ErrorMessage": message}
    return {"MemberNames": [name], "ErrorMessage": f"{name} {WORDS.get(message, message)}"}


@dataclass(frozen=True, slots=True)
class Route:
    """One operation: what it is called here, and by which method it is done."""

    verb: str
    # Beneath the prefix, as documented; every path goes without its trailing slash too.
    path: str
    method: str
    # The document's name of what stands in the path -> the method's param.
    in_path: Mapping[str, str] = field(default_factory=dict)
    # The same for the members of the body; "admin.email" is a member of a member. None: no body.
    in_body: Mapping[str, str] | None = None
    # Params that the path stands for.
    fixed: Mapping[str, Any] = field(default_factory=dict)
    # A method with the same params that knows every failure at once. Where it is `method`, nothing is done.
    validator: str | None = None
    # From result and params to the body of the 200, and its JSON Schema; None: no body.
    result: Callable[[Any, Mapping[str, Any]], Any] | None = None
    schema: Mapping[str, Any] | None = None
    status: int = 200
    needs_length: bool = False
    # The same for the query. Where there is more to come, the answer has a Link to it (RFC 8288).
    in_query: Mapping[str, str] = field(default_factory=dict)
    # The method whose params these are, where `method` takes good ones and bad.
    like: str | None = None


def sanitized(name: Any) -> Any:
    """The name of an environment as it stands in paths: "Café One" -> "cafe-one".

    Only its beginning counts: normalizing takes quadratic time where marks follow each other.
    """
    if not isinstance(name, str):
        return name
    letters = unicodedata.normalize("NFKD", name[:1000]).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._-]+", "-", letters).strip("-._")[:63]


def _environment(result: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    return {"EnvironmentName": result["name"], "IsActive": result["isActive"]}


_IN_ENVIRONMENT = {"EnvironmentName": "instance"}
_USER = _IN_ENVIRONMENT | {"EmailAddress": "email"}
_NEW_USER = {
    "EmailAddress": "email", "Password": "password", "FirstName": "firstName", "LastName": "lastName",
    "IsAdministrator": "isAdmin", "CreateInOffice365": "createInOffice365",
}  # fmt: skip
_CHANGED_USER = {
    "EmailAddress": "newEmail", "Password": "password", "FirstName": "firstName", "LastName": "lastName",
    "IsAdministrator": "isAdmin",
}  # fmt: skip
_NEW_ENVIRONMENT = {
    "EnvironmentName": "name", "EmailAddress": "admin.email", "Password": "admin.password",
    "FirstName": "admin.firstName", "LastName": "admin.lastName",
}  # fmt: skip
_NUMBER = {"type": "integer"}
_NAME = {"type": "string"}
_ENVIRONMENT = {
    "type": "object",
    "properties": {"EnvironmentName": _NAME, "IsActive": {"type": "boolean"}},
    "required": ["EnvironmentName", "IsActive"],
}

ROUTES = (
    Route(
        "POST", "/{EnvironmentName}/User/", "createUser", _IN_ENVIRONMENT, _NEW_USER,
        validator="validateUser", result=lambda result, params: result["id"], schema=_NUMBER,
    ),
    Route(
        "POST", "/{EnvironmentName}/User/Validate/", "validateUser", _IN_ENVIRONMENT, _NEW_USER,
        validator="validateUser", result=lambda result, params: 0, schema=_NUMBER, like="createUser",
    ),
    Route(
        "PUT", "/{EnvironmentName}/User/{EmailAddress}/", "replaceUserByEmail", _USER, _CHANGED_USER,
        validator="validateReplacement",
    ),
    Route(
        "PUT", "/{EnvironmentName}/User/{EmailAddress}/Validate/", "validateReplacement", _USER,
        _CHANGED_USER, validator="validateReplacement", like="replaceUserByEmail",
    ),
    Route(
        "PUT", "/{EnvironmentName}/User/{EmailAddress}/Activate/", "updateUserByEmail", _USER,
        fixed={"isActive": True}, needs_length=True,
    ),
    Route(
        "PUT", "/{EnvironmentName}/User/{EmailAddress}/Deactivate/", "updateUserByEmail", _USER,
        fixed={"isActive": False}, needs_length=True,
    ),
    Route("DELETE", "/{EnvironmentName}/User/{EmailAddress}/", "deleteUserByEmail", _USER),
    Route(
        "POST", "/Environment/", "createInstance", in_body=_NEW_ENVIRONMENT, validator="validateInstance",
        result=lambda result, params: result["name"], schema=_NAME,
    ),
    Route(
        "POST", "/Environment/Validate/", "validateInstance", in_body=_NEW_ENVIRONMENT,
        validator="validateInstance", result=lambda result, params: params["name"], schema=_NAME,
        like="createInstance",
    ),
    Route(
        "GET", "/Environment/", "listInstances", fixed={"limit": 1000}, in_query={"after": "after"},
        result=lambda result, params: [_environment(found, params) for found in result["instances"]],
        schema={"type": "array", "items": _ENVIRONMENT},
    ),
    Route(
        "GET", "/Environment/{EnvironmentName}/", "getInstance", _IN_ENVIRONMENT,
        result=_environment, schema=_ENVIRONMENT,
    ),
    Route(
        "PUT", "/Environment/{EnvironmentName}/Activate/", "updateInstance", _IN_ENVIRONMENT,
        fixed={"isActive": True}, needs_length=True,
    ),
    Route(
        "PUT", "/Environment/{EnvironmentName}/Deactivate/", "updateInstance", _IN_ENVIRONMENT,
        fixed={"isActive": False}, needs_length=True,
    ),
    Route("DELETE", "/Environment/{EnvironmentName}/", "deleteInstance", _IN_ENVIRONMENT),
)  # fmt: skip


def _handler(route: Route) -> Callable[[web.Request], Any]:
    of_environment = route.path.startswith("/Environment/")

    async def handle(request: web.Request) -> web.Response:
        caller = await authenticate(request, "ProvisioningKey", "x-api-key")
        if route.needs_length and hdrs.CONTENT_LENGTH not in request.headers:
            raise LengthRequired
        params = _from_path(request, route)
        try:
            if not of_environment:
                environment = await request.app[KEYS].instance(
                    caller, params["instance"], while_suspended=True
                )
                if not environment.settings.provisioningEnabled:
                    raise Forbidden("provisioning is switched off", code="provisioning_disabled")
            unknown = await _add_body(request, route, params)
            result = await _outcome(request, caller, route, params | dict(route.fixed), unknown)
        except NotHeld as error:
            raise NotFound from error
        body = None if route.result is None else orjson.dumps(route.result(result, params))
        more = result["next"] if route.in_query else None
        link = f'<{PREFIX}{route.path}?after={more}>; rel="next"'
        return answer(route.status, body, {"Link": link} if more else None)

    return handle


def _from_path(request: web.Request, route: Route) -> dict[str, Any]:
    params = {target: request.match_info[name] for name, target in route.in_path.items()}
    if any("\0" in value for value in params.values()):
        raise NotFound  # nothing is called so, and no database can be asked
    return params | {
        target: request.query[name] for name, target in route.in_query.items() if name in request.query
    }


async def _add_body(request: web.Request, route: Route, params: dict[str, Any]) -> list[FieldError]:
    """Put the members of the body among the params; what is no member of this operation is returned."""
    if route.in_body is None:
        return []
    require_json(request)
    body = await parse_long_json(await read_body(request))
    if not isinstance(body, dict):
        raise Invalid("the body must be an object", code="invalid_params")
    failures = []
    for target in route.in_body.values():
        head, dot, _ = target.partition(".")
        if dot:
            params.setdefault(head, {})
    for name, value in body.items():
        if name not in route.in_body:
            failures.append(FieldError(name[:64], "is not a member of this operation"))
        elif value is not None:  # .NET writes what has no value as null
            head, dot, rest = route.in_body[name].partition(".")
            value = sanitized(value) if name == "EnvironmentName" else value
            if dot:
                params[head][rest] = value
            else:
                params[head] = value
    return failures


async def _outcome(
    request: web.Request, caller: Principal, route: Route, params: dict[str, Any], unknown: list[FieldError]
) -> Any:
    """The method's result. What it refuses, its validator is asked about, which names every reason.

    Args:
        unknown: what is wrong with the body already, in the document's names.
    """
    refused: ServiceError | None = None
    failures: list[FieldError] = []
    if not unknown and route.method != route.validator:
        try:
            return await run(request, caller, route.method, params)
        except (Invalid, Conflict, MemberForbidden) as error:
            refused = error
    if route.validator is not None:
        try:
            validation = await run(request, caller, route.validator, params)
        except Forbidden:
            may = not access.method_refusal(caller, request.app[DISPATCHER].methods[route.method])
            if refused is None and not (unknown and may):
                raise  # else a key that may change and not look: it is told what is known without a look
        else:
            failures = [FieldError(failed["field"], failed["message"]) for failed in validation["failures"]]
    if not failures and refused is not None:
        failures = list(refused.fields)
        if not failures:
            raise refused
    # Where the path itself is refused, nothing stands there.
    in_path = set() if isinstance(refused, Conflict) else set(route.in_path.values())
    if any(failed.field in in_path for failed in failures):
        raise NotFound from refused
    back = {target: name for names in (route.in_path, route.in_body or {}) for name, target in names.items()}
    failures = [FieldError(back.get(name, name), message) for name, message in failures]
    if unknown or failures:
        named = Invalid.of(unknown + failures)
        if refused is not None:
            named.code = refused.code
        raise named from refused
    return None


def add_routes(router: web.UrlDispatcher) -> None:
    """Every operation, with its trailing slash and without."""
    for route in ROUTES:
        handle = _handler(route)
        # Validate stands where names stand: it is none, so that it takes POST alone.
        path = PREFIX + re.sub(r"/{(\w+)}/$", r"/{\1:(?!Validate/?$)[^/]+}/", route.path)
        router.add_route(route.verb, path, handle)
        router.add_route(route.verb, path.rstrip("/"), handle)


# --- the wire described -------------------------------------------------------------------------------

_RESULT = json_object(
    {
        "MemberNames": {"type": "array", "items": {"type": "string"}},
        "ErrorMessage": {"type": "string", "minLength": 1},
    },
    ("MemberNames", "ErrorMessage"),
)
# Of a new environment: `sanitized` makes it one, as long as there is something left of it.
_NEW_NAME: Schema = {
    "type": "string",
    "pattern": r"^[^\u0000]*[A-Za-z0-9][^\u0000]*$",
    "description": "Kept in lower case; what is no letter, digit, dot, dash or underscore becomes a dash.",
}


def _sent(route: Route, names: Mapping[str, str], schemas: Schemas) -> tuple[Schema, dict[str, Any]]:
    """The body of an operation, and examples of it. Null stands for what is left out."""
    method = route.like or route.method
    members, required = schemas.members(method), set(schemas.required(method))
    for head in [head for head, schema in members.items() if "properties" in schema]:
        nested = members.pop(head)
        members |= {f"{head}.{name}": schema for name, schema in nested["properties"].items()}
        required |= {f"{head}.{name}" for name in nested.get("required", ())}
    needed = [name for name, target in names.items() if target in required]
    properties = {
        name: _NEW_NAME if name == "EnvironmentName" else members[target] for name, target in names.items()
    }
    properties = {name: schema if name in needed else nullable(schema) for name, schema in properties.items()}
    examples = {}
    for example in schemas.methods[method].examples:
        given = dict(example.params)
        for head, value in example.params.items():
            if isinstance(value, dict):
                given |= {f"{head}.{name}": part for name, part in value.items()}
        examples[example.name] = {name: given[target] for name, target in names.items() if target in given}
    schema = json_object(properties, needed)
    return (schema if needed else schema | {"minProperties": 1}), examples


def _operation(route: Route, schemas: Schemas, refused: Mapping[int, Answer]) -> Operation:
    method = schemas.methods[route.like or route.method]
    parameters = []
    for name, target in route.in_path.items():
        examples = {
            example.name: example.params.get(target, "MYINSTANCE")
            for example in method.examples
            if target == "instance" or target in example.params
        }
        parameters.append(Parameter(name, "path", {"type": "string"}, examples=examples))
    members = schemas.members(method.name)
    parameters += [
        Parameter(name, "query", written(members[target])) for name, target in route.in_query.items()
    ]
    sent, examples = _sent(route, route.in_body, schemas) if route.in_body is not None else (None, {})
    done = Answer("Done.", dict(route.schema) if route.schema is not None else None)
    answers = {
        status: told
        for status, told in refused.items()
        if status != STATUS[LengthRequired] or route.needs_length
    }
    return Operation(
        route.verb, PREFIX + route.path, (route.method,), answers | {route.status: done}, tuple(parameters),
        sent, examples, links={route.status: _links(route)},
    )  # fmt: skip


def _links(route: Route) -> dict[str, dict[str, str]]:
    """What can be done with what has been created."""
    values = {
        "createUser": {
            "path.EnvironmentName": "$request.path.EnvironmentName",
            "path.EmailAddress": "$request.body#/EmailAddress",
        },
        "createInstance": {"path.EnvironmentName": "$response.body"},
    }.get(route.method, {})
    part = "{EmailAddress}/" if route.method == "createUser" else "{EnvironmentName}/"
    return {
        operation_id(other.verb, PREFIX + other.path): values
        for other in ROUTES
        if values and other.path.startswith(route.path + part)
    }


def describe(schemas: Schemas) -> Wire:
    """The wire for the OpenAPI document."""
    results: Schema = {
        "type": "array", "items": schemas.component("ValidationResult", _RESULT), "minItems": 1,
    }  # fmt: skip
    statuses = {kind: status for kind, status in STATUS.items() if kind is not WrongVerb}
    own = ("length_required", "provisioning_disabled")
    codes = schemas.error_codes((route.method for route in ROUTES), own)
    refused = refusals(statuses, lambda status: results if status in TELLING else None, codes)
    return Wire(
        "workspace365",
        "Workspace 365: environments and their users. Operators' keys alone reach /Environment/.",
        ("ProvisioningKey", "x-api-key"),
        tuple(_operation(route, schemas, refused) for route in ROUTES),
    )


FRONT = Front("workspace365", PREFIX + "/", add_routes, error_response)
