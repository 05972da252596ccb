"""Users of an instance: the OneOffice calls (seeds/000) and their neighbours."""

import base64
import binascii
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import orjson
from email_validator import EmailNotValidError, validate_email
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from server.auth import Mebibytes, PasswordPolicy
from server.errors import CONSTRAINTS, Conflict, FieldError, Invalid, MemberForbidden, NotFound
from server.events import identity, redacted
from server.methods import _office365
from server.methods._groups import (
    GroupNames,
    chosen_groups,
    find_group_ids,
    groups_of,
    hold_member,
    is_admins,
    may_administrate,
    need_admin_scope,
    record_groups,
    replace_groups,
)  # fmt: skip
from server.methods._store import (
    ExternalId,
    LastDay,
    PlanId,
    SessionsLimit,
    assign_plan,
    needs_plan,
    store_failures,
)  # fmt: skip
from server.passwords import MAX_PASSWORD, hash_problem, is_common
from server.pictures import avatar_url
from server.registry import NO_CONTROLS, Call, Example, Params, Result, TenantParams, method, validated

ABSENT: Any = None
"""Default of a member that may be left out but, when given, is not null."""
OF_ADMINISTRATOR = "of an administrator needs the scope users:admin"


def _address(email: str) -> str:
    """The stored spelling of a new address (RFC 5321, 5322, 6531), as email-validator normalises it."""
    try:
        found = validate_email(email, check_deliverability=False, globally_deliverable=False)
    except EmailNotValidError as error:
        raise ValueError("is not a valid e-mail address") from error
    if "." not in found.domain:
        raise ValueError("is not a valid e-mail address: the domain has no dot")
    return found.normalized


def email_key(email: str) -> str:
    """What identity is decided by: the address in lower case, the domain in Unicode."""
    if email.isascii() and "xn--" not in email:
        return email.lower()
    try:
        return _address(email).lower()
    except ValueError:
        return unicodedata.normalize("NFC", email).lower()


def _line(text: str) -> str:
    if any(unicodedata.category(char) == "Cc" for char in text):
        raise ValueError("holds control characters")
    return text


def _small_json(value: Any) -> Any:
    if len(orjson.dumps(value)) > 65536:
        raise ValueError("is larger than 64 KiB")
    return value


def _importable(password_hash: str) -> str:
    if problem := hash_problem(password_hash):
        raise ValueError(problem)
    return password_hash


def _picture_address(address: str) -> str:
    if not re.fullmatch(r"(https://[^\s<>\"\\]+)?", address):
        raise ValueError("must be an https address, or empty")
    return address


NewEmail = Annotated[
    str, Field(min_length=3, max_length=254, json_schema_extra={"format": "email"}), AfterValidator(_address)
]
Email = Annotated[str, Field(min_length=1, max_length=254, description="The user's e-mail, in any case.")]
Line = Annotated[str, Field(max_length=200, json_schema_extra=NO_CONTROLS), AfterValidator(_line)]
DisplayName = Annotated[
    str, Field(min_length=1, max_length=200, json_schema_extra=NO_CONTROLS), AfterValidator(_line)
]
Password = Annotated[str, Field(min_length=1, max_length=MAX_PASSWORD)]
PasswordHash = Annotated[str, Field(max_length=512), AfterValidator(_importable)]
Numbers = Annotated[list[Annotated[int, Field(ge=-(2**31), lt=2**31)]], Field(max_length=256)]
AvatarUrl = Annotated[str, Field(max_length=2048), AfterValidator(_picture_address)]


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
    """What a user may store. What is left out stays as it is; null is the instance's default."""

    mail: Mebibytes | None = Field(None, description="MiB of mail.")
    files: Mebibytes | None = Field(None, description="MiB of files.")


