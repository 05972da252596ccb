"""publica.la's wire, described for the OpenAPI document."""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Generic, Literal, TypeVar

from pydantic import Field

from server.base.errors import (
    WrongVerb,
)  # fmt: skip
from server.base.models import Result
from server.rpc.openapi import Answer, Operation, Parameter, Wire, operation_id, refusals
from server.rpc.schemas import NULL, Schema, Schemas, json_object, one_of, written
from server.wires.publica import (
    ERRORS,
    INVALID,
    ROUTES,
    Form,
    Kind,
    Route,
    _created_user,
    _empty,
    _no_body,
    _one,
    _plan,
    _plans,
    _sessions,
    _user,
    _users,
)

T = TypeVar("T")


class Success(Result, Generic[T]):
    """What went well, and what came of it."""

    CODE: Literal["success"]
    data: T


class Moment(Result):
    """A time."""

    timestamp: int
    date: str
    timezone: Literal["UTC"]


class CreatedStoreUser(Result):
    """A new user."""

    id: int
    email: str
    uuid: str
    picture: str
    admin: bool
    plan_admin: bool
    only_sees_readable: bool
    sessions_limit: int | None
    created_at: Moment
    updated_at: Moment
    deleted_at: Moment | None


class UserPlan(Result):
    """A plan that a user has or had."""

    id: int
    plan_id: int
    name: str
    valid_from: str
    valid_to: str | None
    state: Literal["active", "ended"]


class ListedStoreUser(Result):
    """A user."""

    id: int
    uuid: str
    admin: bool
    plan_admin: bool
    email: str
    sessions_limit: int | None
    only_sees_readable: Literal[0, 1]
    picture: str
    created_at: str
    updated_at: str
    deleted_at: str | None
    purchased_issues_with_cancelled_count: int
    user_plans_count: int
    can_be_edited: bool
    created_at_date_string: str
    impersonate: str
    sessions: None
    ip_ranges: list[str]
    referrers: list[str]
    purchased_issues_with_cancelled: list[Any]
    user_plans: list[UserPlan]


class StorePlan(Result):
    """A plan."""

    id: int
    type: str
    name: str
    details: str
    duration: int | None
    recommended: bool
    private: bool
    assigns_collections: bool
    concurrency_limit: int | None
    collections: list[str]
    download_files: bool
    prices: dict[str, int]
    free_trial: bool
    free_trial_days: int | None
    created_at: str
    updated_at: str


class StoreSession(Result):
    """A session."""

    id: str
    user_id: int
    user_email: str
    user_external_id: str | None
    ip_address: None
    user_agent: None
    created_at: str
    expires_at: str


class Paginator(Result, Generic[T]):
    """A page."""

    current_page: int
    data: list[T]
    first_page_url: str
    # A keyword of Python's.
    from_: int | None = Field(alias="from")
    last_page: int
    last_page_url: str
    next_page_url: str | None
    path: str
    per_page: int
    prev_page_url: str | None
    to: int | None
    total: int


class Paginated(Result, Generic[T]):
    """A page."""

    paginator: Paginator[T]


class Pagination(Result):
    """Where a page of sessions goes on."""

    per_page: int
    next_cursor: str | None
    has_more: bool


class StoreSessions(Success[list[StoreSession]]):
    """A page of sessions."""

    pagination: Pagination


# What renders a body -> its type.
BODIES: dict[Form, Any] = {
    _empty: Success[tuple[()]],
    _one: Success[Literal[1]],
    _no_body: None,
    _created_user: Success[CreatedStoreUser],
    _user: Success[ListedStoreUser],
    _users: Success[Paginated[ListedStoreUser]],
    _plan: Success[StorePlan],
    _plans: Success[Paginated[StorePlan]],
    _sessions: StoreSessions,
}
_MESSAGE: Schema = {"type": "string", "minLength": 1}
# Not {"const": ""}: openapi-python-client then refuses every other value of a union.
_EMPTY: Schema = {"type": "string", "maxLength": 0}
_NOT_GIVEN = (_EMPTY, NULL)
_RATES: dict[str, Schema] = {
    f"X-RateLimit-{name}": {"type": "integer", "minimum": 0} for name in ("Limit", "Remaining", "Reset")
}
# The document's names for what stands after dashboard/users/ differ from verb to verb.
_IN_PATH = re.compile(r"^dashboard/users/{\w+}")


