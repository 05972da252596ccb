"""Accounts in sponsor trees: placing, moving, reading and searching."""

import asyncio
from typing import Any

import asyncpg
import pytest
from conftest import ADMIN, Client, footprint

from server.methods.accounts import MAX_DEPTH


async def member(client: Client, name: str, sponsor: int, **more: Any) -> dict[str, Any]:
    """A new member; its account's id is what sponsors are named by."""
    params = {
        "login": f"{name.lower()}@example.com", "password": "demo1234", "sponsorId": sponsor,
        "profile": {"firstname": name, "lastname": "Member"},
    }  # fmt: skip
    created: dict[str, Any] = (await client.call("createMember", params | more))["member"]
    return created


async def branch(client: Client, account: int, depth: int = 10, tree: int = 0) -> list[tuple[int, int, str]]:
    """Level, parent position and title of all beneath an account."""
    found = await client.call("getBranch", {"accountId": account, "depth": depth, "treeId": tree})
    return [(place["level"], place["parentPositionId"], place["title"]) for place in found]


async def test_an_administrator_is_the_root_of_tree_0(client: Client) -> None:
    admin = (await client.call("userExists", {"login": ADMIN}))["member"]
    assert admin["account"] == {"id": 1, "title": "admin"}
    assert await branch(client, 1) == []


async def test_a_member_stands_under_its_sponsor(client: Client) -> None:
    ann = await member(client, "Ann", 1)
    bob = await member(client, "Bob", ann["account"]["id"])
    assert (ann["account"], bob["account"]) == (
        {"id": 2, "title": "Ann Member"},
        {"id": 3, "title": "Bob Member"},
    )
    assert await branch(client, 1) == [(1, 1, "Ann Member"), (2, 2, "Bob Member")]
    assert await branch(client, 1, depth=1) == [(1, 1, "Ann Member")]
    assert await branch(client, 2) == [(1, 2, "Bob Member")]
    assert (await client.outcome("getBranch", {"accountId": 99}))[
        1
    ] == "the account has no position in this tree"


async def test_positions_by_hand(client: Client, operator: Client) -> None:
    """Where the instance says so, a new account stands nowhere until it is placed."""
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "settings": {"positionsByHand": True}})
    ann = await member(client, "Ann", 1)
    assert await branch(client, 1) == []
    placed = await client.call("addToTree", {"accountId": ann["account"]["id"], "sponsorPositionId": 1})
    assert await branch(client, 1) == [(1, 1, "Ann Member")]
    assert placed["positionId"] == 2


async def test_several_trees(client: Client) -> None:
    ann = await member(client, "Ann", 1)
    root = (await client.call("addToTree", {"accountId": ann["account"]["id"], "treeId": 7}))["positionId"]
    await client.call("addToTree", {"accountId": 1, "treeId": 7, "sponsorPositionId": root})
    assert await branch(client, ann["account"]["id"], tree=7) == [(1, root, "admin")]
    assert await branch(client, 1) == [(1, 1, "Ann Member")]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"accountId": 2, "sponsorPositionId": 1}, 'the account stands in this tree already'),
        ({"accountId": 2, "treeId": 3, "sponsorPositionId": 1}, "no such account or position in this tree, or it has a root already"),
        ({"accountId": 99, "treeId": 3}, "no such account or position in this tree, or it has a root already"),
        ({"accountId": 2}, "no such account or position in this tree, or it has a root already"),
        ({"accountId": 2, "treeId": -1}, "treeId: must be greater than or equal to 0"),
    ],
)  # fmt: skip
async def test_places_that_are_refused(
    params: dict[str, Any], message: str, client: Client, db: asyncpg.Connection
) -> None:
    await member(client, "Ann", 1)
    before = await footprint(db)
    assert await client.outcome("addToTree", params) == (400, message)
    assert await footprint(db) == before


async def test_moving_takes_everything_beneath_along(client: Client) -> None:
    ann = await member(client, "Ann", 1)
    bob = await member(client, "Bob", ann["account"]["id"])
    await member(client, "Cy", bob["account"]["id"])
    dee = await member(client, "Dee", 1)
    assert (await client.call("movePosition", {"positionId": 3, "sponsorPositionId": 5})) == {"moved": 2}
    assert await branch(client, dee["account"]["id"]) == [(1, 5, "Bob Member"), (2, 3, "Cy Member")]
    assert await branch(client, ann["account"]["id"]) == []


@pytest.mark.parametrize("target", [2, 3, 4, 99])
async def test_nothing_moves_beneath_itself(target: int, client: Client) -> None:
    """Not under itself, a child, a grandchild or a place that is none."""
    ann = await member(client, "Ann", 1)
    bob = await member(client, "Bob", ann["account"]["id"])
    await member(client, "Cy", bob["account"]["id"])
    before = await branch(client, 1)
    status, message = await client.outcome("movePosition", {"positionId": 2, "sponsorPositionId": target})
    assert (status, message) == (
        400,
        "there are no such two positions in one tree, or one lies beneath the other",
    )
    assert await branch(client, 1) == before


