"""The types and models of a user's members, and functions that methods about users share."""

import contextlib
import functools
import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

import orjson
from email_validator import EmailNotValidError, validate_email
from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from server.base.errors import CONSTRAINTS, Conflict, FieldError, NotFound, ServiceError, UserDeleted
from server.base.models import (
    NO_CONTROLS,
    SECRET,
    Id,
    Params,
    Result,
    TenantParams,
    something_besides,
    without_controls,
)
from server.base.passwords import MAX_PASSWORD, hash_problem
from server.base.settings import BCRYPT_MAX_COST, Settings
from server.directory.groups import GroupNames, is_admins
from server.directory.plans import LastDay, needs_plan
from server.outside.mail import ENCODED_WORD
from server.tenants.call import Call
from server.tenants.instances import Mebibytes

ABSENT: Any = None
"""Default of an optional member that takes no null."""


Purpose: TypeAlias = Literal["confirm", "reset"]
"""The purpose of a code, and the name of the templates of its mail."""


MAX_EMAIL = 254
"""Characters of an e-mail at most (RFC 5321)."""
OF_ADMINISTRATOR = "of an administrator needs the scope users:admin"


def address(email: str) -> str:
    """The stored spelling of a new address (RFC 5321, 5322, 6531), normalised by email-validator.

    An encoded word (RFC 2047) is refused: mail software decodes it in an address, although it is not allowed.

    Raises:
        ValueError: it is not an address.
    """
    try:
        found = validate_email(email, check_deliverability=False, globally_deliverable=False)
    except EmailNotValidError as error:
        raise ValueError("is not a valid e-mail address") from error
    if "." not in found.domain:
        raise ValueError("is not a valid e-mail address: the domain has no dot")
    if ENCODED_WORD in unicodedata.normalize("NFKC", email + found.normalized + found.ascii_domain):
        raise ValueError("is not a valid e-mail address: it holds an encoded word (=?)")
    return found.normalized


def email_key(email: str) -> str:
    """The key that identifies a user: the address or login in lower case and NFC, the domain in Unicode.

    Every stored or compared key is made here.
    """
    key = email.lower()
    if email.isascii() and "xn--" not in key:
        return key
    return _cached_key(email) if len(email) <= MAX_EMAIL else _validated_key(email)


def _validated_key(email: str) -> str:
    key = email.lower()
    with contextlib.suppress(ValueError):
        key = address(email).lower()
    # Lower case can have a composed form where upper case has none.
    return unicodedata.normalize("NFC", key)


_cached_key = functools.lru_cache(maxsize=4096)(_validated_key)
"""email-validator takes up to half a millisecond, and a call needs the key of each user several times."""


def keys_of(row: Mapping[str, Any]) -> list[str]:
    """The keys of a user's e-mail and login; see email_key."""
    return [row["email_key"], *([] if row["login"] is None else [email_key(row["login"])])]


def _small_json(value: Any) -> Any:
    if len(orjson.dumps(value)) > 65536:
        raise ValueError("is larger than 64 KiB")
    return value


def _importable(password_hash: str, info: ValidationInfo) -> str:
    settings: Settings | None = info.context
    if problem := hash_problem(password_hash, settings.bcrypt_max_cost if settings else BCRYPT_MAX_COST):
        raise ValueError(problem)
    return password_hash


def _picture_address(address: str) -> str:
    if not re.fullmatch(r"(https://[^\s<>\"\\]+)?", address):
        raise ValueError("must be an https address, or empty")
    return address


NewEmail = Annotated[
    str,
    Field(min_length=3, max_length=MAX_EMAIL, json_schema_extra={"format": "email"}),
    AfterValidator(address),
]


Email = Annotated[
    str, Field(min_length=1, max_length=MAX_EMAIL, description="The user's e-mail, in any case.")
]


Line = Annotated[str, Field(max_length=200, json_schema_extra=NO_CONTROLS), AfterValidator(without_controls)]


DisplayName = Annotated[
    str, Field(min_length=1, max_length=200, json_schema_extra=NO_CONTROLS), AfterValidator(without_controls)
]


Password = Annotated[str, Field(min_length=1, max_length=MAX_PASSWORD), SECRET]


PasswordHash = Annotated[str, Field(max_length=512), AfterValidator(_importable), SECRET]


Numbers = Annotated[list[Annotated[int, Field(ge=-(2**31), lt=2**31)]], Field(max_length=256)]


AvatarUrl = Annotated[str, Field(max_length=2048), AfterValidator(_picture_address)]


ExternalId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=64,
        description="The id of the user in another system; unique in the instance.",
        json_schema_extra=NO_CONTROLS,
    ),
    AfterValidator(without_controls),
]
SessionsLimit = Annotated[
    int, Field(ge=1, le=999_999, description="Most sessions at a time; one more login ends the oldest.")
]


