"""Groups: members, names, and the reserved group Admins."""

import asyncio
import json
from typing import Any

import asyncpg
import pytest
from conftest import ADMIN, Client, footprint, insert_key, until

from server.directory.groups import MAX_KEY, group_key
from server.postgres.queries import load_queries

JANE = {"email": "jane@example.com"}
NOT_FOUND = (400, "not found")
NO_GROUP = (400, "not found: there is no such group")
NO_USER = (400, "not found: there is no such user")
DUPLICATE = (400, 'duplicate key value violates unique constraint "groups_name"')
RESERVED = (400, "Admins is a group of every instance: it stays as it is")
FORBIDDEN = (403, "not-allowed")


@pytest.fixture(autouse=True)
async def _jane(jane: dict[str, Any], client: Client) -> None:
    """Every test here starts with jane@example.com, user 2, and the groups Sales and Support."""
    for name in ("Support", "Sales"):
        await client.call("createGroup", {"name": name, "description": f"The {name} people"})


async def groups_of(client: Client, email: str = JANE["email"]) -> list[str]:
    return list((await client.call("getUserByEmail", {"email": email}))["groups"])


async def sizes(client: Client) -> dict[str, int]:
    page = await client.call("listGroups")
    return {group["name"]: group["members"] for group in page["groups"]}


async def test_groups_are_made_renamed_and_deleted(client: Client, db: asyncpg.Connection) -> None:
    made = await client.call("createGroup", {"name": "Märkte"})
    assert made == {
        "id": 3, "name": "Märkte", "description": "", "isReserved": False, "members": 0,
        "createdAt": made["createdAt"],
    }  # fmt: skip
    for name in ("MÄRKTE", "ma\u0308rkte", "Märkte"):
        assert await client.outcome("createGroup", {"name": name}) == DUPLICATE
    await client.call("addToGroup", JANE | {"name": "märkte"})
    await client.call("updateGroup", {"name": "MÄRKTE", "newName": "Markets"})
    await client.call("updateGroup", {"name": "Markets", "description": "All of them"})
    await client.call("updateGroup", {"name": "Markets", "newName": "MARKETS"})
    assert await groups_of(client) == ["MARKETS"]
    assert await client.outcome("updateGroup", {"name": "MARKETS", "newName": "sales"}) == DUPLICATE
    listed = (await client.call("listGroups"))["groups"]
    assert [(group["id"], group["name"], group["description"], group["members"]) for group in listed] == [
        (0, "Admins", "Administrators", 1), (3, "MARKETS", "All of them", 1),
        (2, "Sales", "The Sales people", 0), (1, "Support", "The Support people", 0),
    ]  # fmt: skip
    await client.call("deleteGroup", {"name": "markets"})
    assert await groups_of(client) == []
    assert await db.fetchval("SELECT count(*) FROM group_members") == 0
    assert (await client.call("createGroup", {"name": "Markets"}))["id"] == 4


async def test_every_name_fits_into_a_cursor(client: Client) -> None:
    """NFKC writes U+FDFA as 18 characters, and U+3316 as six."""
    for name in ("\ufdfa" * 31, "\u3316" * 200):
        for method, given in (
            ("createGroup", {"name": name}),
            ("updateGroup", {"name": "Sales", "newName": name}),
        ):
            status, message = await client.outcome(method, given)
            assert (status, message.partition(": ")[2]) == (
                400, "is too long: more than 1000 bytes in the Unicode form NFKC"
            )  # fmt: skip
    names = {"\U0001f600" * 200, "\ufdfa" * 30, "ß" * 200}
    for name in names:
        await client.call("createGroup", {"name": name})
    listed, after = [], None
    while not listed or after is not None:
        page = await client.call("listGroups", {"limit": 1, "after": after})
        listed += [group["name"] for group in page["groups"]]
        after = page["next"]
    assert len(listed) == len(set(listed)) and set(listed) == {"Admins", "Sales", "Support"} | names
    longest = group_key("\ufdfa" * 30)
    assert MAX_KEY - 18 * 2 < len(longest.encode()) <= MAX_KEY


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("updateGroup", {"newName": "x"}),
        ("deleteGroup", {}),
        ("addToGroup", JANE),
        ("removeFromGroup", JANE),
        ("listGroupMembers", {}),
    ],
)
async def test_no_such_group(
    method: str, more: dict[str, Any], client: Client, db: asyncpg.Connection
) -> None:
    before = await footprint(db)
    assert await client.outcome(method, {"name": "Nobody"} | more) == (
        NO_GROUP if "email" in more else NOT_FOUND
    )
    assert await footprint(db) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "name: must have at least 1 character"),
        (" Sales", "name: must not begin or end with a space"),
        ("a\nb", "name: holds control characters"),
        ("x" * 201, "name: must have at most 200 characters"),
        (5, "name: must be a string"),
    ],
)
async def test_bad_names(name: Any, message: str, client: Client) -> None:
    assert await client.outcome("createGroup", {"name": name}) == (400, message)


