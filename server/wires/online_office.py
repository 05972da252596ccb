"""The member platform's wire (seeds/001): /main-app/... and /online-office/..., also beneath /api2."""

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    UnknownMethod,
    UserDeleted,
    WrongType,
    WrongVerb,
)  # fmt: skip
from server.base.strict import whole
from server.wires.http import (
    DISPATCHER,
    Front,
    answer,
    authenticate,
    read_body,
    require_json,
    run,
)  # fmt: skip
from server.wires.parsing import parse_long_json

ERROR_CODES: dict[type[ServiceError], int] = {
    ServiceError: 500,
    Invalid: 400,
    Malformed: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    UnknownMethod: 404,
    NoRoute: 404,
    WrongVerb: 405,
    BadExpectation: 417,
    TooSlow: 408,
    Conflict: 409,
    StillRunning: 409,
    TooLarge: 413,
    WrongType: 415,
    IdempotencyConflict: 422,
    TooMany: 429,
    Unavailable: 503,
}
"""Kind of error -> errorCode; the HTTP status is 200 but for keys, addresses, limits and a service away."""
AS_STATUS = (NoRoute, StillRunning)
"""Kinds whose errorCode is the HTTP status although others with the same one are answered with 200."""
STATUSES = {400: 200, 403: 200, 404: 200, 409: 200}

LOCALES = {"en": "en_US", "ru": "ru_RU"}
# The messages a person may come to see; those for developers stay in English.
RUSSIAN = {
    "Login or password is incorrect": "Неверный логин или пароль",
    "not-allowed": "Доступ запрещён",
    "not found": "Не найдено",
    "internal error": "Внутренняя ошибка",
    "is required": "обязательное поле",
    "is not a valid e-mail address": "неверный адрес электронной почты",
    CONSTRAINTS["users_email"][2]: "Пользователь с таким логином уже существует",
    UserDeleted.__doc__ or "": "Пользователь с таким логином удалён: восстановите его или удалите навсегда",
    "the account has no position in this tree": "У аккаунта нет позиции в этом дереве",
    "is no account with a place in tree 0": "не является аккаунтом с позицией в дереве 0",
    "the code is not valid or has expired": "Код неверен или просрочен",
    "too many calls, try again later": "Слишком много запросов, попробуйте позже",
    "too many failed logins, try again later": "Слишком много неудачных попыток входа, попробуйте позже",
    "the instance has no seat left (maxUsers)": "Достигнуто максимальное число пользователей",
    "the service is busy or its database is away, try again": "Сервис занят, попробуйте ещё раз",
}


def _locale(request: web.Request) -> str:
    language = request.headers.get("Locale", "")[:2].lower()
    return LOCALES.get(language, "en_US")


def _worded(message: str, locale: str) -> str:
    return RUSSIAN.get(message, message) if locale == "ru_RU" else message


def envelope(
    locale: str, payload: Mapping[str, Any] | None = None, error: ServiceError | None = None, code: int = 0
) -> dict[str, Any]:
    """The platform's envelope: around a payload, or around an error with a non-zero code."""
    message, errors = "", []
    if error is not None:
        message = _worded(error.message, locale)
        if error.fields:
            worded = [FieldError(field, _worded(text, locale)) for field, text in error.fields]
            message = "; ".join(f"{field}: {text}" for field, text in worded)
            errors = [failed._asdict() for failed in worded]
            if len(worded) == 1 and error.message == error.fields[0].message:
                message = worded[0].message  # a duplicate: the message says it all
    return {
        "errorCode": code,
        "errorMessage": message,
        "primary": {
            "success": error is None, "message": message, "payload": payload or {}, "errors": errors,
        },
        "secondary": [],
        "locale": locale,
    }  # fmt: skip


def error_response(request: web.Request, error: ServiceError) -> web.Response:
    """An error in the envelope."""
    code = next(ERROR_CODES[kind] for kind in type(error).__mro__ if kind in ERROR_CODES)
    status = code if isinstance(error, AS_STATUS) else STATUSES.get(code, code)
    return answer(status, orjson.dumps(envelope(_locale(request), error=error, code=code)))


class Other(NamedTuple):
    """Another method for another form of the same function."""

    method: str
    # The member that asks for it: by being there, or, where it is a flag, by being 1.
    member: str
    is_flag: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """One function of the document: where it is, which method serves it, and how they say things."""

    verbs: tuple[str, ...]
    path: str
    method: str
    # The document's name of a param -> the method's.
    names: Mapping[str, str]
    # From the method's result to the payload.
    payload: Callable[[Any], Mapping[str, Any]]
    # Params that are integers, and booleans written as 0 and 1.
    integers: frozenset[str] = frozenset()
    flags: frozenset[str] = frozenset()
    # Whether the caller says what type of user is meant, and the member without which it need not.
    typed: bool = False
    typed_with: str | None = None
    other: Other | None = None


