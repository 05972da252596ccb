"""Lists of SCIM resources: filtered, sorted, in pages by number or by cursor (RFC 7644, 3.4.2; RFC 9865)."""

import hashlib
from typing import Any, NamedTuple

from scim2_models.path import FilterNode

from server.base.errors import Invalid
from server.base.pages import from_cursor, to_cursor
from server.directory.scim import groups, users
from server.directory.scim.attributes import wants
from server.directory.scim.filters import (
    Ways,
    exact_text,
    invalid_filter,
    jsonpath,
    named_in,
    parsed,
    sort_key,
    ways,
)
from server.directory.scim.models import Group, User
from server.directory.users import email_key
from server.tenants.call import Call

MOST_RESULTS = 200
"""Resources of a page. A larger count is cut to it, as RFC 7644, 3.4.2.4 allows."""
MOST_ROWS = 10_000
"""Rows that a filter or a sort may look at. In an instance with no more users, a filter needs no index."""
MOST_MEMBERS = 10_000
"""Members of the groups of a page, all together; the page ends before a group that would make them more."""
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
            [users.resource(row, call.settings, call.instance) for row in found[: query.size]],
            f"id:{found[query.size - 1]['id']}" if len(found) > query.size > 0 else "",
        )
    node = None if query.filter is None else parsed(query.filter)
    if node is not None and query.sort_by is None and (exact := exact_text(node)) is not None:
        return await _exact(call, query, place, *exact)
    found_by, given = _filtered(query, node, User)
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
    total, found = _found(rows)
    shown = [users.resource(row, call.settings, call.instance) for row in found]
    return _page(query, total, shown, _following(place, len(found), total))


async def _exact(call: Call, query: Query, place: _Place, name: str, text: str) -> Page:
    """The users whose userName or externalId is a text: without documents, in a third of the time."""
    is_name = name == "userName"
    rows = await call.db.all(
        "find_scim_users",
        instance_id=call.instance.id,
        key=email_key(text) if is_name else None,
        external_id=None if is_name else text,
    )
    shown = [users.resource(row, call.settings, call.instance) for row in rows]
    if is_name:  # without case; an e-mail of the same key may be spelled in another way
        shown = [user for user in shown if user["userName"].lower() == text.lower()]
    return _page(query, len(shown), shown[place.offset :][: query.size], "")


async def search_groups(call: Call, query: Query) -> Page:
    """Groups, Admins among them; the same errors as search_users."""
    place = _place(query)
    node = None if query.filter is None else parsed(query.filter)
    found_by, given = _filtered(query, node, Group)
    listed: list[int] = []
    total: int | None = None
    if query.filter is None and _is_order_of_ids(query):
        page = await call.db.all(
            "page_scim_groups",
            instance_id=call.instance.id,
            after=place.after,
            row_offset=place.offset,
            row_limit=query.size + 1,
        )
        total = page[0]["total"]
        listed = [row["id"] for row in page if row["id"] is not None]
        given |= {"everybody": False, "ids": listed[: query.size]}
    elif found_by is None:
        await _require_few(call, "groups", query.filter)
    rows = await call.db.all(
        "search_scim_groups",
        instance_id=call.instance.id,
        base=users.base_address(call.settings, call.instance),
        with_members=wants("members", query.attributes, query.excluded),
        most_members=MOST_MEMBERS,
        row_offset=0 if total is not None else place.offset,
        **{name: value for name, value in given.items() if name not in _OF_USERS},
    )
    matching, found = _found(rows)
    shown = [groups.resource(row, call.settings, call.instance) for row in found]
    if total is None:
        return _page(query, matching, shown, _following(place, len(found), matching))
    is_last = not found or found[-1]["id"] == listed[-1]
    return _page(query, total, shown, "" if is_last else f"id:{found[-1]['id']}")


_OF_USERS = frozenset({"beginnings", "parts", "short_parts", "suspended"})
"""Look-ups of users alone."""


def _is_order_of_ids(query: Query) -> bool:
    """Whether the order asked for is that of the index: ids are given in the order of creation."""
    return not query.descending and (query.sort_by or "id").lower() in ("id", "meta.created")


def _filtered(query: Query, node: FilterNode | None, model: Any) -> tuple[Ways | None, dict[str, Any]]:
    """The look-ups of a filter, and what the two statements take alike."""
    path, sorted_by = sort_key(model, query.sort_by or "id")
    named = sorted_by if node is None else sorted_by | named_in(model, node)
    found_by = None if node is None else ways(model, node)
    given = dict(vars(found_by or Ways()))
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


def _found(rows: list[Any]) -> tuple[int, list[Any]]:
    """How many match, and those of the page.

    Raises:
        Invalid: more rows would have to be looked at than may be (too_many_matches).
    """
    if rows[0]["looked_at"] > MOST_ROWS:
        raise _too_many("the filter finds more than")
    return rows[0]["total"], [row for row in rows if row["id"] is not None]


def _following(place: _Place, found: int, total: int) -> str:
    """Where the next page begins; empty: this one is the last."""
    end = place.offset + found
    return f"n:{end}" if end < total and found else ""


def _page(query: Query, total: int, shown: list[users.Resource], following: str) -> Page:
    next_cursor = to_cursor(f"{_tag(query)} {following}") if query.cursor is not None and following else None
    return Page(total, query.start, shown, next_cursor)


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
        return _Place(-1, query.start - 1)
    if query.cursor == "":
        return _Place(-1, 0)
    tag, _, place = from_cursor(query.cursor, "cursor").partition(" ")
    kind, _, number = place.partition(":")
    is_number = number.isascii() and number.isdigit() and len(number) < 19
    if tag != _tag(query) or kind not in ("id", "n") or not is_number:
        raise Invalid("cursor: is not one of this filter and order", code="invalid_value")
    return _Place(int(number), 0) if kind == "id" else _Place(-1, int(number))