async def test_members(client: Client, db: asyncpg.Connection) -> None:
    """Put in twice is in once; taking out whoever is not in changes nothing."""
    await client.call("createUser", {"email": "ann@example.com"})
    for _ in range(2):
        await client.call("addToGroup", {"name": "sales", "email": "JANE@example.com"})
    await client.call("addToGroup", {"name": "Sales", "email": ADMIN})
    await client.call("addToGroup", {"name": "Support"} | JANE)
    assert await groups_of(client) == ["Sales", "Support"]
    assert await groups_of(client, ADMIN) == ["Admins", "Sales"]
    assert await sizes(client) == {"Admins": 1, "Sales": 2, "Support": 1}
    members = await client.call("listGroupMembers", {"name": "Sales"})
    assert [(member["id"], member["email"]) for member in members] == [(1, ADMIN), (2, JANE["email"])]
    page = await client.call("listGroupMembers", {"name": "Sales", "after": 1, "limit": 1})
    assert page == [{"id": 2, "email": JANE["email"], "displayName": "Jane Doe", "isActive": True}]
    for _ in range(2):
        await client.call("removeFromGroup", {"name": "Sales"} | JANE)
    assert await groups_of(client) == ["Support"]
    login = await client.call("login", JANE | {"password": "demo1234"})
    assert login["groups"] == ["Support"]
    assert await client.outcome("addToGroup", {"name": "Sales", "email": "nobody@example.com"}) == NO_USER


async def test_pages_of_groups(client: Client) -> None:
    names, after = [], None
    while True:
        page = await client.call("listGroups", {"limit": 1, "after": after})
        names += [group["name"] for group in page["groups"]]
        if (after := page["next"]) is None:
            break
    assert names == ["Admins", "Sales", "Support"]
    assert (await client.outcome("listGroups", {"after": "?"}))[0] == 400


async def test_the_reserved_group(client: Client, db: asyncpg.Connection) -> None:
    """In it are those with isAdmin; it can be neither made, renamed nor deleted, under any spelling."""
    for name in ("Admins", "ADMINS", "\uff21dmins"):
        assert await client.outcome("createGroup", {"name": name}) == RESERVED
        assert await client.outcome("updateGroup", {"name": name, "newName": "x"}) == RESERVED
        assert await client.outcome("updateGroup", {"name": "Sales", "newName": name}) == RESERVED
        assert await client.outcome("deleteGroup", {"name": name}) == RESERVED
    await client.call("addToGroup", JANE | {"name": "admins"})
    assert (await client.call("getUserByEmail", JANE))["isAdmin"] is True
    members = await client.call("listGroupMembers", {"name": "Admins"})
    assert [member["id"] for member in members] == [1, 2]
    await client.call("updateUserByEmail", JANE | {"isAdmin": False})
    assert await groups_of(client) == []
    await client.call("updateUserByEmail", JANE | {"isAdmin": True})
    await client.call("removeFromGroup", JANE | {"name": "Admins"})
    assert (await client.call("getUserByEmail", JANE))["isAdmin"] is False


async def test_administrators_need_a_scope_of_their_own(client: Client, db: asyncpg.Connection) -> None:
    poor = client.using(await insert_key(db, scopes=("users:read", "users:write", "groups:write")))
    assert await poor.outcome("addToGroup", JANE | {"name": "Admins"}) == FORBIDDEN
    assert await poor.outcome("removeFromGroup", {"email": ADMIN, "name": "Admins"}) == FORBIDDEN
    assert await poor.outcome("updateUserByEmail", JANE | {"groups": ["Admins"]}) == FORBIDDEN
    assert await poor.outcome("updateUserByEmail", {"email": ADMIN, "groups": []}) == FORBIDDEN
    whole = {"email": ADMIN, "groups": ["Admins", "Sales"]}
    assert await poor.outcome("updateUserByEmail", whole) == FORBIDDEN
    await client.call("updateUserByEmail", whole)
    assert await poor.outcome("updateUserByEmail", whole) == (200, True)  # what is so already
    assert await groups_of(client, ADMIN) == ["Admins", "Sales"]
    poorer = client.using(await insert_key(db, scopes=("users:read", "users:write", "users:admin")))
    assert await poorer.outcome("updateUserByEmail", JANE | {"groups": ["Sales"]}) == FORBIDDEN
    assert await poorer.outcome("updateUserByEmail", JANE | {"groups": []}) == FORBIDDEN


