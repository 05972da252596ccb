"""Users of the member platform (seeds/001): by id, with profile fields, an account and a language."""

import secrets
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field

from server.base.errors import DUPLICATES, FieldError, Invalid, MemberForbidden, NotFound
from server.base.models import SECRET, Id, Result, TenantParams
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
from server.methods.accounts import insert_account
from server.methods.codes import ConfirmationUrl, checked_link, mail_code
from server.methods.registry import Example, method
from server.methods.sessions import WrongLogin, verify_password
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
    title: str = Field(description="Name of its user when it was created.")


class Member(Result):
    """A user, in the form of the member platform."""

    id: int
    login: str
    language: str
    isActive: bool
    isConfirmed: bool
    fullname: str
    avatar: str
    profile: dict[str, Any] = Field(description="Alias -> value; with a phone, also phone_e164.")
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
    errors=(NotFound,),
    examples=(Example("A member", {"id": 2}, MEMBER),),
)
async def get_user_by_id(call: Call, params: UserId) -> Any:
    """Look up a user by id, with profile fields and account (user/get)."""
    return found(await _read_member(call, params.id))


AnyLogin = Annotated[str, Field(min_length=1, max_length=254, description="Login or e-mail, in any case.")]


class LoginName(TenantParams):
    """A user by login or e-mail."""

    login: AnyLogin


class Existence(Result):
    """Whether the user exists, and the user."""

    exists: bool
    member: Member | None


@method(
    "userExists",
    result=Existence,
    scope="users:read",
    examples=(
        Example("Yes", {"login": "jane@example.com"}, {"exists": True, "member": MEMBER}),
        Example("No", {"login": "nobody@example.com"}, {"exists": False, "member": None}),
    ),
)
async def user_exists(call: Call, params: LoginName) -> Any:
    """Whether a user with this login exists and is not deleted (user/exists).

    The login of a deleted user stays taken until that user is purged: see validateUser.
    """
    member = await _read_member(call, login=params.login)
    return {"exists": member is not None, "member": member}


class CheckAuth(TenantParams):
    """Credentials of a user."""

    login: AnyLogin
    password: Password
    clientAddress: ClientAddress | None = None


async def _verify(call: Call, params: CheckAuth) -> None:
    await verify_password(call, params.login, params.password, params.clientAddress)


@method(
    "checkAuth",
    result=Member,
    scope="sessions:write",
    writes=False,
    prepare=_verify,
    errors=(WrongLogin, "login_delayed"),
    examples=(Example("Correct password", {"login": "jane@example.com", "password": "demo1234"}, MEMBER),),
)
async def check_auth(call: Call, params: CheckAuth, _: None) -> Any:
    """Check a login and password without starting a session (user/check-auth).

    Failures count as failed logins.
    """
    member = await _read_member(call, login=params.login)
    if member is None or not member["isActive"]:  # deleted or suspended during the check
        raise WrongLogin
    return member


class CreateMember(TenantParams):
    """A new user with an account below its sponsor's."""

    login: NewLogin = Field(
        description="An e-mail, or a name without @. Unique among the logins and e-mails of the instance, in "
        "any case."
    )
    sponsorId: Id = Field(description="Account of the sponsor.")
    profile: ProfileValues = Field(
        description="Alias -> value, including every mandatory field. Mails go to email, or else to the "
        "login if it is an e-mail.",
        json_schema_extra=profile_schema(complete=True),
    )
    password: Annotated[str, Field(max_length=1024), SECRET] | None = Field(
        None, description="Null or empty: generated by the settings of the instance, and returned."
    )
    confirmationUrl: ConfirmationUrl | None = Field(
        None, description="URL for the link in the mail, with one {{code}}; null: no confirmation."
    )
    language: Language = "en"


class CreatedMember(Result):
    """The new user and its generated password, if any."""

    member: Member
    password: str | None


class Prepared(NamedTuple):
    """Values that createMember prepares before it takes a connection."""

    fields: dict[str, Any]
    names: Names
    password_hash: str
    generated: str | None


def generated_password(rules: GeneratedPasswords) -> str:
    """A random password by the settings of an instance."""
    classes = ["abcdefghijkmnopqrstuvwxyz", "23456789"]  # without similar characters
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
    """Create a user with mailbox, calendar, files and an account below its sponsor's (user/create).

    With confirmationUrl the user gets a mail with a code, and cannot log in until it is confirmed. A user
    without an e-mail gets no mails; methods that take or return an e-mail use its login instead.
    """
    names = prepared.names
    await hold_free_names(call, names, login_member="login", email_member="profile.email")
    values = {alias: value for alias, value in prepared.fields.items() if value is not None}
    name = f"{values['firstname']} {values['lastname']}"
    # model_construct: validation would refuse a login that is no e-mail.
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
    scope="users:write",
    prepare=hashed("newPassword"),
    errors=(NotFound, MemberForbidden),
    examples=(Example("A new password", {"id": 2, "newPassword": "onemoretime"}, True),),
)
async def set_password(call: Call, params: SetPassword, password_hash: str) -> Literal[True]:
    """Set a user's password, by id, and end its sessions (user/set-password).

    For an administrator, needs the scope users:admin.
    """
    user = await change.hold_user(call, user_id=params.id)
    await change.change(call, Edit(user, user, password_hash))
    return True


class DeleteUser(UserId):
    """A user, with or without its account."""

    withAccount: bool = Field(False, description="Close its account too; the accounts below it stay.")


@method(
    "deleteUserById",
    scope="users:write",
    errors=(NotFound, MemberForbidden),
    examples=(Example("With the account", {"id": 2, "withAccount": True}, True),),
)
async def delete_user_by_id(call: Call, params: DeleteUser) -> Literal[True]:
    """Delete a user by id, as deleteUserByEmail does, with or without its account (user/delete)."""
    user = await change.hold_user(call, user_id=params.id)
    await change.change(call, change.deletion(user, closes_account=params.withAccount))
    return True


class ChangeLanguage(UserId):
    """A new language for a user."""

    language: Language = Field(description="Code of ISO 639-1.")


@method(
    "changeLanguage",
    scope="users:write",
    errors=(NotFound, MemberForbidden),
    examples=(Example("Russian", {"id": 2, "language": "ru"}, True),),
)
async def change_language(call: Call, params: ChangeLanguage) -> Literal[True]:
    """Change the language of a user's mails (user/change-language)."""
    user = await change.hold_user(call, user_id=params.id)
    await change.change(call, Edit(user, user | {"language": params.language}))
    return True
