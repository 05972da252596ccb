"""Pages of lists: cursors, and the extra row that shows that there is a next page."""

import base64
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import Field

from server.base.errors import FieldError, Invalid

T = TypeVar("T")

After = Annotated[
    Annotated[str, Field(max_length=2000)] | None,
    Field(description="`next` of the previous page; null for the first page."),
]
"""The cursor of a page."""
Next = Annotated[str | None, Field(description="`after` of the next page; null on the last page.")]
"""The cursor of the next page."""
Limit = Annotated[int, Field(ge=1, le=1000)]
"""Rows of a page."""
_SOURCES = {"after": "a page gave as next", "cursor": "an answer gave as cursor"}


def page(
    rows: Sequence[T], limit: int, key: Callable[[T], str], *, is_cut: bool = False
) -> tuple[Sequence[T], str | None]:
    """The rows of a page, and the cursor of the next page, or None.

    Args:
        rows: sorted by their keys, from a query with the row limit limit + 1.
        limit: rows of a page.
        key: the sort key of a row, as the query compares it.
        is_cut: whether the query ended early, so that more rows may follow.
    """
    shown = rows[:limit]
    return shown, to_cursor(key(shown[-1])) if is_cut or len(rows) > limit else None


def to_cursor(key: str) -> str:
    """An opaque cursor for a key."""
    return base64.urlsafe_b64encode(key.encode()).rstrip(b"=").decode()


def from_cursor(cursor: str | None, member: str = "after") -> str:
    """The key in a cursor; empty for the start.

    Args:
        member: the member of the params with the cursor.

    Raises:
        Invalid: it is not a cursor of to_cursor.
    """
    if cursor is None:
        return ""
    try:
        key = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode()
        if "\0" in key:  # Postgres refuses NUL
            raise ValueError
    except ValueError as error:
        raise _bad_cursor(member) from error
    return key


def parts_of(
    cursor: str, *kinds: Callable[[str], Any], separator: str = " ", member: str = "after"
) -> list[Any]:
    """The parts of the key in a cursor.

    Args:
        kinds: the parser of each part; it raises ValueError for a bad one.
        separator: between two parts.
        member: the member of the params with the cursor.

    Raises:
        Invalid: it is not a cursor with such parts.
    """
    parts = from_cursor(cursor, member).split(separator)
    try:
        return [kind(part) for kind, part in zip(kinds, parts, strict=True)]
    except ValueError as error:
        raise _bad_cursor(member) from error


def number_below(end: int) -> Callable[[str], int]:
    """A parser of integers from 0 to end - 1."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or (number := int(text)) >= end:
            raise ValueError
        return number

    return read


def moment(text: str) -> datetime:
    """Parse a time, into UTC.

    Raises:
        ValueError: it is not a time, has no time zone, or its year is out of range.
    """
    given = datetime.fromisoformat(text)
    if given.tzinfo is None:
        raise ValueError
    try:
        return given.astimezone(UTC)
    except OverflowError as error:
        raise ValueError from error


def _bad_cursor(member: str) -> Invalid:
    return Invalid.of([FieldError(member, f"is not what {_SOURCES[member]}")])
