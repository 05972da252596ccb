"""Builds the SCIM resource of a group from its row (RFC 7643, section 4.2)."""

from collections.abc import Mapping
from typing import Any

from server.base.settings import Settings
from server.directory.scim.models import GROUP_SCHEMA
from server.directory.scim.users import Resource, base_address, meta, version_of
from server.tenants.instances import Instance


def resource(row: Mapping[str, Any], settings: Settings, instance: Instance) -> Resource:
    """A group as a SCIM resource; attributes without a value are left out.

    Args:
        row: of the view scim_groups, with or without members.
        instance: of the group.
    """
    group_id, external_id, members = str(row["id"]), row["external_id"], row.get("members")
    location = f"{base_address(settings, instance)}/Groups/{group_id}"
    group: Resource = {"schemas": [GROUP_SCHEMA], "id": group_id}
    if external_id is not None:
        group["externalId"] = external_id
    group["displayName"] = row["name"]
    if members:
        group["members"] = [
            {
                "value": str(user["id"]), "$ref": f"../Users/{user['id']}", "display": user["name"],
                "type": "User",
            }
            for user in members
        ]  # fmt: skip
    group["meta"] = meta("Group", location, row["created_at"], row["updated_at"], version(row))
    return group


def version(row: Mapping[str, Any]) -> str:
    """The ETag of a group.

    Admins has no row: its ETag is the time of the latest change of a member, and the number of members. The
    time alone need not change when a member is removed.

    Args:
        row: of the view scim_groups.
    """
    return version_of(row["updated_at"], *(() if row["admins"] is None else (row["admins"],)))
