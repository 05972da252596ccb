"""Users of an instance: the OneOffice methods (seeds/000), and rename, replace and list."""

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
from server.tenants import access
from server.tenants.call import Call


def is_one_statement(params: CreateUser) -> bool:
    """Whether one statement creates the user: without a plan and without Office 365."""
    return params.planId is None and not params.createInOffice365


async def _prepare_creation(call: Call, params: CreateUser) -> Batch[CreateUser]:
    return await prepare(call, Batch.one(params))


@method(
    "createUser",
    result=CreatedUser,
    scope="users:write",
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
    and two file folders (root, trash) are created in one transaction. For a taken e-mail the error is
    `duplicate key value violates unique constraint "users_email"`. The e-mail and externalId of a deleted
    user stay taken until it is purged (code user_deleted). The instance needs a free seat (maxUsers).
    """
    return (await create(call, prepared.again()))[0]


@method(
    "getUserByEmail",
    result=User,
    scope="users:read",
    extension=False,
    errors=(NotFound,),
    examples=(Example("A user", {"email": "jane@example.com"}, USER),),
)
async def get_user_by_email(call: Call, params: UserRef) -> Any:
    """Look up a user by e-mail, unless it is deleted.

    Sessions are not shown: token is empty and tokenExpiresAt is 0.
    """
    return found(await read_user(call, email_key(params.email)))


class UpdateUser(UserChanges, TenantParams):
    """Changes of a user: at least one member besides the e-mail."""


@method(
    "updateUserByEmail",
    scope="users:write",
    extension=False,
    member_scopes=access.MEMBER_SCOPES,
    errors=(NotFound, "duplicate_external_id", "user_deleted"),
    examples=(
        Example("Suspend", {"email": "jane@example.com", "isActive": False}, True),
        Example("Reactivate", {"email": "jane@example.com", "isActive": True}, True),
        Example("New location", {"email": "jane@example.com", "profile": {"location": "Manama"}}, True),
    ),
)
async def update_user_by_email(call: Call, params: UpdateUser) -> Literal[True]:
    """Change members of a user, except its e-mail and password.

    profile and values are merged, other members are replaced. Suspending (isActive false) ends all sessions
    of the user in the same transaction. For an administrator, needs the scope users:admin.
    """
    await change.update(call, Batch.one(params))
    return True


@method(
    "resetPasswordByEmail",
    scope="users:write",
    extension=False,
    prepare=hashed("password"),
    errors=(NotFound, MemberForbidden),
    examples=(Example("New password", {"email": "jane@example.com", "password": "onemoretime"}, True),),
)
async def reset_password_by_email(call: Call, params: ResetPassword, password_hash: str) -> Literal[True]:
    """Set a user's password and end its sessions. For an administrator, needs the scope users:admin."""
    user = await change.hold_user(call, email=params.email)
    await change.change(call, Edit(user, user, password_hash))
    return True


class RenameUser(UserRef):
    """A new e-mail for a user."""

    newEmail: NewEmail = Field(description="Unique in the instance, in any case.")


@method(
    "renameUserByEmail",
    scope="users:write",
    errors=(NotFound, MemberForbidden, "duplicate_email", "user_deleted"),
    examples=(Example("Rename", {"email": "jane@example.com", "newEmail": "jane.roe@example.com"}, True),),
)
async def rename_user_by_email(call: Call, params: RenameUser) -> Literal[True]:
    """Change a user's e-mail. Its sessions and data stay.

    A login that is an e-mail is replaced too. Any other login stays; for a user without an e-mail, give its
    login as email. For an administrator, needs the scope users:admin.
    """
    user = await change.hold_user(call, email=params.email)
    await change.change(call, Edit(user, change.with_email(user, params.newEmail)), member="newEmail")
    return True


@method(
    "replaceUserByEmail",
    scope="users:write",
    prepare=hashed("password"),
    errors=(NotFound, MemberForbidden, "duplicate_email", "user_deleted"),
    examples=(
        Example(
            "New e-mail, names and password",
            {"email": "jane@example.com", "newEmail": "jane.roe@example.com", "firstName": "Jane",
             "lastName": "Roe", "isAdmin": False, "password": "onemoretime"},
            True,
        ),
    ),
)  # fmt: skip
async def replace_user_by_email(call: Call, params: ReplaceUser, password_hash: str | None) -> Literal[True]:
    """Change a user's e-mail, names, password and isAdmin in one transaction.

    Members left out stay as they are. The display name follows the names. For an administrator, needs the
    scope users:admin.
    """
    user = await change.hold_user(call, email=params.email)
    await change.change(call, Edit(user, change.replaced(user, params), password_hash), member="newEmail")
    return True


class ListUsers(TenantParams):
    """Filters and a page."""

    status: Literal["all", "admins", "suspended", "deleted"] = Field(
        "all", description="all: all except deleted."
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
    deletedAt: int | None = Field(description="Unix seconds; null: not deleted.")


class UserPage(Result):
    """A page of users, by e-mail."""

    users: list[ListedUser]
    next: Next


@method(
    "listUsers",
    result=UserPage,
    scope="users:read",
    examples=(
        Example(
            "One user a page",
            {"limit": 1},
            {"users": [{"id": 1, "email": "admin@example.com", "displayName": "admin", "isActive": True,
                        "isAdmin": True, "createdAt": 1683471262, "deletedAt": None}],
             "next": "YWRtaW5AZXhhbXBsZS5jb20"},
        ),
        Example("No suspended users", {"status": "suspended"}, {"users": [], "next": None}),
    ),
)  # fmt: skip
async def list_users(call: Call, params: ListUsers) -> Any:
    """List the users of an instance, page by page, in the order of their e-mails.

    Users created in between do not shift or repeat others.
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
    users = [dict(row) for row in shown]
    for user in users:
        del user["email_key"], user["deleted_at"]
    return {"users": users, "next": after}
