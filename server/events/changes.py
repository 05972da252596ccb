"""Types of events, and the changes in them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

EVENTS: dict[str, str] = {
    "user.created": "a user was created",
    "user.updated": "members of a user were changed, its e-mail among them",
    "user.suspended": "a user may no longer log in",
    "user.reactivated": "a suspended user may log in again",
    "user.deleted": "a user was deleted and can still be restored",
    "user.restored": "a deleted user is back",
    "user.purged": "a deleted user was removed permanently",
    "user.confirmed": "a user's e-mail was confirmed",
    "user.password_changed": "a user has a new password",
    "group.created": "a group was created",
    "group.updated": "a group has a new name or description; it shows in the groups of its members",
    "group.deleted": "a group was deleted, with all its memberships",
    "session.created": "a user logged in",
    "session.revoked": "sessions of a user were ended",
    "instance.suspended": "the instance was suspended by its operator, and all its sessions ended",
    "instance.reactivated": "a suspended instance can be used again",
}
"""Events of webhooks and listChanges. Other changes are only in the audit, under the name of the method."""

IDENTITY = ("email", "login", "displayName", "externalId")
"""Members in the events of a user's deletion, restoration and purge."""


class Change(NamedTuple):
    """One change by a call."""

    # One of EVENTS; empty: only in the audit, under the name of the method.
    type: str
    user_id: int | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None


def user_changes(user_id: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """The changes of a user between two states (directory/rows.state).

    Suspension, reactivation and confirmation are separate events; the rest is one user.updated.
    """
    old, new = _difference(before, after)
    changes = []
    for member, said in (
        ("isActive", {True: "user.reactivated", False: "user.suspended"}),
        ("isConfirmed", {True: "user.confirmed"}),
    ):
        if member in new and new[member] in said:
            changes.append(
                Change(said[new[member]], user_id, {member: old.pop(member)}, {member: new.pop(member)})
            )
    if new:
        changes.append(Change("user.updated", user_id, old, new))
    return changes


def _difference(
    before: Mapping[str, Any], after: Mapping[str, Any], *, within: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The members that differ, before and after; None for a missing member.

    Args:
        within: of objects (profile, values, fields, quotas) return only the members that differ, each with
            its whole value.
    """
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for name in before.keys() | after.keys():
        was, is_now = before.get(name), after.get(name)
        if same_json(was, is_now):
            continue
        if within and isinstance(was, Mapping) and isinstance(is_now, Mapping):
            was, is_now = _difference(was, is_now, within=False)
        old[name], new[name] = was, is_now
    return old, new


def same_json(one: Any, other: Any) -> bool:
    """Whether two values are the same in JSON. In Python 1 == True."""
    if one != other or one is None or isinstance(one, str):
        return bool(one == other)
    return orjson.dumps(one, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS)


def identity(state: Mapping[str, Any]) -> dict[str, Any]:
    """The members of IDENTITY in a user's state."""
    return {name: state[name] for name in IDENTITY if state[name] is not None}
