"""The member platform's wire (seeds/001): /main-app/... and /online-office/..., also beneath /api2."""

from collections.abc import Container, Iterator, Mapping
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
from server.wires.mapping import Done, Links, Own, RestWire, Route, status_of
from server.wires.members import FLAG, INTEGER, Form, Member, same
from server.wires.rendering import WHOLE, By, Empty, From, Shown, renderer
from server.wires.schemas import one_of

T = TypeVar("T")

ERROR_CODES: dict[type[ServiceError], int] = {Conflict: 409}
"""Kind of error -> errorCode, where that is not the HTTP status at /rpc."""
STATUSES: dict[type[ServiceError], int] = dict.fromkeys(
    (Invalid, Malformed, Forbidden, NotFound, UnknownMethod, Conflict), 200
)
"""Kind of error -> HTTP status: 200 for what is wrong with the params or is not there."""

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


# --- what is answered -----------------------------------------------------------------------------------

Text = Annotated[str, Field(min_length=1)]
Locale = Literal["en_US", "ru_RU"]


class NoPayload(Shown):
    """Nothing to say."""


class FieldAlias(Shown):
    """Which field of a profile."""

    alias: str


class ProfileEntry(Shown):
    """A field of a profile and what stands in it."""

    field: Annotated[FieldAlias, WHOLE]
    value: str | int | float


class AuthAccount(Shown):
    """The account of a user."""

    id: int
    title: str


def _profile(member: Any) -> list[dict[str, Any]]:
    profile = [{"alias": alias, "value": value} for alias, value in member["profile"].items()]
    return profile + ([{"alias": "avatar", "value": member["avatar"]}] if member["avatar"] else [])


class AuthUser(Shown):
    """The user of an auth record."""

    id: int
    profile: Annotated[list[ProfileEntry], By(_profile)]
    account: AuthAccount | None


class Auth(Shown):
    """A member: the auth record and its user are one and the same here."""

    id: int
    login: str
    type: Literal["member"]
    language: str
    isActive: bool
    isConfirmed: bool
    user: Annotated[AuthUser, WHOLE]


class AuthPayload(Shown):
    """A member."""

    auth: Annotated[Auth, WHOLE]


class CreatedPayload(Shown):
    """A new member, and its password if that was made for it."""

    auth: Annotated[Auth, From("member")]
    password: str | None = None


class ExistencePayload(Shown):
    """Whether there is such a member, and which."""

    exist: Annotated[bool, From("exists")]
    auth: Annotated[Auth | None, From("member")] = None


class Listed(Shown, Generic[T]):
    """All there are."""

    list: Annotated[T, WHOLE]


class FailedField(Shown):
    """What is wrong with a member."""

    field: str
    message: str


class Succeeding(Shown, Generic[T]):
    """What came of a call."""

    success: Literal[True]
    message: Literal[""]
    payload: T
    errors: Empty


class Succeeded(Shown, Generic[T]):
    """The platform's envelope around a payload."""

    errorCode: Literal[0]
    errorMessage: Literal[""]
    primary: Annotated[Succeeding[T], WHOLE]
    secondary: Empty
    locale: Locale


class Failing(Shown):
    """What came of a call that failed."""

    success: Literal[False]
    message: Text
    payload: NoPayload
    errors: list[FailedField]


class Failure(Shown):
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
    """What came of a queued call: empty until it is done, then an envelope."""
    if outcome is None:
        return {}
    if not outcome["success"]:
        return _failed(NotFound(outcome["message"]), 404, "en_US")
    render = _member if outcome["member"] else _no_payload
    return render({"payload": outcome["member"], "locale": "en_US"})


class DocumentContext(Shown):
    """What was asked of the queue."""

    entity: str
    action: str


class DocumentBody(Shown):
    """What was asked of the queue, and what came of it."""

    id: str
    context: Annotated[DocumentContext, WHOLE]
    result: Annotated[
        Any, By(_outcome), From("result"), Field(description="Empty until it is done, then an envelope.")
    ]


class DocumentPayload(Shown):
    """A document."""

    document: Annotated[DocumentBody, WHOLE]


def _failed(error: ServiceError, code: int, locale: str) -> Any:
    """The envelope around an error."""
    message = _worded(error.message, locale)
    fields = [FieldError(field, _worded(text, locale)) for field, text in error.fields]
    if fields:
        message = "; ".join(f"{field}: {text}" for field, text in fields)
        if len(fields) == 1 and error.message == error.fields[0].message:
            message = fields[0].message  # a duplicate: the message says it all
    errors = [field._asdict() for field in fields]
    return _failure(
        {"errorCode": code, "message": message, "errors": errors, "payload": {}, "locale": locale}
    )


def _error_form(request: web.Request, error: ServiceError, status: int) -> tuple[int, Any]:
    return status, _failed(error, status_of(type(error), ERROR_CODES), _locale(request))


def _enveloped(done: Done) -> dict[str, Any]:
    return {"payload": done.result, "locale": _locale(done.request)}


# --- what is sent ---------------------------------------------------------------------------------------


def _read_type(given: Any) -> str:
    if given != "member":
        raise ValueError("must be member")
    return "member"


def _read_type_or_number(given: Any) -> str:
    # The document's table has an integer here: any stands for a member.
    by_number = isinstance(whole(given), int) and not isinstance(given, bool)
    return "member" if by_number else _read_type(given)


