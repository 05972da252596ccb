"""What changes: the words for it, and what is kept of it for the audit, webhooks and the feed of changes."""

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

_SECRET = frozenset(
    {
        "password", "newPassword", "passwordHash", "token", "key", "secret", "clientSecret", "code", "data",
        "authorization",
    }
)  # fmt: skip
_LONGEST = 1000
_LARGEST = 8192
"""Bytes of JSON that one member may have: more is left out."""
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
        changes.append(Change("user.updated", user_id, redacted(old), redacted(new)))
    return changes


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The members that differ; of objects their members that do. null: the other one alone has it."""
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for name in before.keys() | after.keys():
        was, is_now = before.get(name), after.get(name)
        if was == is_now:
            continue
        if isinstance(was, Mapping) and isinstance(is_now, Mapping):
            was, is_now = _difference(was, is_now)
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


def _bounded(value: Any) -> Any:
    if isinstance(value, (dict, list)) and len(orjson.dumps(value)) > _LARGEST:
        return "..."
    return value


def redacted(value: Any) -> Any:
    """The same without secrets and long texts, as the audit keeps it."""
    if isinstance(value, Mapping):
        return {
            name: "***" if name in _SECRET and item is not None else _bounded(redacted(item))
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redacted(item) for item in value]
    if isinstance(value, str) and len(value) > _LONGEST:
        return value[:_LONGEST] + "..."
    return value
