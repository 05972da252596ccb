"""The feed: whole events, for listChanges and webhooks, in an order in which readers skip none."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from server.events.changes import EVENTS
from server.postgres.db import Connection, Row

PAGE_BYTES = 1024 * 1024
"""Bytes of before and after in one page of events, as stored. The event that reaches this is the last."""


async def read(
    db: Connection, instance_id: int, xid: str, seq: int, limit: int, *, horizon: str
) -> list[Row]:
    """The events after an event, at most limit and PAGE_BYTES; see is_full.

    Args:
        xid, seq: of the last event that was read; "0" and 0 for the first page.
        horizon: from find_feed_end. It only grows, so an older one skips nothing.
    """
    return await db.all(
        "read_events",
        instance_id=instance_id,
        xid=xid,
        seq=seq,
        horizon=horizon,
        row_limit=limit,
        byte_limit=PAGE_BYTES,
    )


def is_full(rows: Sequence[Mapping[str, Any]], limit: int) -> bool:
    """Whether a page of events was cut, and more may follow.

    Args:
        rows: of a query with row_limit and byte_limit (PAGE_BYTES).
        limit: the row_limit.
    """
    return len(rows) == limit or (bool(rows) and rows[-1]["page_bytes"] >= PAGE_BYTES)


def place(event: Mapping[str, Any]) -> str:
    """The position of an event in the feed, for cursors."""
    return f"{event['xid']}.{event['seq']}"


def wants(types: Sequence[str], skip_origin: str | None, event: Mapping[str, Any]) -> bool:
    """Whether a reader of these types (empty: all) gets an event."""
    if event["type"] not in (types or EVENTS):
        return False
    return skip_origin is None or event["origin"] != skip_origin


def payload(event: Mapping[str, Any], instance: str) -> dict[str, Any]:
    """An event as in webhooks and listChanges.

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


def body_of(event: Mapping[str, Any], instance: str) -> bytes:
    """The body of an event for webhooks; see payload."""
    return orjson.dumps(payload(event, instance))