def _auth(member: Any) -> dict[str, Any]:
    """A member as payload.auth: the auth record and its user are one and the same here."""
    profile = [{"field": {"alias": alias}, "value": value} for alias, value in member["profile"].items()]
    if member["avatar"]:
        profile.append({"field": {"alias": "avatar"}, "value": member["avatar"]})
    return {
        "auth": {
            "id": member["id"], "login": member["login"], "type": "member", "language": member["language"],
            "isActive": member["isActive"], "isConfirmed": member["isConfirmed"],
            "user": {"id": member["id"], "profile": profile, "account": member["account"]},
        }
    }  # fmt: skip


def _existence(result: Any) -> dict[str, Any]:
    return {"exist": result["exists"]} | (_auth(result["member"]) if result["member"] else {})


def _created(result: Any) -> dict[str, Any]:
    return _auth(result["member"]) | ({"password": result["password"]} if result["password"] else {})


def _document(result: Any) -> dict[str, Any]:
    outcome = result["result"]
    whole: dict[str, Any] = {}
    if outcome is not None:
        failed = None if outcome["success"] else NotFound(outcome["message"])
        payload = _auth(outcome["member"]) if outcome["member"] else None
        whole = envelope("en_US", payload, failed, 0 if failed is None else 404)
    context = {"entity": result["entity"], "action": result["action"]}
    return {"document": {"id": result["id"], "context": context, "result": whole}}


def _nothing(result: Any) -> dict[str, Any]:
    return {}


def _as_is(result: Any) -> dict[str, Any]:
    return dict(result)


def _as_list(result: Any) -> dict[str, Any]:
    return {"list": result}


ROUTES = (
    Route(
        ("GET",), "user/check-auth", "checkAuth",
        # clientAddress is not in the document: whoever sends it spares its users the delays of others.
        {name: name for name in ("login", "password", "clientAddress")}, _auth, typed=True,
    ),
    Route(("GET",), "user/exists", "userExists", {"login": "login"}, _existence, typed=True),
    Route(("GET",), "user/get", "getUserById", {"id": "id"}, _auth, integers=frozenset({"id"})),
    Route(
        ("GET",), "user/search", "searchUsers",
        {name: name for name in ("searchText", "accountId", "treeId", "sortBy", "perPage", "pageNumber")},
        _as_is, integers=frozenset({"accountId", "treeId", "perPage", "pageNumber"}),
    ),
    Route(
        ("POST",), "user/create", "createMember",
        {name: name for name in ("login", "password", "sponsorId", "confirmationUrl", "profile", "language")},
        _created, typed=True,
    ),
    Route(
        ("POST", "DELETE"), "user/delete", "deleteUserById", {"authId": "id", "withAccount": "withAccount"},
        _nothing, flags=frozenset({"withAccount"}),
    ),
    Route(
        ("POST",), "user/mail-confirm", "confirmEmail", {"code": "code", "email": "email"},
        _nothing, flags=frozenset({"force"}), other=Other("forceConfirmEmail", "force", is_flag=True),
    ),
    Route(
        ("POST",), "user/profile-update", "updateProfile",
        {"authId": "id", "userId": "id", "profile": "profile"}, _as_is,
    ),
    Route(
        ("DELETE",), "user/remove-avatar", "removeAvatar", {"id": "id"}, _nothing,
        integers=frozenset({"id"}),
    ),
    Route(
        ("POST",), "user/reset-password", "requestPasswordReset",
        {"email": "email", "confirmationUrl": "confirmationUrl"}, _nothing,
    ),
    Route(
        ("POST",), "user/set-password", "setPassword",
        {"id": "id", "userId": "id", "newPassword": "newPassword", "code": "code"}, _nothing, typed=True,
        typed_with="userId", other=Other("resetPasswordWithCode", "code"),
    ),
    Route(
        ("POST",), "user/change-language", "changeLanguage", {"authId": "id", "language": "language"},
        _nothing,
    ),
    Route(("GET",), "document/get", "getDocument", {"id": "id"}, _document),
    Route(("GET",), "profile-field/get-list", "listProfileFields", {}, _as_list),
    Route(
        ("POST",), "account/add-to-tree", "addToTree",
        {"accountID": "accountId", "sponsorPositionId": "sponsorPositionId", "treeId": "treeId"}, _as_is,
    ),
    Route(
        ("GET",), "account/get-branch", "getBranch",
        {name: name for name in ("accountId", "treeId", "depth", "limit")}, _as_list,
        integers=frozenset({"accountId", "treeId", "depth", "limit"}),
    ),
)  # fmt: skip