async def test_updating_a_user_takes_the_whole_list(client: Client, db: asyncpg.Connection) -> None:
    await client.call("updateUserByEmail", JANE | {"groups": ["support", "SALES", "Sales"]})
    assert await groups_of(client) == ["Sales", "Support"]
    await client.call("updateUserByEmail", JANE | {"groups": ["Support", "Admins"], "displayName": "J"})
    user = await client.call("getUserByEmail", JANE)
    assert (user["groups"], user["isAdmin"], user["displayName"]) == (["Admins", "Support"], True, "J")
    before = await footprint(db)
    assert await client.outcome(
        "updateUserByEmail", JANE | {"displayName": "X", "groups": ["Sales", "Nobody", "Support", "x"]}
    ) == (400, "groups.1: is no group of this instance; groups.3: is no group of this instance")
    assert await client.outcome("updateUserByEmail", JANE | {"isAdmin": True, "groups": []}) == (
        400, "params: groups and isAdmin contradict each other: in Admins are those with isAdmin",
    )  # fmt: skip
    for bad in (None, "Sales", [1], [""], ["x"] * 1001):
        assert (await client.outcome("updateUserByEmail", JANE | {"groups": bad}))[0] == 400
    assert await client.outcome(
        "updateUserByEmail", {"email": "nobody@example.com", "groups": ["Sales"]}
    ) == NOT_FOUND  # fmt: skip
    assert await footprint(db) == before
    assert (await client.call("getUserByEmail", JANE))["displayName"] == "J"
    await client.call("updateUserByEmail", JANE | {"groups": [], "isAdmin": False})
    assert await groups_of(client) == []


async def test_deleted_users_keep_their_groups_unseen(client: Client, db: asyncpg.Connection) -> None:
    await client.call("updateUserByEmail", JANE | {"groups": ["Sales", "Admins"]})
    await client.call("deleteUserByEmail", JANE)
    assert await sizes(client) == {"Admins": 1, "Sales": 0, "Support": 0}
    assert await client.call("listGroupMembers", {"name": "Sales"}) == []
    assert await client.outcome("addToGroup", JANE | {"name": "Support"}) == NO_USER
    await client.call("restoreUserByEmail", JANE)
    assert await groups_of(client) == ["Admins", "Sales"]
    await client.call("deleteUserByEmail", JANE)
    await client.call("purgeUserByEmail", JANE)
    assert await db.fetchval("SELECT count(*) FROM group_members") == 0


async def test_changes_are_written_down(client: Client, db: asyncpg.Connection) -> None:
    """Of memberships and of groups, with what was before and after."""

    async def newest() -> Any:
        return await db.fetchrow("SELECT * FROM events ORDER BY xid DESC, place DESC LIMIT 1")

    await client.call("addToGroup", JANE | {"name": "sales"})
    event = await newest()
    assert (event["type"], event["user_id"], event["method"]) == ("user.updated", 2, "addToGroup")
    assert (event["before"], event["after"]) == ('{"groups": []}', '{"groups": ["Sales"]}')
    await client.call("updateUserByEmail", JANE | {"groups": ["Admins"]})
    event = await newest()
    assert (event["before"], event["after"]) == ('{"groups": ["Sales"]}', '{"groups": ["Admins"]}')
    await client.call("removeFromGroup", JANE | {"name": "Admins"})
    rows = await db.fetch("SELECT before, after FROM events WHERE method = 'removeFromGroup' ORDER BY place")
    assert [tuple(row) for row in rows] == [
        ('{"isAdmin": true}', '{"isAdmin": false}'), ('{"groups": ["Admins"]}', '{"groups": []}'),
    ]  # fmt: skip
    await client.call("updateGroup", {"name": "Sales", "newName": "Shop", "description": "It sells"})
    event = await newest()
    assert (event["type"], event["before"], event["after"]) == (
        "group.updated",
        '{"name": "Sales", "description": "The Sales people"}',
        '{"name": "Shop", "description": "It sells"}',
    )
    await client.call("deleteGroup", {"name": "Shop"})
    event = await newest()
    assert (event["type"], event["before"]) == (
        "group.deleted", '{"name": "Shop", "description": "It sells"}',
    )  # fmt: skip


async def test_of_two_who_do_the_same_one_changed_something(client: Client, db: asyncpg.Connection) -> None:
    """The other, who waited for it, saw what it did, and tells of nothing."""
    for name in ("addToGroup", "removeFromGroup"):
        await asyncio.gather(*(client.call(name, JANE | {"name": "Sales"}) for _ in range(10)))
        told = await db.fetch("SELECT type FROM events WHERE method = $1", name)
        assert sorted(row["type"] for row in told) == [name] * 9 + ["user.updated"]


