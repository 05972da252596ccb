"""Groups as SCIM resources (RFC 7643, 4.2; 7644): what the wire /scim/v2 calls, and /rpc can too."""

from typing import Annotated, Any, Literal

from pydantic import Field

from server.base.errors import MemberForbidden, NotFound
from server.base.models import TenantParams
from server.directory.scim import group_changes
from server.directory.scim.attributes import wants
from server.directory.scim.models import GROUP_SCHEMA
from server.directory.scim.user_changes import parsed_id
from server.methods.registry import Example, method
from server.methods.scim_users import OPERATIONS, VALUES, Resource, ScimId, Selection, SentOperations, Version
from server.tenants.call import Call

SentGroup = Annotated[dict[str, Any], Field(description="A SCIM group (RFC 7643, 4.2).")]


class ScimGroupId(Selection):
    """A group by its id, and what is wanted of it."""

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
    """What is wanted of a group; its members are read only if they are."""
    with_members = wants("members", params.attributes, params.excludedAttributes)
    return params.of(await group_changes.read(call, group_id, with_members=with_members))


@method(
    "getScimGroup",
    result=Resource,
    scope="groups:read",
    writes=False,
    errors=(NotFound, *VALUES),
    examples=(
        Example("Without its members", {"id": "1", "excludedAttributes": ["members"]}, SCIM_GROUP),
    ),
)  # fmt: skip
async def get_scim_group(call: Call, params: ScimGroupId) -> Any:
    """A group as a SCIM resource. Leave `members` out where they are not needed: there can be very many."""
    return await _shown(call, params, parsed_id(params.id))


class CreateScimGroup(Selection):
    """A new group, and what is wanted of it."""

    group: SentGroup


_NAMES = ("duplicate_group", "duplicate_external_id", "reserved_group")
_CHANGING = (NotFound, MemberForbidden, "version_mismatch")


@method(
    "createScimGroup",
    result=Resource,
    scope="groups:write",
    writes=True,
    errors=(NotFound, MemberForbidden, *_NAMES, *VALUES),
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
    """Make a group with its members from a SCIM resource (RFC 7644, 3.3).

    Members that are administrators need the scope `users:admin`.
    """
    return await _shown(
        call, params, await group_changes.create(call, group_changes.sent_group(params.group))
    )


class ReplaceScimGroup(ScimGroupId):
    """What a group is to be."""

    group: SentGroup
    version: Version | None = None


@method(
    "replaceScimGroup",
    result=Resource,
    scope="groups:write",
    writes=True,
    errors=(*_CHANGING, *_NAMES, *VALUES),
    examples=(
        Example(
            "Another name, and nobody in it",
            {"id": "1", "group": {"schemas": [GROUP_SCHEMA], "displayName": "Shop"},
             "attributes": ["displayName", "members"]},
            {"schemas": [GROUP_SCHEMA], "id": "1", "displayName": "Shop"},
        ),
    ),
)  # fmt: skip
async def replace_scim_group(call: Call, params: ReplaceScimGroup) -> Any:
    """Have a group be what a SCIM resource says, with these members and no others (PUT; RFC 7644, 3.5.1).

    Who enters or leaves Admins becomes an administrator, or is none any more: this needs the scope
    `users:admin` too. Admins cannot be renamed.
    """
    group_id = parsed_id(params.id)
    await group_changes.update(call, group_id, group_changes.sent_group(params.group), params.version)
    return await _shown(call, params, group_id)


class PatchScimGroup(ScimGroupId):
    """What to change of a group."""

    operations: SentOperations
    version: Version | None = None


@method(
    "patchScimGroup",
    result=Resource,
    scope="groups:write",
    writes=True,
    errors=(*_CHANGING, *_NAMES, *OPERATIONS),
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
    """Change a group by SCIM operations, all of them or none (PATCH; RFC 7644, 3.5.2).

    Members are added, replaced, and removed: by `members[value eq "2"]`, by their values, or all of them.
    Admins needs the scope `users:admin`, as for replaceScimGroup.
    """
    group_id = parsed_id(params.id)
    await group_changes.update(call, group_id, group_changes.patched_group(params.operations), params.version)
    return await _shown(call, params, group_id)


class DeleteScimGroup(TenantParams):
    """Which group goes."""

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
    """Delete a group. Its members stay users."""
    await group_changes.delete(call, parsed_id(params.id), params.version)
    return True