class Profile(Params):
    """The documented members of a profile, in their order."""

    uid: Line | None = None
    title: Line | None = None
    department: Line | None = None
    location: Line | None = None
    phones: Annotated[list[Annotated[Line, Field(max_length=40)]], Field(max_length=20)] = Field(
        default_factory=list
    )
    grade: Line | None = None


class Values(Params):
    """The documented members of a user's values, in their order."""

    notificationReminder: Annotated[int, Field(ge=0, lt=2**31)] | None = 3
    timezone: Line | None = None
    editorTemplates: Annotated[Any, AfterValidator(_small_json)] = None


class Quotas(Params):
    """Quotas of a user. Left out: unchanged. Null: the instance's default."""

    mail: Mebibytes | None = Field(None, description="MiB of mail.")
    files: Mebibytes | None = Field(None, description="MiB of files.")


class NewUser(Params):
    """A new user, in every method that creates users."""

    email: NewEmail = Field(description="Unique in the instance, in any case.")
    # The document's order, for those who send params by position.
    displayName: DisplayName = Field(
        ABSENT, description="Left out: first and last name, or else the local part of the e-mail."
    )
    password: Password = Field(
        ABSENT, description="Without password and passwordHash, the user cannot log in until one is set."
    )
    passwordHash: PasswordHash = Field(
        ABSENT,
        description="Instead of password: an argon2id hash in PHC form, or a bcrypt hash, of another system.",
    )
    isActive: bool = Field(True, description="Whether the user may log in.")
    isAdmin: bool = Field(False, description="Administrator; true needs the scope users:admin.")
    profile: Profile = Field(default_factory=Profile, description="Members left out are null.")
    values: Values = Field(default_factory=Values)
    settings: Numbers = Field(default=[84, 213, 10, 92])
    apps: Numbers = Field(default=[0, 0, 0])
    avatar: AvatarUrl = Field("", description="An https address, or empty.")
    firstName: Line = Field(ABSENT, description="The profile field firstname.")
    lastName: Line = Field(ABSENT, description="The profile field lastname.")
    createInOffice365: bool = Field(
        False, description="Create it in the instance's Microsoft directory too; see getOffice365State."
    )
    externalId: ExternalId | None = None
    sessionsLimit: SessionsLimit | None = None
    isPlanAdmin: bool = Field(False, description="Whether the user may manage plans in the store.")
    onlySeesReadable: bool = Field(False, description="Whether the store shows only what it may read.")
    planId: Id | None = Field(None, description="A plan to assign.")
    planValidTo: LastDay | None = Field(None, description="The plan's last day, instead of its duration.")
    quotas: Quotas = ABSENT

    _plan_end = field_validator("planValidTo")(needs_plan)

    @model_validator(mode="after")
    def _one_secret(self) -> "NewUser":
        if self.password is not None and self.passwordHash is not None:
            raise ValueError("give password or passwordHash, not both")
        return self


class CreateUser(NewUser, TenantParams):
    """A new user."""


class CreatedUser(Result):
    """A new user; apps and settings are Postgres array text."""

    email: str
    displayName: str
    profile: Profile
    isAdmin: bool
    apps: str
    createdAt: int = Field(description="Unix seconds.")
    settings: str
    values: Values
    id: int
    mainCalendar: int
    inbox: int
    spam: int
    sent: int
    trashEmail: int
    drafts: int
    rootFiles: int
    trashFiles: int


class User(Result):
    """A user; apps and settings are lists."""

    id: int
    instance: str
    email: str
    avatar: str
    groups: list[str]
    settings: list[int]
    apps: list[int]
    values: Values
    profile: Profile
    displayName: str
    isActive: bool
    isAdmin: bool
    isSysAdmin: bool
    rootFiles: int
    trashFiles: int
    inbox: int
    spam: int
    sent: int
    trashEmail: int
    drafts: int
    mainCalendar: int
    token: str = Field(description="Empty, except from login and loginWithToken.")
    tokenExpiresAt: int = Field(description="Unix seconds; 0 without token.")


CREATED_USER = {
    "email": "test1@oneoffice.bh",
    "displayName": "TestUser",
    "profile": {
        "uid": None, "title": None, "department": None, "location": None, "phones": [], "grade": None,
    },
    "isAdmin": False,
    "apps": "{0,0,0}",
    "createdAt": 1683471262,
    "settings": "{84,213,10,92}",
    "values": {"notificationReminder": 3, "timezone": None, "editorTemplates": None},
    "id": 2, "mainCalendar": 2, "inbox": 7, "spam": 8, "sent": 9, "trashEmail": 10, "drafts": 12,
    "rootFiles": 3, "trashFiles": 4,
}  # fmt: skip


