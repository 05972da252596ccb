"""The writer of events, which stores every change in the transaction that makes it.

createUser is one statement, and writes its own event: see create_users in sql/queries/creation.sql.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from server.events.changes import Change
from server.postgres.db import Connection

ActorKind: TypeAlias = Literal["key", "person", "system"]
"""An API key, a signed-in person, or the server with its command line."""


class Actor(NamedTuple):
    """The author of an event, as columns of the table events."""

    actor_kind: ActorKind
    # Of the key or person; 0: the system.
    key_id: int
    key_name: str
    method: str
    request_id: str
    address: str | None = None
    # X-Origin: the caller's name for itself.
    origin: str | None = None

    @classmethod
    def of(cls, columns: Mapping[str, Any], method: str) -> "Actor":
        """The actor of stored columns, such as those of a queued document.

        Args:
            columns: of an actor; some may be missing.
            method: if the columns have none.
        """
        actor_id = columns.get("key_id", 0)
        return cls(
            columns.get("actor_kind") or ("key" if actor_id > 0 else "system"), actor_id,
            columns.get("key_name", ""), columns.get("method", method), columns.get("request_id", ""),
            columns.get("address"), columns.get("origin"),
        )  # fmt: skip


def system_actor(method: str, request_id: str) -> Actor:
    """The server as actor; request_id: of the cause, or again the method."""
    return Actor("system", 0, "officerpc", method, request_id)


async def emit(
    db: Connection, instance_id: int, actor: Actor, changes: Sequence[Change], *, after: int = 0
) -> None:
    """Store events in their order.

    Args:
        db: in the transaction that makes the changes.
        instance_id: 0: events without an instance.
        after: the number of events of the instance that this transaction has stored already.
    """
    if changes:
        await db.run(
            "insert_events",
            instance_id=instance_id,
            after_seq=after,
            types=[change.type or actor.method for change in changes],
            user_ids=[change.user_id for change in changes],
            befores=[change.before for change in changes],
            afters=[change.after for change in changes],
            **actor._asdict(),
        )