def _widened(kind: Kind, schema: Schema) -> Schema:
    """A schema with the other forms that this wire takes a value in."""
    branches = [part for part in schema.get("anyOf", [schema]) if part != NULL]
    match kind:
        case "flag":
            branches = one_of(0, 1, False, True)["anyOf"]
        case "integer":
            number = branches[0]
            digits = len(str(number.get("maximum", number.get("exclusiveMaximum", 0)))) - 1
            least = "[1-9]" if number.get("minimum") else "0$|^[1-9]"
            text = {"type": "string", "pattern": f"^{least}[0-9]{{0,{digits - 1}}}$"}
            branches = [*branches, text]
        case "amounts":
            amounts = _widened("integer", branches[0]["additionalProperties"])
            branches = [branches[0] | {"additionalProperties": amounts}]
        case _:
            return schema
    rest = {name: part for name, part in schema.items() if name == "description"}
    return rest | (branches[0] if len(branches) == 1 else {"anyOf": branches})


def _sent(route: Route, schemas: Schemas) -> tuple[Schema, dict[str, Any]]:
    """The body of a function, and examples of it."""
    members, required = schemas.members(route.method), schemas.required(route.method)
    properties: dict[str, Schema] = {}
    for name, member in route.body.items():
        schema = _widened(member.kind, members[member.param])
        if member.param not in required:
            branches = [part for part in schema.get("anyOf", [schema]) if part != NULL]
            schema = {"anyOf": [*branches, *_NOT_GIVEN]}
        properties[name] = schema
    needed = [name for name, member in route.body.items() if member.param in required]
    examples = {
        example.name: {
            name: example.params[member.param]
            for name, member in route.body.items()
            if member.param in example.params
        }
        for example in schemas.methods[route.method].examples
    }
    return json_object(properties, needed), examples


def _parameters(route: Route, schemas: Schemas) -> Iterator[Parameter]:
    members, examples = schemas.members(route.method), schemas.methods[route.method].examples
    for part, choices in route.parts.items():
        name = "user_id" if _IN_PATH.match(route.path) else part
        schema: Schema = {"type": "string", "minLength": 1}
        if len(choices) == 1:
            schema = written(members[choices[0].param])
        values = {
            example.name: value if len(choices) == 1 else str(value)
            for example in examples
            for choice in choices
            if (value := example.params.get(choice.param)) is not None
        }
        yield Parameter(name, "path", schema, examples=values)
    for name, member in route.query.items():
        schema = written(members[member.param])
        values = {
            example.name: example.params[member.param]
            for example in examples
            if member.param in example.params
        }
        rest = {key: part for key, part in schema.items() if key == "description"}
        if not member.narrows:
            schema = rest | {"anyOf": [schema, _EMPTY]}
        yield Parameter(name, "query", schema, examples=values)


def _operation(route: Route, schemas: Schemas, refused: Mapping[int, Answer]) -> Operation:
    kind = BODIES[route.form]
    summary = inspect.getdoc(route.form) or ""
    done = Answer(summary, None if kind is None else schemas.result(kind), at_times=_RATES)
    sent, examples = _sent(route, schemas) if route.body else (None, {})
    path = f"/integration-api/v1/{_IN_PATH.sub('dashboard/users/{user_id}', route.path)}"
    return Operation(
        route.verb, path, (route.method,), {**refused, route.status: done},
        tuple(_parameters(route, schemas)), sent, examples,
        body_required=sent is not None and bool(sent["required"]),
        links={route.status: _links(route)},
    )  # fmt: skip


# What a function makes -> the functions that take its id, and their name for it.
LINKS = {
    "dashboard/users": ("dashboard/users/{user_id}", "user_id"),
    "dashboard/plans": ("dashboard/plans/{plan_id}", "plan_id"),
}


def _links(route: Route) -> dict[str, dict[str, str]]:
    if route.verb != "POST" or route.path not in LINKS:
        return {}
    place, part = LINKS[route.path]
    targets = [
        (other.verb, path)
        for other in ROUTES
        if (path := _IN_PATH.sub("dashboard/users/{user_id}", other.path)).startswith(place)
    ]
    return {
        operation_id(verb, f"/integration-api/v1/{path}"): {f"path.{part}": "$response.body#/data/id"}
        for verb, path in targets
    }


def describe(schemas: Schemas) -> Wire:
    """The wire for the OpenAPI document."""
    message = schemas.component("Message", json_object({"message": _MESSAGE}, ["message"]))
    errors = {"type": "object", "additionalProperties": {"type": "array", "items": _MESSAGE, "minItems": 1}}
    bad = json_object({"message": one_of(INVALID), "errors": errors}, ["message", "errors"])
    invalid = schemas.component("InvalidMembers", bad)
    statuses = {kind: status for kind, (status, _) in ERRORS.items() if kind is not WrongVerb}
    codes = schemas.error_codes(route.method for route in ROUTES)
    refused = refusals(statuses, lambda status: invalid if status == 422 else message, codes)
    refused = {status: replace(told, at_times=_RATES) for status, told in refused.items()}
    return Wire(
        "publica",
        "publica.la: users, plans and sessions of a store, which is the key's default instance.",
        ("X-User-Token", "x-api-key"),
        tuple(_operation(route, schemas, refused) for route in ROUTES),
    )