async def _given(request: web.Request, route: Route, share: int) -> dict[str, Any]:
    """The params of a request: the query of a GET, else (and beside it) a JSON object in the body.

    Null for a member of this function is the same as leaving the member out.
    """
    given: dict[str, Any] = {}
    for name, value in request.query.items():
        if name in given:
            raise Invalid.of([FieldError(name, "is given twice")])
        # A query knows text alone; what is no number is left for the method to refuse.
        whole = name in route.integers and re.fullmatch(r"-?[0-9]{1,19}", value)
        given[name] = int(value) if whole else value
    if request.body_exists:
        require_json(request)
        body = await parse_long_json(
            await read_body(
                request,
                with_picture=request.app[DISPATCHER].methods[route.method].with_picture,
                share=share,
            )
        )
        if not isinstance(body, dict):
            raise Invalid("the body must be an object", code="invalid_params")
        known = {*route.names, *route.flags, *(["type"] if route.typed else [])}
        given |= {name: value for name, value in body.items() if value is not None or name not in known}
    return given


def _translated(
    route: Route, given: dict[str, Any], typed_by_gateway: bool
) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The method to call, its params, and the document's name for each of them."""
    failures = []
    if route.typed and "type" in given:
        if not _is_type(route, given.pop("type")):
            failures.append(FieldError("type", "must be member"))
    elif _needs_type(route, given, typed_by_gateway):
        failures.append(FieldError("type", "is required"))
    for flag in route.flags & given.keys():
        if given[flag] not in (0, 1):
            failures.append(FieldError(flag, "must be 0 or 1"))
        given[flag] = bool(given[flag])
    method, other = route.method, route.other
    if other is not None and (given.pop(other.member, False) if other.is_flag else other.member in given):
        method = other.method
    params: dict[str, Any] = {}
    back: dict[str, str] = {}
    for name, value in given.items():
        target = route.names.get(name, name)
        if name not in route.names:
            failures.append(FieldError(name[:64], "is not a member of this call"))
        elif target in params:
            failures.append(FieldError(name, f"stands for the same as {back[target]}"))
        params[target], back[target] = value, name
    if failures:
        raise Invalid.of(failures)
    for name, target in route.names.items():
        back.setdefault(target, name)
    return method, params, back


def _is_type(route: Route, given: object) -> bool:
    """Whether this stands for a member; where the document has an integer, any does."""
    by_number = route.typed_with is not None and isinstance(whole(given), int) and not isinstance(given, bool)
    return given == "member" or by_number


def _needs_type(route: Route, given: Container[str], typed_by_gateway: bool) -> bool:
    return route.typed and not typed_by_gateway and (route.typed_with is None or route.typed_with in given)


def _handler(route: Route, typed_by_gateway: bool) -> Callable[[web.Request], Any]:
    async def handle(request: web.Request) -> web.Response:
        caller = await authenticate(request, "x-api-key", "Token")
        given = await _given(request, route, caller.share)
        method, params, back = _translated(route, given, typed_by_gateway)
        try:
            result = await run(request, caller, method, params)
        except (Invalid, Conflict) as error:
            raise _renamed(error, back) from error
        return answer(200, orjson.dumps(envelope(_locale(request), route.payload(result))))

    return handle


def _renamed(error: ServiceError, back: Mapping[str, str]) -> ServiceError:
    """The same error in the document's names of the params."""
    if not error.fields:
        return error
    fields = []
    for field, message in error.fields:
        head, dot, rest = field.partition(".")
        fields.append(FieldError(back.get(head, head) + dot + rest, message))
    if error.message == error.fields[0].message:  # it says it all, as that of a wrong code does
        return type(error)(error.message, code=error.code, fields=fields)
    renamed = Invalid.of(fields)
    renamed.code = error.code
    return renamed


GATEWAYS = ("main-app", "online-office")
PREFIXES = ("", "/api2")


def add_routes(router: web.UrlDispatcher) -> None:
    """Every function on both gateways, with and without /api2."""
    for prefix in PREFIXES:
        for gateway in GATEWAYS:
            for route in ROUTES:
                handle = _handler(route, typed_by_gateway=gateway == "online-office")
                for verb in route.verbs:
                    router.add_route(verb, f"{prefix}/{gateway}/{route.path}", handle)


FRONTS = tuple(
    Front(
        "online_office", prefix, add_routes if prefix == "/main-app" else lambda _: None, error_response
    )
    for prefix in ("/main-app", "/online-office", "/api2")
)  # fmt: skip
