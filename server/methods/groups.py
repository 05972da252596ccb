"""Groups of users, and who is in them."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from server.base.errors import FieldError, MemberForbidden, NotFound
from server.base.models import Result, TenantParams
from server.base.pages import After, Limit, Next, from_cursor, page
from server.directory import change
from server.directory.groups import (
    ADMINS,
    GroupName,
    group_key,
    groups_of,
    is_admins,
    own_key,
    record_groups,
)  # fmt: skip
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
    """Make a group without members. Its name is unique in the instance, in any case."""
    row = await call.db.one(
        "create_group",
        instance_id=call.instance.id,
        name=params.name,
        name_key=own_key(params.name),
        description=params.description,
        external_id=None,
    )
    made = dict(found(row))
    call.emit("group.created", after={"name": made["name"], "description": made["description"]})
    return {"id": made["id"], "name": made["name"], "description": made["description"], "isReserved": False,
            "members": 0, "createdAt": made["createdAt"]}  # fmt: skip


class UpdateGroup(GroupRef):
    """What to change; at least one member beside the name."""

    newName: GroupName = Field(ABSENT, description="Unique in the instance, in any case.")
    description: Line = ABSENT

    @model_validator(mode="after")
    def _something(self) -> "UpdateGroup":
        if not self.model_fields_set - {"instance", "name"}:
            raise ValueError("name at least one member to change")
        return self


@method(
    "updateGroup",
    result=Literal[True],
    scope="groups:write",
    writes=True,
    errors=(NotFound, "duplicate_group", "reserved_group"),
    examples=(Example("Another name", {"name": "Sales", "newName": "Shop"}, True),),
)
async def update_group(call: Call, params: UpdateGroup) -> Any:
    """Rename or describe a group; its members stay."""
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
    """Delete a group. Its members stay users."""
    key = own_key(params.name)
    group = found(
        await call.db.one("delete_group", instance_id=call.instance.id, group_id=None, name_key=key)
    )
    call.emit("group.deleted", before=dict(group))
    return True


class Membership(GroupRef):
    """A user in a group."""

    email: Email


def _not_found(member: str, message: str) -> NotFound:
    """Which of the two was not found."""
    return NotFound(f"not found: {message}", fields=[FieldError(member, message)])


async def _change(call: Call, params: Membership, *, is_in: bool) -> Literal[True]:
    try:
        member = await change.hold_user(call, email=params.email)
    except NotFound as error:
        raise _not_found("email", "there is no such user") from error
    before = await groups_of(call, [member["id"]])
    if is_admins(params.name):
        if member["is_admin"] != is_in:
            await change.change(call, Edit(member, member | {"is_admin": is_in}))
    else:
        group_id = await call.db.value(
            "find_group", instance_id=call.instance.id, name_key=group_key(params.name)
        )
        if group_id is None:
            raise _not_found("name", "there is no such group")
        await call.db.run(
            "join_group" if is_in else "leave_group",
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
    """Put a user into a group; who is in it already stays so.

    In Admins a user is an administrator: this needs the scope `users:admin` too.
    """
    return await _change(call, params, is_in=True)


@method(
    "removeFromGroup",
    result=Literal[True],
    scope="groups:write",
    writes=True,
    errors=(NotFound, MemberForbidden),
    examples=(Example("Jane", {"name": "Sales", "email": "jane@example.com"}, True),),
)
async def remove_from_group(call: Call, params: Membership) -> Any:
    """Take a user out of a group, whether or not it is in it.

    Out of Admins a user is no administrator any more: this needs the scope `users:admin` too.
    """
    return await _change(call, params, is_in=False)


class ListGroups(TenantParams):
    """From where on."""

    after: After = None
    limit: Limit = 100


class GroupPage(Result):
    """A page of groups in the order of their names."""

    groups: list[Group]
    next: Next


@method(
    "listGroups",
    result=GroupPage,
    scope="groups:read",
    writes=False,
    examples=(Example("All of them", {}, {"groups": [_ADMINS, _SALES], "next": None}),),
)
async def list_groups(call: Call, params: ListGroups) -> Any:
    """List the groups of an instance with their numbers of members, Admins among them."""
    rows = await call.db.all(
        "list_groups",
        instance_id=call.instance.id,
        after=from_cursor(params.after),
        row_limit=params.limit + 1,
    )
    shown, after = page(rows, params.limit, lambda row: str(row["name_key"]))
    return {"groups": [{name: row[name] for name in Group.model_fields} for row in shown], "next": after}


class ListGroupMembers(GroupRef):
    """Of which group, and from where on."""

    after: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="The id of the last member of the page before."
    )
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
    """List the members of a group in the order of their ids, suspended ones too."""
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
