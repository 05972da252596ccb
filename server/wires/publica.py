"""publica.la's wire (seeds/003): /integration-api/v1/... A store is the key's default instance."""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlencode

import orjson
from aiohttp import web

from server.base.errors import (
    CONSTRAINTS,
    BadExpectation,
    Conflict,
    FieldError,
    Forbidden,
    IdempotencyConflict,
    Invalid,
    Malformed,
    NoRoute,
    NotFound,
    ServiceError,
    StillRunning,
    TooLarge,
    TooMany,
    TooSlow,
    Unauthenticated,
    Unavailable,
    UserDeleted,
    WrongType,
    WrongVerb,
)  # fmt: skip
from server.tenants.limits import Allowance, RateLimiter
from server.wires.http import (
    SETTINGS,
    Front,
    abide,
    answer,
    authenticate,
    read_body,
    require_json,
    run,
)  # fmt: skip
from server.wires.parsing import parse_long_json

ERRORS: dict[type[ServiceError], tuple[int, str | None]] = {
    ServiceError: (500, "Server Error"),
    Invalid: (422, None),
    Malformed: (400, None),
    Conflict: (422, None),
    IdempotencyConflict: (422, None),
    StillRunning: (409, None),
    Unauthenticated: (401, "Unauthenticated."),
    Forbidden: (403, "This action is unauthorized."),
    NotFound: (404, "Object not found"),
    NoRoute: (404, "Not Found"),
    WrongVerb: (405, None),
    TooSlow: (408, None),
    TooLarge: (413, None),
    WrongType: (415, None),
    BadExpectation: (417, None),
    TooMany: (429, "Too Many Attempts."),
    Unavailable: (503, None),
}
"""Kind of error -> status and message; None: the error's own message."""
INVALID = "The given data was invalid."
WORDS = {
    CONSTRAINTS["users_email"][2]: "has already been taken",
    CONSTRAINTS["users_external_id"][2]: "has already been taken",
    UserDeleted.__doc__ or "": "is that of a deleted user: restore or purge that user first",
}

LIMITER = web.AppKey("PUBLICA_LIMITER", RateLimiter)
"""This wire's own limit, beside that of all wires."""
ALLOWANCE = web.RequestKey("ALLOWANCE", Allowance)
PARAMS = web.RequestKey("PARAMS", dict[str, Any])
"""What the method was given."""


def _limit_headers(request: web.Request) -> dict[str, str]:
    allowance = request.get(ALLOWANCE)
    if allowance is None:
        return {}
    return {
        "X-RateLimit-Limit": str(allowance.limit),
        "X-RateLimit-Remaining": str(allowance.remaining),
        # The second, in Unix time, from which on the limit holds anew.
        "X-RateLimit-Reset": str(int(time.time()) + allowance.resets_in),
    }


def error_response(request: web.Request, error: ServiceError) -> web.Response:
    """An error as the store's clients know it: a message and, for bad members, what is wrong with each."""
    status, message = next(ERRORS[kind] for kind in type(error).__mro__ if kind in ERRORS)
    body: dict[str, Any] = {"message": message or error.message}
    if status == 422 and error.fields:
        errors: dict[str, list[str]] = {}
        for name, told in error.fields:
            worded = WORDS.get(told, told)
            what = "" if name == "params" else f"The {re.sub('[_.]', ' ', name)} "
            errors.setdefault(name, []).append(f"{what}{worded}.")
        body = {"message": INVALID, "errors": errors}
    elif status == 422:
        status = 400  # nothing to name: it is about the request, not about its members
    return answer(status, orjson.dumps(body), _limit_headers(request))


Kind = Literal["text", "integer", "flag", "amounts", "email", "external_id"]


@dataclass(frozen=True, slots=True)
class Member:
    """What a member, a query parameter or a part of the path is to the method."""

    param: str
    # integer: also written as a string; flag: also 1 or 0; amounts: an object of integers.
    # email and external_id: a part of the path that can be one.
    kind: Kind = "text"
    # Null, or an empty string, is a value of its own and not the same as leaving it out.
    nullable: bool = False
    # Narrows a list: empty is no value, lest everybody's rows are given for one user's.
    narrows: bool = False