def _read_flag(given: Any) -> bool:
    if given not in (0, 1):
        raise ValueError("must be 0 or 1")
    return bool(given)


TYPE = Form(_read_type, lambda _: one_of("member"))
TYPE_OR_NUMBER = Form(
    _read_type_or_number,
    lambda _: {"anyOf": [one_of("member"), {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}]},
)
ZERO_OR_ONE = Form(_read_flag, FLAG.schema)


def _typed(is_filled_in: bool, form: Form = TYPE, beside: str | None = None) -> dict[str, Member]:
    """The type of user, which the gateway fills in or the caller has to say.

    Args:
        beside: the member without which it need not be said.
    """

    def needed(given: Container[str]) -> bool:
        return not is_filled_in and (beside is None or beside in given)

    return {"type": Member(None, form, needed=needed)}


def _route(
    verb: str, path: str, method: str, result: Any, members: Mapping[str, Member], *numbers: str, **more: Any
) -> Route:
    """A function whose params may stand in the query and in a JSON body.

    Args:
        numbers: the params that are integers, which a query has as text.
    """
    in_query = {name: replace(one, form=INTEGER) if name in numbers else one for name, one in members.items()}
    return Route(verb, path, method, result, query=in_query, body=members, **more)


def _functions(gateway: str) -> Iterator[Route]:
    """All functions of one gateway."""
    fills_in = gateway == "/online-office"
    typed = _typed(fills_in)

    def links(path: str, name: str, place: str) -> Links:
        return Links(f"{gateway}/{path}", {f"query.{name}": f"$response.body#/primary/payload/{place}"})

    user, document = f"{gateway}/user", f"{gateway}/document"
    yield _route(
        "GET",
        f"{user}/check-auth",
        "checkAuth",
        AuthPayload,
        # clientAddress is not in the document: whoever sends it spares its users the delays of others.
        typed | same("login", "password", "clientAddress"),
    )
    yield _route("GET", f"{user}/exists", "userExists", ExistencePayload, typed | same("login"))
    yield _route("GET", f"{user}/get", "getUserById", AuthPayload, same("id"), "id")
    yield _route(
        "GET",
        f"{user}/search",
        "searchUsers",
        Own(),
        same("searchText", "accountId", "treeId", "sortBy", "perPage", "pageNumber"),
        "accountId",
        "treeId",
        "perPage",
        "pageNumber",
    )
    yield _route(
        "POST",
        f"{user}/create",
        "createMember",
        CreatedPayload,
        typed | same("login", "password", "sponsorId", "confirmationUrl", "profile", "language"),
        links=links("user/get", "id", "auth/id"),
    )
    for verb in ("POST", "DELETE"):
        yield _route(
            verb,
            f"{user}/delete",
            "deleteUserById",
            NoPayload,
            {"authId": Member("id"), "withAccount": Member("withAccount", ZERO_OR_ONE)},
        )
    yield _route(
        "POST",
        f"{user}/mail-confirm",
        "confirmEmail",
        NoPayload,
        same("code", "email") | {"force": Member(None, ZERO_OR_ONE)},
        instead={"force": "forceConfirmEmail"},
    )
    yield _route(
        "POST",
        f"{user}/profile-update",
        "updateProfile",
        Own(),
        {"authId": Member("id"), "userId": Member("id"), "profile": Member("profile")},
        links=links("document/get", "id", "documentId"),
    )
    yield _route("DELETE", f"{user}/remove-avatar", "removeAvatar", NoPayload, same("id"), "id")
    yield _route(
        "POST", f"{user}/reset-password", "requestPasswordReset", NoPayload, same("email", "confirmationUrl")
    )
    yield _route(
        "POST",
        f"{user}/set-password",
        "setPassword",
        NoPayload,
        _typed(fills_in, TYPE_OR_NUMBER, beside="userId")
        | {"id": Member("id"), "userId": Member("id")}
        | same("newPassword", "code"),
        instead={"code": "resetPasswordWithCode"},
    )
    yield _route(
        "POST",
        f"{user}/change-language",
        "changeLanguage",
        NoPayload,
        {"authId": Member("id"), "language": Member("language")},
    )
    yield _route("GET", f"{document}/get", "getDocument", DocumentPayload, same("id"))
    yield _route("GET", f"{gateway}/profile-field/get-list", "listProfileFields", Own(Listed), {})
    yield _route(
        "POST",
        f"{gateway}/account/add-to-tree",
        "addToTree",
        Own(),
        {"accountID": Member("accountId")} | same("sponsorPositionId", "treeId"),
    )
    yield _route(
        "GET", f"{gateway}/account/get-branch", "getBranch", Own(Listed),
        same("accountId", "treeId", "depth", "limit"), "accountId", "treeId", "depth", "limit",
    )  # fmt: skip


WIRE = RestWire(
    name="online_office",
    description="The member platform: envelopes with an errorCode, also beneath /api2.",
    prefixes=("/main-app", "/online-office", "/api2"),
    mounts=("", "/api2"),
    key_headers=("x-api-key", "Token"),
    routes=(*_functions("/main-app"), *_functions("/online-office")),
    errors=STATUSES,
    error_form=_error_form,
    error_type=lambda status: Failure,
    envelope=Succeeded,
    enveloped=_enveloped,
    header_parameters={
        "Locale": {
            "type": "string",
            "description": "The language of messages: en_US, ru_RU; English for any other.",
            "examples": sorted(LOCALES.values()),
        }
    },
)
