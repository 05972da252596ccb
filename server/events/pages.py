"""Pages of events: bounded in rows and in bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

PAGE_BYTES = 1024 * 1024
"""Bytes of before and after in one page of events, as stored. The event that reaches this is the last."""


def is_full(rows: Sequence[Mapping[str, Any]], limit: int) -> bool:
    """Whether a page of events was cut, and more may follow.

    Args:
        rows: of a query with row_limit and byte_limit (PAGE_BYTES).
        limit: the row_limit.
    """
    return len(rows) == limit or (bool(rows) and rows[-1]["page_bytes"] >= PAGE_BYTES)
