"""A group as a SCIM resource, made straight from its row (RFC 7643, section 4.2)."""

from collections.abc import Mapping
from typing import Any

from server.base.settings import Settings
from server.directory.scim.models import GROUP_SCHEMA
from server.directory.scim.users import Resource, base_address, meta, version_of
from server.tenants.instances import Instance


def resource(row: Mapping[str, Any], settings: Settings, instance: Instance) -> Resource:
    """A group as SCIM shows it; what it does not have is left out.

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

    That of Admins, which has no row of its own, tells the number of its members too: the newest moment is
    still theirs when one of them leaves.

    Args:
        row: of the view scim_groups.
    """
    return version_of(row["updated_at"], *(() if row["admins"] is None else (row["admins"],)))
