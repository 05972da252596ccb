"""Does every user have its whole provisioning? And if not, giving it what is missing."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from server.directory.creation import LAYOUT
from server.events.changes import Change
from server.events.emit import emit, system_actor
from server.postgres.db import Connection, Database

_BATCH = 5000


@dataclass(frozen=True, slots=True)
class Incomplete:
    """A user that lacks something."""

    instance: str
    user_id: int
    email: str
    missing: dict[str, list[str]]


async def incomplete_users(
    database: Database, *, repair: bool
) -> AsyncIterator[tuple[int, list[Incomplete]]]:
    """Go through all users of all instances, batch by batch in the order of their keys.

    Args:
        repair: give each what it lacks, a user in a transaction, and write it down.

    Yields:
        how many users the batch had, and those of them that lacked something.
    """
    place = (0, 0)
    while True:
        async with database.connection() as db:
            end = await db.one(
                "find_batch_end", after_instance=place[0], after_user=place[1], batch_size=_BATCH
            )
            if end is None:
                return
            last = (end["instance_id"], end["user_id"])
            rows = await db.all(
                "find_incomplete_users",
                after_instance=place[0], after_user=place[1], last_instance=last[0], last_user=last[1],
                **LAYOUT,
            )  # fmt: skip
        found = [
            Incomplete(
                row["instance"], row["user_id"], row["email"],
                {
                    part: missing
                    for part, roles in LAYOUT.items()
                    if (missing := [role for role in roles if role not in row[part]])
                },
            )
            for row in rows
        ]  # fmt: skip
        if repair:
            for row, user in zip(rows, found, strict=True):
                async with database.transaction() as db:
                    await _repair(db, row["instance_id"], user)
        yield end["users"], found
        place = last


async def _repair(db: Connection, instance_id: int, user: Incomplete) -> None:
    lacking = {part: user.missing.get(part, []) for part in LAYOUT}
    await db.run("repair_user", instance_id=instance_id, user_id=user.user_id, **lacking)
    change = Change("", user.user_id, None, user.missing)
    await emit(db, instance_id, system_actor("repairUser", "verify"), [change])
