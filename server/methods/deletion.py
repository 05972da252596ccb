"""Deleted, restored, purged: how a user goes and comes back."""

from typing import Literal

from server.base.errors import Conflict, MemberForbidden, NotFound
from server.directory import change
from server.directory.many import Batch
from server.directory.rows import Edit, state
from server.directory.users import UserRef
from server.events.changes import identity
from server.methods.registry import Example, method
from server.tenants import access
from server.tenants.call import Call


@method(
    "deleteUserByEmail",
    scope="users:write",
    writes=True,
    errors=(NotFound, MemberForbidden),
    examples=(Example("Delete", {"email": "jane@example.com"}, True),),
)
async def delete_user_by_email(call: Call, params: UserRef) -> Literal[True]:
    """Delete a user, so that it can be restored for as long as the retention lasts.

    It is found by nothing but listUsers with status deleted, its sessions end, its e-mail stays taken. When
    the retention of the instance (or of the server) is over, it is purged. An administrator's deletion needs
    the scope users:admin.
    """
    await change.delete(call, Batch.one(params))
    return True


@method(
    "restoreUserByEmail",
    scope="users:write",
    writes=True,
    errors=(NotFound, MemberForbidden, "seats_exhausted"),
    examples=(Example("Restore", {"email": "gone@example.com"}, True),),
)
async def restore_user_by_email(call: Call, params: UserRef) -> Literal[True]:
    """Bring a deleted user back with everything it had but its sessions.

    email is its e-mail or its login, as both stay taken.
    An administrator's return needs the scope users:admin.
    """
    user = await change.hold_named(call, params.email)
    if user["deleted_at"] is None:
        raise NotFound
    await change.change(call, Edit(user, user | {"deleted_at": None}))
    return True


@method(
    "purgeUserByEmail",
    scope="users:purge",
    writes=True,
    errors=(NotFound, MemberForbidden, "not_deleted"),
    examples=(Example("Purge", {"email": "gone@example.com"}, True),),
)
async def purge_user_by_email(call: Call, params: UserRef) -> Literal[True]:
    """Remove a deleted user for good, with all that was provisioned for it.

    email is its e-mail or its login, as both stay taken. Only a deleted user can be purged; a living one is
    answered with a conflict. An administrator's purge needs the scope users:admin.
    """
    user = await change.hold_named(call, params.email)
    if user["deleted_at"] is None:
        raise Conflict("the user is not deleted: call deleteUserByEmail first", code="not_deleted")
    access.require_user(call.caller, user)
    await call.db.run("purge_users", instance_id=call.instance.id, ids=[user["id"]], moment=user["moment"])
    call.emit("user.purged", user["id"], before=identity(state(user)))
    return True
