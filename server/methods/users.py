"""Users of an instance: the OneOffice calls (seeds/000) and their neighbours."""

from typing import Annotated, Any, Literal

from pydantic import Field

from server.base.errors import DUPLICATES, MemberForbidden, NotFound
from server.base.models import Result, TenantParams
from server.base.pages import After, Limit, Next, from_cursor, page
from server.directory import change
from server.directory.creation import create, prepare
from server.directory.lookups import read_user
from server.directory.many import Batch
from server.directory.rows import Edit
from server.directory.rules import hashed
from server.directory.users import (
    CREATED_USER,
    USER,
    CreatedUser,
    CreateUser,
    NewEmail,
    ReplaceUser,
    ResetPassword,
    User,
    UserChanges,
    UserRef,
    email_key,
    found,
)
from server.methods.registry import Example, method
from server.tenants.call import Call


def is_one_statement(params: "CreateUser") -> bool:
    """Whether a user is created by one statement: without a plan and without Office 365."""
    return params.planId is None and not params.createInOffice365


async def _prepare_creation(call: Call, params: CreateUser) -> Batch[CreateUser]:
    return await prepare(call, Batch.one(params))


@method(
    "createUser",
    result=CreatedUser,
    scope="users:write",
    writes=True,
    extension=False,
    prepare=_prepare_creation,
    single=is_one_statement,
    member_scopes={"isAdmin": "users:admin"},
    errors=(*DUPLICATES, "seats_exhausted"),
    examples=(
        Example(
            "A user with a password",
            {"email": "test1@oneoffice.bh", "instance": "MYINSTANCE", "displayName": "TestUser",
             "password": "demo1234"},
            CREATED_USER,
        ),
    ),
)  # fmt: skip
async def create_user(call: Call, params: CreateUser, prepared: Batch[CreateUser]) -> Any:
    """Create a user with mailbox, calendar and files.

    The user, its credential, six mailboxes (inbox, spam, sent, trash, archive, drafts), its main calendar
    and its two file folders (root, trash) are made together or not at all. A taken e-mail answers
    `duplicate key value violates unique constraint "users_email"`; the e-mail of a deleted user stays
    taken until that user is purged, and so does its externalId: both are answered with the code user_deleted.
    Where the instance has no seat left (maxUsers), nobody is created.
    """
    return (await create(call, prepared.again()))[0]


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
    return found(await read_user(call, email_key(params.email)))


class UpdateUser(UserChanges, TenantParams):
    """What to change; at least one member beside the e-mail."""


@method(
    "updateUserByEmail",
    scope="users:write",
    writes=True,
    extension=False,
    member_scopes={"isAdmin": "users:admin", "groups": "groups:write"},
    errors=(NotFound, "duplicate_external_id", "user_deleted"),
    examples=(
        Example("Suspend", {"email": "jane@example.com", "isActive": False}, True),
        Example("Reactivate", {"email": "jane@example.com", "isActive": True}, True),
        Example("Move", {"email": "jane@example.com", "profile": {"location": "Manama"}}, True),
    ),
)
async def update_user_by_email(call: Call, params: UpdateUser) -> Literal[True]:
    """Change any part of a user but its e-mail and password.

    profile and values are merged member by member, everything else is replaced. Suspending (isActive false)
    ends every session of the user in the same transaction. To change an administrator, in whatever, needs the
    scope users:admin.
    """
    await change.update(call, Batch.one(params))
    return True


@method(
    "resetPasswordByEmail",
    scope="users:write",
    writes=True,
    extension=False,
    prepare=hashed("password"),
    errors=(NotFound, MemberForbidden),
    examples=(Example("A new password", {"email": "jane@example.com", "password": "onemoretime"}, True),),
)
async def reset_password_by_email(call: Call, params: ResetPassword, password_hash: str) -> Literal[True]:
    """Set a user's password and end its sessions; an administrator's needs the scope users:admin."""
    user = await change.hold_user(call, email=params.email)
    await change.change(call, Edit(user, user, password_hash))
    return True


class RenameUser(UserRef):
    """Another e-mail for a user."""

    newEmail: NewEmail = Field(description="Unique in the instance, in any case.")


@method(
    "renameUserByEmail",
    scope="users:write",
    writes=True,
    errors=(NotFound, MemberForbidden, "duplicate_email", "user_deleted"),
    examples=(Example("Marriage", {"email": "jane@example.com", "newEmail": "jane.roe@example.com"}, True),),
)
async def rename_user_by_email(call: Call, params: RenameUser) -> Literal[True]:
    """Give a user another e-mail; its sessions and everything it holds stay.

    A login that is an e-mail goes with the old e-mail, and the user logs in with the new one. Another login
    stays: a user without an e-mail, who is named by it here, gets one beside it.

    An administrator's needs the scope users:admin.
    """
    user = await change.hold_user(call, email=params.email)
    await change.change(call, Edit(user, change.with_email(user, params.newEmail)), member="newEmail")
    return True


@method(
    "replaceUserByEmail",
    scope="users:write",
    writes=True,
    prepare=hashed("password"),
    errors=(NotFound, MemberForbidden, "duplicate_email", "user_deleted"),
    examples=(
        Example(
            "Marriage, and another password",
            {"email": "jane@example.com", "newEmail": "jane.roe@example.com", "firstName": "Jane",
             "lastName": "Roe", "isAdmin": False, "password": "onemoretime"},
            True,
        ),
    ),
)  # fmt: skip
async def replace_user_by_email(call: Call, params: ReplaceUser, password_hash: str | None) -> Literal[True]:
    """Change a user's e-mail, names, password and administration at once, all of it or nothing.

    What is left out stays as it is. The display name follows the names. An administrator's replacement needs
    the scope users:admin.
    """
    user = await change.hold_user(call, email=params.email)
    await change.change(call, Edit(user, change.replaced(user, params), password_hash), member="newEmail")
    return True


class ListUsers(TenantParams):
    """Which users, and from where on."""

    status: Literal["all", "admins", "suspended", "deleted"] = Field(
        "all", description="all: every user that is not deleted."
    )
    emailStartsWith: Annotated[str, Field(max_length=254)] = Field("", description="In any case.")
    after: After = None
    limit: Limit = 100


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
    next: Next


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
        "list_users",
        instance_id=call.instance.id,
        status=params.status,
        after=from_cursor(params.after),
        starts_with=email_key(params.emailStartsWith),
        row_limit=params.limit + 1,
    )
    shown, after = page(rows, params.limit, lambda row: str(row["email_key"]))
    return {"users": [{name: row[name] for name in ListedUser.model_fields} for row in shown], "next": after}
