"""Searching users by part of name or e-mail, everywhere or beneath an account (seeds/001, user/search)."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from server.errors import NotFound
from server.methods.accounts import Id, TreeId, find_position
from server.methods.users import DisplayName
from server.registry import Call, Example, Result, TenantParams, method

FEW = 10_000
"""Places beneath an account whose names are looked through one by one: tens of milliseconds."""
SORTS = frozenset({"id", "user", "email", "fullname", "-id", "-user", "-email", "-fullname"})
_SORTS = {
    "pattern": r"^(?!.*(id|user|email|fullname).*\1) *-?(id|user|email|fullname)"
    r"( *, *-?(id|user|email|fullname)){0,3} *$"
}


def _sorts(given: str) -> str:
    keys = [key.strip() for key in given.split(",")]
    if not set(keys) <= SORTS or len({key.lstrip("-") for key in keys}) != len(keys):
        raise ValueError("must combine id, user, email and fullname, each once, with - for the reverse order")
    return ",".join(keys)


class SearchUsers(TenantParams):
    """What to look for, and where."""

    searchText: DisplayName = Field(
        description="Part of e-mail or full name; a number is also taken for an account's id."
    )
    accountId: Id | None = Field(None, description="Only beneath this account.")
    treeId: TreeId = Field(0, description="In this tree, where accountId is given.")
    sortBy: Annotated[str, Field(max_length=100, json_schema_extra=_SORTS), AfterValidator(_sorts)] = Field(
        "id",
        description="id (of the account), user, email, fullname, with - for the reverse, comma separated.",
    )
    perPage: Annotated[int, Field(ge=1, le=100)] = 50
    pageNumber: Annotated[int, Field(ge=1, le=1_000_000)] = 1


class FoundUser(Result):
    """One that matches."""

    id: int | None = Field(description="The account; null for a user without one.")
    user: int
    email: str
    fullname: str
    positionId: int | None = Field(description="Its place in the tree, where a tree was searched.")


class FoundUsers(Result):
    """A page of those that match."""

    list: list[FoundUser]
    total: int
    perPage: int
    pageNumber: int


def like_pattern(text: str) -> str:
    """A LIKE pattern for texts that hold this one; what is special in LIKE stands for itself."""
    for special in ("\\", "%", "_"):
        text = text.replace(special, "\\" + special)
    return f"%{text}%"


@method(
    "searchUsers",
    result=FoundUsers,
    scope="users:read",
    writes=False,
    errors=(NotFound,),
    examples=(
        Example(
            "Part of a name",
            {"searchText": "jan"},
            {"list": [{"id": None, "user": 2, "email": "jane@example.com", "fullname": "Jane Doe",
                       "positionId": None}],
             "total": 1, "perPage": 50, "pageNumber": 1},
        ),
    ),
)  # fmt: skip
async def search_users(call: Call, params: SearchUsers) -> Any:
    """Find users by part of their e-mail or full name, in any case, or by their account's id.

    With accountId only those beneath that account in the tree are searched, the account itself not, and
    each is shown with its position; an account without a position in that tree is an error.
    """
    text, number = params.searchText, None
    if text.isascii() and text.isdigit() and int(text) < 2**63:
        number = int(text)
    sorts: list[str | None] = [*params.sortBy.split(","), None, None, None]
    values = {
        "instance_id": call.instance.id, "pattern": like_pattern(text), "account_id": number,
        "sort_1": sorts[0], "sort_2": sorts[1], "sort_3": sorts[2], "sort_4": sorts[3],
        "row_offset": (params.pageNumber - 1) * params.perPage, "row_limit": params.perPage,
    }  # fmt: skip
    query = "search_users"
    if params.accountId is not None:
        top = await find_position(call, params.accountId, params.treeId)
        place = {"instance_id": call.instance.id, "path": top["path"]}
        beneath = await call.db.value("count_beneath", **place, most=FEW)
        query, values = "search_downline", values | place
        values |= {"tree_id": params.treeId, "is_small": beneath < FEW}
    rows = await call.db.all(query, **values)
    matches = [dict(row) for row in rows]
    if not rows and params.pageNumber > 1:  # past the end there is no row to carry the total
        rows = await call.db.all(query, **values | {"row_offset": 0, "row_limit": 1})
    for match in matches:
        del match["total"]
    return {
        "list": matches, "total": rows[0]["total"] if rows else 0, "perPage": params.perPage,
        "pageNumber": params.pageNumber,
    }  # fmt: skip
