"""What changes: the words for it, and what is kept of it for the audit, webhooks and the feed of changes."""

from collections.abc import Mapping, Sequence
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

PAGE_BYTES = 1024 * 1024
"""Bytes of before and after in one page of events, as stored. The event that reaches it is the last one."""
_LONGEST = 1000
"""Characters that the audit shows of a text."""
_LARGEST = 8192
"""Bytes of JSON that the audit shows of one object or list: "..." stands for more."""
IDENTITY = ("email", "login", "displayName", "externalId")
"""What is kept of a user who goes or comes back."""


def by_itself(method: str, request_id: str) -> dict[str, Any]:
    """Who did what nobody's key asked for: those columns of an event.

    Args:
        method: what was done.
        request_id: what it was done for, or else again what was done.
    """
    return {
        "method": method, "key_id": 0, "key_name": "officerpc", "request_id": request_id, "address": None,
        "origin": None,
    }  # fmt: skip


class Change(NamedTuple):
    """One thing that a call changed."""

    # One of EVENTS; empty for what is in the audit alone, by its method's name.
    type: str
    user_id: int | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None


def user_changes(user_id: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """What happened to a user, from what it was and is (the SQL function user_state).

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
    """The members that differ. null: the other one alone has it.

    Args:
        within: of objects (profile, values, fields, quotas) their members that differ. What tenants store in
            those is told whole: of parts nobody could make what was written.
    """
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for name in before.keys() | after.keys():
        was, is_now = before.get(name), after.get(name)
        if was == is_now:
            continue
        if within and isinstance(was, Mapping) and isinstance(is_now, Mapping):
            was, is_now = _difference(was, is_now, within=False)
        old[name], new[name] = was, is_now
    return old, new


def identity(state: Mapping[str, Any]) -> dict[str, Any]:
    """Who a user is, of its state."""
    return {name: state[name] for name in IDENTITY if state[name] is not None}


def payload(event: Mapping[str, Any], instance: str) -> dict[str, Any]:
    """An event as webhooks and listChanges tell it.

    Args:
        event: a row of read_events or get_event.
        instance: the name of its instance.
    """
    return {
        "type": event["type"],
        "timestamp": event["moment"],
        "data": {
            "id": event["id"], "instance": instance, "userId": event["user_id"], "before": event["before"],
            "after": event["after"], "origin": event["origin"],
        },
    }  # fmt: skip


def is_full(rows: Sequence[Mapping[str, Any]], limit: int) -> bool:
    """Whether a page of events was cut, so that there may be more.

    Args:
        rows: of a query with row_limit and byte_limit (PAGE_BYTES).
        limit: the row_limit.
    """
    return len(rows) == limit or (bool(rows) and rows[-1]["page_bytes"] >= PAGE_BYTES)


def shortened(value: Any) -> Any:
    """The same with long texts cut and large members left out, as the audit shows it."""
    if isinstance(value, Mapping):
        return {name: _bounded(shortened(item)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shortened(item) for item in value]
    if isinstance(value, str) and len(value) > _LONGEST:
        return value[:_LONGEST] + "..."
    return value


def _bounded(value: Any) -> Any:
    if isinstance(value, (dict, list)) and len(orjson.dumps(value)) > _LARGEST:
        return "..."
    return value
