"""Searches for SCIM resources: filter, order, pages by index or by cursor (RFC 7644, 3.4.2; RFC 9865)."""

import hashlib
from typing import Any, NamedTuple

from scim2_models.path import FilterNode

from server.base.errors import Invalid
from server.base.pages import from_cursor, to_cursor
from server.directory.scim import groups, users
from server.directory.scim.attributes import is_requested
from server.directory.scim.filters import (
    Lookups,
    invalid_filter,
    jsonpath,
    lookups_of,
    named_parts,
    parsed,
    single_equality,
    sort_key,
)
from server.directory.scim.models import Group, User
from server.directory.users import email_key
from server.tenants.call import Call

MOST_RESULTS = 200
"""Resources of a page. A larger count is reduced to this, as RFC 7644, 3.4.2.4 allows."""
DEFAULT_RESULTS = 100
"""Resources of a page if the search has no `count`."""
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


class _Start(NamedTuple):
    """Where a page begins: after an id, or after a number of rows."""

    after: int
    offset: int


async def search_users(call: Call, query: Query) -> Page:
    """Users that are not deleted.

    Raises:
        Invalid: invalid_filter; invalid_value: sortBy, startIndex or cursor is not valid; too_many_matches:
            more than MOST_ROWS rows would be read.
    """
    start = _start(query)
    if query.filter is None and _is_order_of_ids(query):
        rows = await call.db.all(
            "page_scim_users",
            instance_id=call.instance.id,
            after=start.after,
            row_offset=start.offset,
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
    if node is not None and query.sort_by is None and (equality := single_equality(node)) is not None:
        return await _search_by_equality(call, query, start, *equality)
    lookups, given = _parameters(query, node, User)
    if lookups is None:
        await _require_small_instance(call, "users", query.filter)
    rows = await call.db.all(
        "search_scim_users",
        instance_id=call.instance.id,
        address=call.settings.own_address(),
        base=users.base_address(call.settings, call.instance),
        row_offset=start.offset,
        **given | {"suspended": bool(given["suspended"])},
    )
    total, found = _matches(rows)
    shown = [users.resource(row, call.settings, call.instance) for row in found]
    return _page(query, total, shown, _next_start(start, len(found), total))


async def _search_by_equality(call: Call, query: Query, start: _Start, name: str, text: str) -> Page:
    """The users with this userName or externalId. No documents are built: a third of the time."""
    is_user_name = name == "userName"
    rows = await call.db.all(
        "find_scim_users",
        instance_id=call.instance.id,
        key=email_key(text) if is_user_name else None,
        external_id=None if is_user_name else text,
    )
    shown = [users.resource(row, call.settings, call.instance) for row in rows]
    if is_user_name:  # other spellings of an e-mail can have the same key
        shown = [user for user in shown if user["userName"].lower() == text.lower()]
    return _page(query, len(shown), shown[start.offset :][: query.size], "")


async def search_groups(call: Call, query: Query) -> Page:
    """Groups, including Admins. Errors as in search_users."""
    start = _start(query)
    node = None if query.filter is None else parsed(query.filter)
    lookups, given = _parameters(query, node, Group)
    page_ids: list[int] = []
    total: int | None = None
    if query.filter is None and _is_order_of_ids(query):
        page = await call.db.all(
            "page_scim_groups",
            instance_id=call.instance.id,
            after=start.after,
            row_offset=start.offset,
            row_limit=query.size + 1,
        )
        total = page[0]["total"]
        page_ids = [row["id"] for row in page if row["id"] is not None]
        given |= {"all_rows": False, "ids": page_ids[: query.size]}
    elif lookups is None:
        await _require_small_instance(call, "groups", query.filter)
    rows = await call.db.all(
        "search_scim_groups",
        instance_id=call.instance.id,
        base=users.base_address(call.settings, call.instance),
        with_members=is_requested("members", query.attributes, query.excluded),
        most_members=MOST_MEMBERS,
        row_offset=0 if total is not None else start.offset,
        **{name: value for name, value in given.items() if name not in _ONLY_OF_USERS},
    )
    matching, found = _matches(rows)
    shown = [groups.resource(row, call.settings, call.instance) for row in found]
    if total is None:
        return _page(query, matching, shown, _next_start(start, len(found), matching))
    is_last = not found or found[-1]["id"] == page_ids[-1]
    return _page(query, total, shown, "" if is_last else f"id:{found[-1]['id']}")


_ONLY_OF_USERS = frozenset({"prefixes", "substrings", "short_substrings", "suspended"})
"""Look-ups that only users have."""


def _is_order_of_ids(query: Query) -> bool:
    """Whether the requested order is that of ids, which are assigned in the order of creation."""
    return not query.descending and (query.sort_by or "id").lower() in ("id", "meta.created")


def _parameters(query: Query, node: FilterNode | None, model: Any) -> tuple[Lookups | None, dict[str, Any]]:
    """The look-ups of a filter, and the parameters that both search statements have."""
    path, sorted_by = sort_key(model, query.sort_by or "id")
    named = sorted_by if node is None else sorted_by | named_parts(model, node)
    lookups = None if node is None else lookups_of(model, node)
    given = dict(vars(lookups or Lookups()))
    given["substrings"] = ["%" + _escaped(text) + "%" for text in given["substrings"]]
    return lookups, given | {
        "predicate": "exists($)" if node is None else jsonpath(model, node),
        "named": sorted(named), "all_rows": lookups is None, "most": MOST_ROWS, "sort": path,
        "descending": query.descending, "row_limit": query.size,
    }  # fmt: skip


def _escaped(text: str) -> str:
    """A text with the wildcards of LIKE escaped."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


async def _require_small_instance(call: Call, what: str, given_filter: str | None) -> None:
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


def _matches(rows: list[Any]) -> tuple[int, list[Any]]:
    """The number of matches, and the rows of the page.

    Raises:
        Invalid: more than MOST_ROWS rows would be read (too_many_matches).
    """
    if rows[0]["candidate_count"] > MOST_ROWS:
        raise _too_many("the filter finds more than")
    return rows[0]["total"], [row for row in rows if row["id"] is not None]


def _next_start(start: _Start, found: int, total: int) -> str:
    """Where the next page begins; empty: this page is the last."""
    end = start.offset + found
    return f"n:{end}" if end < total and found else ""


def _page(query: Query, total: int, shown: list[users.Resource], next_start: str) -> Page:
    next_cursor = (
        to_cursor(f"{_tag(query)} {next_start}") if query.cursor is not None and next_start else None
    )
    return Page(total, query.start, shown, next_cursor)


# --- cursors ----------------------------------------------------------------------------------------------


def _tag(query: Query) -> str:
    """Identifies the query in its cursors."""
    text = f"{query.filter}\n{query.sort_by}\n{query.descending}"
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _start(query: Query) -> _Start:
    """Where the page begins.

    Raises:
        Invalid: the cursor is not valid or belongs to another query, or startIndex is too large.
    """
    if query.cursor is None:
        if query.start > _LAST_START:
            raise Invalid(
                f"startIndex: must be at most {_LAST_START}; use cursor instead", code="invalid_value"
            )
        return _Start(-1, query.start - 1)
    if query.cursor == "":
        return _Start(-1, 0)
    tag, _, start = from_cursor(query.cursor, "cursor").partition(" ")
    kind, _, number = start.partition(":")
    is_number = number.isascii() and number.isdigit() and len(number) < 19
    if tag != _tag(query) or kind not in ("id", "n") or not is_number:
        raise Invalid("cursor: is not a cursor of this filter and order", code="invalid_value")
    return _Start(int(number), 0) if kind == "id" else _Start(-1, int(number))
