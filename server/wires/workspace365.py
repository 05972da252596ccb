"""Workspace 365's wire (seeds/002): users under /Provisioning/{EnvironmentName}/User/, and the environments.

The vendor's page on users is the seed. Its page on environments lists the paths under /Environment/; this
wire has those that match a method. Answers that the page leaves open are our choice.
"""

import re
import unicodedata
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import Field

from server.base.errors import (
    CONSTRAINTS,
    Conflict,
    FieldError,
    Forbidden,
    Invalid,
    MemberForbidden,
    NotFound,
    NotHeld,
    ServiceError,
    Unauthenticated,
    UserDeleted,
)
from server.tenants import access
from server.tenants.principals import Principal
from server.wires.http import DISPATCHER, KEYS, run
from server.wires.mapping import Links, ParsedCall, RestWire, Route, in_wire_names, path_params
from server.wires.params import Format, Member
from server.wires.rendering import AnswerModel, From, renderer

TELLING = frozenset({400, 408, 409, 413, 415, 422})
"""Statuses with a body, which names the errors."""

WORDS = {
    CONSTRAINTS["users_email"][2]: "is taken by another user",
    CONSTRAINTS["instances_name"][2]: "is taken by another environment",
    UserDeleted.__doc__ or "": "is that of a deleted user: restore or purge that user first",
}


class ValidationResult(AnswerModel):
    """An error of a member, or of the whole body if it names none."""

    MemberNames: list[str]
    ErrorMessage: Annotated[str, Field(min_length=1)]


ValidationResults = Annotated[list[ValidationResult], Field(min_length=1)]
_validation_results = renderer(ValidationResults)


def _render_error(request: web.Request, error: ServiceError, status: int) -> tuple[int, Any]:
    if status not in TELLING:
        return status, None
    results = []
    for name, message in error.fields or [FieldError("params", error.message)]:
        if name == "params":
            results.append({"MemberNames": [], "ErrorMessage": message})
        else:
            results.append({"MemberNames": [name], "ErrorMessage": f"{name} {WORDS.get(message, message)}"})
    return status, _validation_results(results)


def sanitized(name: Any) -> Any:
    """The name of an environment in paths: "Café One" -> "cafe-one".

    Only the first 1,000 characters count: normalizing a sequence of combining marks takes quadratic time.
    """
    if not isinstance(name, str):
        return name
    letters = unicodedata.normalize("NFKD", name[:1000]).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._-]+", "-", letters).strip("-._")[:63]


NEW_NAME = Format(
    sanitized,
    lambda _: {
        "type": "string",
        "pattern": r"^[^\u0000]*[A-Za-z0-9][^\u0000]*$",
        "description": "Stored in lower case. Characters other than letters, digits, dots, dashes and"
        " underscores become a dash.",
    },
)
"""The name of a new environment: one from which `sanitized` leaves something."""


class Environment(AnswerModel):
    """An environment."""

    EnvironmentName: Annotated[str, From("name")]
    IsActive: Annotated[bool, From("isActive")]


_CHANGED_USER = {
    "EmailAddress": Member("newEmail"),
    "Password": Member("password"),
    "FirstName": Member("firstName"),
    "LastName": Member("lastName"),
    "IsAdministrator": Member("isAdmin"),
}
_NEW_USER = _CHANGED_USER | {
    "EmailAddress": Member("email"),
    "CreateInOffice365": Member("createInOffice365"),
}
_NEW_ENVIRONMENT = {
    "EnvironmentName": Member("name", NEW_NAME),
    "EmailAddress": Member("admin.email"),
    "Password": Member("admin.password"),
    "FirstName": Member("admin.firstName"),
    "LastName": Member("admin.lastName"),
}
NAME = Format(schema=lambda _: {"type": "string"})
_IN_ENVIRONMENT = {"EnvironmentName": (Member("instance", NAME),)}
_BY_EMAIL = _IN_ENVIRONMENT | {"EmailAddress": (Member("email"),)}

# Validate is not a name: PUT, GET and DELETE of it get 405.
USERS = "/{EnvironmentName}/User/"
USER = USERS + "{EmailAddress:(?!Validate/?$)[^/]+}/"
ENVIRONMENT = "/Environment/{EnvironmentName:(?!Validate/?$)[^/]+}/"

