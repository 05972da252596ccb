"""Lists of SCIM resources: filtered, sorted, in pages by number or by cursor (RFC 7644, 3.4.2; RFC 9865)."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

from server.base.errors import Invalid
from server.base.pages import from_cursor, to_cursor
from server.directory.scim import groups, users
from server.directory.scim.attributes import wants
from server.directory.scim.filters import Ways, invalid_filter, jsonpath, named_in, parsed, sort_key, ways
from server.directory.scim.models import Group, User
from server.tenants.call import Call

MOST_RESULTS = 200
"""Resources of a page. A larger count is cut to it, as RFC 7644, 3.4.2.4 allows."""
MOST_ROWS = 10_000
"""Rows that a filter or a sort may look at. In an instance with no more users, a filter needs no index."""
_LAST_START = 1_000_000
"""The largest startIndex: the rows before it are skipped one by one, and a cursor skips none."""


class Query(NamedTuple):
    """What is asked for."""

    filter: str | None
    sort_by: str | None
    descending: bool
    start: int
    size: int
    # None: a page by number; empty: the first page by cursor.
    cursor: str | None
    attributes: list[str] | None
    excluded: list[str] | None


class Page(NamedTuple):
    """A part of the result."""

    total: int
    start: int
    resources: list[users.Resource]
    next_cursor: str | None


class _Place(NamedTuple):
    """Where a page begins: after an id, or after so many rows."""

    after: int
    offset: int


async def search_users(call: Call, query: Query) -> Page:
    """Living users.

    Raises:
        Invalid: invalid_filter; invalid_value for a sort or cursor that is none; too_many_matches where more
            than MOST_ROWS rows would have to be looked at.
    """
    place = _place(query)
    if query.filter is None and _is_order_of_ids(query):
        rows = await call.db.all(
            "page_scim_users",
            instance_id=call.instance.id,
            after=place.after,
            row_offset=place.offset,
            row_limit=query.size + 1,
        )
        total = rows[0]["total"] if rows else 0
        found = [row for row in rows if row["id"] is not None]
        return _page(
            query,
            total,
            found,
            f"id:{found[query.size - 1]['id']}" if len(found) > query.size > 0 else "",
            lambda row: users.resource(row, call.settings, call.instance),
        )
    found_by, given = _filtered(query, User)
    if found_by is None:
        await _require_few(call, "users", query.filter)
    rows = await call.db.all(
        "search_scim_users",
        instance_id=call.instance.id,
        address=call.settings.own_address(),
        base=users.base_address(call.settings, call.instance),
        row_offset=place.offset,
        **given | {"suspended": bool(given["suspended"])},
    )
    return _searched(query, place, rows, lambda row: users.resource(row, call.settings, call.instance))


async def search_groups(call: Call, query: Query) -> Page:
    """Groups, Admins among them; the same errors as search_users."""
    place = _place(query)
    found_by, given = _filtered(query, Group)
    if found_by is None:
        await _require_few(call, "groups", query.filter)
    rows = await call.db.all(
        "search_scim_groups",
        instance_id=call.instance.id,
        base=users.base_address(call.settings, call.instance),
        with_members=wants("members", query.attributes, query.excluded),
        row_offset=place.offset,
        **{name: value for name, value in given.items() if name not in _OF_USERS},
    )
    return _searched(query, place, rows, lambda row: groups.resource(row, call.settings, call.instance))


_OF_USERS = frozenset({"beginnings", "parts", "short_parts", "suspended"})
"""Look-ups of users alone."""


def _is_order_of_ids(query: Query) -> bool:
    """Whether the order asked for is that of the index: ids are given in the order of creation."""
    return not query.descending and (query.sort_by or "id").lower() in ("id", "meta.created")


def _filtered(query: Query, model: Any) -> tuple[Ways | None, dict[str, Any]]:
    """The look-ups of a query's filter, and what the two statements take alike."""
    node = None if query.filter is None else parsed(query.filter)
    path, sorted_by = sort_key(model, query.sort_by or "id")
    named = sorted_by if node is None else sorted_by | named_in(model, node)
    found_by = None if node is None else ways(model, node)
    given = asdict(found_by or Ways())
    given["parts"] = ["%" + _escaped(part) + "%" for part in given["parts"]]
    return found_by, given | {
        "predicate": "exists($)" if node is None else jsonpath(model, node),
        "named": sorted(named), "everybody": found_by is None, "most": MOST_ROWS, "sort": path,
        "descending": query.descending, "row_limit": query.size,
    }  # fmt: skip


def _escaped(text: str) -> str:
    """A text as LIKE takes it."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


async def _require_few(call: Call, what: str, given_filter: str | None) -> None:
    """Refuse to look at every row of a large instance."""
    counted = await call.db.one("count_for_scim", instance_id=call.instance.id)
    if counted is not None and counted[what] <= MOST_ROWS:
        return
    if given_filter is not None:
        raise invalid_filter(
            f"no index finds this among more than {MOST_ROWS} {what}: add a comparison of id, externalId, "
            "userName, emails, displayName, name or groups with eq, sw or co (3 letters)"
        )
    raise _too_many("sortBy: cannot sort more than")


def _too_many(what: str) -> Invalid:
    return Invalid(f"{what} {MOST_ROWS} resources: make the filter narrower", code="too_many_matches")


def _searched(query: Query, place: _Place, rows: list[Any], shown: Callable[[Any], users.Resource]) -> Page:
    if rows[0]["looked_at"] > MOST_ROWS:
        raise _too_many("the filter finds more than")
    total = rows[0]["total"]
    found = [row for row in rows if row["id"] is not None]
    end = place.offset + len(found)
    return _page(query, total, found, f"n:{end}" if end < total and found else "", shown)


def _page(
    query: Query, total: int, found: list[Any], following: str, shown: Callable[[Any], users.Resource]
) -> Page:
    is_by_cursor = query.cursor is not None
    following = to_cursor(f"{_tag(query)} {following}") if is_by_cursor and following else ""
    return Page(total, query.start, [shown(row) for row in found[: query.size]], following or None)


# --- cursors ----------------------------------------------------------------------------------------------


def _tag(query: Query) -> str:
    """Tells a cursor of this query from those of others."""
    text = f"{query.filter}\n{query.sort_by}\n{query.descending}"
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _place(query: Query) -> _Place:
    """Where the page begins.

    Raises:
        Invalid: the cursor is none, or belongs to another query (invalid_value); the startIndex is too large.
    """
    if query.cursor is None:
        if query.start > _LAST_START:
            raise Invalid(
                f"startIndex: must be at most {_LAST_START}; use cursor instead", code="invalid_value"
            )
        return _Place(0, query.start - 1)
    if query.cursor == "":
        return _Place(0, 0)
    tag, _, place = from_cursor(query.cursor, "cursor").partition(" ")
    kind, _, number = place.partition(":")
    is_number = number.isascii() and number.isdigit() and len(number) < 19
    if tag != _tag(query) or kind not in ("id", "n") or not is_number:
        raise Invalid("cursor: is not one of this filter and order", code="invalid_value")
    return _Place(int(number), 0) if kind == "id" else _Place(0, int(number))
