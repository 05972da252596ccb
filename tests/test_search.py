"""searchUsers: by part of a name or e-mail, by account, below an account, in every order."""

from typing import Any

import pytest
from conftest import ADMIN, Client
from test_accounts import member

from server.methods import search


@pytest.fixture
async def people(client: Client) -> Client:
    """admin > tom > ann > tomas, and zed without an account."""
    tom = await member(client, "Tom", 1)
    ann = await member(client, "Ann", tom["account"]["id"])
    await member(client, "Tomas", ann["account"]["id"])
    await client.call("createUser", {"email": "zed@example.com", "displayName": "Zed 100% A_b \\"})
    return client


async def found(client: Client, text: str, **params: Any) -> list[str]:
    answer = await client.call("searchUsers", {"searchText": text} | params)
    return [match["email"].partition("@")[0] for match in answer["list"]]


async def test_part_of_name_or_email_in_any_case(people: Client) -> None:
    assert await found(people, "tom") == ["tom", "tomas"]
    assert await found(people, "TOMA") == ["tomas"]
    assert await found(people, "n memb") == ["ann"]
    assert await found(people, "m@exam") == ["tom"]
    assert await found(people, "nobody") == []


async def test_nothing_matches_across_email_and_name(people: Client) -> None:
    assert await people.outcome("searchUsers", {"searchText": "com\ntom"}) == (
        400, "searchText: holds control characters",
    )  # fmt: skip
    assert await found(people, "comtom") == []


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("%", ["zed"]),
        ("_", ["zed"]),
        ("\\", ["zed"]),
        ("100%", ["zed"]),
        ("A_b", ["zed"]),
        ("Axb", []),
        ("%%", []),
    ],
)
async def test_what_is_special_in_like_is_literal(text: str, matches: list[str], people: Client) -> None:
    assert await found(people, text) == matches


async def test_a_number_is_also_an_account(people: Client) -> None:
    assert await found(people, "2") == ["tom"]
    assert await found(people, "100") == ["zed"]
    assert await found(people, "99999999999999999999") == []


async def test_the_answer(people: Client) -> None:
    answer = await people.call("searchUsers", {"searchText": "ann"})
    assert answer == {
        "list": [{"id": 3, "user": 3, "email": "ann@example.com", "fullname": "Ann Member", "positionId": None}],
        "total": 1, "totalIsExact": True, "perPage": 50, "pageNumber": 1,
    }  # fmt: skip
    zed = await people.call("searchUsers", {"searchText": "zed"})
    assert zed["list"][0]["id"] is None


async def test_beneath_an_account(people: Client) -> None:
    """The account itself is not among them; each has its position."""
    assert await found(people, "om", accountId=1) == ["tom", "ann", "tomas"]
    assert await found(people, "om", accountId=2) == ["ann", "tomas"]
    assert await found(people, "tom", accountId=3) == ["tomas"]
    assert await found(people, "4", accountId=2) == ["tomas"]
    assert await found(people, "2", accountId=3) == []
    answer = await people.call("searchUsers", {"searchText": "ann", "accountId": 1})
    assert answer["list"][0]["positionId"] == 3
    root = (await people.call("addToTree", {"accountId": 4, "treeId": 5}))["positionId"]
    await people.call("addToTree", {"accountId": 2, "treeId": 5, "sponsorPositionId": root})
    assert await found(people, "om", accountId=4, treeId=5) == ["tom"]
    assert await people.outcome("searchUsers", {"searchText": "x", "accountId": 3, "treeId": 5}) == (
        400, "the account has no position in this tree",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("id", ["admin", "tom", "ann", "tomas", "zed"]),
        ("-id", ["tomas", "ann", "tom", "admin", "zed"]),
        ("user", ["admin", "tom", "ann", "tomas", "zed"]),
        ("-user", ["zed", "tomas", "ann", "tom", "admin"]),
        ("email", ["admin", "ann", "tom", "tomas", "zed"]),
        ("-fullname, id", ["zed", "tomas", "tom", "ann", "admin"]),
        ("fullname,-user", ["admin", "ann", "tom", "tomas", "zed"]),
    ],
)
async def test_orders(sort: str, order: list[str], people: Client) -> None:
    assert await found(people, "@example", sortBy=sort) == order


async def test_pages(people: Client) -> None:
    first = await people.call("searchUsers", {"searchText": "@", "perPage": 2})
    last = await people.call("searchUsers", {"searchText": "@", "perPage": 2, "pageNumber": 3})
    past = await people.call("searchUsers", {"searchText": "@", "perPage": 2, "pageNumber": 4})
    assert [len(page["list"]) for page in (first, last, past)] == [2, 1, 0]
    assert {page["total"] for page in (first, last, past)} == {5}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "searchText: is required"),
        ({"searchText": ""}, "searchText: must have at least 1 character"),
        ({"searchText": "x", "perPage": 101}, "perPage: must be less than or equal to 100"),
        ({"searchText": "x", "pageNumber": 0}, "pageNumber: must be greater than or equal to 1"),
        ({"searchText": "x", "sortBy": "password"}, "sortBy: must combine id, user, email and fullname, each once, with - for the reverse order"),
        ({"searchText": "x", "sortBy": "id,-id"}, "sortBy: must combine id, user, email and fullname, each once, with - for the reverse order"),
        ({"searchText": "x", "accountId": "1"}, "accountId: must be an integer"),
    ],
)  # fmt: skip
async def test_bad_searches(params: dict[str, Any], message: str, client: Client) -> None:
    assert await client.outcome("searchUsers", params) == (400, message)


