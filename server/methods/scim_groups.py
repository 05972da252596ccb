"""Groups as SCIM resources (RFC 7643, 4.2; RFC 7644), for the wire /scim/v2 and for /rpc."""

from typing import Annotated, Any, Literal

from pydantic import Field

from server.base.errors import MemberForbidden, NotFound
from server.base.models import TenantParams
from server.directory.scim import group_changes
from server.directory.scim.attributes import is_requested
from server.directory.scim.models import GROUP_SCHEMA
from server.directory.scim.user_changes import parsed_id
from server.directory.scim.users import Resource
from server.methods.registry import Example, method
from server.methods.scim_users import (
    OPERATION_ERRORS,
    VALUE_ERRORS,
    ScimId,
    Selection,
    SentOperations,
    Version,
)
from server.tenants.call import Call

SentGroup = Annotated[dict[str, Any], Field(description="A SCIM group (RFC 7643, 4.2).")]


class ScimGroupId(Selection):
    """A group, and the attributes to return."""

    id: ScimId = Field(description="0 for Admins.")


SCIM_GROUP = {
    "schemas": [GROUP_SCHEMA], "id": "1", "displayName": "Sales",
    "meta": {
        "resourceType": "Group", "created": "2023-05-07T14:47:42.000000Z",
        "lastModified": "2023-05-07T14:47:42.000000Z",
        "location": "https://officerpc.example.com/scim/v2/MYINSTANCE/Groups/1",
        "version": 'W/"5fb1b4d7e5b80"',
    },
}  # fmt: skip


async def _shown(call: Call, params: Selection, group_id: int) -> Resource:
    """The requested attributes of a group. Its members are read only if they are requested."""
    with_members = is_requested("members", params.attributes, params.excludedAttributes)
    return params.select(await group_changes.read(call, group_id, with_members=with_members))


@method(
    "getScimGroup",
    result=Resource,
    scope="groups:read",
    writes=False,
    errors=(NotFound, *VALUE_ERRORS),
    examples=(
        Example("Without its members", {"id": "1", "excludedAttributes": ["members"]}, SCIM_GROUP),
    ),
)  # fmt: skip
async def get_scim_group(call: Call, params: ScimGroupId) -> Any:
    """A group as a SCIM resource. Exclude `members` if you do not need them: there can be very many."""
    return await _shown(call, params, parsed_id(params.id))


class CreateScimGroup(Selection):
    """A new group, and the attributes to return."""

    group: SentGroup


_NAME_ERRORS = ("duplicate_group", "duplicate_external_id", "reserved_group")
_CHANGE_ERRORS = (NotFound, MemberForbidden, "version_mismatch")


@method(
    "createScimGroup",
    result=Resource,
    scope="groups:write",
    writes=True,
    errors=(NotFound, MemberForbidden, *_NAME_ERRORS, *VALUE_ERRORS),
    examples=(
        Example(
            "With a member",
            {"group": {"schemas": [GROUP_SCHEMA], "displayName": "Support", "members": [{"value": "2"}]},
             "attributes": ["displayName", "members.value"]},
            {"schemas": [GROUP_SCHEMA], "id": "2", "displayName": "Support", "members": [{"value": "2"}]},
        ),
    ),
)  # fmt: skip
async def create_scim_group(call: Call, params: CreateScimGroup) -> Any:
    """Create a group with its members from a SCIM resource (RFC 7644, 3.3).

    To add an administrator, the key needs the scope `users:admin`.
    """
    return await _shown(
        call, params, await group_changes.create(call, group_changes.parsed_group(params.group))
    )


class ReplaceScimGroup(ScimGroupId):
    """The resource that replaces a group."""

    group: SentGroup
    version: Version | None = None


@method(
    "replaceScimGroup",
    result=Resource,
    scope="groups:write",
    writes=True,
    errors=(*_CHANGE_ERRORS, *_NAME_ERRORS, *VALUE_ERRORS),
    examples=(
        Example(
            "Another name, and no members",
            {"id": "1", "group": {"schemas": [GROUP_SCHEMA], "displayName": "Shop"},
             "attributes": ["displayName", "members"]},
            {"schemas": [GROUP_SCHEMA], "id": "1", "displayName": "Shop"},
        ),
    ),
)  # fmt: skip
async def replace_scim_group(call: Call, params: ReplaceScimGroup) -> Any:
    """Replace a group by a SCIM resource: its attributes and all its members (PUT; RFC 7644, 3.5.1).

    Members of Admins are administrators: to add or remove one, the key needs the scope `users:admin` too.
    Admins cannot be renamed.
    """
    group_id = parsed_id(params.id)
    await group_changes.update(call, group_id, group_changes.parsed_group(params.group), params.version)
    return await _shown(call, params, group_id)


class PatchScimGroup(ScimGroupId):
    """Changes of a group."""

    operations: SentOperations
    version: Version | None = None


@method(
    "patchScimGroup",
    result=Resource,
    scope="groups:write",
    writes=True,
    errors=(*_CHANGE_ERRORS, *_NAME_ERRORS, *OPERATION_ERRORS),
    examples=(
        Example(
            "Another member",
            {"id": "1", "operations": [{"op": "add", "path": "members", "value": [{"value": "2"}]}],
             "attributes": ["members.value"]},
            {"schemas": [GROUP_SCHEMA], "id": "1", "members": [{"value": "2"}]},
        ),
    ),
)  # fmt: skip
async def patch_scim_group(call: Call, params: PatchScimGroup) -> Any:
    """Change a group by SCIM operations: all of them or none (PATCH; RFC 7644, 3.5.2).

    Operations can add, replace and remove members. To remove: `members[value eq "2"]`, or `members` with the
    members in `value`, or without a value all. For Admins the scope `users:admin` is needed, as for
    replaceScimGroup.
    """
    group_id = parsed_id(params.id)
    await group_changes.update(call, group_id, group_changes.parsed_patch(params.operations), params.version)
    return await _shown(call, params, group_id)


class DeleteScimGroup(TenantParams):
    """A group to delete."""

    id: ScimId
    version: Version | None = None


@method(
    "deleteScimGroup",
    result=Literal[True],
    scope="groups:write",
    writes=True,
    errors=(NotFound, "reserved_group", "version_mismatch"),
    examples=(Example("A group", {"id": "1"}, True),),
)
async def delete_scim_group(call: Call, params: DeleteScimGroup) -> Any:
    """Delete a group. Its members are not deleted."""
    await group_changes.delete(call, parsed_id(params.id), params.version)
    return True