async def test_a_group_that_is_deleted_meanwhile(client: Client, db: asyncpg.Connection) -> None:
    """Whoever is put into it just then is not found, or goes with it; nothing is left half done."""
    for _ in range(10):
        outcomes = await asyncio.gather(
            *(client.outcome("addToGroup", JANE | {"name": "Sales"}) for _ in range(4)),
            client.outcome("updateUserByEmail", {"email": ADMIN, "groups": ["Sales", "Admins"]}),
            client.outcome("deleteGroup", {"name": "Sales"}),
        )
        assert outcomes[-1] == (200, True)
        for outcome in outcomes[:-1]:
            assert outcome in [(200, True), NO_GROUP, (400, "groups.0: is no group of this instance")]
        assert await db.fetchval("SELECT count(*) FROM group_members") == 0
        await client.call("createGroup", {"name": "Sales"})


async def test_another_tenant_has_groups_of_its_own(client: Client, other: Client) -> None:
    assert await other.outcome("deleteGroup", {"name": "Sales"}) == NOT_FOUND
    made = await other.call("createGroup", {"name": "Sales"})
    assert made["id"] == 1
    await other.call("addToGroup", {"name": "Sales", "email": "boss@other.example"})
    assert await sizes(client) == {"Admins": 1, "Sales": 0, "Support": 0}
    assert await sizes(other) == {"Admins": 1, "Sales": 1}


async def test_users_of_one_call_leave_and_enter_the_same_group(client: Client) -> None:
    """Each has the groups that it was given, whatever the others were given."""
    await client.call("updateUserByEmail", JANE | {"groups": ["Sales"]})
    await client.call("createUser", {"email": "june@example.com"})
    june = {"email": "june@example.com"}
    await client.call(
        "updateUsers", {"users": [JANE | {"groups": ["Support"]}, june | {"groups": ["Sales"]}]}
    )
    assert (await client.call("getUserByEmail", JANE))["groups"] == ["Support"]
    assert (await client.call("getUserByEmail", june))["groups"] == ["Sales"]


@pytest.mark.damages
async def test_few_groups_of_many_are_read(db: asyncpg.Connection) -> None:
    """When a user enters and leaves groups: only these, and not all of the instance."""
    await db.execute(
        "INSERT INTO groups (instance_id, id, name, name_key, description)"
        " SELECT 1, n, n::text, n::text, '' FROM generate_series(10, 5000) AS n"
    )
    await db.execute(
        "INSERT INTO group_members (instance_id, user_id, group_id) VALUES (1, 2, 11), (1, 2, 12)"
    )
    await db.execute("VACUUM ANALYZE groups, group_members")
    await db.execute("SET plan_cache_mode = force_generic_plan")
    query = load_queries()["replace_groups"]
    await db.execute(f"PREPARE replaced AS {query.sql}")
    given = {
        "instance_id": "1", "user_ids": "'{2}'", "member_ids": "'{2,2}'", "group_ids": "'{12,13}'", "shown_ids": "'{}'",
    }  # fmt: skip
    values = ", ".join(given[param] for param in query.params)
    told = await db.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE replaced ({values})")
    waiting, read = [json.loads(told)[0]["Plan"]], []
    while waiting:
        node = waiting.pop()
        waiting += node.get("Plans", [])
        if node.get("Relation Name") == "groups" and node["Node Type"] != "ModifyTable":
            read.append((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"])
    assert read == [2, 2]
    changed = await db.fetch("SELECT id FROM groups WHERE updated_at > created_at ORDER BY id")
    assert [row["id"] for row in changed] == [11, 13]


async def test_groups_are_locked_in_the_order_of_their_ids(client: Client, db: asyncpg.Connection) -> None:
    """Whoever waits for a group has locked none with a greater id: so calls do not wait for one another."""
    users = [JANE, {"email": "bob@example.com"}]
    await client.call("createUser", users[1])
    await client.call("addToGroup", JANE | {"name": "Sales"})  # the newer group
    await client.call("addToGroup", users[1] | {"name": "Support"})
    await client.call("addToGroup", users[1] | {"name": "Sales"})
    for method in ("deleteUsers", "restoreUserByEmail"):
        before = await db.fetch("SELECT id, updated_at FROM groups ORDER BY id")
        async with db.transaction():
            await db.execute("SELECT FROM groups WHERE id = 1 FOR NO KEY UPDATE")
            params = {"users": users} if method == "deleteUsers" else users[1]
            calling = asyncio.create_task(client.call(method, params))
            await until(
                lambda: db.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            )
            await db.execute("SELECT FROM groups WHERE id = 2 FOR NO KEY UPDATE NOWAIT")
        await calling
        after = await db.fetch("SELECT id, updated_at FROM groups ORDER BY id")
        assert [old["updated_at"] < new["updated_at"] for old, new in zip(before, after, strict=True)] == [
            True, True,
        ]  # fmt: skip
