"""Searching users by part of name or e-mail, in the instance or below an account (seeds/001, user/search)."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from server.base.models import Id, Result, TenantParams
from server.directory.users import DisplayName
from server.methods.accounts import TreeId, find_position
from server.methods.registry import Example, method
from server.tenants.call import Call

MOST_PAGES = 100
SAMPLE = 300
"""Users in the sample from which the number of matches is estimated."""
FEW = 10_000
"""Users, or positions below an account, that are few enough to scan."""
_LETTERS = re.compile(r"[a-z0-9]{3}", re.ASCII | re.IGNORECASE)
"""A trigram that the index finds in every locale of the database."""
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


def like_pattern(text: str) -> str:
    """A LIKE pattern for texts that contain this one, with special characters escaped."""
    for special in ("\\", "%", "_"):
        text = text.replace(special, "\\" + special)
    return f"%{text}%"


class SearchUsers(TenantParams):
    """A text, filters and a page."""

    searchText: DisplayName = Field(description="Part of e-mail or full name, or the id of an account.")
    accountId: Id | None = Field(None, description="Only users below this account.")
    treeId: TreeId = Field(0, description="Tree of accountId.")
    sortBy: Annotated[str, Field(max_length=100, json_schema_extra=_SORTS), AfterValidator(_sorts)] = Field(
        "id",
        description="id (of the account), user, email, fullname; - reverses the order; comma separated.",
    )
    perPage: Annotated[int, Field(ge=1, le=100)] = 50
    pageNumber: Annotated[int, Field(ge=1, le=MOST_PAGES)] = Field(
        1, description="A page costs as much as all pages before it: prefer a narrower search."
    )


class FoundUser(Result):
    """A user that matches."""

    id: int | None = Field(description="Id of the account; null: none.")
    user: int
    email: str
    fullname: str
    positionId: int | None = Field(description="Position in the tree, if accountId is given.")


class FoundUsers(Result):
    """A page of matching users."""

    list: list[FoundUser]
    total: int
    totalIsExact: bool = Field(description="False: total is a lower bound.")
    perPage: int
    pageNumber: int


@method(
    "searchUsers",
    result=FoundUsers,
    scope="users:read",
    errors=("no_position",),
    examples=(
        Example(
            "Part of a name",
            {"searchText": "jan"},
            {"list": [{"id": None, "user": 2, "email": "jane@example.com", "fullname": "Jane Doe",
                       "positionId": None}],
             "total": 1, "totalIsExact": True, "perPage": 50, "pageNumber": 1},
        ),
    ),
)  # fmt: skip
async def search_users(call: Call, params: SearchUsers) -> Any:
    """Find users by part of their e-mail or full name, in any case, or by the id of their account.

    With accountId, only users below that account in the tree are searched, and their positions shown; an
    account without a position in that tree is an error. If very many users match, they are not all counted:
    total is then one more than the users shown so far, and totalIsExact is false.
    """
    text, number = params.searchText, None
    if text.isascii() and text.isdigit() and int(text) < 2**63:
        number = int(text)
    sorts = _effective(params.sortBy.split(","))
    offset = (params.pageNumber - 1) * params.perPage
    wanted = offset + params.perPage + 1
    values = {
        "instance_id": call.instance.id, "searched": text, "pattern": like_pattern(text),
        "account_id": number, "sorts": sorts, "tree_id": params.treeId, "path": None, "row_offset": offset,
        "row_limit": params.perPage,
    }  # fmt: skip
    sample = await call.db.one("sample_users", instance_id=call.instance.id, searched=text, most=SAMPLE)
    assert sample is not None
    if params.accountId is None:
        ways = _ways(sample, sorts, wanted)
    else:
        top = await find_position(call, params.accountId, params.treeId)
        values["path"] = top["path"]
        counted = await call.db.one(
            "count_beneath",
            instance_id=call.instance.id,
            path=top["path"],
            positions=sample["positions"],
            most=FEW,
            lots=SAMPLE,
        )
        assert counted is not None
        beneath = counted["places"]
        if beneath == FEW:
            beneath = max(FEW, sample["positions"] * counted["sampled"] // SAMPLE)
        ways = _ways_beneath(sample, beneath, sorts, wanted)
    for way in ways:
        name = way["way"]
        if name == "index":
            name = "trigrams" if _LETTERS.search(text) else "bigrams"
        walks = [way["accounts_first"]] if "accounts_first" in way else []
        if not walks or sample["accounts"] <= way["walk_rows"]:
            walks.append(name)
        exact = name in ("all", "trigrams", "bigrams") or (
            params.accountId is None and max(sample["users"], sample["accounts"]) <= way["walk_rows"]
        )
        values |= {"walks": walks, "walk_rows": way["walk_rows"], "tie": way.get("tie")}
        rows, total = await _page(call, values | {"wanted": None if exact else wanted})
        if exact or total >= wanted:
            break
    return {
        "list": [{name: row[name] for name in FoundUser.model_fields} for row in rows],
        "total": total, "totalIsExact": exact, "perPage": params.perPage, "pageNumber": params.pageNumber,
    }  # fmt: skip


def _effective(sorts: list[str]) -> list[str]:
    """The sort keys up to the first unique one."""
    unique = [place for place, sort in enumerate(sorts) if sort.lstrip("-") in ("user", "email")]
    return sorts[: unique[0] + 1] if unique else sorts


# The fastest way depends on the number of matches: for a common text, walk all users in the requested order
# until a page is full; for a rare one, ask the index for all matches. The planner of Postgres does not know
# the text. The weights are microseconds per row.


def _ways(sample: Any, sorts: list[str], wanted: int) -> list[dict[str, Any]]:
    """Ways to search the instance, probably fastest first. The last one always finishes."""
    share = (sample["matching"] + 0.5) / (sample["sampled"] + 1)
    index = {"way": "index", "walk_rows": 0}
    walk = _walk(sorts)
    if max(sample["users"], sample["accounts"]) <= FEW:
        return [walk | {"walk_rows": 2 * FEW}]  # twice, as users may have been added since the count
    rows = int(wanted / share)
    by_walk = rows * (2.5 if "accounts_first" in walk else 0.8)
    by_index = 300 + sample["users"] * share * 2
    return [walk | {"walk_rows": 3 * rows}, index] if by_walk < by_index else [index]


def _ways_beneath(sample: Any, beneath: int, sorts: list[str], wanted: int) -> list[dict[str, Any]]:
    """The same for users below a position, with about this number of positions beneath it."""
    if beneath <= FEW // 10:
        return [{"way": "all", "walk_rows": 0}]
    share = (sample["matching"] + 0.5) / (sample["sampled"] + 1)
    by_account = sorts[0].lstrip("-") == "id"
    rows = int(wanted / share * sample["positions" if by_account else "users"] / beneath)
    ways = [(300 + sample["users"] * share * 3, {"way": "index", "walk_rows": 0})]
    if beneath < FEW:
        ways.append((beneath * 4.5, {"way": "all", "walk_rows": 0}))
    ways.sort(key=lambda way: way[0])
    walk = _walk_tree(sorts)
    if rows + 2 * (wanted / share if by_account else rows * share) < ways[0][0]:
        ways.insert(0, (0, walk | {"walk_rows": 3 * rows}))
    return [way for _, way in ways]


def _walk(sorts: list[str]) -> dict[str, Any]:
    """The way that walks all users in this order."""
    if sorts[0].lstrip("-") == "id":
        return _walk(sorts[1:] or ["user"]) | {"accounts_first": sorts[0]}
    return _walk_tree(sorts)


def _walk_tree(sorts: list[str]) -> dict[str, Any]:
    return {"way": sorts[0], "tie": sorts[1] if len(sorts) > 1 else None}


async def _page(call: Call, values: dict[str, Any]) -> tuple[list[Any], int]:
    """The rows of a page, and the total of all pages."""
    rows = await call.db.all("search_users", **values)
    first = rows[0] if rows else None
    if first is None and values["row_offset"]:  # past the end, no row has the total
        first = await call.db.one("search_users", **values | {"row_offset": 0, "row_limit": 1})
    return rows, first["total"] if first else 0
