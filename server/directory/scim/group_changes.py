"""Reads and changes one group for SCIM. The members of the group Admins are the users with isAdmin.

Locks are taken as in the other methods: first the users whose memberships change, then the group. Which users
these are is read before. If this depends on the members or the version of the group, and the group changes
before it is locked, the transaction starts again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError
from scim2_models import Path
from scim2_models.path import CompareOperator, Comparison, LogicalExpr, LogicalOperator

from server.base.errors import Contention, NotFound
from server.base.models import field_errors
from server.directory import change
from server.directory.groups import (
    ADMINS_ID,
    GroupName,
    group_state,
    groups_of,
    is_admins,
    own_key,
    record_groups,
    reserved,
)  # fmt: skip
from server.directory.rows import Edit, Row, hold
from server.directory.scim.errors import bad_path, bad_value, not_writable
from server.directory.scim.groups import resource, version
from server.directory.scim.models import GROUP_SCHEMA, Group
from server.directory.scim.operations import Operation, read_operations, require_schema, single_value
from server.directory.scim.users import Resource, id_of, require_version
from server.directory.users import ExternalId
from server.tenants.call import Call

_NAME: TypeAdapter[str] = TypeAdapter(GroupName)
_EXTERNAL_ID: TypeAdapter[str] = TypeAdapter(ExternalId)
_UNCHANGED: Any = object()
MOST_CHANGES = 20_000
"""Memberships that one call may change. Each makes an event, and locks a user until the call ends."""


@dataclass(slots=True)
class GroupChanges:
    """The changes of a group, independent of its present state."""

    # None: unchanged.
    name: str | None = None
    # None: removed.
    external_id: str | None = field(default_factory=lambda: _UNCHANGED)
    # Whether all members are removed first; then the ids to add and to remove. No id is in both sets.
    removes_all: bool = False
    added: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)

    def add(self, ids: Iterable[int]) -> None:
        """Add these users."""
        ids = set(ids)
        self.added |= ids
        self.removed -= ids

    def remove(self, ids: Iterable[int]) -> None:
        """Remove these users."""
        ids = set(ids)
        self.added -= ids
        self.removed |= ids

    def remove_all(self) -> None:
        """Remove all members."""
        self.removes_all, self.added, self.removed = True, set(), set()


# --- parsing -----------------------------------------------------------------------------------------------


def parsed_group(group: Mapping[str, Any]) -> GroupChanges:
    """The changes for a whole group (POST and PUT). scim2-models would take seconds for 10,000 members.

    Raises:
        Invalid: naming the bad attribute (invalid_value).
    """
    members = {name.lower().removeprefix(f"{GROUP_SCHEMA}:".lower()): value for name, value in group.items()}
    require_schema(group, GROUP_SCHEMA)
    changes = GroupChanges(_name(members.get("displayname")), _external_id(members.get("externalid")), True)
    changes.add(_ids(members.get("members")))
    return changes


def parsed_patch(operations: Sequence[Mapping[str, Any]]) -> GroupChanges:
    """The changes for the operations of a PATCH (RFC 7644, 3.5.2).

    Raises:
        Invalid: see operations.read_operations.
    """
    changes = GroupChanges()
    for operation in read_operations(Group, operations):
        match operation.target.attribute.lower():
            case "displayname":
                changes.name = _name(single_value(operation.target, operation.value))
            case "externalid":
                is_removal = operation.op == "remove"
                value = None if is_removal else single_value(operation.target, operation.value)
                changes.external_id = _external_id(value)
            case "members":
                _change_members(changes, operation)
    return changes


def _change_members(changes: GroupChanges, operation: Operation) -> None:
    target, value = operation.target, operation.value
    if target.sub_attribute is not None:
        raise not_writable(target.path, "cannot be changed: add and remove members instead")
    selected = _selected_ids(target.path) if target.has_filter else None
    if operation.op == "remove":
        # Entra ID sends the members to remove in `value`.
        if selected is None and value is None:
            changes.remove_all()
        else:
            changes.remove(_ids(value) if selected is None else selected)
    elif selected is not None:
        raise not_writable(target.path, "a member cannot be changed: add and remove members instead")
    else:
        if operation.op == "replace":
            changes.remove_all()
        changes.add(_ids(value))


def _selected_ids(path: str) -> list[int]:
    """The ids in members[value eq "2" or value eq "3"].

    Raises:
        Invalid: the filter has another form (invalid_path).
    """
    nodes, found = [Path[Group](path).value_filter], list[int]()
    while nodes:
        node = nodes.pop()
        if isinstance(node, LogicalExpr) and node.op == LogicalOperator.or_:
            nodes += node.terms
        elif (
            isinstance(node, Comparison)
            and node.op == CompareOperator.eq
            and node.attr_path.attr.lower() == "value"
            and isinstance(node.value, str)
        ):
            if user_id := id_of(node.value):
                found.append(user_id)
        else:
            raise bad_path("path", "can select members only by value eq, joined by or")
    return found


def _name(name: Any) -> str:
    try:
        return _NAME.validate_python(name)
    except ValidationError as error:
        (failure, *_) = field_errors(error)
        raise bad_value("displayName", failure.message if name is not None else "is required") from error


def _external_id(text: Any) -> str | None:
    try:
        return None if text in (None, "") else _EXTERNAL_ID.validate_python(text)
    except ValidationError as error:
        (failure, *_) = field_errors(error)
        raise bad_value("externalId", failure.message) from error


def _ids(members: Any) -> list[int]:
    """The ids of members as sent: objects with `value`, or only ids."""
    found: list[int] = []
    for index, member in enumerate(members if isinstance(members, list) else [members] if members else []):
        given = {name.lower(): value for name, value in member.items()} if isinstance(member, dict) else {}
        value = given.get("value") if given else member
        user_id = id_of(value) if isinstance(value, str) else None
        if not isinstance(value, str):
            raise bad_value(f"members.{index}.value", "must be a string")
        if not user_id or str(given.get("type") or "User").lower() != "user":
            raise bad_value(f"members.{index}.value", "is not a user of this instance")
        found.append(user_id)
    return found


# --- reading -----------------------------------------------------------------------------------------------


async def read(call: Call, group_id: int, *, with_members: bool = True) -> Resource:
    """A group.

    Raises:
        NotFound: there is no such group.
    """
    return resource(await _row(call, group_id, with_members=with_members), call.settings, call.instance)


async def _row(call: Call, group_id: int, *, with_members: bool = False) -> Any:
    row = await call.db.one(
        "get_scim_group", instance_id=call.instance.id, group_id=group_id, with_members=with_members
    )
    if row is None:
        raise NotFound
    return row


# --- writing -----------------------------------------------------------------------------------------------


async def create(call: Call, changes: GroupChanges) -> int:
    """Create a group with its members.

    Returns:
        Its id.

    Raises:
        Conflict: the name or externalId is taken, or the name is reserved.
        Invalid: a member is not a user (invalid_value).
        MemberForbidden: a member is an administrator, and the key cannot change administrators.
    """
    name_key = own_key(changes.name or "", member="displayName")
    held = await _hold_users(call, changes.added, set())
    row = await call.db.one(
        "create_group", instance_id=call.instance.id, name=changes.name, name_key=name_key, description="",
        external_id=changes.external_id,
    )  # fmt: skip
    if row is None:
        raise NotFound
    call.emit("group.created", after=group_state({**row, "external_id": changes.external_id}))
    await _change_memberships(call, row["id"], held, changes.added, set())
    return int(row["id"])


async def update(call: Call, group_id: int, changes: GroupChanges, given_version: str | None) -> None:
    """Change a group and its memberships.

    Raises:
        NotFound: there is no such group.
        PreconditionFailed: the group has another version.
        Conflict: the name or externalId is taken, or the name is reserved, or those of Admins would change.
        Invalid: a member is not a user (invalid_value).
        MemberForbidden: a member is an administrator, and the key cannot change administrators.
        Contention: another call changed the group; the transaction must start again.
    """
    before = await _row(call, group_id)
    require_version(version(before), given_version)
    if group_id == ADMINS_ID:
        if changes.external_id not in (None, _UNCHANGED):
            raise reserved("externalId")
        if changes.name is not None and not is_admins(changes.name):
            raise reserved("displayName")
    members = await _present_members(call, group_id, changes)
    added = changes.added - members
    removed = members - changes.added if changes.removes_all else changes.removed & members
    if len(added) + len(removed) > MOST_CHANGES:
        raise bad_value("members", f"at most {MOST_CHANGES} members can be added and removed in one call")
    held = await _hold_users(call, added, removed)
    if group_id == ADMINS_ID:
        await call.db.one("hold_counters", instance_id=call.instance.id)
        group = await _row(call, group_id)
    else:
        group = await call.db.one("hold_group", instance_id=call.instance.id, group_id=group_id)
    if group is None:
        raise NotFound
    if group["updated_at"] != before["updated_at"] and (given_version is not None or changes.removes_all):
        raise Contention(retry_after=1)
    if group_id != ADMINS_ID:
        await _store(call, group, changes)
    await _change_memberships(call, group_id, held, added, removed)


async def _present_members(call: Call, group_id: int, changes: GroupChanges) -> set[int]:
    """The present members: all if all are removed, else only those to add or remove."""
    named = None if changes.removes_all else list(changes.added | changes.removed)
    if named == []:
        return set()
    rows = await call.db.all("find_members", instance_id=call.instance.id, group_id=group_id, user_ids=named)
    return {row["id"] for row in rows}


async def _hold_users(call: Call, added: set[int], removed: set[int]) -> dict[int, Row]:
    """Lock the users whose memberships change."""
    ids = sorted(added | removed)
    if not ids:
        return {}
    rows = await hold(call.db, call.instance.id, ids=ids)
    held = {row["id"]: row for row in rows if row["deleted_at"] is None}
    if not added <= held.keys():
        raise bad_value("members", "contains a member that is not a user of this instance")
    return held


async def _store(call: Call, group: Mapping[str, Any], changes: GroupChanges) -> None:
    """Store the name and externalId of a locked group, if they change."""
    name = group["name"] if changes.name is None else changes.name
    external_id = group["external_id"] if changes.external_id is _UNCHANGED else changes.external_id
    if (name, external_id) == (group["name"], group["external_id"]):
        return
    await call.db.run(
        "write_group",
        instance_id=call.instance.id,
        group_id=group["id"],
        name=name,
        name_key=own_key(name, member="displayName"),
        external_id=external_id,
    )
    before = group_state(group)
    after = group_state({**group, "name": name, "external_id": external_id})
    call.emit("group.updated", before=before, after=after)


async def _change_memberships(
    call: Call, group_id: int, held: Mapping[int, Row], added: set[int], removed: set[int]
) -> None:
    """Add locked users to a group, and remove others from it."""
    if not held:
        return
    before = await groups_of(call, list(held))
    if group_id == ADMINS_ID:
        edits = {user_id: Edit(row, row | {"is_admin": user_id in added}) for user_id, row in held.items()}
        refused = await change.refusals(call, edits, held=list(held.values()))
        for refusal in refused.values():
            raise refusal
        await change.write(call, list(edits.values()))
    else:
        await call.db.run(
            "change_members",
            instance_id=call.instance.id,
            group_id=group_id,
            added=sorted(added),
            removed=sorted(removed),
        )
    await record_groups(call, before)


async def delete(call: Call, group_id: int, given_version: str | None) -> None:
    """Delete a group. Its members are not deleted.

    Raises:
        NotFound, PreconditionFailed: as in update.
        Conflict: the group is Admins.
    """
    if group_id == ADMINS_ID:
        raise reserved("id")
    group = await call.db.one("delete_group", instance_id=call.instance.id, group_id=group_id, name_key="")
    if group is None:
        raise NotFound
    require_version(version({**group, "admins": None}), given_version)
    call.emit("group.deleted", before=group_state(group))
