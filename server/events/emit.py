"""The writer of events: every change is written down here, in the transaction that makes it.

createUser writes its own event, as it is one statement: see create_users in sql/queries/creation.sql.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from server.events.changes import Change
from server.postgres.db import Connection

ActorKind: TypeAlias = Literal["key", "person", "system"]
"""What an actor is: an API key, a person who signed in, or the server itself and its command line."""


class Actor(NamedTuple):
    """Who makes a change, by which method, and from where."""

    kind: ActorKind
    # Of the key or the person; 0: the system.
    id: int
    name: str
    method: str
    request_id: str
    address: str | None = None
    # What the caller calls itself (X-Origin).
    origin: str | None = None

    def columns(self) -> dict[str, Any]:
        """Its columns of the table events; key_id and key_name hold the id and name of any kind."""
        return {
            "actor_kind": self.kind, "key_id": self.id, "key_name": self.name, "method": self.method,
            "request_id": self.request_id, "address": self.address, "origin": self.origin,
        }  # fmt: skip

    @classmethod
    def of(cls, columns: Mapping[str, Any], method: str) -> "Actor":
        """The actor of stored columns, such as a queued document keeps of who asked for it.

        Args:
            columns: some or all of those of columns().
            method: where they have none.
        """
        actor_id = columns.get("key_id", 0)
        return cls(
            columns.get("actor_kind") or ("key" if actor_id > 0 else "system"), actor_id,
            columns.get("key_name", ""), columns.get("method", method), columns.get("request_id", ""),
            columns.get("address"), columns.get("origin"),
        )  # fmt: skip


def system_actor(method: str, request_id: str) -> Actor:
    """The server itself as actor.

    Args:
        method: what was done.
        request_id: what it was done for, or else again what was done.
    """
    return Actor("system", 0, "officerpc", method, request_id)


async def emit(
    db: Connection, instance_id: int, actor: Actor, changes: Sequence[Change], *, after: int = 0
) -> None:
    """Write events down, in their order.

    Args:
        db: in the transaction that makes the changes.
        instance_id: 0 for what belongs to no instance.
        after: how many events of the instance this transaction has written already.
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
            **actor.columns(),
        )
