"""publica.la's wire (seeds/003): /integration-api/v1/... A store is the key's default instance."""

import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar
from urllib.parse import urlencode

from aiohttp import web
from pydantic import Field

from server.base.errors import (
    CONSTRAINTS,
    Conflict,
    FieldError,
    Forbidden,
    Invalid,
    NoRoute,
    NotFound,
    ServiceError,
    TooMany,
    Unauthenticated,
    UserDeleted,
)
from server.tenants.limits import RateLimiter
from server.tenants.principals import Principal
from server.wires.http import CALLS, SETTINGS, enforce
from server.wires.mapping import CompletedCall, Links, RestWire, Route
from server.wires.params import FLAG, ID, INTEGER, Format, Member, or_digits, same
from server.wires.rendering import WHOLE, AnswerModel, Computed, Empty, From, always, renderer
from server.wires.schemas import Schema

T = TypeVar("T")

LIMITER = web.AppKey("PUBLICA_LIMITER", RateLimiter)
"""This wire's own limit, in addition to that of all wires."""


async def _count(request: web.Request, caller: Principal, route: Route) -> None:
    enforce(request, "publica", request.app[LIMITER].spend(caller.id))


def _limit_headers(request: web.Request) -> dict[str, str]:
    allowance = request[CALLS].allowances.get("publica")
    if allowance is None:
        return {}
    return {
        "X-RateLimit-Limit": str(allowance.limit),
        "X-RateLimit-Remaining": str(allowance.remaining),
        # Unix time in seconds at which the next window begins.
        "X-RateLimit-Reset": str(int(time.time()) + allowance.resets_in),
    }


# --- errors ---------------------------------------------------------------------------------------------

MESSAGES: dict[type[ServiceError], str] = {
    Unauthenticated: "Unauthenticated.",
    Forbidden: "This action is unauthorized.",
    NotFound: "Object not found",
    NoRoute: "Not Found",
    TooMany: "Too Many Attempts.",
}
"""Kind of error -> message; other errors keep their own."""
WORDS = {
    CONSTRAINTS["users_email"][2]: "has already been taken",
    CONSTRAINTS["users_external_id"][2]: "has already been taken",
    UserDeleted.__doc__ or "": "is that of a deleted user: restore or purge that user first",
    # A request with both `query` and `email`.
    "stands for the same as query": "is given twice",
    "stands for the same as email": "is given twice",
}


class Message(AnswerModel):
    """What went wrong."""

    message: Annotated[str, Field(min_length=1)]


class InvalidMembers(AnswerModel):
    """The errors of each member."""

    message: Literal["The given data was invalid."]
    errors: dict[str, Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]]


_invalid_members = renderer(InvalidMembers)


def _render_error(request: web.Request, error: ServiceError, status: int) -> tuple[int, Any]:
    if status == 422 and error.fields:
        errors: dict[str, list[str]] = {}
        for name, message in error.fields:
            subject = "" if name == "params" else f"The {re.sub('[_.]', ' ', name)} "
            errors.setdefault(name, []).append(f"{subject}{WORDS.get(message, message)}.")
        return status, _invalid_members({"errors": errors})
    if status == 422:
        status = 400  # no member is wrong, but the request
    if status == 500:
        return status, {"message": "Server Error"}
    messages = (message for kind, message in MESSAGES.items() if isinstance(error, kind))
    return status, {"message": next(messages, error.message)}


# --- requests -------------------------------------------------------------------------------------------


def _amounts(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: INTEGER.parse(amount) for name, amount in value.items()}


def _amounts_schema(schema: Schema) -> Schema:
    return schema | {"additionalProperties": or_digits(schema["additionalProperties"])}


def _email(text: str) -> str:
    if "@" not in text or len(text) > 254:
        raise ValueError
    return text


def _external_id(text: str) -> str:
    if len(text) > 64:
        raise ValueError
    return text


EMAIL, EXTERNAL_ID = Format(_email), Format(_external_id)
AMOUNTS = Format(_amounts, _amounts_schema)

USER = {
    "email": Member("email"),
    "external_id": Member("externalId"),
    "new_password": Member("newPassword"),
    "sessions_limit": Member("sessionsLimit", INTEGER, nullable=True),
    "assign_new_plan": Member("planId", INTEGER),
    "new_plan_custom_valid_to": Member("planValidTo"),
    "admin": Member("isAdmin", FLAG),
    "plan_admin": Member("isPlanAdmin", FLAG),
    "only_sees_readable": Member("onlySeesReadable", FLAG),
}
PLAN = same("type", "name", "details", "collections") | {
    "duration": Member("duration", INTEGER, nullable=True),
    "recommended": Member("recommended", FLAG),
    "private": Member("isPrivate", FLAG),
    "assigns_collections": Member("assignsCollections", FLAG),
    "concurrency_limit": Member("concurrencyLimit", INTEGER, nullable=True),
    "download_files": Member("downloadFiles", FLAG),
    "prices": Member("prices", AMOUNTS),
    "free_trial": Member("freeTrial", FLAG),
    "free_trial_days": Member("freeTrialDays", INTEGER, nullable=True),
}
PAGE = {
    "page": Member("page", INTEGER), "per_page": Member("perPage", INTEGER), "query": Member("query"),
}  # fmt: skip
BY_ID = {"user_id": (Member("id", ID),)}
BY_ID_OR_EXTERNAL_ID = {"user_id": (Member("id", ID), Member("externalId", EXTERNAL_ID))}
BY_ANY_NAME = {
    "user_id": (Member("id", ID), Member("email", EMAIL), Member("externalId", EXTERNAL_ID)),
}  # fmt: skip
PLAN_ID = {"plan_id": (Member("id", ID),)}


