"""Searches for SCIM resources: searchScimUsers and searchScimGroups (RFC 7644, 3.4.2; RFC 9865)."""

from typing import Annotated, Any, Literal

from pydantic import Field

from server.base.models import Result
from server.directory.scim import search
from server.directory.scim.filters import LONGEST
from server.directory.scim.search import DEFAULT_RESULTS, MOST_RESULTS, Page, Query
from server.directory.scim.users import Resource
from server.methods.registry import Example, method
from server.methods.scim_groups import SCIM_GROUP
from server.methods.scim_users import SCIM_USER, Selection
from server.tenants.call import Call

_ERRORS = ("invalid_filter", "invalid_value", "too_many_matches")
Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class Search(Selection):
    """Filter, order, page, and the attributes to return."""

    filter: Annotated[str, Field(max_length=LONGEST)] | None = Field(
        None, description="RFC 7644, 3.4.2.2.", examples=['userName eq "jane@example.com"']
    )
    sortBy: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="An attribute; by default the order of creation."
    )
    sortOrder: Literal["ascending", "descending"] = "ascending"
    startIndex: Int32 = Field(1, description="The first resource of the page, from 1. Less than 1 means 1.")
    count: Int32 = Field(
        DEFAULT_RESULTS, description=f"Resources of a page, at most {MOST_RESULTS}; 0: only the total."
    )
    cursor: Annotated[str, Field(max_length=2000)] | None = Field(
        None, description="Instead of startIndex (RFC 9865): empty for the first page, then nextCursor."
    )

    def query(self) -> Query:
        """The query for the core."""
        return Query(
            self.filter or None, self.sortBy or None, self.sortOrder == "descending", max(self.startIndex, 1),
            min(max(self.count, 0), MOST_RESULTS), self.cursor, self.attributes, self.excludedAttributes,
        )  # fmt: skip


class Found(Result):
    """A page of resources."""

    totalResults: int
    startIndex: int | None = Field(None, description="Only without a cursor.")
    itemsPerPage: int
    nextCursor: str | None = Field(None, description="Only with a cursor; the last page has none.")
    Resources: list[Resource]


def _result(params: Search, page: Page) -> dict[str, Any]:
    """The answer to a search."""
    resources = [params.select(resource) for resource in page.resources]
    found: dict[str, Any] = {"totalResults": page.total}
    if params.cursor is None:
        found["startIndex"] = page.start
    found["itemsPerPage"] = len(resources)
    if page.next_cursor is not None:
        found["nextCursor"] = page.next_cursor
    return found | {"Resources": resources}


@method(
    "searchScimUsers",
    result=Found,
    scope="users:read",
    writes=False,
    errors=_ERRORS,
    examples=(
        Example(
            "One user",
            {"filter": 'userName eq "jane@example.com"'},
            {"totalResults": 1, "startIndex": 1, "itemsPerPage": 1, "Resources": [SCIM_USER]},
        ),
    ),
)
async def search_scim_users(call: Call, params: Search) -> Any:
    """List users as SCIM resources. Suspended users have `active` false; deleted users are not found.

    In an instance with more than 10,000 users, a filter must use an index (else: invalid_filter), and the
    index must find at most 10,000 users (else: too_many_matches).
    """
    return _result(params, await search.search_users(call, params.query()))


@method(
    "searchScimGroups",
    result=Found,
    scope="groups:read",
    writes=False,
    errors=_ERRORS,
    examples=(
        Example(
            "One group",
            {"filter": 'displayName eq "Sales"', "excludedAttributes": ["members"]},
            {"totalResults": 1, "startIndex": 1, "itemsPerPage": 1, "Resources": [SCIM_GROUP]},
        ),
    ),
)
async def search_scim_groups(call: Call, params: Search) -> Any:
    """List groups as SCIM resources, including Admins. Exclude `members` if you do not need them."""
    return _result(params, await search.search_groups(call, params.query()))
