"""The member platform's wire (seeds/001): /main-app/... and /online-office/..., also under /api2."""

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Annotated, Any, Generic, Literal, TypeVar

from aiohttp import web
from pydantic import Field

from server.base.errors import (
    CONSTRAINTS,
    Conflict,
    FieldError,
    Forbidden,
    Invalid,
    Malformed,
    NotFound,
    ServiceError,
    UnknownMethod,
    UserDeleted,
)
from server.base.strict import whole
from server.wires.mapping import CompletedCall, Links, MethodResult, RestWire, Route, status_of
from server.wires.params import FLAG, INTEGER, Format, Member, same
from server.wires.rendering import WHOLE, AnswerModel, Computed, Empty, From, renderer
from server.wires.schemas import one_of

T = TypeVar("T")

ERROR_CODES: dict[type[ServiceError], int] = {Conflict: 409}
"""Kind of error -> errorCode, if it differs from the HTTP status at /rpc."""
STATUSES: dict[type[ServiceError], int] = dict.fromkeys(
    (Invalid, Malformed, Forbidden, NotFound, UnknownMethod, Conflict), 200
)
"""Kind of error -> HTTP status: 200 for errors in the params."""

LOCALES = {"en": "en_US", "ru": "ru_RU"}
# Messages for end users. Messages for developers stay in English.
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


def _translated(message: str, locale: str) -> str:
    return RUSSIAN.get(message, message) if locale == "ru_RU" else message


# --- answers --------------------------------------------------------------------------------------------

Text = Annotated[str, Field(min_length=1)]
Locale = Literal["en_US", "ru_RU"]


class NoPayload(AnswerModel):
    """Empty."""


class FieldAlias(AnswerModel):
    """The name of a profile field."""

    alias: str


class ProfileEntry(AnswerModel):
    """A profile field and its value."""

    field: Annotated[FieldAlias, WHOLE]
    value: str | int | float


class AuthAccount(AnswerModel):
    """The account of a user."""

    id: int
    title: str


def _profile(member: Any) -> list[dict[str, Any]]:
    profile = [{"alias": alias, "value": value} for alias, value in member["profile"].items()]
    return profile + ([{"alias": "avatar", "value": member["avatar"]}] if member["avatar"] else [])


class AuthUser(AnswerModel):
    """The user of an auth record."""

    id: int
    profile: Annotated[list[ProfileEntry], Computed(_profile)]
    account: AuthAccount | None


class Auth(AnswerModel):
    """The auth record of a member."""

    id: int
    login: str
    type: Literal["member"]
    language: str
    isActive: bool
    isConfirmed: bool
    user: Annotated[AuthUser, WHOLE]


class AuthPayload(AnswerModel):
    """A member."""

    auth: Annotated[Auth, WHOLE]


class CreatedPayload(AnswerModel):
    """A new member, and its password if the server generated it."""

    auth: Annotated[Auth, From("member")]
    password: str | None = None


class ExistencePayload(AnswerModel):
    """Whether the member exists, and the member."""

    exist: Annotated[bool, From("exists")]
    auth: Annotated[Auth | None, From("member")] = None


class Listed(AnswerModel, Generic[T]):
    """A list of everything."""

    list: Annotated[T, WHOLE]


class FailedField(AnswerModel):
    """An error of one member of the request."""

    field: str
    message: str


class Succeeding(AnswerModel, Generic[T]):
    """The outcome of a call."""

    success: Literal[True]
    message: Literal[""]
    payload: T
    errors: Empty


class Succeeded(AnswerModel, Generic[T]):
    """The platform's envelope around a payload."""

    errorCode: Literal[0]
    errorMessage: Literal[""]
    primary: Annotated[Succeeding[T], WHOLE]
    secondary: Empty
    locale: Locale


class Failing(AnswerModel):
    """The outcome of a failed call."""

    success: Literal[False]
    message: Text
    payload: NoPayload
    errors: list[FailedField]


