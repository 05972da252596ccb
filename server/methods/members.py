"""The member platform's users (seeds/001): by id, with profile fields, an account and a language."""

import secrets
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field

from server.base.errors import DUPLICATES, FieldError, Invalid, MemberForbidden, NotFound
from server.base.models import SECRET, Result, TenantParams
from server.directory import change
from server.directory.creation import Membership, create
from server.directory.fields import EMAIL, checked, fields_of, profile_schema
from server.directory.languages import LANGUAGES
from server.directory.lookups import read_member
from server.directory.many import Batch
from server.directory.names import Names, NewLogin, has_email, hold_free_names, names_of_user
from server.directory.rows import Edit
from server.directory.rules import hashed, password_failures
from server.directory.throttle import ClientAddress
from server.directory.users import CreateUser, Password, UserId, email_key, found
from server.methods.accounts import Id, insert_account
from server.methods.codes import LINK_SCHEMA, checked_link, mail_code
from server.methods.registry import Example, method
from server.methods.sessions import Login, WrongLogin, verify_password
from server.tenants.call import Call
from server.tenants.instances import GeneratedPasswords


def _language(code: str) -> str:
    if code not in LANGUAGES:
        raise ValueError("must be a two-letter code of ISO 639-1, such as en")
    return code


Language = Annotated[
    str, Field(max_length=8, json_schema_extra={"enum": sorted(LANGUAGES)}), AfterValidator(_language)
]
ProfileValues = Annotated[dict[str, Any], Field(max_length=100)]


class Account(Result):
    """A member's account."""

    id: int
    title: str = Field(description="The name of its user when it was opened.")


class Member(Result):
    """A user as the member platform knows it."""

    id: int
    login: str
    language: str
    isActive: bool
    isConfirmed: bool
    fullname: str
    avatar: str
    profile: dict[str, Any] = Field(description="Alias -> value; phone_e164 stands beside a phone.")
    account: Account | None


MEMBER = {
    "id": 2, "login": "jane@example.com", "language": "en", "isActive": True, "isConfirmed": True,
    "fullname": "Jane Doe", "avatar": "", "profile": {"email": "jane@example.com"}, "account": None,
}  # fmt: skip


async def _read_member(call: Call, user_id: int | None = None, login: str | None = None) -> Any:
    return await read_member(call.db, call.settings, call.instance.id, user_id, login)


@method(
    "getUserById",
    result=Member,
    scope="users:read",
    writes=False,
    errors=(NotFound,),
    examples=(Example("A member", {"id": 2}, MEMBER),),
)
async def get_user_by_id(call: Call, params: UserId) -> Any:
    """A user by id, with profile fields and account (user/get)."""
    return found(await _read_member(call, params.id))


AnyLogin = Annotated[
    str, Field(min_length=1, max_length=254, description="The user's login or e-mail, in any case.")
]


class LoginName(TenantParams):
    """A user by the name that it logs in with."""

    login: AnyLogin


class Existence(Result):
    """Whether there is such a user, and which."""

    exists: bool
    member: Member | None


@method(
    "userExists",
    result=Existence,
    scope="users:read",
    writes=False,
    examples=(
        Example("Yes", {"login": "jane@example.com"}, {"exists": True, "member": MEMBER}),
        Example("No", {"login": "nobody@example.com"}, {"exists": False, "member": None}),
    ),
)
async def user_exists(call: Call, params: LoginName) -> Any:
    """Whether there is a living user with this login (user/exists).

    The login of a deleted user is not shown, but stays taken until that user is purged: validateUser tells.
    """
    member = await _read_member(call, login=params.login)
    return {"exists": member is not None, "member": member}


class CheckAuth(TenantParams):
    """What somebody claims to be."""

    login: AnyLogin
    password: Password
    clientAddress: ClientAddress | None = None


