"""Workspace 365's wire (seeds/002): users under /Provisioning/{EnvironmentName}/User/, and the environments.

The vendor's page on users is the seed; its page on environments lists the addresses under /Environment/, of
which those are here that the registry has a meaning for. Their answers, where that page leaves them open, are
our choice.
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
from server.wires.mapping import Asked, Links, RestWire, Route, in_wire_names, named
from server.wires.members import Form, Member
from server.wires.rendering import From, Shown, renderer

TELLING = frozenset({400, 408, 409, 413, 415, 422})
"""Statuses whose answers say what to mend; all others have no body."""

WORDS = {
    CONSTRAINTS["users_email"][2]: "is taken by another user",
    CONSTRAINTS["instances_name"][2]: "is taken by another environment",
    UserDeleted.__doc__ or "": "is that of a deleted user: restore or purge that user first",
}


class ValidationResult(Shown):
    """What is wrong with a member, or without one with the body."""

    MemberNames: list[str]
    ErrorMessage: Annotated[str, Field(min_length=1)]


ValidationResults = Annotated[list[ValidationResult], Field(min_length=1)]
_validation_results = renderer(ValidationResults)


def _error_form(request: web.Request, error: ServiceError, status: int) -> tuple[int, Any]:
    if status not in TELLING:
        return status, None
    results = []
    for name, message in error.fields or [FieldError("params", error.message)]:
        is_whole = name == "params"
        told = message if is_whole else f"{name} {WORDS.get(message, message)}"
        results.append({"MemberNames": [] if is_whole else [name], "ErrorMessage": told})
    return status, _validation_results(results)


def sanitized(name: Any) -> Any:
    """The name of an environment as it stands in paths: "Café One" -> "cafe-one".

    Only its beginning counts: normalizing takes quadratic time where marks follow each other.
    """
    if not isinstance(name, str):
        return name
    letters = unicodedata.normalize("NFKD", name[:1000]).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._-]+", "-", letters).strip("-._")[:63]


NEW_NAME = Form(
    sanitized,
    lambda _: {
        "type": "string",
        "pattern": r"^[^\u0000]*[A-Za-z0-9][^\u0000]*$",
        "description": "Kept in lower case; what is no letter, digit, dot, dash or underscore becomes a"
        " dash.",
    },
)
"""Of an environment: `sanitized` makes it one, as long as there is something left of it."""


class Environment(Shown):
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
NAME = Form(schema=lambda _: {"type": "string"})
_IN_ENVIRONMENT = {"EnvironmentName": (Member("instance", NAME),)}
_BY_EMAIL = _IN_ENVIRONMENT | {"EmailAddress": (Member("email"),)}

# Validate stands where names stand: it is none, so that it takes POST alone.
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
"""Method -> one that takes the same params, changes nothing and names every failure at once."""


async def _check_environment(request: web.Request, caller: Principal, route: Route) -> None:
    """Raises NotFound or Forbidden for an environment whose users the key cannot reach by this wire."""
    if not route.path.startswith(USERS):
        return
    name = named(route, request)["instance"]
    try:
        environment = await request.app[KEYS].instance(caller, name, while_suspended=True)
    except NotHeld as error:
        raise NotFound from error
    if not environment.settings.provisioningEnabled:
        raise Forbidden("provisioning is switched off", code="provisioning_disabled")


async def _call(request: web.Request, caller: Principal, route: Route, asked: Asked) -> Any:
    """The method's result; if it refuses the params, its validator says everything that is wrong."""
    try:
        return await _outcome(request, caller, route, asked)
    except NotHeld as error:
        raise NotFound from error


async def _outcome(request: web.Request, caller: Principal, route: Route, asked: Asked) -> Any:
    validator = VALIDATORS.get(route.method, route.method if route.like else None)
    refused: ServiceError | None = None
    failures: list[FieldError] = []
    if not asked.failures and route.method != validator:
        try:
            return await run(request, caller, route.method, asked.params)
        except (Invalid, Conflict, MemberForbidden) as error:
            refused = error
    if validator is not None:
        try:
            validation = await run(request, caller, validator, asked.params)
        except Forbidden:
            method = request.app[DISPATCHER].methods[route.method]
            may = not access.method_refusal(caller, method)
            if refused is None and not (asked.failures and may):
                raise  # else a key that may change and not look: it is told what is known without a look
        else:
            failures = [FieldError(failed["field"], failed["message"]) for failed in validation["failures"]]
    if not failures and refused is not None:
        failures = list(refused.fields)
        if not failures:
            raise refused
    of_path = not isinstance(refused, Conflict)
    failures = asked.failures + in_wire_names(failures, route, asked.names, of_path=of_path)
    if failures:
        told = Invalid.of(failures)
        if refused is not None:
            told.code = refused.code
        raise told from refused
    return None


WIRE = RestWire(
    name="workspace365",
    description="Workspace 365: environments and their users. Operators' keys alone reach /Environment/.",
    prefixes=("/Provisioning/",),
    base="/Provisioning",
    either_slash=True,
    key_headers=("ProvisioningKey", "x-api-key"),
    routes=ROUTES,
    errors={Unauthenticated: 403},
    error_form=_error_form,
    error_type=lambda status: ValidationResults if status in TELLING else None,
    error_codes=("length_required", "provisioning_disabled"),
    unknown="is not a member of this operation",
    needs_body=True,
    lenient_query=True,
    before=_check_environment,
    call=_call,
)
