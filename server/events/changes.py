"""What can change, and what an event tells of a change."""

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
    "user.purged": "a deleted user was removed for good",
    "user.confirmed": "a user's e-mail was confirmed",
    "user.password_changed": "a user has another password",
    "group.created": "a group was made",
    "group.updated": "a group has another name or description; its members have it in their groups",
    "group.deleted": "a group is gone, and with it every membership in it",
    "session.created": "a user logged in",
    "session.revoked": "sessions of a user were ended",
    "instance.suspended": "the instance was suspended by its operator, and all its sessions ended",
    "instance.reactivated": "a suspended instance can be used again",
}
"""What webhooks and listChanges tell of. Any other change is in the audit alone, by its method's name."""

IDENTITY = ("email", "login", "displayName", "externalId")
"""What is kept of a user who goes or comes back."""


class Change(NamedTuple):
    """One thing that a call changed."""

    # One of EVENTS; empty for what is in the audit alone, by its method's name.
    type: str
    user_id: int | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None


def user_changes(user_id: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """What happened to a user, from what it was and is (directory/rows.state).

    Suspending, reactivating and confirming are events of their own; the rest is one user.updated.
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
    """The members that differ, as they were and are; null where one of the two lacks a member.

    Args:
        within: of objects (profile, values, fields, quotas) give the members that differ. The values of those
            members are given whole.
    """
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for name in before.keys() | after.keys():
        was, is_now = before.get(name), after.get(name)
        if _same(was, is_now):
            continue
        if within and isinstance(was, Mapping) and isinstance(is_now, Mapping):
            was, is_now = _difference(was, is_now, within=False)
        old[name], new[name] = was, is_now
    return old, new


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: 1 == True in Python."""
    if one != other or one is None or isinstance(one, str):
        return bool(one == other)
    return orjson.dumps(one, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS)


def identity(state: Mapping[str, Any]) -> dict[str, Any]:
    """Who a user is, of its state."""
    return {name: state[name] for name in IDENTITY if state[name] is not None}