async def _verify(call: Call, params: CheckAuth) -> None:
    await verify_password(
        call,
        Login(
            instance=params.instance,
            email=params.login,
            password=params.password,
            clientAddress=params.clientAddress,
        ),
    )


@method(
    "checkAuth",
    result=Member,
    scope="sessions:write",
    writes=False,
    prepare=_verify,
    errors=(WrongLogin, "login_delayed"),
    examples=(Example("Right", {"login": "jane@example.com", "password": "demo1234"}, MEMBER),),
)
async def check_auth(call: Call, params: CheckAuth, _: None) -> Any:
    """The user behind a login and password, without a session (user/check-auth).

    Failures are limited together with those of login.
    """
    member = await _read_member(call, login=params.login)
    if member is None or not member["isActive"]:  # deleted or suspended while we verified
        raise WrongLogin
    return member


class CreateMember(TenantParams):
    """A new user with an account under its sponsor's."""

    login: NewLogin = Field(
        description="What it logs in with: an e-mail, or a name without @. Unique in the instance, together "
        "with all e-mails, in any case."
    )
    sponsorId: Id = Field(description="The account above its own.")
    profile: ProfileValues = Field(
        description="Alias -> value, every mandatory field among them. Mails go to email; without one, to "
        "the login, where that is an e-mail.",
        json_schema_extra=profile_schema(complete=True),
    )
    password: Annotated[str, Field(max_length=1024), SECRET] | None = Field(
        None, description="Null or empty: one is made by the instance's settings and returned."
    )
    confirmationUrl: Annotated[str, Field(max_length=2000, json_schema_extra=LINK_SCHEMA)] | None = Field(
        None, description="Where the mail's link leads, with one {{code}}; null: nothing is to be confirmed."
    )
    language: Language = "en"


class CreatedMember(Result):
    """The new user and, if it was made for it, its password."""

    member: Member
    password: str | None


class Prepared(NamedTuple):
    """What createMember worked out before it took a connection."""

    fields: dict[str, Any]
    names: Names
    password_hash: str
    generated: str | None


def generated_password(rules: GeneratedPasswords) -> str:
    """A password as an instance wants them made, from the system's generator."""
    classes = ["abcdefghijkmnopqrstuvwxyz", "23456789"]  # none that look alike
    classes += ["ABCDEFGHJKLMNPQRSTUVWXYZ"] if rules.mixedCase else []
    classes += ["!#$%&*+-=?@"] if rules.specialSymbols else []
    chars = [secrets.choice(kind) for kind in classes]
    chars += [secrets.choice("".join(classes)) for _ in range(rules.length - len(chars))]
    secrets.SystemRandom().shuffle(chars)
    return "".join(chars)


async def _prepare_member(call: Call, params: CreateMember) -> Prepared:
    settings = call.instance.settings
    async with call.database.connection() as db:
        fields = await fields_of(db, call.instance.id)
    values, failures = checked(fields, params.profile, complete=True)
    names = names_of_user(params.login, values.pop(EMAIL, None))
    generated = None if params.password else generated_password(settings.generatedPasswords)
    password = params.password or generated or ""
    failures += password_failures("password", params.password or None, settings.passwordPolicy)
    if params.confirmationUrl is not None:
        try:
            checked_link(params.confirmationUrl, settings)
        except Invalid as error:
            failures += error.fields
        if not has_email(names.email) and all(failed.field != "profile.email" for failed in failures):
            failures.append(FieldError("profile.email", "is required: confirmationUrl goes there"))
    if failures:
        raise Invalid.of(failures)
    return Prepared(values, names, await call.hasher.hash(password), generated)