Form = Callable[[Any, web.Request], Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True)
class Route:
    """One function of the document: where it is, which method serves it, and how they say things."""

    verb: str
    path: str
    method: str
    # From the method's result to the body; None: without one.
    form: Form
    status: int = 200
    # A part of the path -> everything that it may be; those that it can be go to the method.
    parts: Mapping[str, tuple[Member, ...]] = field(default_factory=dict)
    query: Mapping[str, Member] = field(default_factory=dict)
    body: Mapping[str, Member] = field(default_factory=dict)


def _success(data: Any) -> dict[str, Any]:
    return {"CODE": "success", "data": data}


def _empty(result: Any, request: web.Request) -> dict[str, Any]:
    """Success, with nothing to say."""
    return _success([])


def _one(result: Any, request: web.Request) -> dict[str, Any]:
    """Success, as a number."""
    return _success(1)


def _no_body(result: Any, request: web.Request) -> None:
    """Nothing at all."""


def _moment(seconds: int | None) -> dict[str, Any] | None:
    """A time as a new user's answer has it."""
    if seconds is None:
        return None
    date = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return {"timestamp": seconds, "date": date, "timezone": "UTC"}


def _iso(seconds: int | None) -> str | None:
    """A time as every other answer has it."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000000Z")


def _created_user(user: Any, request: web.Request) -> dict[str, Any]:
    """A new user."""
    return _success(
        {
            "id": user["id"], "email": user["email"], "uuid": user["uuid"], "picture": user["picture"],
            "admin": user["isAdmin"], "plan_admin": user["isPlanAdmin"],
            "only_sees_readable": user["onlySeesReadable"], "sessions_limit": user["sessionsLimit"],
            "created_at": _moment(user["createdAt"]), "updated_at": _moment(user["updatedAt"]),
            "deleted_at": _moment(user["deactivatedAt"]),
        }
    )  # fmt: skip


def _listed_user(user: Any) -> dict[str, Any]:
    # What belongs to reading and sales is not known here: none of it, in the documented types.
    # Sessions are listed where they can be ended, so that they are null here as in the document.
    plans = [
        {
            "id": plan["id"], "plan_id": plan["planId"], "name": plan["name"],
            "valid_from": plan["validFrom"], "valid_to": plan["validTo"], "state": plan["state"],
        }
        for plan in user["plans"]
    ]  # fmt: skip
    return {
        "id": user["id"], "uuid": user["uuid"], "admin": user["isAdmin"], "plan_admin": user["isPlanAdmin"],
        "email": user["email"], "sessions_limit": user["sessionsLimit"],
        "only_sees_readable": int(user["onlySeesReadable"]), "picture": user["picture"],
        "created_at": _iso(user["createdAt"]), "updated_at": _iso(user["updatedAt"]),
        "deleted_at": _iso(user["deactivatedAt"]), "purchased_issues_with_cancelled_count": 0,
        "user_plans_count": user["plansCount"], "can_be_edited": True,
        "created_at_date_string": (_iso(user["createdAt"]) or "")[:10], "impersonate": "", "sessions": None,
        "ip_ranges": [], "referrers": [], "purchased_issues_with_cancelled": [], "user_plans": plans,
    }  # fmt: skip


def _user(user: Any, request: web.Request) -> dict[str, Any]:
    """A user as in a list."""
    return _success(_listed_user(user))


def _users(result: Any, request: web.Request) -> dict[str, Any]:
    """A page of users."""
    return _success(
        {"paginator": _paginator(result, [_listed_user(user) for user in result["users"]], request)}
    )


def _plan_of(plan: Any) -> dict[str, Any]:
    names = {param.param: name for name, param in PLAN.items()}
    shown = {"id": plan["id"]} | {names[param]: plan[param] for param in plan if param in names}
    return shown | {"created_at": _iso(plan["createdAt"]), "updated_at": _iso(plan["updatedAt"])}


def _plan(plan: Any, request: web.Request) -> dict[str, Any]:
    """A plan."""
    return _success(_plan_of(plan))


def _plans(result: Any, request: web.Request) -> dict[str, Any]:
    """A page of plans."""
    return _success({"paginator": _paginator(result, [_plan_of(plan) for plan in result["plans"]], request)})


def _paginator(result: Any, data: list[Any], request: web.Request) -> dict[str, Any]:
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


def _sessions(result: Any, request: web.Request) -> dict[str, Any]:
    """A page of sessions. Who logs users in is another server: its address and browser are not theirs."""
    data = [
        {
            "id": str(session["id"]), "user_id": session["userId"], "user_email": session["email"],
            "user_external_id": session["externalId"], "ip_address": None, "user_agent": None,
            "created_at": _iso(session["createdAt"]), "expires_at": _iso(session["expiresAt"]),
        }
        for session in result["sessions"]
    ]  # fmt: skip
    pagination = {
        "per_page": request[PARAMS].get("limit", 100), "next_cursor": result["next"],
        "has_more": result["next"] is not None,
    }  # fmt: skip
    return _success(data) | {"pagination": pagination}


USER = {
    "email": Member("email"),
    "external_id": Member("externalId"),
    "new_password": Member("newPassword"),
    "sessions_limit": Member("sessionsLimit", "integer", nullable=True),
    "assign_new_plan": Member("planId", "integer"),
    "new_plan_custom_valid_to": Member("planValidTo"),
    "admin": Member("isAdmin", "flag"),
    "plan_admin": Member("isPlanAdmin", "flag"),
    "only_sees_readable": Member("onlySeesReadable", "flag"),
}
PLAN = {
    "type": Member("type"),
    "name": Member("name"),
    "details": Member("details"),
    "duration": Member("duration", "integer", nullable=True),
    "recommended": Member("recommended", "flag"),
    "private": Member("isPrivate", "flag"),
    "assigns_collections": Member("assignsCollections", "flag"),
    "concurrency_limit": Member("concurrencyLimit", "integer", nullable=True),
    "collections": Member("collections"),
    "download_files": Member("downloadFiles", "flag"),
    "prices": Member("prices", "amounts"),
    "free_trial": Member("freeTrial", "flag"),
    "free_trial_days": Member("freeTrialDays", "integer", nullable=True),
}
PAGE = {
    "page": Member("page", "integer"), "per_page": Member("perPage", "integer"), "query": Member("query"),
}  # fmt: skip
ID = (Member("id", "integer"),)
ID_OR_EXTERNAL_ID = (Member("id", "integer"), Member("externalId", "external_id"))
ANY_NAME = (Member("id", "integer"), Member("email", "email"), Member("externalId", "external_id"))

ROUTES = (
    Route("POST", "dashboard/users", "createStoreUser", _created_user, body=USER),
    Route(
        "GET", "dashboard/users", "listStoreUsers", _users,
        query=PAGE | {"email": Member("query", narrows=True)},
    ),
    Route("GET", "dashboard/users/{email}", "getStoreUser", _user, parts={"email": ANY_NAME}),
    Route(
        "PUT", "dashboard/users/{user_id}", "updateStoreUser", _no_body, 204, parts={"user_id": ID},
        body=USER | {"user_plan_name": Member("planName")},
    ),
    Route("DELETE", "dashboard/users/{id}", "deactivateUserById", _empty, parts={"id": ID}),
    Route(
        "PUT", "dashboard/users/{user_id}/re-activate", "reactivateUserById", _one, parts={"user_id": ID}
    ),
    Route(
        "POST", "users/{user_id}/force-logout", "forceLogoutById", _empty,
        parts={"user_id": ID_OR_EXTERNAL_ID},
    ),
    Route(
        "POST", "dashboard/users/{id}/force-logout", "forceLogoutById", _empty,
        parts={"id": ID_OR_EXTERNAL_ID},
    ),
    Route("POST", "dashboard/plans", "createPlan", _plan, 201, body=PLAN),
    Route("GET", "dashboard/plans", "listPlans", _plans, query=PAGE),
    Route("GET", "dashboard/plans/{plan_id}", "getPlan", _plan, parts={"plan_id": ID}),
    Route("PUT", "dashboard/plans/{plan_id}", "updatePlan", _no_body, 204, parts={"plan_id": ID}, body=PLAN),
    Route(
        "GET", "auth-sessions", "listAuthSessions", _sessions,
        query={
            "user_id": Member("userId", "integer", narrows=True),
            "external_id": Member("externalId", narrows=True),
            "per_page": Member("limit", "integer"), "cursor": Member("after"),
        },
    ),
    Route("DELETE", "auth-sessions/{id}", "endSession", _empty, parts={"id": ID}),
    Route("DELETE", "auth-sessions/users/{user_id}", "forceLogoutById", _empty, parts={"user_id": ID}),
)  # fmt: skip


_INTEGER = re.compile(r"-?[0-9]{1,19}")
_ID = re.compile(r"[1-9][0-9]{0,18}")


def _read(member: Member, value: Any) -> Any:
    """A value as the method takes it; what is none of the documented forms is left for it to refuse."""
    match member.kind, value:
        case "integer", str() if _INTEGER.fullmatch(value):
            return int(value)
        case "flag", int() | float() if value in (0, 1):
            return bool(value)
        case "amounts", dict():
            return {name: _read(Member(name, "integer"), amount) for name, amount in value.items()}
    return value


def _named(parts: Mapping[str, tuple[Member, ...]], request: web.Request) -> dict[str, Any]:
    """What the path names.

    Raises:
        NotFound: it cannot be the name of anything.
    """
    params: dict[str, Any] = {}
    for part, members in parts.items():
        text = request.match_info[part]
        for member in members:
            if member.kind == "integer" and _ID.fullmatch(text) and int(text) < 2**63:
                params[member.param] = int(text)
            elif (member.kind == "email" and "@" in text and "\0" not in text and len(text) <= 254) or (
                member.kind == "external_id" and len(text) <= 64
            ):
                params[member.param] = text
    if parts and not params:
        raise NotFound
    return params


async def _body(request: web.Request) -> dict[str, Any]:
    """The JSON object of a request; none is an empty one, whose required members are then missing."""
    body = await read_body(request) if request.body_exists else b""
    if not body:
        return {}
    require_json(request)
    parsed = await parse_long_json(body)
    if not isinstance(parsed, dict):
        raise Invalid.of([FieldError("body", "must be an object")])
    return parsed


def _translated(members: Mapping[str, Member], given: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    failures = []
    for name, value in given:
        member = members.get(name)
        if member is None:
            failures.append(FieldError(name[:64], "is not a member of this call"))
        elif value == "" and member.narrows:
            failures.append(FieldError(name, "must not be empty"))
        elif value in ("", None) and not member.nullable:
            continue
        elif member.param in params:
            failures.append(FieldError(name, "is given twice"))
        else:
            params[member.param] = None if value == "" else _read(member, value)
    if failures:
        raise Invalid.of(failures)
    return params


def _renamed(error: ServiceError, route: Route) -> ServiceError:
    """The same error in the document's names; a bad name in the path is the name of nothing."""
    members = {**route.query, **route.body}
    names = {member.param: name for name, member in reversed(members.items())}
    in_path = {member.param for part in route.parts.values() for member in part} - set(names)
    fields = []
    for name, message in error.fields:
        head, dot, rest = name.partition(".")
        if head in in_path:
            return NotFound()
        fields.append(FieldError(names.get(head, head) + dot + rest, message))
    return type(error)(error.message, code=error.code, fields=fields)


def _handler(route: Route) -> Callable[[web.Request], Any]:
    async def handle(request: web.Request) -> web.Response:
        caller = await authenticate(request, "X-User-Token", "x-api-key")
        allowance = request.app[LIMITER].spend(caller.id)
        if allowance is not None:
            request[ALLOWANCE] = allowance
            abide(request, "publica", allowance)
        params = _named(route.parts, request)
        if route.body:
            params |= _translated(route.body, (await _body(request)).items())
        elif route.query:
            params |= _translated(route.query, request.query.items())
        request[PARAMS] = params
        try:
            result = await run(request, caller, route.method, params)
        except (Invalid, Conflict) as error:
            raise _renamed(error, route) from error
        body = route.form(result, request)
        rendered = None if body is None else orjson.dumps(body)
        return answer(route.status, rendered, _limit_headers(request))

    return handle


def add_routes(router: web.UrlDispatcher) -> None:
    """Every function, with a trailing slash and without it."""
    for route in ROUTES:
        handle = _handler(route)
        for end in ("", "/"):
            router.add_route(route.verb, f"/integration-api/v1/{route.path}{end}", handle)


FRONT = Front("publica", "/integration-api/", add_routes, error_response)