async def test_names_beyond_ascii(client: Client) -> None:
    """Case is folded for every script."""
    await client.call("createUser", {"email": "olga@example.com", "displayName": "Ольга Ёлкина"})
    assert await found(client, "ЁЛКИНА") == ["olga"]
    assert await found(client, "ольга ё") == ["olga"]


async def test_deleted_users_and_other_tenants_are_not_found(people: Client, other: Client) -> None:
    await people.call("deleteUserByEmail", {"email": "ann@example.com"})
    assert await found(people, "ann") == []
    assert await found(people, "3") == []
    assert await found(people, "ann", accountId=1) == []
    assert await found(other, "admin") == [] and await found(other, ADMIN) == []


# Small instances are simply looked through; here they are held for large, so that every way is gone.
WAYS = {
    "walk": lambda sorts: search._walk(sorts),
    "walk_tree": lambda sorts: search._walk_tree(sorts),
    "index": lambda sorts: {"way": "index"},
    "all": lambda sorts: {"way": "all"},
}


@pytest.fixture
async def crowd(client: Client) -> Client:
    """Thirty with accounts in a tree of two branches, thirty without; names come three times each."""
    for number in range(30):
        await member(
            client,
            f"Nam{number % 10:02}",
            1 if number < 2 else 2 + number % 2,
            login=f"m{number}@example.com",
        )
        await client.call(
            "createUser", {"email": f"u{number}@example.com", "displayName": f"Nam{number % 10:02} Member"}
        )
    return client


@pytest.mark.parametrize(
    ("way", "account"), [("walk", None), ("index", None), ("walk_tree", 2), ("index", 2), ("all", 2)]
)
async def test_every_way_leads_to_the_same(
    way: str, account: int | None, crowd: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order and the page: what one way finds, looking through all finds too."""
    searches = [
        {"searchText": text, "sortBy": sort, "perPage": 7, "pageNumber": page}
        | ({"accountId": account} if account else {})
        for text in ("am0", "m", "5 m", "00", "@", "nobody", "u1")
        for sort in ("id", "-id", "-user", "email", "-email,id", "fullname", "-fullname,-user", "-id,fullname",
                     "fullname,-id", "id,-fullname,email")
        for page in (1, 2)
    ]  # fmt: skip
    plain = [await crowd.call("searchUsers", params) for params in searches]
    assert all(answer["totalIsExact"] for answer in plain)
    assert {answer["total"] for answer in plain} > {0}

    def ways(sample: Any, *rest: Any) -> list[dict[str, Any]]:
        chosen = WAYS[way](rest[-2])
        index = {"way": "index", "walk_rows": 0}
        return [chosen | {"walk_rows": 59}, index]

    monkeypatch.setattr(search, "_ways", ways)
    monkeypatch.setattr(search, "_ways_beneath", ways)
    for params, expected in zip(searches, plain, strict=True):
        answer = await crowd.call("searchUsers", params)
        assert answer["list"] == expected["list"], params
        if answer["totalIsExact"]:
            assert answer["total"] == expected["total"]
        else:  # there is at least one more, or this is all
            shown = 7 * (params["pageNumber"] - 1) + len(answer["list"])
            assert min(expected["total"], shown + 1) <= answer["total"] <= expected["total"]


async def test_the_likely_shortest_way_is_gone_first(client: Client) -> None:
    """Common texts are met on the way, rare ones are in the index, few people are looked through."""
    million = {"users": 10**6, "accounts": 10**5, "positions": 10**5, "sampled": 300}
    common, rare = million | {"matching": 150}, million | {"matching": 0}

    def first(ways: list[dict[str, Any]]) -> str:
        return str(ways[0]["way"])

    assert [way["way"] for way in search._ways(common, ["email"], 51)] == ["email", "index"]
    assert [way["way"] for way in search._ways(rare, ["email"], 51)] == ["index"]
    assert first(search._ways(rare | {"users": 99, "accounts": 9}, ["user"], 51)) == "user"
    assert first(search._ways_beneath(common, 70_000, ["-id"], 51)) == "-id"
    assert first(search._ways_beneath(common, 20, ["-id"], 51)) == "all"
    assert [way["way"] for way in search._ways_beneath(rare, 70_000, ["-id"], 51)] == ["index"]
