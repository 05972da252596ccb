"""Deleting, restoring and purging users."""

from typing import Literal

from server.base.errors import Conflict, MemberForbidden, NotFound
from server.directory import change
from server.directory.many import Batch
from server.directory.rows import Edit, purge
from server.directory.users import UserRef
from server.methods.registry import Example, method
from server.tenants import access
from server.tenants.call import Call


@method(
    "deleteUserByEmail",
    scope="users:write",
    errors=(NotFound, MemberForbidden),
    examples=(Example("Delete", {"email": "jane@example.com"}, True),),
)
async def delete_user_by_email(call: Call, params: UserRef) -> Literal[True]:
    """Delete a user. It can be restored until its retention ends; then it is purged.

    Only getUser and listUsers with status deleted still show it. Its sessions end. Its e-mail stays taken.
    The retention is that of the instance, or else of the server. For an administrator, needs the scope
    users:admin.
    """
    await change.delete(call, Batch.one(params))
    return True


@method(
    "restoreUserByEmail",
    scope="users:write",
    errors=(NotFound, MemberForbidden, "seats_exhausted"),
    examples=(Example("Restore", {"email": "gone@example.com"}, True),),
)
async def restore_user_by_email(call: Call, params: UserRef) -> Literal[True]:
    """Restore a deleted user with all its data, except its sessions.

    email is its e-mail or its login. For an administrator, needs the scope users:admin.
    """
    user = await change.hold_named(call, params.email)
    if user["deleted_at"] is None:
        raise NotFound
    await change.change(call, Edit(user, user | {"deleted_at": None}))
    return True


@method(
    "purgeUserByEmail",
    scope="users:purge",
    errors=(NotFound, MemberForbidden, "not_deleted"),
    examples=(Example("Purge", {"email": "gone@example.com"}, True),),
)
async def purge_user_by_email(call: Call, params: UserRef) -> Literal[True]:
    """Remove a deleted user and all its data permanently.

    email is its e-mail or its login. A user that is not deleted is a conflict. For an administrator, needs
    the scope users:admin.
    """
    user = await change.hold_named(call, params.email)
    if user["deleted_at"] is None:
        raise Conflict("the user is not deleted: call deleteUserByEmail first", code="not_deleted")
    access.require_user(call.caller, user)
    call.changes += await purge(call.db, call.instance.id, {user["id"]: user})
    return True
