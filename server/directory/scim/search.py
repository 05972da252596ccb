"""Searches for SCIM resources: filter, order, pages by index or by cursor (RFC 7644, 3.4.2; RFC 9865)."""

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
"""Resources of a page. A larger count is reduced to this, as RFC 7644, 3.4.2.4 allows."""
MOST_ROWS = 10_000
"""Rows that a filter or a sort may read. An instance with at most so many users needs no index for it."""
MOST_MEMBERS = 10_000
"""Members of all groups of a page together. The page ends with the group that exceeds this."""
_LAST_START = 1_000_000
"""The largest startIndex: Postgres reads all rows before it. A cursor does not have this cost."""


class Query(NamedTuple):
    """The parameters of a search."""

    filter: str | None
    sort_by: str | None
    descending: bool
    start: int
    size: int
    # None: pages by startIndex; empty: the first page by cursor.
    cursor: str | None
    attributes: list[str] | None
    excluded: list[str] | None


class Page(NamedTuple):
    """A page of the result."""

    total: int
    start: int
    resources: list[users.Resource]
    next_cursor: str | None


class _Place(NamedTuple):
    """Where a page begins: after an id, or after a number of rows."""

    after: int
    offset: int


async def search_users(call: Call, query: Query) -> Page:
    """Users that are not deleted.

    Raises:
        Invalid: invalid_filter; invalid_value: sortBy, startIndex or cursor is not valid; too_many_matches:
            more than MOST_ROWS rows would be read.
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
    """The users with this userName or externalId. No documents are built: a third of the time."""
    is_name = name == "userName"
    rows = await call.db.all(
        "find_scim_users",
        instance_id=call.instance.id,
        key=email_key(text) if is_name else None,
        external_id=None if is_name else text,
    )
    shown = [users.resource(row, call.settings, call.instance) for row in rows]
    if is_name:  # other spellings of an e-mail can have the same key
        shown = [user for user in shown if user["userName"].lower() == text.lower()]
    return _page(query, len(shown), shown[place.offset :][: query.size], "")


async def search_groups(call: Call, query: Query) -> Page:
    """Groups, including Admins. Errors as in search_users."""
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
"""Look-ups that only users have."""


def _is_order_of_ids(query: Query) -> bool:
    """Whether the requested order is that of ids, which are assigned in the order of creation."""
    return not query.descending and (query.sort_by or "id").lower() in ("id", "meta.created")


def _filtered(query: Query, node: FilterNode | None, model: Any) -> tuple[Ways | None, dict[str, Any]]:
    """The look-ups of a filter, and the parameters that both search statements have."""
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
    """A text with the wildcards of LIKE escaped."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


async def _require_few(call: Call, what: str, given_filter: str | None) -> None:
    """Refuse to read every row of a large instance."""
    counted = await call.db.one("count_for_scim", instance_id=call.instance.id)
    if counted is not None and counted[what] <= MOST_ROWS:
        return
    if given_filter is not None:
        raise invalid_filter(
            f"must use an index, because there are more than {MOST_ROWS} {what}: add a comparison of "
            f"{_INDEXED[what]}"
        )
    raise _too_many("sortBy: cannot sort more than")


_INDEXED = {
    "users": "id, externalId, userName, emails, displayName, name or groups with eq, sw or co (3 letters)",
    "groups": "id, externalId, displayName or members with eq",
}


def _too_many(what: str) -> Invalid:
    return Invalid(f"{what} {MOST_ROWS} resources: make the filter narrower", code="too_many_matches")


def _found(rows: list[Any]) -> tuple[int, list[Any]]:
    """The number of matches, and the rows of the page.

    Raises:
        Invalid: more than MOST_ROWS rows would be read (too_many_matches).
    """
    if rows[0]["looked_at"] > MOST_ROWS:
        raise _too_many("the filter finds more than")
    return rows[0]["total"], [row for row in rows if row["id"] is not None]


def _following(place: _Place, found: int, total: int) -> str:
    """Where the next page begins; empty: this page is the last."""
    end = place.offset + found
    return f"n:{end}" if end < total and found else ""


def _page(query: Query, total: int, shown: list[users.Resource], following: str) -> Page:
    next_cursor = to_cursor(f"{_tag(query)} {following}") if query.cursor is not None and following else None
    return Page(total, query.start, shown, next_cursor)


# --- cursors ----------------------------------------------------------------------------------------------


def _tag(query: Query) -> str:
    """Identifies the query in its cursors."""
    text = f"{query.filter}\n{query.sort_by}\n{query.descending}"
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _place(query: Query) -> _Place:
    """Where the page begins.

    Raises:
        Invalid: the cursor is not valid or belongs to another query, or startIndex is too large.
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
        raise Invalid("cursor: is not a cursor of this filter and order", code="invalid_value")
    return _Place(int(number), 0) if kind == "id" else _Place(-1, int(number))
