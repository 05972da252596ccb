"""The audit: events, the newest first, with long values cut. Secrets are not stored."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from server.base.pages import moment, number_below, page, parts_of, to_cursor
from server.events.feed import PAGE_BYTES, is_full
from server.postgres.db import Connection, Row

LOOKS = 10_000
"""Most events that one page examines: a page may be short if few of them have the type or method."""
_LONGEST = 1000
"""Most characters of a text; the rest is cut."""
_LARGEST = 8192
"""Most bytes of an object or list as JSON; a larger one is replaced by "..."."""


class Position(NamedTuple):
    """The position of an event in the audit."""

    moment: datetime
    xid: int = 2**64 - 1
    seq: int = 2**31 - 1

    @classmethod
    def read(cls, cursor: str) -> "Position":
        """The position of a cursor.

        Raises:
            Invalid: it is no cursor of the audit.
        """
        return cls(*parts_of(cursor, moment, number_below(2**64), number_below(2**31)))


async def read(
    db: Connection,
    instance_id: int,
    *,
    since: datetime,
    until: datetime,
    before: Position,
    type: str | None,
    method: str | None,
    user_ids: Sequence[int] | None,
    limit: int,
) -> tuple[list[dict[str, Any]], str | None]:
    """A page of events.

    Args:
        instance_id: 0: events without an instance.
        since, until: times of the events; until is excluded.
        before: the end of the previous page.
        type, method: of the events; None: any.
        user_ids: of the changed users; None: all events.

    Returns:
        the events as listAuditEvents shows them, and the cursor of the next page or None.
    """
    which = {
        "instance_id": instance_id, "since": since, "until": until, "before_time": before.moment,
        "before_xid": str(before.xid), "before_seq": before.seq, "look": LOOKS,
    }  # fmt: skip
    rows = await db.all(
        "list_events", **which, user_ids=user_ids, type=type, method=method, row_limit=limit + 1,
        byte_limit=PAGE_BYTES,
    )  # fmt: skip
    shown, after = page(rows, limit, _key, is_cut=is_full(rows, limit + 1))
    if after is None and user_ids is None and (type is not None or method is not None):
        last = await db.one("skip_events", **which)
        after = None if last is None else to_cursor(_key(last))
    return [_shown(row) for row in shown], after


def _key(row: Row) -> str:
    return f"{row['created_at'].isoformat()} {row['xid']} {row['seq']}"


def _shown(row: Row) -> dict[str, Any]:
    kind, actor_id, name = row["actor_kind"], row["key_id"], row["key_name"]
    return {
        "id": row["id"], "type": row["type"], "userId": row["userId"], "before": shortened(row["before"]),
        "after": shortened(row["after"]), "method": row["method"],
        "keyId": 0 if kind == "person" else actor_id, "keyName": name, "requestId": row["requestId"],
        "address": row["address"], "origin": row["origin"], "createdAt": row["createdAt"],
        "actor": {"kind": kind, "id": actor_id, "name": name},
    }  # fmt: skip


def shortened(value: Any) -> Any:
    """A value with long texts cut and large members replaced."""
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