@method(
    "createMember",
    result=CreatedMember,
    scope="users:write",
    writes=True,
    prepare=_prepare_member,
    errors=(*DUPLICATES, "seats_exhausted", "too_deep"),
    examples=(
        Example(
            "Under the administrator",
            {"login": "ann@example.com", "sponsorId": 1, "profile": {"firstname": "Ann", "lastname": "Lee"}},
            {"member": MEMBER | {"id": 4, "login": "ann@example.com", "fullname": "Ann Lee",
                                  "profile": {"email": "ann@example.com", "firstname": "Ann",
                                              "lastname": "Lee"},
                                  "account": {"id": 2, "title": "Ann Lee"}},
             "password": "xK7mPq2RtWz9"},
        ),
    ),
)  # fmt: skip
async def create_member(call: Call, params: CreateMember, prepared: Prepared) -> Any:
    """Create a user with mailbox, calendar, files and an account under its sponsor's (user/create).

    With confirmationUrl the user gets a mail with a code and cannot log in until it is redeemed. A user
    without an e-mail gets no mails; in calls and answers that know users by e-mail alone, its login stands
    for it.
    """
    names = prepared.names
    await hold_free_names(call, names, login_member="login", email_member="profile.email")
    values = {alias: value for alias, value in prepared.fields.items() if value is not None}
    name = f"{values['firstname']} {values['lastname']}"
    # Not validated again: a login that is no e-mail would not pass as one.
    user = CreateUser.model_construct(email=names.email, displayName=name[:200])
    membership = Membership(values, params.language, params.confirmationUrl is None, names.login)
    created = (await create(call, Batch.one(user, prepared.password_hash), membership=membership))[0]
    account = await insert_account(call, created["id"], params.sponsorId, name)
    call.audit_only(created["id"], after={"accountId": account["id"], "sponsorId": params.sponsorId})
    if params.confirmationUrl is not None:
        await mail_code(
            call.db,
            instance_id=call.instance.id,
            email_key=email_key(names.email),
            purpose="confirm",
            confirmation_url=checked_link(params.confirmationUrl, call.instance.settings),
        )
    return {"member": await _read_member(call, created["id"]), "password": prepared.generated}


class SetPassword(UserId):
    """A new password for a user."""

    newPassword: Password


@method(
    "setPassword",
    result=Literal[True],
    scope="users:write",
    writes=True,
    prepare=hashed("newPassword"),
    errors=(NotFound, MemberForbidden),
    examples=(Example("A new password", {"id": 2, "newPassword": "onemoretime"}, True),),
)
async def set_password(call: Call, params: SetPassword, password_hash: str) -> Any:
    """Set a user's password by id and end its sessions (user/set-password).

    An administrator's needs the scope users:admin.
    """
    user = await change.hold_user(call, user_id=params.id)
    await change.change(call, Edit(user, user, password_hash))
    return True


class DeleteUser(UserId):
    """Who goes, and whether the account goes too."""

    withAccount: bool = Field(
        False, description="Close the account too; those beneath it stay where they are."
    )


@method(
    "deleteUserById",
    result=Literal[True],
    scope="users:write",
    writes=True,
    errors=(NotFound, MemberForbidden),
    examples=(Example("With the account", {"id": 2, "withAccount": True}, True),),
)
async def delete_user_by_id(call: Call, params: DeleteUser) -> Any:
    """Delete a user by id, as deleteUserByEmail does, with or without its account (user/delete)."""
    user = await change.hold_user(call, user_id=params.id)
    await change.change(call, change.deletion(user, closes_account=params.withAccount))
    return True


class ChangeLanguage(UserId):
    """Another language for a user."""

    language: Language = Field(description="Two letters, ISO 639-1.")


@method(
    "changeLanguage",
    result=Literal[True],
    scope="users:write",
    writes=True,
    errors=(NotFound, MemberForbidden),
    examples=(Example("Russian", {"id": 2, "language": "ru"}, True),),
)
async def change_language(call: Call, params: ChangeLanguage) -> Any:
    """Change the language that a user gets its mails in (user/change-language)."""
    user = await change.hold_user(call, user_id=params.id)
    await change.change(call, Edit(user, user | {"language": params.language}))
    return True