class Failure(AnswerModel):
    """The platform's envelope around an error."""

    errorCode: Annotated[int, Field(ge=400, le=599)]
    errorMessage: Annotated[Text, From("message")]
    primary: Annotated[Failing, WHOLE]
    secondary: Empty
    locale: Locale


_failure = renderer(Failure)
_member = renderer(Succeeded[AuthPayload])
_no_payload = renderer(Succeeded[NoPayload])


def _outcome(outcome: Any) -> Any:
    """The outcome of a queued call: empty until it is done, then an envelope."""
    if outcome is None:
        return {}
    if not outcome["success"]:
        return _failed(NotFound(outcome["message"]), 404, "en_US")
    render = _member if outcome["member"] else _no_payload
    return render({"payload": outcome["member"], "locale": "en_US"})


class DocumentContext(AnswerModel):
    """The kind of a queued call."""

    entity: str
    action: str


class DocumentBody(AnswerModel):
    """A queued call and its outcome."""

    id: str
    context: Annotated[DocumentContext, WHOLE]
    result: Annotated[
        Any,
        Computed(_outcome),
        From("result"),
        Field(description="Empty until it is done, then an envelope."),
    ]


class DocumentPayload(AnswerModel):
    """A document."""

    document: Annotated[DocumentBody, WHOLE]


def _failed(error: ServiceError, code: int, locale: str) -> Any:
    """The envelope around an error."""
    message = _translated(error.message, locale)
    fields = [FieldError(field, _translated(text, locale)) for field, text in error.fields]
    if fields:
        message = "; ".join(f"{field}: {text}" for field, text in fields)
        if len(fields) == 1 and error.message == error.fields[0].message:
            message = fields[0].message  # as for a duplicate
    errors = [field._asdict() for field in fields]
    return _failure(
        {"errorCode": code, "message": message, "errors": errors, "payload": {}, "locale": locale}
    )


def _render_error(request: web.Request, error: ServiceError, status: int) -> tuple[int, Any]:
    return status, _failed(error, status_of(type(error), ERROR_CODES), _locale(request))


def _envelope(call: CompletedCall) -> dict[str, Any]:
    return {"payload": call.result, "locale": _locale(call.request)}


# --- requests -------------------------------------------------------------------------------------------


def _parse_type(given: Any) -> str:
    if given != "member":
        raise ValueError("must be member")
    return "member"


def _parse_type_or_number(given: Any) -> str:
    # The document's table has an integer here: any integer means member.
    is_integer = isinstance(whole(given), int) and not isinstance(given, bool)
    return "member" if is_integer else _parse_type(given)


def _parse_flag(given: Any) -> bool:
    if given not in (0, 1):
        raise ValueError("must be 0 or 1")
    return bool(given)


TYPE = Format(_parse_type, lambda _: one_of("member"))
TYPE_OR_NUMBER = Format(
    _parse_type_or_number,
    lambda _: {"anyOf": [one_of("member"), {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}]},
)
ZERO_OR_ONE = Format(_parse_flag, FLAG.schema)


def _type(is_filled_in: bool, format: Format = TYPE, beside: str | None = None) -> dict[str, Member]:
    """The member `type`, which is required unless the gateway fills it in.

    Args:
        beside: it is required only if this member is given.
    """

    def needed(given: Container[str]) -> bool:
        return not is_filled_in and (beside is None or beside in given)

    return {"type": Member(None, format, needed=needed)}


def _route(
    verb: str, path: str, method: str, result: Any, members: Mapping[str, Member], *numbers: str, **more: Any
) -> Route:
    """A route that takes its members in the query and in a JSON body, and answers in an envelope.

    Args:
        numbers: the integers among them, which are text in a query.
    """
    query = {name: replace(one, format=INTEGER) if name in numbers else one for name, one in members.items()}
    return Route(verb, path, method, result, query=query, body=members, source=_envelope, **more)


