"""Pages of lists: cursors, and the row beyond a page that tells that there is a next one."""

import base64
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import Field

from server.base.errors import FieldError, Invalid

T = TypeVar("T")

After = Annotated[
    Annotated[str, Field(max_length=2000)] | None,
    Field(description="The next of the page before; null for the first page."),
]
"""Where a page begins."""
Next = Annotated[str | None, Field(description="Pass it as after for the next page; null on the last.")]
"""Where the page after it begins."""
Limit = Annotated[int, Field(ge=1, le=1000)]
"""Rows of a page."""
_SOURCES = {"after": "a page gave as next", "cursor": "an answer gave as cursor"}


def page(
    rows: Sequence[T], limit: int, key: Callable[[T], str], *, is_cut: bool = False
) -> tuple[Sequence[T], str | None]:
    """The rows of a page, and the cursor of the next one if there is one.

    Args:
        rows: in the order of their keys, asked for with a row limit of limit + 1.
        limit: rows of a page.
        key: what the query compares with to begin after a row.
        is_cut: whether the query ended early, so that more may follow fewer rows.
    """
    shown = rows[:limit]
    return shown, to_cursor(key(shown[-1])) if is_cut or len(rows) > limit else None


def to_cursor(key: str) -> str:
    """An opaque place in a list."""
    return base64.urlsafe_b64encode(key.encode()).rstrip(b"=").decode()


def from_cursor(cursor: str | None, member: str = "after") -> str:
    """The key behind a cursor; empty for the start.

    Args:
        member: of the params, that the cursor came in.

    Raises:
        Invalid: it is no cursor that to_cursor made.
    """
    if cursor is None:
        return ""
    try:
        key = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode()
        if "\0" in key:  # Postgres takes no such text
            raise ValueError
    except ValueError as error:
        raise _bad_cursor(member) from error
    return key


def parts_of(
    cursor: str, *kinds: Callable[[str], Any], separator: str = " ", member: str = "after"
) -> list[Any]:
    """What stands in the key behind a cursor, part by part.

    Args:
        kinds: what each part is read with; ValueError where it is no such part.
        separator: what stands between two parts.
        member: of the params, that the cursor came in.

    Raises:
        Invalid: it is no cursor that was made of such parts.
    """
    parts = from_cursor(cursor, member).split(separator)
    try:
        return [kind(part) for kind, part in zip(kinds, parts, strict=True)]
    except ValueError as error:
        raise _bad_cursor(member) from error


def number_below(end: int) -> Callable[[str], int]:
    """Reads a part that is a number from 0 on, lower than this."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or (number := int(text)) >= end:
            raise ValueError
        return number

    return read


def moment(text: str) -> datetime:
    """Reads a part that is a moment, in UTC.

    Raises:
        ValueError: it is none, has no time zone, or is in none of the years that can be sent to the database.
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