ROUTES = (
    Route(
        "POST", USERS, "createUser", Annotated[int, From("id")], parts=_IN_ENVIRONMENT, body=_NEW_USER,
        links=Links(USER, {
            "path.EnvironmentName": "$request.path.EnvironmentName",
            "path.EmailAddress": "$request.body#/EmailAddress",
        }),
    ),
    Route(
        "POST", USERS + "Validate/", "validateUser", Literal[0], parts=_IN_ENVIRONMENT, body=_NEW_USER,
        like="createUser",
    ),
    Route("PUT", USER, "replaceUserByEmail", parts=_BY_EMAIL, body=_CHANGED_USER),
    Route(
        "PUT", USER + "Validate/", "validateReplacement", parts=_BY_EMAIL, body=_CHANGED_USER,
        like="replaceUserByEmail",
    ),
    Route(
        "PUT", USER + "Activate/", "updateUserByEmail", parts=_BY_EMAIL, fixed={"isActive": True},
        needs_length=True,
    ),
    Route(
        "PUT", USER + "Deactivate/", "updateUserByEmail", parts=_BY_EMAIL, fixed={"isActive": False},
        needs_length=True,
    ),
    Route("DELETE", USER, "deleteUserByEmail", parts=_BY_EMAIL),
    Route(
        "POST", "/Environment/", "createInstance", Annotated[str, From("name")], body=_NEW_ENVIRONMENT,
        links=Links(ENVIRONMENT, {"path.EnvironmentName": "$response.body"}),
    ),
    Route(
        "POST", "/Environment/Validate/", "validateInstance", Annotated[str, From("name")],
        body=_NEW_ENVIRONMENT, like="createInstance", source=lambda done: done.params,
    ),
    Route(
        "GET", "/Environment/", "listInstances", Annotated[list[Environment], From("instances")],
        query={"after": Member("after")}, fixed={"limit": 1000}, continued_by="after",
    ),
    Route("GET", ENVIRONMENT, "getInstance", Environment, parts=_IN_ENVIRONMENT),
    Route(
        "PUT", ENVIRONMENT + "Activate/", "updateInstance", parts=_IN_ENVIRONMENT, fixed={"isActive": True},
        needs_length=True,
    ),
    Route(
        "PUT", ENVIRONMENT + "Deactivate/", "updateInstance", parts=_IN_ENVIRONMENT,
        fixed={"isActive": False}, needs_length=True,
    ),
    Route("DELETE", ENVIRONMENT, "deleteInstance", parts=_IN_ENVIRONMENT),
)  # fmt: skip

VALIDATORS = {
    "createUser": "validateUser",
    "replaceUserByEmail": "validateReplacement",
    "createInstance": "validateInstance",
}
"""Method -> the one that validates the same params, changes nothing and names all errors."""


async def _check_environment(request: web.Request, caller: Principal, route: Route) -> None:
    """Raises NotFound or Forbidden if the key cannot access the environment's users on this wire."""
    if not route.path.startswith(USERS):
        return
    name = path_params(route, request)["instance"]
    try:
        environment = await request.app[KEYS].instance(caller, name, while_suspended=True)
    except NotHeld as error:
        raise NotFound from error
    if not environment.settings.provisioningEnabled:
        raise Forbidden("provisioning is switched off", code="provisioning_disabled")


async def _call(request: web.Request, caller: Principal, route: Route, parsed: ParsedCall) -> Any:
    """Call the method. An instance that the key cannot access does not exist for it."""
    try:
        return await _call_validating(request, caller, route, parsed)
    except NotHeld as error:
        raise NotFound from error


async def _call_validating(request: web.Request, caller: Principal, route: Route, parsed: ParsedCall) -> Any:
    """Call the method; if it refuses the params, call its validator, which names all errors."""
    validator = VALIDATORS.get(route.method, route.method if route.like else None)
    refused: ServiceError | None = None
    failures: list[FieldError] = []
    if not parsed.failures and route.method != validator:
        try:
            return await run(request, caller, route.method, parsed.params)
        except (Invalid, Conflict, MemberForbidden) as error:
            refused = error
    if validator is not None:
        try:
            validation = await run(request, caller, validator, parsed.params)
        except Forbidden:
            method = request.app[DISPATCHER].methods[route.method]
            may_write = not access.method_refusal(caller, method)
            if refused is None and not (parsed.failures and may_write):
                raise  # else the key may write but not validate: it gets the errors known so far
        else:
            failures = [FieldError(failed["field"], failed["message"]) for failed in validation["failures"]]
    if not failures and refused is not None:
        failures = list(refused.fields)
        if not failures:
            raise refused
    of_path = not isinstance(refused, Conflict)
    failures = parsed.failures + in_wire_names(failures, route, parsed.names, of_path=of_path)
    if failures:
        invalid = Invalid.of(failures)
        if refused is not None:
            invalid.code = refused.code
        raise invalid from refused
    return None


WIRE = RestWire(
    name="workspace365",
    description="Workspace 365: environments and their users. /Environment/ needs an operator's key.",
    prefixes=("/Provisioning/",),
    base="/Provisioning",
    either_slash=True,
    key_headers=("ProvisioningKey", "x-api-key"),
    routes=ROUTES,
    errors={Unauthenticated: 403},
    render_error=_render_error,
    error_type=lambda status: ValidationResults if status in TELLING else None,
    error_codes=("length_required", "provisioning_disabled"),
    unknown="is not a member of this operation",
    needs_body=True,
    lenient_query=True,
    before=_check_environment,
    call=_call,
)
