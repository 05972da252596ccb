"""Lists of SCIM resources: searchScimUsers and searchScimGroups (RFC 7644, 3.4.2; RFC 9865)."""

from typing import Annotated, Any, Literal

from pydantic import Field

from server.base.models import Result
from server.directory.scim import search
from server.directory.scim.search import MOST_RESULTS, Page, Query
from server.methods.registry import Example, method
from server.methods.scim_groups import SCIM_GROUP
from server.methods.scim_users import SCIM_USER, Resource, Selection
from server.tenants.call import Call

_ERRORS = ("invalid_filter", "invalid_value", "too_many_matches")
Whole = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class Search(Selection):
    """Which resources, in which order, and which page of them."""

    filter: Annotated[str, Field(max_length=2000)] | None = Field(
        None, description="RFC 7644, 3.4.2.2.", examples=['userName eq "jane@example.com"']
    )
    sortBy: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="An attribute; by default resources have the order of their creation."
    )
    sortOrder: Literal["ascending", "descending"] = "ascending"
    startIndex: Whole = Field(1, description="The first resource, from 1; less than 1 means 1.")
    count: Whole = Field(100, description=f"Resources of a page, at most {MOST_RESULTS}; 0: the total alone.")
    cursor: Annotated[str, Field(max_length=2000)] | None = Field(
        None, description="Empty for the first page, then nextCursor (RFC 9865). In place of startIndex."
    )

    def query(self) -> Query:
        """What the core is asked for."""
        return Query(
            self.filter or None, self.sortBy or None, self.sortOrder == "descending", max(self.startIndex, 1),
            min(max(self.count, 0), MOST_RESULTS), self.cursor, self.attributes, self.excludedAttributes,
        )  # fmt: skip


class Found(Result):
    """A page of resources."""

    totalResults: int
    startIndex: int | None = Field(None, description="Not given where a cursor was.")
    itemsPerPage: int
    nextCursor: str | None = Field(None, description="Given with a cursor, unless the page is the last.")
    Resources: list[Resource]


def _found(params: Search, page: Page) -> dict[str, Any]:
    """The answer to a search."""
    resources = [params.of(resource) for resource in page.resources]
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
    """List users as SCIM resources. Suspended users have active false; deleted ones are not found.

    A filter is evaluated with indexes: on an instance of more than 10,000 users one that no index helps is
    refused (invalid_filter), and so is one that more than 10,000 users may match (too_many_matches).
    """
    return _found(params, await search.search_users(call, params.query()))


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
    """List groups as SCIM resources, Admins among them. Exclude `members` where they are not needed."""
    return _found(params, await search.search_groups(call, params.query()))