USER = {
    "id": 2, "instance": "MYINSTANCE", "email": "jane@example.com", "avatar": "", "groups": [],
    "settings": [84, 213, 10, 92], "apps": [0, 0, 0],
    "values": {"timezone": None, "editorTemplates": None, "notificationReminder": 3},
    "profile": {
        "uid": None, "grade": None, "title": None, "phones": [], "location": None, "department": None,
    },
    "displayName": "Jane Doe", "isActive": True, "isAdmin": False, "isSysAdmin": False,
    "rootFiles": 3, "trashFiles": 4, "inbox": 7, "spam": 8, "sent": 9, "trashEmail": 10, "drafts": 12,
    "mainCalendar": 2, "token": "", "tokenExpiresAt": 0,
}  # fmt: skip


def taken(constraint: str, member: str | None = None, *, is_deleted: bool = False) -> Conflict:
    """The error for a taken name.

    Args:
        constraint: one of CONSTRAINTS; users_email also for a login.
        member: the param with the name; None: the usual one.
        is_deleted: whether the user with the name is deleted, and keeps the name until it is purged.
    """
    kind, code, message, usual = CONSTRAINTS[constraint]
    if is_deleted:
        return UserDeleted(fields=[FieldError(member or usual, UserDeleted.__doc__ or "")])
    return kind(message, code=code, fields=[FieldError(member or usual, message)])  # type: ignore[return-value]


def explain_taken(call: Call, email: str | None, external_id: str | None) -> None:
    """Set call.explain: a conflict about this e-mail or externalId tells if a deleted user has it."""
    instance_id = call.instance.id

    async def explain(conflict: Conflict) -> ServiceError | None:
        keys = [email_key(email)] if conflict.code == "duplicate_email" and email is not None else []
        external_ids = [external_id] if conflict.code == "duplicate_external_id" else []
        if not keys and not external_ids:
            return None
        holder = await call.database.look_up(
            "find_taken", instance_id=instance_id, email_keys=keys, external_ids=external_ids
        )
        constraint = "users_email" if keys else "users_external_id"
        is_deleted = holder is not None and holder["deleted_at"] is not None
        return taken(constraint, is_deleted=True) if is_deleted else None

    call.explain = explain


def found(result: Any) -> Any:
    """The result of a query about one user.

    Raises:
        NotFound: it is None: the user does not exist, or is in another instance.
    """
    if result is None:
        raise NotFound
    return result


class UserRef(TenantParams):
    """A user by e-mail."""

    email: Email


class UserId(TenantParams):
    """A user by its id."""

    id: Id


class UserChanges(Params):
    """What to change of a user; at least one member beside the e-mail."""

    email: Email
    displayName: DisplayName = ABSENT
    isActive: bool = Field(ABSENT, description="False suspends the user and ends its sessions.")
    isAdmin: bool = Field(ABSENT, description="Needs the scope users:admin.")
    profile: Profile = Field(ABSENT, description="Merged into the stored profile.")
    values: Values = Field(ABSENT, description="Merged into the stored values.")
    settings: Numbers = ABSENT
    apps: Numbers = ABSENT
    avatar: AvatarUrl = Field(ABSENT, description="An https address, or empty for none.")
    externalId: ExternalId | None = Field(None, description="Null removes it.")
    sessionsLimit: SessionsLimit | None = Field(None, description="Null: no limit.")
    isPlanAdmin: bool = ABSENT
    onlySeesReadable: bool = ABSENT
    quotas: Quotas = ABSENT
    groups: GroupNames = Field(
        ABSENT,
        description="The complete list of its groups, by name. Needs the scope groups:write, and users:admin "
        "to join or leave Admins.",
    )

    _something = something_besides("instance", "email")

    @model_validator(mode="after")
    def _agree(self) -> "UserChanges":
        if self.groups is not None and self.isAdmin not in (None, self.in_admins()):
            raise ValueError("groups and isAdmin contradict each other: in Admins are those with isAdmin")
        return self

    def in_admins(self) -> bool:
        """Whether the groups include Admins."""
        return any(is_admins(name) for name in self.groups)


class ResetPassword(UserRef):
    """A new password for a user."""

    password: Password


class ReplaceUser(UserRef):
    """What to change; at least one member beside the e-mail."""

    newEmail: NewEmail = Field(ABSENT, description="Unique in the instance, in any case.")
    firstName: Line = Field(ABSENT, description="The profile field firstname; empty for none.")
    lastName: Line = Field(ABSENT, description="The profile field lastname; empty for none.")
    isAdmin: bool = Field(ABSENT, description="Another value than before needs the scope users:admin.")
    password: Password = Field(ABSENT, description="Ends the user's sessions.")

    _something = something_besides("instance", "email")
