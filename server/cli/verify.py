"""Find and repair users whose provisioning is incomplete."""

from collections.abc import AsyncIterator
from typing import Any

from server.directory.creation import LAYOUT
from server.events.changes import Change
from server.events.emit import emit, system_actor
from server.postgres.db import Database

_BATCH = 5000


async def incomplete_users(
    database: Database, *, repair: bool
) -> AsyncIterator[tuple[int, list[dict[str, Any]]]]:
    """Check all users of all instances, in batches in the order of their keys.

    Args:
        repair: create what is missing and emit an event, in one transaction a user.

    Yields:
        the number of users in the batch, and the incomplete ones: instance, id, email and what is missing.
    """
    last = (0, 0)
    while True:
        after = {"after_instance": last[0], "after_user": last[1]}
        async with database.connection() as db:
            end = await db.one("find_batch_end", **after, batch_size=_BATCH)
            if end is None:
                return
            last = (end["instance_id"], end["user_id"])
            rows = await db.all(
                "find_incomplete_users", **after, last_instance=last[0], last_user=last[1], **LAYOUT
            )
        found = []
        for row in rows:
            missing = {
                part: lacks
                for part, roles in LAYOUT.items()
                if (lacks := [role for role in roles if role not in row[part]])
            }
            user = {"instance": row["instance"], "id": row["user_id"], "email": row["email"]}
            found.append(user | {"missing": missing})
            if repair:
                await _repair(database, row["instance_id"], row["user_id"], missing)
        yield end["users"], found


async def _repair(database: Database, instance_id: int, user_id: int, missing: dict[str, list[str]]) -> None:
    lacking = {part: missing.get(part, []) for part in LAYOUT}
    async with database.transaction() as db:
        await db.run("repair_user", instance_id=instance_id, user_id=user_id, **lacking)
        change = Change("", user_id, None, missing)
        await emit(db, instance_id, system_actor("repairUser", "verify"), [change])