class NewUser(Params):
    """A new user, wherever it is made: alone, or as one of many."""

    email: NewEmail = Field(description="Unique in the instance, in any case.")
    # The document's order, for those who send params by position.
    displayName: DisplayName = Field(
        ABSENT, description="Left out: first and last name, or else the local part of the e-mail."
    )
    password: Password = Field(
        ABSENT, description="Left out, with passwordHash too: the user cannot log in until one is set."
    )
    passwordHash: PasswordHash = Field(
        ABSENT,
        description="Instead of password: an argon2id hash in PHC form, or a bcrypt hash, from elsewhere.",
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
    onlySeesReadable: bool = Field(False, description="Whether the store shows it only what it may read.")
    planId: PlanId | None = Field(None, description="A plan that it is assigned.")
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
    """A new user; apps and settings come as Postgres array text."""

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
    """A user as looked up; apps and settings come as lists."""

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
    token: str = Field(description="Filled by login and loginWithToken alone.")
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


def password_problem(password: str, policy: PasswordPolicy) -> str | None:
    """What an instance's policy has against a password, or None."""
    if len(password) < policy.minLength:
        return f"must have at least {policy.minLength} characters"
    classes = {
        "lower" if char.islower() else "upper" if char.isupper() else "digit" if char.isdigit() else "other"
        for char in password
    }
    if len(classes) < policy.minClasses:
        return f"must mix at least {policy.minClasses} of lower case, upper case, digits and other characters"
    if policy.refuseCommon and is_common(password):
        return "is one of the 10,000 most common passwords"
    return None


async def hash_new_password(call: Call, params: "CreateUser | ResetPassword | ReplaceUser") -> str | None:
    """The hash of a password that the instance's policy accepts; None where there is no password."""
    if params.password is None:
        return None
    if problem := password_problem(params.password, call.instance.settings.passwordPolicy):
        raise Invalid.of([FieldError("password", problem)])
    return await call.hasher.hash(params.password)


def found(result: Any) -> Any:
    """The result of a query about one user, which a missing user leaves empty.

    Raises:
        NotFound: the same for a user of another instance as for none at all.
    """
    if result is None:
        raise NotFound
    return result


async def end_sessions(call: Call, user_ids: Sequence[int]) -> None:
    """End every session of users whose rows this transaction holds.

    A statement of its own, after that which held the rows: one that waited there for a login does not see the
    session which that login made.
    """
    if not user_ids:
        return
    rows = await call.db.all("end_sessions_of", instance_id=call.instance.id, user_ids=user_ids)
    for row in rows:
        before, after = {"sessions": row["ended"]}, {"sessions": 0}
        call.record("session.revoked", row["user_id"], before=before, after=after)


async def record_password(call: Call, user: Any) -> None:
    """Note that a user has another password, and end its sessions.

    Args:
        user: a row with id and had_password, of a statement that holds the user.
    """
    before = {"password": "set" if user["had_password"] else None}
    call.record("user.password_changed", user["id"], before=before, after={"password": "set"})
    await end_sessions(call, [user["id"]])


def names_of(params: "NewUser | ReplaceUser") -> dict[str, str | None]:
    """The profile fields of the names that were given; null takes one away."""
    given = {"firstname": params.firstName, "lastname": params.lastName}
    return {alias: name if name.strip() else None for alias, name in given.items() if name is not None}


def shown_name(params: NewUser) -> str:
    """A new user's display name: its own, or first and last name, or the local part of the e-mail."""
    names = [name for name in names_of(params).values() if name is not None]
    return params.displayName or " ".join(names).strip()[:200] or params.email.rpartition("@")[0]


_UNSAID = {
    # Secrets, what is said elsewhere, and what is always said.
    "instance", "password", "passwordHash", "planId", "planValidTo", "firstName", "lastName", "email",
    "displayName", "isActive", "isAdmin",
}  # fmt: skip


def creation(
    params: NewUser,
    *,
    fields: Mapping[str, Any] | None = None,
    language: str = "en",
    is_confirmed: bool = True,
) -> dict[str, Any]:
    """What is written down of a user who is created; see insert_user for the arguments."""
    names = {alias: name for alias, name in names_of(params).items() if name is not None}
    # More than what was left to its default, so that nobody has to know the defaults of a day.
    always = {
        "email": params.email, "displayName": shown_name(params), "isActive": params.isActive,
        "isAdmin": params.isAdmin, "isConfirmed": is_confirmed, "language": language,
        "fields": names | dict(fields or {}),
    }  # fmt: skip
    return always | params.model_dump(exclude_defaults=True, exclude=_UNSAID)


async def insert_user(
    call: Call,
    instance_id: int,
    params: NewUser,
    password_hash: str | None,
    *,
    fields: dict[str, Any] | None = None,
    language: str = "en",
    is_confirmed: bool = True,
) -> Any:
    """Create and provision a user in one statement.

    Args:
        fields: profile fields of the member platform by alias.
        language: ISO 639-1.
        is_confirmed: False until the code of its mail is redeemed.
    """
    profile, values = params.profile.model_dump(), params.values.model_dump()
    event = creation(params, fields=fields, language=language, is_confirmed=is_confirmed)
    created = await call.db.one(
        "create_user",
        instance_id=instance_id,
        email=params.email,
        email_key=params.email.lower(),
        display_name=event["displayName"],
        is_active=params.isActive,
        is_admin=params.isAdmin,
        profile=profile,
        app_values=values,
        settings=params.settings,
        apps=params.apps,
        avatar=params.avatar,
        fields=event["fields"],
        language=language,
        is_confirmed=is_confirmed,
        external_id=params.externalId,
        sessions_limit=params.sessionsLimit,
        is_plan_admin=params.isPlanAdmin,
        only_sees_readable=params.onlySeesReadable,
        mail_quota=params.quotas and params.quotas.mail,
        files_quota=params.quotas and params.quotas.files,
        password_hash=password_hash or params.passwordHash,
        event=redacted(event) if call.single else None,
        **call.author(),
    )
    row = dict(found(created))
    if not call.single:
        call.record("user.created", row["id"], after=event)
        if params.planId is not None:
            await assign_plan(call, instance_id, row["id"], params.planId, params.planValidTo)
    # Stored as jsonb the members would come back in another order than the document's.
    return row | {"profile": profile, "values": values}


def is_one_statement(params: "CreateUser") -> bool:
    """Whether a user is created by one statement: without a plan and without Office 365."""
    return params.planId is None and not params.createInOffice365


@method(
    "createUser",
    result=CreatedUser,
    scope="users:write",
    writes=True,
    extension=False,
    prepare=hash_new_password,
    single=is_one_statement,
    member_scopes={"isAdmin": "users:admin"},
    errors=(Conflict,),
    examples=(
        Example(
            "A user with a password",
            {"email": "test1@oneoffice.bh", "instance": "MYINSTANCE", "displayName": "TestUser",
             "password": "demo1234"},
            CREATED_USER,
        ),
    ),
)  # fmt: skip
async def create_user(call: Call, params: CreateUser, password_hash: str | None) -> Any:
    """Create a user with mailbox, calendar and files.

    The user, its credential, six mailboxes (inbox, spam, sent, trash, archive, drafts), its main calendar
    and its two file folders (root, trash) are made together or not at all. A taken e-mail answers
    `duplicate key value violates unique constraint "users_email"`; the e-mail of a deleted user stays
    taken until that user is purged. So does its externalId. Where the instance has no seat left (maxUsers),
    nobody is created.
    """
    if params.createInOffice365 and _office365.credentials_of(call.instance.settings) is None:
        raise Invalid.of([FieldError("createInOffice365", _office365.NO_CREDENTIALS)])
    created = await insert_user(call, call.instance.id, params, password_hash)
    if params.createInOffice365:
        await _office365.begin(call, created["id"])
    return created


class ValidateUser(TenantParams):
    """The params of createUser, good or bad."""

    model_config = ConfigDict(extra="allow")


class Failure(Result):
    """One member that createUser would refuse."""

    field: str
    message: str


class Validation(Result):
    """Every failure at once."""

    valid: bool
    failures: list[Failure]


@method(
    "validateUser",
    result=Validation,
    scope="users:read",
    writes=False,
    examples=(
        Example(
            "A taken e-mail and a bad type",
            {"email": "jane@example.com", "isAdmin": "yes"},
            {"valid": False, "failures": [
                {"field": "isAdmin", "message": "must be true or false"},
                {"field": "email", "message": 'duplicate key value violates unique constraint "users_email"'},
            ]},
        ),
        Example("Nothing wrong", {"email": "new@example.com"}, {"valid": True, "failures": []}),
    ),
)  # fmt: skip
async def validate_user(call: Call, params: ValidateUser) -> Any:
    """Say everything that createUser would refuse about its params, and write nothing.

    Takes the params of createUser. What validates is accepted by createUser as long as nobody takes the
    e-mail in between.
    """
    failures = await creation_failures(call, params.model_extra or {})
    return {"valid": not failures, "failures": [failure._asdict() for failure in failures]}


async def creation_failures(call: Call, params: dict[str, Any]) -> list[FieldError]:
    """Every reason why createUser would refuse these params."""
    failures: list[FieldError] = []
    bad: set[str] = set()
    try:
        validated(CreateUser, params)
    except Invalid as error:
        failures += error.fields
        bad = {failure.field.partition(".")[0] for failure in failures}
        if isinstance(error.__cause__, ValidationError):  # which names those beyond the first hundred too
            bad |= {str(part) for found in error.__cause__.errors() for part in found["loc"][:1]}
    email = params.get("email")
    failures += _password_failures(call, params, bad)
    if params.get("createInOffice365") is True and not _office365.credentials_of(call.instance.settings):
        failures.append(FieldError("createInOffice365", _office365.NO_CREDENTIALS))
    if params.get("isAdmin") is True and "users:admin" not in call.caller.scopes:
        failures.append(FieldError("isAdmin", "true needs the scope users:admin"))
    if "email" not in bad and isinstance(email, str):
        taken = await call.db.value(
            "find_email", instance_id=call.instance.id, email_key=_address(email).lower()
        )
        failures += [FieldError("email", CONSTRAINTS["users_email"][2])] if taken is not None else []
    if not await call.db.value("has_seat", instance_id=call.instance.id):
        failures.append(FieldError("params", CONSTRAINTS["instance_counters_seats"][2]))
    return failures + await store_failures(call.db, call.instance.id, params, bad)


def _password_failures(call: Call, params: dict[str, Any], bad: set[str]) -> list[FieldError]:
    password = params.get("password")
    if "password" in bad or not isinstance(password, str):
        return []
    problem = password_problem(password, call.instance.settings.passwordPolicy)
    return [FieldError("password", problem)] if problem else []


class UserRef(TenantParams):
    """A user by e-mail."""

    email: Email


class UserId(TenantParams):
    """A user by its id."""

    id: Annotated[int, Field(ge=1, lt=2**63)]


@method(
    "getUserByEmail",
    result=User,
    scope="users:read",
    writes=False,
    extension=False,
    errors=(NotFound,),
    examples=(Example("A user", {"email": "jane@example.com"}, USER),),
)
async def get_user_by_email(call: Call, params: UserRef) -> Any:
    """Look a user up by e-mail.

    A stored session is never shown: token is empty and tokenExpiresAt 0 here. A deleted user is not found.
    """
    return dict(found(await read_user(call, email_key(params.email))))


async def read_user(call: Call, key: str) -> Any:
    """A living user as getUserByEmail shows it, or None."""
    row = await call.db.one(
        "get_user", instance_id=call.instance.id, instance_name=call.instance.name, email_key=key
    )
    return row and dict(row) | {"avatar": avatar_url(call.settings, row["avatar"])}


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
    externalId: ExternalId | None = Field(None, description="Null takes it away.")
    sessionsLimit: SessionsLimit | None = Field(None, description="Null: no limit.")
    isPlanAdmin: bool = ABSENT
    onlySeesReadable: bool = ABSENT
    quotas: Quotas = ABSENT
    groups: GroupNames = Field(
        ABSENT,
        description="All its groups, by name: it leaves every other one. Needs the scope groups:write, and "
        "users:admin where it enters or leaves Admins.",
    )

    @model_validator(mode="after")
    def _something(self) -> "UserChanges":
        if not self.model_fields_set - {"instance", "email"}:
            raise ValueError("name at least one member to change")
        return self

    @model_validator(mode="after")
    def _agree(self) -> "UserChanges":
        if self.groups is not None and self.isAdmin not in (None, self.in_admins()):
            raise ValueError("groups and isAdmin contradict each other: in Admins are those with isAdmin")
        return self

    def in_admins(self) -> bool:
        """Whether the reserved group is among the groups."""
        return any(is_admins(name) for name in self.groups)


class UpdateUser(UserChanges, TenantParams):
    """What to change; at least one member beside the e-mail."""


def _given(model: BaseModel | None) -> dict[str, Any] | None:
    return None if model is None else model.model_dump(exclude_unset=True)


@method(
    "updateUserByEmail",
    result=Literal[True],
    scope="users:write",
    writes=True,
    extension=False,
    member_scopes={"isAdmin": "users:admin", "groups": "groups:write"},
    errors=(NotFound, Conflict),
    examples=(
        Example("Suspend", {"email": "jane@example.com", "isActive": False}, True),
        Example("Reactivate", {"email": "jane@example.com", "isActive": True}, True),
        Example("Move", {"email": "jane@example.com", "profile": {"location": "Manama"}}, True),
    ),
)
async def update_user_by_email(call: Call, params: UpdateUser) -> Any:
    """Change any part of a user but its e-mail and password.

    profile and values are merged member by member, everything else is replaced. Suspending (isActive false)
    ends every session of the user in the same transaction; to suspend or reactivate an administrator needs
    the scope users:admin.
    """
    key, is_admin, before = email_key(params.email), params.isAdmin, {}
    if params.groups is not None:
        member, is_admin = await hold_member(call, key), params.in_admins()
        may_administrate(call, member, is_admin)
        group_ids = chosen_groups(params.groups, await find_group_ids(call, params.groups))
        before = await groups_of(call, [member["id"]])
    quotas = params.quotas or Quotas()
    user = found(
        await call.db.one(
            "update_user",
            instance_id=call.instance.id,
            email_key=key,
            given=list(params.model_fields_set | quotas.model_fields_set),
            display_name=params.displayName,
            is_active=params.isActive,
            is_admin=is_admin,
            profile=_given(params.profile),
            app_values=_given(params.values),
            settings=params.settings,
            apps=params.apps,
            avatar=params.avatar,
            external_id=params.externalId,
            sessions_limit=params.sessionsLimit,
            is_plan_admin=params.isPlanAdmin,
            only_sees_readable=params.onlySeesReadable,
            mail_quota=quotas.mail,
            files_quota=quotas.files,
        )
    )
    protect_activity(call, user)
    call.record_user(user["id"], user["before"], user["after"])
    if before:
        await replace_groups(call, {user["id"]: group_ids})
        await record_groups(call, before)
    if params.isActive is False:
        await end_sessions(call, [user["id"]])
    return True


def protect_activity(call: Call, user: Any) -> None:
    """Raises Forbidden where an administrator was suspended or reactivated, and the key may not.

    Args:
        user: a row with before and after, states of the user.
    """
    before, after = user["before"], user["after"]
    if before["isAdmin"] and before["isActive"] != after["isActive"]:
        need_admin_scope(call)


class ResetPassword(UserRef):
    """A new password for a user."""

    password: Password


@method(
    "resetPasswordByEmail",
    result=Literal[True],
    scope="users:write",
    writes=True,
    extension=False,
    prepare=hash_new_password,
    errors=(NotFound,),
    examples=(Example("A new password", {"email": "jane@example.com", "password": "onemoretime"}, True),),
)
async def reset_password_by_email(call: Call, params: ResetPassword, password_hash: str) -> Any:
    """Set a user's password and end its sessions; an administrator's needs the scope users:admin."""
    user = found(
        await call.db.one(
            "set_password",
            instance_id=call.instance.id,
            email_key=email_key(params.email),
            password_hash=password_hash,
        )
    )
    if user["is_admin"]:
        need_admin_scope(call)
    await record_password(call, user)
    return True


class RenameUser(UserRef):
    """Another e-mail for a user."""

    newEmail: NewEmail = Field(description="Unique in the instance, in any case.")


@method(
    "renameUserByEmail",
    result=Literal[True],
    scope="users:write",
    writes=True,
    errors=(NotFound, Conflict),
    examples=(Example("Marriage", {"email": "jane@example.com", "newEmail": "jane.roe@example.com"}, True),),
)
async def rename_user_by_email(call: Call, params: RenameUser) -> Any:
    """Give a user another e-mail; its sessions and everything it holds stay.

    An administrator's needs the scope users:admin.
    """
    user = found(
        await call.db.one(
            "rename_user",
            instance_id=call.instance.id,
            email_key=email_key(params.email),
            new_email=params.newEmail,
            new_email_key=params.newEmail.lower(),
        )
    )
    if user["before"]["isAdmin"]:
        need_admin_scope(call)
    call.record_user(user["id"], user["before"], user["after"])
    return True


class ReplaceUser(UserRef):
    """What to change; at least one member beside the e-mail."""

    newEmail: NewEmail = Field(ABSENT, description="Unique in the instance, in any case.")
    firstName: Line = Field(ABSENT, description="The profile field firstname; empty for none.")
    lastName: Line = Field(ABSENT, description="The profile field lastname; empty for none.")
    isAdmin: bool = Field(ABSENT, description="Another value than before needs the scope users:admin.")
    password: Password = Field(ABSENT, description="Ends the user's sessions.")

    @model_validator(mode="after")
    def _something(self) -> "ReplaceUser":
        if not self.model_fields_set - {"instance", "email"}:
            raise ValueError("name at least one member to change")
        return self


@method(
    "replaceUserByEmail",
    result=Literal[True],
    scope="users:write",
    writes=True,
    prepare=hash_new_password,
    errors=(NotFound, Conflict),
    examples=(
        Example(
            "Marriage, and another password",
            {"email": "jane@example.com", "newEmail": "jane.roe@example.com", "firstName": "Jane",
             "lastName": "Roe", "isAdmin": False, "password": "onemoretime"},
            True,
        ),
    ),
)  # fmt: skip
async def replace_user_by_email(call: Call, params: ReplaceUser, password_hash: str | None) -> Any:
    """Change a user's e-mail, names, password and administration at once, all of it or nothing (seeds/002).

    What is left out stays as it is. The display name follows the names. Another e-mail or a password for an
    administrator needs the scope users:admin.
    """
    # What the value is compared with is known here alone, so this scope cannot be left to dispatch.
    may_administrate = "users:admin" in call.caller.scopes
    key = email_key(params.email)
    changed = await call.db.one(
        "replace_user",
        instance_id=call.instance.id,
        email_key=key,
        new_email=params.newEmail,
        new_email_key=params.newEmail and params.newEmail.lower(),
        names=names_of(params),
        is_admin=params.isAdmin,
        may_administrate=may_administrate,
        password_hash=password_hash,
    )
    if changed is None:
        found(await call.db.one("find_user", instance_id=call.instance.id, email_key=key))
        raise MemberForbidden
    renamed = params.newEmail is not None and params.newEmail.lower() != key
    if changed["before"]["isAdmin"] and (renamed or password_hash is not None):
        need_admin_scope(call)
    call.record_user(changed["id"], changed["before"], changed["after"])
    if password_hash is not None:
        await record_password(call, changed)
    return True


class ValidateReplacement(TenantParams):
    """The params of replaceUserByEmail, good or bad."""

    model_config = ConfigDict(extra="allow")


@method(
    "validateReplacement",
    result=Validation,
    scope="users:read",
    writes=False,
    errors=(NotFound,),
    examples=(
        Example(
            "A taken e-mail",
            {"email": "jane@example.com", "newEmail": "admin@example.com"},
            {"valid": False, "failures": [
                {"field": "newEmail", "message": CONSTRAINTS["users_email"][2]},
            ]},
        ),
    ),
)  # fmt: skip
async def validate_replacement(call: Call, params: ValidateReplacement) -> Any:
    """Say everything that replaceUserByEmail would refuse about its params, and write nothing."""
    given = params.model_extra or {}
    failures: list[FieldError] = []
    try:
        validated(ReplaceUser, given)
    except Invalid as error:
        failures += error.fields
    bad = {failure.field for failure in failures}
    failures += _password_failures(call, given, bad)
    email, new_email, is_admin = given.get("email"), given.get("newEmail"), given.get("isAdmin")
    if isinstance(email, str) and "email" not in bad:
        key = email_key(email)
        user = found(await call.db.one("find_user", instance_id=call.instance.id, email_key=key))
        if isinstance(is_admin, bool) and is_admin != user["is_admin"]:
            may = "users:admin" in call.caller.scopes
            failures += [] if may else [FieldError("isAdmin", "a change needs the scope users:admin")]
        protected = user["is_admin"] and "users:admin" not in call.caller.scopes
        if protected and isinstance(given.get("password"), str) and "password" not in bad:
            failures.append(FieldError("password", OF_ADMINISTRATOR))
        if isinstance(new_email, str) and "newEmail" not in bad:
            new_key = _address(new_email).lower()
            failures += [FieldError("newEmail", OF_ADMINISTRATOR)] if protected and new_key != key else []
            is_taken = new_key != key and (
                await call.db.value("find_email", instance_id=call.instance.id, email_key=new_key) is not None
            )
            failures += [FieldError("newEmail", CONSTRAINTS["users_email"][2])] if is_taken else []
    return {"valid": not failures, "failures": [failure._asdict() for failure in failures]}


@method(
    "deleteUserByEmail",
    result=Literal[True],
    scope="users:write",
    writes=True,
    errors=(NotFound,),
    examples=(Example("Delete", {"email": "jane@example.com"}, True),),
)
async def delete_user_by_email(call: Call, params: UserRef) -> Any:
    """Delete a user, so that it can be restored for as long as the retention lasts.

    It is found by nothing but listUsers with status deleted, its sessions end, its e-mail stays taken. When
    the retention of the instance (or of the server) is over, it is purged. An administrator's deletion needs
    the scope users:admin.
    """
    key = email_key(params.email)
    user = found(await call.db.one("delete_user", instance_id=call.instance.id, email_key=key))
    if user["state"]["isAdmin"]:
        need_admin_scope(call)
    call.record("user.deleted", user["id"], before=identity(user["state"]))
    await end_sessions(call, [user["id"]])
    return True


@method(
    "restoreUserByEmail",
    result=Literal[True],
    scope="users:write",
    writes=True,
    errors=(NotFound,),
    examples=(Example("Restore", {"email": "gone@example.com"}, True),),
)
async def restore_user_by_email(call: Call, params: UserRef) -> Any:
    """Bring a deleted user back with everything it had but its sessions.

    An administrator's return needs the scope users:admin.
    """
    key = email_key(params.email)
    user = found(await call.db.one("restore_user", instance_id=call.instance.id, email_key=key))
    if user["state"]["isAdmin"]:
        need_admin_scope(call)
    call.record("user.restored", user["id"], after=identity(user["state"]))
    return True


@method(
    "purgeUserByEmail",
    result=Literal[True],
    scope="users:purge",
    writes=True,
    errors=(NotFound, Conflict),
    examples=(Example("Purge", {"email": "gone@example.com"}, True),),
)
async def purge_user_by_email(call: Call, params: UserRef) -> Any:
    """Remove a deleted user for good, with all that was provisioned for it.

    Only a deleted user can be purged; a living one is answered with a conflict.
    """
    user = {"instance_id": call.instance.id, "email_key": email_key(params.email)}
    purged = await call.db.one("purge_user", **user)
    if purged is None:
        found(await call.db.value("find_email", **user))
        raise Conflict("the user is not deleted: call deleteUserByEmail first", code="not_deleted")
    call.record("user.purged", purged["id"], before=identity(purged["state"]))
    return True


class ListUsers(TenantParams):
    """Which users, and from where on."""

    status: Literal["all", "admins", "suspended", "deleted"] = Field(
        "all", description="all: every user that is not deleted."
    )
    emailStartsWith: Annotated[str, Field(max_length=254)] = Field("", description="In any case.")
    after: Annotated[str, Field(max_length=2000)] | None = Field(
        None, description="The next of the page before; null for the first page."
    )
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class ListedUser(Result):
    """A user in a list."""

    id: int
    email: str
    displayName: str
    isActive: bool
    isAdmin: bool
    createdAt: int = Field(description="Unix seconds.")
    deletedAt: int | None = Field(description="Unix seconds; null for a living user.")


class UserPage(Result):
    """A page of users in the order of their e-mails."""

    users: list[ListedUser]
    next: str | None = Field(description="Pass it as after for the next page; null on the last.")


_LISTS = {
    "all": "list_users",
    "admins": "list_admin_users",
    "suspended": "list_suspended_users",
    "deleted": "list_deleted_users",
}


@method(
    "listUsers",
    result=UserPage,
    scope="users:read",
    writes=False,
    examples=(
        Example(
            "One user a page",
            {"limit": 1},
            {"users": [{"id": 1, "email": "admin@example.com", "displayName": "admin", "isActive": True,
                        "isAdmin": True, "createdAt": 1683471262, "deletedAt": None}],
             "next": "YWRtaW5AZXhhbXBsZS5jb20"},
        ),
        Example("Nobody is suspended", {"status": "suspended"}, {"users": [], "next": None}),
    ),
)  # fmt: skip
async def list_users(call: Call, params: ListUsers) -> Any:
    """List the users of an instance, page by page.

    Pages follow the e-mails, so that a user created meanwhile neither shifts nor repeats the others.
    """
    rows = await call.db.all(
        _LISTS[params.status],
        instance_id=call.instance.id,
        after=from_cursor(params.after),
        starts_with=params.emailStartsWith.lower(),
        row_limit=params.limit,
    )
    users = [dict(row) for row in rows]
    last = [user.pop("email_key") for user in users][-1:]
    return {"users": users, "next": to_cursor(last[0]) if len(users) == params.limit else None}


def to_cursor(key: str) -> str:
    """An opaque place in a list."""
    return base64.urlsafe_b64encode(key.encode()).rstrip(b"=").decode()


def from_cursor(cursor: str | None) -> str:
    """The key behind a cursor; empty for the start.

    Raises:
        Invalid: not a cursor of ours.
    """
    if cursor is None:
        return ""
    try:
        key = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise Invalid.of([FieldError("after", "is not what a page gave as next")]) from error
    if "\0" in key:
        raise Invalid.of([FieldError("after", "is not what a page gave as next")])
    return key
