"""Groups of users and their members."""

from typing import Annotated, Any, Literal

from pydantic import Field

from server.base.errors import FieldError, MemberForbidden, NotFound
from server.base.models import Result, TenantParams, something_besides
from server.base.pages import After, Limit, Next, from_cursor, page
from server.directory import change
from server.directory.groups import (
    ADMINS,
    GroupName,
    find_group_ids,
    group_key,
    group_state,
    groups_of,
    is_admins,
    own_key,
    record_groups,
)
from server.directory.rows import Edit
from server.directory.users import ABSENT, Email, Line, found
from server.methods.registry import Example, method
from server.tenants.call import Call


class GroupRef(TenantParams):
    """A group by its name."""

    name: GroupName


class CreateGroup(GroupRef):
    """A new group."""

    description: Line = ""


class Group(Result):
    """A group."""

    id: int = Field(description="0 for Admins.")
    name: str
    description: str
    isReserved: bool = Field(description="True for Admins, which cannot be renamed or deleted.")
    members: int = Field(description="Users that are not deleted.")
    createdAt: int = Field(description="Unix seconds.")


_SALES = {
    "id": 1, "name": "Sales", "description": "", "isReserved": False, "members": 0, "createdAt": 1683471262,
}  # fmt: skip
_ADMINS = _SALES | {
    "id": 0, "name": ADMINS, "description": "Administrators", "isReserved": True, "members": 1,
}  # fmt: skip


@method(
    "createGroup",
    result=Group,
    scope="groups:write",
    writes=True,
    errors=("duplicate_group", "reserved_group"),
    examples=(Example("A group", {"name": "Support"}, _SALES | {"id": 2, "name": "Support"}),),
)
async def create_group(call: Call, params: CreateGroup) -> Any:
    """Create a group without members. Group names are unique in the instance, in any case."""
    row = await call.db.one(
        "create_group",
        instance_id=call.instance.id,
        name=params.name,
        name_key=own_key(params.name),
        description=params.description,
        external_id=None,
    )
    group = dict(found(row)) | {"isReserved": False, "members": 0}
    call.emit("group.created", after={"name": group["name"], "description": group["description"]})
    return {name: group[name] for name in Group.model_fields}


class UpdateGroup(GroupRef):
    """What to change: at least one member besides the name."""

    newName: GroupName = Field(ABSENT, description="Unique in the instance, in any case.")
    description: Line = ABSENT

    _something = something_besides("instance", "name")


@method(
    "updateGroup",
    result=Literal[True],
    scope="groups:write",
    writes=True,
    errors=(NotFound, "duplicate_group", "reserved_group"),
    examples=(Example("Another name", {"name": "Sales", "newName": "Shop"}, True),),
)
async def update_group(call: Call, params: UpdateGroup) -> Any:
    """Change the name or the description of a group."""
    key = own_key(params.name)
    group = found(
        await call.db.one(
            "update_group",
            instance_id=call.instance.id,
            name_key=key,
            new_name=params.newName,
            new_name_key=params.newName and own_key(params.newName),
            description=params.description,
        )
    )
    call.emit("group.updated", before=group["before"], after=group["after"])
    return True


@method(
    "deleteGroup",
    result=Literal[True],
    scope="groups:write",
    writes=True,
    errors=(NotFound, "reserved_group"),
    examples=(Example("A group", {"name": "Sales"}, True),),
)
async def delete_group(call: Call, params: GroupRef) -> Any:
    """Delete a group, but not its members."""
    key = own_key(params.name)
    group = found(
        await call.db.one("delete_group", instance_id=call.instance.id, group_id=None, name_key=key)
    )
    call.emit("group.deleted", before=group_state(group))
    return True


class Membership(GroupRef):
    """A user in a group."""

    email: Email


def _not_found(member: str, message: str) -> NotFound:
    """The error that names the param: the user or the group."""
    return NotFound(f"not found: {message}", fields=[FieldError(member, message)])


async def _set_membership(call: Call, params: Membership, *, joins: bool) -> Literal[True]:
    try:
        member = await change.hold_user(call, email=params.email)
    except NotFound as error:
        raise _not_found("email", "there is no such user") from error
    before = await groups_of(call, [member["id"]])
    if is_admins(params.name):
        if member["is_admin"] != joins:
            await change.change(call, Edit(member, member | {"is_admin": joins}))
    else:
        group_id = (await find_group_ids(call, [params.name])).get(group_key(params.name))
        if group_id is None:
            raise _not_found("name", "there is no such group")
        await call.db.run(
            "join_group" if joins else "leave_group",
            instance_id=call.instance.id,
            user_id=member["id"],
            group_id=group_id,
        )
    await record_groups(call, before)
    return True


@method(
    "addToGroup",
    result=Literal[True],
    scope="groups:write",
    writes=True,
    errors=(NotFound, MemberForbidden),
    examples=(Example("Jane", {"name": "Sales", "email": "jane@example.com"}, True),),
)
async def add_to_group(call: Call, params: Membership) -> Any:
    """Add a user to a group. A member stays a member.

    Adding to Admins makes an administrator and also needs the scope `users:admin`.
    """
    return await _set_membership(call, params, joins=True)


@method(
    "removeFromGroup",
    result=Literal[True],
    scope="groups:write",
    writes=True,
    errors=(NotFound, MemberForbidden),
    examples=(Example("Jane", {"name": "Sales", "email": "jane@example.com"}, True),),
)
async def remove_from_group(call: Call, params: Membership) -> Any:
    """Remove a user from a group. Not an error if the user is not a member.

    A user removed from Admins is no longer an administrator; this also needs the scope `users:admin`.
    """
    return await _set_membership(call, params, joins=False)


class ListGroups(TenantParams):
    """The page."""

    after: After = None
    limit: Limit = 100


class GroupPage(Result):
    """A page of groups, by name."""

    groups: list[Group]
    next: Next


@method(
    "listGroups",
    result=GroupPage,
    scope="groups:read",
    writes=False,
    examples=(Example("All groups", {}, {"groups": [_ADMINS, _SALES], "next": None}),),
)
async def list_groups(call: Call, params: ListGroups) -> Any:
    """List the groups of an instance, Admins included, with their numbers of members."""
    rows = await call.db.all(
        "list_groups",
        instance_id=call.instance.id,
        after=from_cursor(params.after),
        row_limit=params.limit + 1,
    )
    shown, after = page(rows, params.limit, lambda row: str(row["name_key"]))
    return {"groups": [{name: row[name] for name in Group.model_fields} for row in shown], "next": after}


class ListGroupMembers(GroupRef):
    """A group and the page."""

    after: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="The last id of the page before.")
    limit: Limit = 100


class GroupMember(Result):
    """A user in a group."""

    id: int
    email: str
    displayName: str
    isActive: bool


@method(
    "listGroupMembers",
    result=list[GroupMember],
    scope="groups:read",
    writes=False,
    errors=(NotFound,),
    examples=(
        Example(
            "Administrators", {"name": ADMINS},
            [{"id": 1, "email": "admin@example.com", "displayName": "admin", "isActive": True}],
        ),
    ),
)  # fmt: skip
async def list_group_members(call: Call, params: ListGroupMembers) -> Any:
    """List the members of a group by id, suspended users included."""
    group_id = None
    if not is_admins(params.name):
        key = group_key(params.name)
        group_id = found(await call.db.value("get_group", instance_id=call.instance.id, name_key=key))
    rows = await call.db.all(
        "list_group_members",
        instance_id=call.instance.id,
        group_id=group_id,
        after=params.after,
        row_limit=params.limit,
    )
    return [dict(row) for row in rows]