def _routes(gateway: str) -> tuple[Route, ...]:
    """The routes of one gateway."""
    is_filled_in = gateway == "/online-office"
    typed = _type(is_filled_in)

    def links(path: str, name: str, source: str) -> Links:
        return Links(f"{gateway}/{path}", {f"query.{name}": f"$response.body#/primary/payload/{source}"})

    user, account = f"{gateway}/user", f"{gateway}/account"
    delete = {"authId": Member("id"), "withAccount": Member("withAccount", ZERO_OR_ONE)}
    return (
        _route(
            "GET", f"{user}/check-auth", "checkAuth", Succeeded[AuthPayload],
            # clientAddress is not in the document: failed logins from other addresses then cause no delay.
            typed | same("login", "password", "clientAddress"),
        ),
        _route("GET", f"{user}/exists", "userExists", Succeeded[ExistencePayload], typed | same("login")),
        _route("GET", f"{user}/get", "getUserById", Succeeded[AuthPayload], same("id"), "id"),
        _route(
            "GET", f"{user}/search", "searchUsers", MethodResult((Succeeded,)),
            same("searchText", "accountId", "treeId", "sortBy", "perPage", "pageNumber"),
            "accountId", "treeId", "perPage", "pageNumber",
        ),
        _route(
            "POST", f"{user}/create", "createMember", Succeeded[CreatedPayload],
            typed | same("login", "password", "sponsorId", "confirmationUrl", "profile", "language"),
            links=links("user/get", "id", "auth/id"),
        ),
        _route("POST", f"{user}/delete", "deleteUserById", Succeeded[NoPayload], delete),
        _route("DELETE", f"{user}/delete", "deleteUserById", Succeeded[NoPayload], delete),
        _route(
            "POST", f"{user}/mail-confirm", "confirmEmail", Succeeded[NoPayload],
            same("code", "email") | {"force": Member(None, ZERO_OR_ONE)},
            instead={"force": "forceConfirmEmail"},
        ),
        _route(
            "POST", f"{user}/profile-update", "updateProfile", MethodResult((Succeeded,)),
            {"authId": Member("id"), "userId": Member("id"), "profile": Member("profile")},
            links=links("document/get", "id", "documentId"),
        ),
        _route("DELETE", f"{user}/remove-avatar", "removeAvatar", Succeeded[NoPayload], same("id"), "id"),
        _route(
            "POST", f"{user}/reset-password", "requestPasswordReset", Succeeded[NoPayload],
            same("email", "confirmationUrl"),
        ),
        _route(
            "POST", f"{user}/set-password", "setPassword", Succeeded[NoPayload],
            _type(is_filled_in, TYPE_OR_NUMBER, beside="userId")
            | {"id": Member("id"), "userId": Member("id")}
            | same("newPassword", "code"),
            instead={"code": "resetPasswordWithCode"},
        ),
        _route(
            "POST", f"{user}/change-language", "changeLanguage", Succeeded[NoPayload],
            {"authId": Member("id")} | same("language"),
        ),
        _route("GET", f"{gateway}/document/get", "getDocument", Succeeded[DocumentPayload], same("id")),
        _route(
            "GET", f"{gateway}/profile-field/get-list", "listProfileFields",
            MethodResult((Succeeded, Listed)), {},
        ),
        _route(
            "POST", f"{account}/add-to-tree", "addToTree", MethodResult((Succeeded,)),
            {"accountID": Member("accountId")} | same("sponsorPositionId", "treeId"),
        ),
        _route(
            "GET", f"{account}/get-branch", "getBranch", MethodResult((Succeeded, Listed)),
            same("accountId", "treeId", "depth", "limit"), "accountId", "treeId", "depth", "limit",
        ),
    )  # fmt: skip


WIRE = RestWire(
    name="online_office",
    description="The member platform: envelopes with an errorCode, also under /api2.",
    prefixes=("/main-app", "/online-office", "/api2"),
    mounts=("", "/api2"),
    key_headers=("x-api-key", "Token"),
    routes=(*_routes("/main-app"), *_routes("/online-office")),
    errors=STATUSES,
    render_error=_render_error,
    error_type=lambda status: Failure,
    header_parameters={
        "Locale": {
            "type": "string",
            "description": "The language of messages: en_US or ru_RU; any other value means English.",
            "examples": sorted(LOCALES.values()),
        }
    },
)
