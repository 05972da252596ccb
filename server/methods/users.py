"""Users of an instance: the OneOffice calls (seeds/000) and their neighbours."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from server.base.errors import DUPLICATES, FieldError, Invalid, MemberForbidden, NotFound
from server.base.models import Result, TenantParams
from server.directory import office365
from server.directory.groups import (
    chosen_groups,
    find_group_ids,
    groups_of,
    hold_member,
    record_groups,
    replace_groups,
)  # fmt: skip
from server.directory.names import hold_user, rename
from server.directory.provisioning import hash_new_password, insert_user, names_of
from server.directory.users import (
    CREATED_USER,
    USER,
    CreatedUser,
    CreateUser,
    NewEmail,
    Quotas,
    ReplaceUser,
    ResetPassword,
    User,
    UserChanges,
    UserRef,
    email_key,
    end_access,
    end_codes,
    explain_taken,
    found,
    from_cursor,
    read_user,
    record_password,
    to_cursor,
    written,
)
from server.methods.registry import Example, method
from server.tenants import access
from server.tenants.call import Call


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
async def create_user(call: Call, params: CreateUser, password_hash: str | None) -> Any:
    """Create a user with mailbox, calendar and files.

    The user, its credential, six mailboxes (inbox, spam, sent, trash, archive, drafts), its main calendar
    and its two file folders (root, trash) are made together or not at all. A taken e-mail answers
    `duplicate key value violates unique constraint "users_email"`; the e-mail of a deleted user stays
    taken until that user is purged, and so does its externalId: both are answered with the code user_deleted.
    Where the instance has no seat left (maxUsers), nobody is created.
    """
    if params.createInOffice365 and office365.credentials_of(call.instance.settings) is None:
        raise Invalid.of([FieldError("createInOffice365", office365.NO_CREDENTIALS)])
    created = await insert_user(call, call.instance.id, params, password_hash)
    if params.createInOffice365:
        await office365.begin(call, created["id"])
    return created


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
    errors=(NotFound, "duplicate_external_id", "user_deleted"),
    examples=(
        Example("Suspend", {"email": "jane@example.com", "isActive": False}, True),
        Example("Reactivate", {"email": "jane@example.com", "isActive": True}, True),
        Example("Move", {"email": "jane@example.com", "profile": {"location": "Manama"}}, True),
    ),
)
async def update_user_by_email(call: Call, params: UpdateUser) -> Any:
    """Change any part of a user but its e-mail and password.

    profile and values are merged member by member, everything else is replaced. Suspending (isActive false)
    ends every session of the user in the same transaction. To change an administrator, in whatever, needs the
    scope users:admin.
    """
    key, is_admin, before = email_key(params.email), params.isAdmin, {}
    if params.groups is not None:
        member, is_admin = await hold_member(call, key), params.in_admins()
        group_ids = chosen_groups(params.groups, await find_group_ids(call, params.groups))
        before = await groups_of(call, [member["id"]])
    quotas = params.quotas or Quotas()
    explain_taken(call, None, params.externalId)
    user = written(
        call,
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
        ),
    )
    call.emit_user_changes(user["id"], user["before"], user["after"])
    if before:
        await replace_groups(call, {user["id"]: group_ids})
        await record_groups(call, before)
    if params.isActive is False:
        await end_access(call, [user["id"]])
    return True


@method(
    "resetPasswordByEmail",
    result=Literal[True],
    scope="users:write",
    writes=True,
    extension=False,
    prepare=hash_new_password,
    errors=(NotFound, MemberForbidden),
    examples=(Example("A new password", {"email": "jane@example.com", "password": "onemoretime"}, True),),
)
async def reset_password_by_email(call: Call, params: ResetPassword, password_hash: str) -> Any:
    """Set a user's password and end its sessions; an administrator's needs the scope users:admin."""
    user = written(
        call,
        await call.db.one(
            "set_password",
            instance_id=call.instance.id,
            email_key=email_key(params.email),
            password_hash=password_hash,
        ),
    )
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
    errors=(NotFound, MemberForbidden, "duplicate_email", "user_deleted"),
    examples=(Example("Marriage", {"email": "jane@example.com", "newEmail": "jane.roe@example.com"}, True),),
)
async def rename_user_by_email(call: Call, params: RenameUser) -> Any:
    """Give a user another e-mail; its sessions and everything it holds stay.

    A login that is an e-mail goes with the old e-mail, and the user logs in with the new one. Another login
    stays: a user without an e-mail, who is named by it here, gets one beside it.

    An administrator's needs the scope users:admin.
    """
    held = await hold_user(call, key=email_key(params.email))
    call.subject = held["id"]
    renamed = await rename(call, held, params.newEmail, "newEmail")
    if renamed is not None:
        user = written(call, renamed)
        call.emit_user_changes(user["id"], user["before"], user["after"])
        await end_codes(call, before=user["before"], after=user["after"], user_id=user["id"])
    return True


@method(
    "replaceUserByEmail",
    result=Literal[True],
    scope="users:write",
    writes=True,
    prepare=hash_new_password,
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
async def replace_user_by_email(call: Call, params: ReplaceUser, password_hash: str | None) -> Any:
    """Change a user's e-mail, names, password and administration at once, all of it or nothing.

    What is left out stays as it is. The display name follows the names. An administrator's replacement needs
    the scope users:admin.
    """
    held = await hold_user(call, key=email_key(params.email))
    renamed = params.newEmail and await rename(call, held, params.newEmail, "newEmail")
    replaced = await call.db.one(
        "replace_user",
        instance_id=call.instance.id,
        user_id=held["id"],
        names=names_of(params),
        is_admin=params.isAdmin,
        password_hash=password_hash,
    )
    changed = dict(found(replaced))
    if renamed:
        changed["before"] = renamed["before"]
    written(call, changed)
    if password_hash is not None:
        access.require_user(call.caller, {"is_admin": changed["before"]["isAdmin"]})
    call.emit_user_changes(changed["id"], changed["before"], changed["after"])
    await end_codes(call, before=changed["before"], after=changed["after"], user_id=changed["id"])
    if password_hash is not None:
        await record_password(call, changed)
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
        starts_with=email_key(params.emailStartsWith),
        row_limit=params.limit,
    )
    users = [dict(row) for row in rows]
    last = [user.pop("email_key") for user in users][-1:]
    return {"users": users, "next": to_cursor(last[0]) if len(users) == params.limit else None}
