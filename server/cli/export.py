"""officerpc users export, for any number of users."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import orjson

from server.directory.names import has_email
from server.directory.rows import members, quotas
from server.directory.rules import NAME_FIELDS
from server.directory.users import NewUser
from server.postgres.db import Database

PAGE = 1000
"""Users that are read at once."""


async def exported_users(
    database: Database, instance_id: int, skip: Callable[[str], None]
) -> AsyncIterator[list[bytes]]:
    """The users of an instance that are not deleted, as JSON lines, one page at a time, in the order of ids.

    Pages start after the last id of the page before: each costs the same, one is in memory at a time, and
    users renamed in between are exported once.

    Args:
        skip: called with the login of each user without an e-mail, whom createUser could not create.
    """
    after = 0
    while True:
        async with database.connection() as db:
            rows = await db.all("export_users", instance_id=instance_id, after=after, row_limit=PAGE)
        lines = []
        for row in rows:
            after = row["id"]
            if has_email(row["email"]):
                lines.append(orjson.dumps(_params(row)) + b"\n")
            else:
                skip(row["email"])
        if lines:
            yield lines
        if len(rows) < PAGE:
            return


def _params(row: Mapping[str, Any]) -> dict[str, Any]:
    """What createUser takes to make a user again.

    Without stored pictures, whose addresses last no longer than the user, and without the profile fields
    that createUser does not take.
    """
    stored = {member: row[column] for member, column in members().items() if member in NewUser.model_fields}
    avatar = "" if row["avatar"].startswith("/") else row["avatar"]
    names = {member: row["fields"].get(alias) for member, alias in NAME_FIELDS.items()}
    given_names = {member: name for member, name in names.items() if name is not None}
    return {"email": row["email"], **stored, **given_names, "avatar": avatar, "quotas": quotas(row)}