# --- answers --------------------------------------------------------------------------------------------


class Success(AnswerModel, Generic[T]):
    """A success and its data."""

    CODE: Literal["success"]
    data: Annotated[T, WHOLE]


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000000Z")


Iso = Annotated[str, Computed(_iso)]
"""A time in all answers except that of a new user."""


class Moment(AnswerModel):
    """A time in the answer of a new user."""

    timestamp: Annotated[int, WHOLE]
    date: Annotated[str, Computed(_date)]
    timezone: Literal["UTC"]


class CreatedStoreUser(AnswerModel):
    """A new user."""

    id: int
    email: str
    uuid: str
    picture: str
    admin: Annotated[bool, From("isAdmin")]
    plan_admin: Annotated[bool, From("isPlanAdmin")]
    only_sees_readable: Annotated[bool, From("onlySeesReadable")]
    sessions_limit: Annotated[int | None, From("sessionsLimit")]
    created_at: Annotated[Moment, From("createdAt")]
    updated_at: Annotated[Moment, From("updatedAt")]
    deleted_at: Annotated[Moment | None, From("deactivatedAt")]


class UserPlan(AnswerModel):
    """A plan that a user has or had."""

    id: int
    plan_id: Annotated[int, From("planId")]
    name: str
    valid_from: Annotated[str, From("validFrom")]
    valid_to: Annotated[str | None, From("validTo")]
    state: Literal["active", "ended"]


class ListedStoreUser(AnswerModel):
    """A user. Members about reading and sales are empty, in their documented types.

    `sessions` is null, as in the document: auth-sessions lists them.
    """

    id: int
    uuid: str
    admin: Annotated[bool, From("isAdmin")]
    plan_admin: Annotated[bool, From("isPlanAdmin")]
    email: str
    sessions_limit: Annotated[int | None, From("sessionsLimit")]
    only_sees_readable: Annotated[Literal[0, 1], Computed(int), From("onlySeesReadable")]
    picture: str
    created_at: Annotated[Iso, From("createdAt")]
    updated_at: Annotated[Iso, From("updatedAt")]
    deleted_at: Annotated[Iso | None, From("deactivatedAt")]
    purchased_issues_with_cancelled_count: Annotated[int, always(0)]
    user_plans_count: Annotated[int, From("plansCount")]
    can_be_edited: Annotated[bool, always(True)]
    created_at_date_string: Annotated[str, Computed(lambda seconds: _iso(seconds)[:10]), From("createdAt")]
    impersonate: Annotated[str, always("")]
    sessions: None
    ip_ranges: Empty
    referrers: Empty
    purchased_issues_with_cancelled: Empty
    user_plans: Annotated[list[UserPlan], From("plans")]


class StorePlan(AnswerModel):
    """A plan."""

    id: int
    type: str
    name: str
    details: str
    duration: int | None
    recommended: bool
    private: Annotated[bool, From("isPrivate")]
    assigns_collections: Annotated[bool, From("assignsCollections")]
    concurrency_limit: Annotated[int | None, From("concurrencyLimit")]
    collections: list[str]
    download_files: Annotated[bool, From("downloadFiles")]
    prices: dict[str, int]
    free_trial: Annotated[bool, From("freeTrial")]
    free_trial_days: Annotated[int | None, From("freeTrialDays")]
    created_at: Annotated[Iso, From("createdAt")]
    updated_at: Annotated[Iso, From("updatedAt")]


class StoreSession(AnswerModel):
    """A session. The user's address and browser are not known: another server logs users in."""

    id: Annotated[str, Computed(str), From("id")]
    user_id: Annotated[int, From("userId")]
    user_email: Annotated[str, From("email")]
    user_external_id: Annotated[str | None, From("externalId")]
    ip_address: None
    user_agent: None
    created_at: Annotated[Iso, From("createdAt")]
    expires_at: Annotated[Iso, From("expiresAt")]


class Paginator(AnswerModel, Generic[T]):
    """A page."""

    current_page: int
    data: list[T]
    first_page_url: str
    from_: int | None = Field(alias="from")
    last_page: int
    last_page_url: str
    next_page_url: str | None
    path: str
    per_page: int
    prev_page_url: str | None
    to: int | None
    total: int


class Paginated(AnswerModel, Generic[T]):
    """A page."""

    paginator: Annotated[Paginator[T], WHOLE]


