"""What changes: the words for it, and what is kept of it for the audit, webhooks and the feed of changes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

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
    "session.created": "a user logged in",
    "session.revoked": "sessions of a user were ended",
}
"""What webhooks and listChanges tell of. Any other change is in the audit alone, by its method's name."""

_SECRET = frozenset(
    {
        "password", "newPassword", "passwordHash", "token", "key", "secret", "clientSecret", "code", "data",
        "authorization",
    }
)  # fmt: skip
_LONGEST = 1000


class Change(NamedTuple):
    """One thing that a call changed."""

    type: str
    user_id: int | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None


def redacted(value: Any) -> Any:
    """The same without secrets and long texts, as the audit keeps it."""
    if isinstance(value, Mapping):
        return {
            name: "***" if name in _SECRET and item is not None else redacted(item)
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redacted(item) for item in value]
    if isinstance(value, str) and len(value) > _LONGEST:
        return value[:_LONGEST] + "..."
    return value