async def test_concurrent_moves_make_no_cycle(client: Client, db: asyncpg.Connection) -> None:
    """Two branches that are moved under one another at once: one of the moves is refused."""
    for round_ in range(5):
        ann = await member(client, f"Ann{round_}", 1)
        bob = await member(client, f"Bob{round_}", 1)
        places = [
            await db.fetchval("SELECT id FROM positions WHERE account_id = $1", who["account"]["id"])
            for who in (ann, bob)
        ]
        outcomes = await asyncio.gather(
            client.outcome("movePosition", {"positionId": places[0], "sponsorPositionId": places[1]}),
            client.outcome("movePosition", {"positionId": places[1], "sponsorPositionId": places[0]}),
            *(member(client, f"Child{round_}{number}", ann["account"]["id"]) for number in range(3)),
        )
        assert sorted(outcome[0] for outcome in outcomes[:2]) == [200, 400]
    # Every path is its parent's path and its own id, and the parent the last but one in it.
    parents = "subpath(path, -2, 1)::text IS DISTINCT FROM parent_id::text AND nlevel(path) > 3"
    assert await db.fetchval(f"SELECT count(*) FROM positions WHERE {parents}") == 0
    assert (
        await db.fetchval(
            "SELECT count(*) FROM positions AS p WHERE nlevel(path) > 3 AND NOT EXISTS ("
            " SELECT FROM positions AS q WHERE q.path = subpath(p.path, 0, -1))"
        )
        == 0
    )
    assert await db.fetchval("SELECT count(*) FROM positions WHERE subpath(path, -1)::text <> id::text") == 0


async def test_an_empty_tree_gets_one_root(client: Client, db: asyncpg.Connection) -> None:
    """Of several who are put there first, one."""
    accounts = [1] + [(await member(client, f"Member{number}", 1))["account"]["id"] for number in range(5)]
    outcomes = await asyncio.gather(
        *(client.outcome("addToTree", {"accountId": account, "treeId": 9}) for account in accounts)
    )
    assert sorted(outcome[0] for outcome in outcomes) == [200] + [400] * 5
    assert await db.fetchval("SELECT count(*) FROM positions WHERE tree_id = 9") == 1


@pytest.mark.damages
async def test_the_depth_of_a_tree(client: Client, db: asyncpg.Connection) -> None:
    """The deepest allowed place is indexed and found; one deeper is refused with a reason."""
    await db.execute(
        "INSERT INTO accounts (instance_id, id, title) SELECT 1, 1000000 + n, 'deep' FROM generate_series(2, $1) AS n",
        MAX_DEPTH,
    )
    await db.execute(
        "INSERT INTO positions (instance_id, id, tree_id, account_id, parent_id, path)"
        " SELECT 1, 1000000 + n, 0, 1000000 + n, 1000000 + n - 1,"
        " ('i1.t0.1.' || (SELECT string_agg((1000000 + m)::text, '.') FROM generate_series(2, n) AS m))::ltree"
        " FROM generate_series(2, $1) AS n",
        MAX_DEPTH,
    )
    deepest = await db.fetchrow(
        "SELECT account_id, nlevel(path) - 2 AS depth FROM positions ORDER BY nlevel(path) DESC"
    )
    assert deepest["depth"] == MAX_DEPTH
    assert len(await branch(client, 1000900)) == 10
    status, message = await client.outcome(
        "createMember",
        {
            "login": "x@example.com",
            "sponsorId": deepest["account_id"],
            "profile": {"firstname": "X", "lastname": "Y"},
        },
    )
    assert (status, message) == (400, f"the tree has {MAX_DEPTH} levels already")


async def test_deletion_with_and_without_the_account(client: Client, db: asyncpg.Connection) -> None:
    ann = await member(client, "Ann", 1)
    bob = await member(client, "Bob", ann["account"]["id"])
    await client.call("deleteUserById", {"id": bob["id"]})
    assert await branch(client, 1) == [(1, 1, "Ann Member"), (2, 2, "Bob Member")]
    await client.call("restoreUserByEmail", {"email": "bob@example.com"})
    await client.call("deleteUserById", {"id": ann["id"], "withAccount": True})
    assert await branch(client, 1) == [(1, 1, "Ann Member"), (2, 2, "Bob Member")]
    closed = (await client.call("getBranch", {"accountId": 1}))[0]
    assert (closed["accountId"], closed["userId"]) == (ann["account"]["id"], None)
    status, message = await client.outcome(
        "createMember",
        {
            "login": "x@example.com",
            "sponsorId": ann["account"]["id"],
            "profile": {"firstname": "X", "lastname": "Y"},
        },
    )
    assert (status, message) == (400, "sponsorId: is no account with a place in tree 0")
    await client.call("purgeUserByEmail", {"email": "ann@example.com"})
    row = await db.fetchrow("SELECT user_id, title FROM accounts WHERE id = $1", ann["account"]["id"])
    assert tuple(row) == (None, "")
    assert await branch(client, 1) == [(1, 1, ""), (2, 2, "Bob Member")]


async def test_isolation(client: Client, other: Client) -> None:
    await member(client, "Ann", 1)
    await member(other, "Zoe", 1)
    assert await branch(other, 1) == [(1, 1, "Zoe Member")]
    assert await branch(client, 1) == [(1, 1, "Ann Member")]
    await member(client, "Bob", 2)
    assert (await other.outcome("getBranch", {"accountId": 3}))[0] == 400
    assert (await other.outcome("movePosition", {"positionId": 3, "sponsorPositionId": 1}))[0] == 400
    assert (await other.outcome("addToTree", {"accountId": 3, "treeId": 9}))[0] == 400