class Pagination(AnswerModel):
    """The position of a page of sessions."""

    per_page: int
    next_cursor: Annotated[str | None, From("next")]
    has_more: Annotated[bool, Computed(lambda cursor: cursor is not None), From("next")]


class StoreSessions(AnswerModel):
    """A page of sessions."""

    CODE: Literal["success"]
    data: Annotated[list[StoreSession], From("sessions")]
    pagination: Annotated[Pagination, WHOLE]


def _paginator(call: CompletedCall) -> dict[str, Any]:
    """The data of Paginator for a page of users or plans."""
    result, request = call.result, call.request
    (data,) = (rows for rows in result.values() if isinstance(rows, list))
    page, per_page, total = result["page"], result["perPage"], result["total"]
    path = request.app[SETTINGS].own_address() + request.path.rstrip("/")
    last = max(1, -(-total // per_page))
    first = (page - 1) * per_page + 1

    def url(number: int) -> str | None:
        if not 1 <= number <= last:
            return None
        query = {name: value for name, value in request.query.items() if value != ""}
        return f"{path}?{urlencode(query | {'page': number})}"

    return {
        "current_page": page, "data": data, "first_page_url": url(1), "from": first if data else None,
        "last_page": last, "last_page_url": url(last), "next_page_url": url(page + 1), "path": path,
        "per_page": per_page, "prev_page_url": url(page - 1), "to": first + len(data) - 1 if data else None,
        "total": total,
    }  # fmt: skip


def _with_limit(call: CompletedCall) -> Any:
    return call.result | {"per_page": call.params.get("limit", 100)}


NOTHING = Success[Empty]
USERS, PLANS = "/dashboard/users", "/dashboard/plans"

ROUTES = (
    Route(
        "POST", USERS, "createStoreUser", Success[CreatedStoreUser], body=USER,
        links=Links(USERS + "/{user_id}", {"path.user_id": "$response.body#/data/id"}),
    ),
    Route(
        "GET", USERS, "listStoreUsers", Success[Paginated[ListedStoreUser]], source=_paginator,
        query=PAGE | {"email": Member("query", narrows=True)},
    ),
    Route("GET", USERS + "/{user_id}", "getStoreUser", Success[ListedStoreUser], parts=BY_ANY_NAME),
    Route(
        "PUT", USERS + "/{user_id}", "updateStoreUser", status=204, parts=BY_ID,
        body=USER | {"user_plan_name": Member("planName")},
    ),
    Route("DELETE", USERS + "/{user_id}", "deactivateUserById", NOTHING, parts=BY_ID),
    Route("PUT", USERS + "/{user_id}/re-activate", "reactivateUserById", Success[Literal[1]], parts=BY_ID),
    Route("POST", "/users/{user_id}/force-logout", "forceLogoutById", NOTHING, parts=BY_ID_OR_EXTERNAL_ID),
    Route(
        "POST", USERS + "/{user_id}/force-logout", "forceLogoutById", NOTHING, parts=BY_ID_OR_EXTERNAL_ID
    ),
    Route(
        "POST", PLANS, "createPlan", Success[StorePlan], 201, body=PLAN,
        links=Links(PLANS + "/{plan_id}", {"path.plan_id": "$response.body#/data/id"}),
    ),
    Route("GET", PLANS, "listPlans", Success[Paginated[StorePlan]], source=_paginator, query=PAGE),
    Route("GET", PLANS + "/{plan_id}", "getPlan", Success[StorePlan], parts=PLAN_ID),
    Route("PUT", PLANS + "/{plan_id}", "updatePlan", status=204, parts=PLAN_ID, body=PLAN),
    Route(
        "GET", "/auth-sessions", "listAuthSessions", StoreSessions, source=_with_limit,
        query={
            "user_id": Member("userId", INTEGER, narrows=True),
            "external_id": Member("externalId", narrows=True),
            "per_page": Member("limit", INTEGER), "cursor": Member("after"),
        },
    ),
    Route("DELETE", "/auth-sessions/{id}", "endSession", NOTHING, parts={"id": (Member("id", ID),)}),
    Route("DELETE", "/auth-sessions/users/{user_id}", "forceLogoutById", NOTHING, parts=BY_ID),
)  # fmt: skip

WIRE = RestWire(
    name="publica",
    description="publica.la: users, plans and sessions of a store, which is the key's default instance.",
    prefixes=("/integration-api/",),
    base="/integration-api/v1",
    either_slash=True,
    key_headers=("X-User-Token", "x-api-key"),
    routes=ROUTES,
    errors={Invalid: 422, Conflict: 422},
    render_error=_render_error,
    error_type=lambda status: InvalidMembers if status == 422 else Message,
    no_object=lambda: Invalid.of([FieldError("body", "must be an object")]),
    omitted=("", None),
    before=_count,
    headers=_limit_headers,
    header_schemas={
        f"X-RateLimit-{name}": {"type": "integer", "minimum": 0} for name in ("Limit", "Remaining", "Reset")
    },
)
