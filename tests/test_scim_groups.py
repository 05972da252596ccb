"""The methods for groups as SCIM resources, including Admins."""

import asyncio
import json
from typing import Any

import asyncpg
import pytest
from conftest import Client, footprint, insert_key

from server.directory.scim import group_changes
from server.tenants.principals import TENANT_SCOPES

GROUP = "urn:ietf:params:scim:schemas:core:2.0:Group"
ADMIN = {"value": "1", "$ref": "../Users/1", "display": "admin", "type": "User"}


async def people(client: Client, count: int = 3) -> list[dict[str, str]]:
    """New users as members; the ids are 2 and so on."""
    users = [{"email": f"u{number}@example.com"} for number in range(2, count + 2)]
    for start in range(0, count, 1000):
        await client.call("createUsers", {"users": users[start : start + 1000]})
    return [
        {"value": str(number), "$ref": f"../Users/{number}", "display": f"u{number}", "type": "User"}
        for number in range(2, count + 2)
    ]


def values(*members: dict[str, str]) -> list[dict[str, str]]:
    return [{"value": member["value"]} for member in members]


async def create(client: Client, group_name: str = "Sales", **more: Any) -> dict[str, Any]:
    created: dict[str, Any] = await client.call(
        "createScimGroup", {"group": {"schemas": [GROUP], "displayName": group_name} | more}
    )
    return created


async def get(client: Client, group_id: str = "1", **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = await client.call("getScimGroup", {"id": group_id} | more)
    return found


async def patch(client: Client, *operations: Any, group_id: str = "1", **more: Any) -> dict[str, Any]:
    """The group after operations. The answer must equal what a read returns."""
    params = {"id": group_id, "operations": list(operations)} | more
    after: dict[str, Any] = await client.call("patchScimGroup", params)
    assert after == await get(client, group_id)
    return after


async def put(client: Client, sent: dict[str, Any], group_id: str = "1", **more: Any) -> dict[str, Any]:
    after: dict[str, Any] = await client.call("replaceScimGroup", {"id": group_id, "group": sent} | more)
    assert after == await get(client, group_id)
    return after


async def refusal(client: Client, method: str, params: dict[str, Any]) -> tuple[int, str]:
    """Status and code of a call that must fail."""
    async with await client.post({"method": method, "params": params}) as response:
        return response.status, response.headers["X-Error-Code"]


async def events(db: asyncpg.Connection, method: str) -> list[tuple[Any, ...]]:
    """The events of a method: type, user, before, after."""
    rows = await db.fetch("SELECT * FROM events WHERE method = $1 ORDER BY xid, place", method)
    return [
        (
            row["type"],
            row["user_id"],
            row["before"] and json.loads(row["before"]),
            json.loads(row["after"] or "null"),
        )
        for row in rows
    ]


async def test_a_group_is_written_and_read(client: Client, db: asyncpg.Connection) -> None:
    two, three, _ = await people(client)
    group = await create(client, externalId="x-1", members=values(three, two))
    assert {name: value for name, value in group.items() if name != "meta"} == {
        "schemas": [GROUP], "id": "1", "externalId": "x-1", "displayName": "Sales", "members": [two, three],
    }  # fmt: skip
    assert group["meta"]["location"].endswith("/scim/v2/MYINSTANCE/Groups/1")
    assert group == await get(client)
    assert await events(db, "createScimGroup") == [
        ("group.created", None, None, {"name": "Sales", "description": "", "externalId": "x-1"}),
        ("user.updated", 2, {"groups": []}, {"groups": ["Sales"]}),
        ("user.updated", 3, {"groups": []}, {"groups": ["Sales"]}),
    ]
    assert await put(client, group) == group
    after = await put(client, {"schemas": [GROUP], "displayName": "Shop", "members": values(three)})
    assert after["displayName"] == "Shop" and after["members"] == [three] and "externalId" not in after
    assert await events(db, "replaceScimGroup") == [
        ("replaceScimGroup", None, None, (await events(db, "replaceScimGroup"))[0][3]),
        ("group.updated", None, {"name": "Sales", "description": "", "externalId": "x-1"},
         {"name": "Shop", "description": ""}),
        ("user.updated", 2, {"groups": ["Shop"]}, {"groups": []}),
    ]  # fmt: skip
    assert await client.call("deleteScimGroup", {"id": "1"}) is True
    assert await refusal(client, "getScimGroup", {"id": "1"}) == (400, "not_found")
    assert await refusal(client, "deleteScimGroup", {"id": "1"}) == (400, "not_found")


PATCHES: list[tuple[str, list[dict[str, Any]], list[int]]] = [
    ("add", [{"op": "add", "path": "members", "value": [{"value": "4"}]}], [2, 3, 4]),
    ("add a present member", [{"op": "Add", "path": "members", "value": [{"value": "3"}]}], [2, 3]),
    ("add a member as read",
     [{"op": "add", "path": "members", "value": [{"value": "4", "$ref": "../Users/4", "display": "x", "type": "User"}]}],
     [2, 3, 4]),
    ("add ids as strings", [{"op": "add", "path": "members", "value": ["4"]}], [2, 3, 4]),
    ("add one member without a list", [{"op": "add", "path": "members", "value": {"value": "4"}}], [2, 3, 4]),
    ("remove by a filter", [{"op": "remove", "path": 'members[value eq "2"]'}], [3]),
    ("remove by a longer filter", [{"op": "remove", "path": 'members[value eq "2" or value eq "3"]'}], []),
    ("remove by values, as Entra ID", [{"op": "Remove", "path": "members", "value": [{"value": "2"}]}], [3]),
    ("remove all", [{"op": "remove", "path": "members"}], []),
    ("remove a user that is not a member", [{"op": "remove", "path": 'members[value eq "4"]'}], [2, 3]),
    ("remove an invalid id", [{"op": "remove", "path": 'members[value eq "x"]'}], [2, 3]),
    ("replace", [{"op": "replace", "path": "members", "value": [{"value": "4"}, {"value": "2"}]}], [2, 4]),
    ("replace with an empty list", [{"op": "replace", "path": "members", "value": []}], []),
    ("several", [{"op": "remove", "path": 'members[value eq "2"]'}, {"op": "add", "path": "members", "value": [{"value": "4"}]},
                 {"op": "remove", "path": 'members[value eq "3"]'}], [4]),
    ("add and remove", [{"op": "add", "path": "members", "value": [{"value": "4"}]},
                    {"op": "remove", "path": 'members[value eq "4"]'}], [2, 3]),
    ("remove and add", [{"op": "remove", "path": 'members[value eq "2"]'},
                    {"op": "add", "path": "members", "value": [{"value": "2"}]}], [2, 3]),
    ("without a path, as Okta", [{"op": "replace", "value": {"id": "1", "members": [{"value": "4"}]}}], [4]),
    ("by the whole URN", [{"op": "add", "path": f"{GROUP}:members", "value": [{"value": "4"}]}], [2, 3, 4]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "operations", "ids"), PATCHES, ids=[name for name, *_ in PATCHES])
async def test_members(
    name: str, operations: Any, ids: list[int], client: Client, db: asyncpg.Connection
) -> None:
    two, three, _ = await people(client)
    group = await create(client, members=values(two, three))
    after = await patch(client, *operations)
    assert [int(member["value"]) for member in after.get("members", ())] == ids
    moved = {2, 3} ^ set(ids)
    assert {
        user_id for type_, user_id, *_ in await events(db, "patchScimGroup") if type_ == "user.updated"
    } == moved
    assert (after["meta"]["version"] != group["meta"]["version"]) == bool(moved)


async def test_names(client: Client) -> None:
    await create(client)
    await create(client, "Shop", externalId="x")
    after = await patch(client, {"op": "replace", "value": {"id": "1", "displayName": "Stall"}})
    assert after["displayName"] == "Stall"
    after = await patch(client, {"op": "Replace", "path": "externalId", "value": "y"})
    assert after["externalId"] == "y"
    after = await patch(client, {"op": "remove", "path": "externalId"})
    assert "externalId" not in after
    for operation, code in (
        ({"op": "replace", "path": "displayName", "value": "SHOP"}, "duplicate_group"),
        ({"op": "replace", "path": "displayName", "value": "admins"}, "reserved_group"),
        ({"op": "replace", "path": "externalId", "value": "x"}, "duplicate_external_id"),
        ({"op": "remove", "path": "displayName"}, "mutability"),
        ({"op": "replace", "path": "displayName", "value": " x"}, "invalid_value"),
        ({"op": "replace", "path": "displayName", "value": 7}, "invalid_value"),
        ({"op": "replace", "path": "externalId", "value": "x" * 65}, "invalid_value"),
        ({"op": "replace", "path": "nosuch", "value": 7}, "invalid_path"),
        ({"op": "remove", "path": 'members[display eq "x"]'}, "invalid_path"),
        ({"op": "remove", "path": 'members[value sw "1"]'}, "invalid_path"),
        ({"op": "replace", "path": 'members[value eq "1"].display', "value": "x"}, "mutability"),
        ({"op": "replace", "path": 'members[value eq "1"]', "value": {"value": "2"}}, "mutability"),
        ({"op": "add", "path": "members", "value": [{"value": "99"}]}, "invalid_value"),
        ({"op": "add", "path": "members", "value": [{"value": "x"}]}, "invalid_value"),
        ({"op": "add", "path": "members", "value": [{"value": "2", "type": "Group"}]}, "invalid_value"),
        ({"op": "add", "path": "members", "value": [7]}, "invalid_value"),
        ({"op": "remove"}, "no_target"),
    ):
        assert await refusal(client, "patchScimGroup", {"id": "1", "operations": [operation]}) == (400, code)
    for sent, code in (
        ({"displayName": "x"}, "invalid_value"), ({"schemas": [GROUP]}, "invalid_value"),
        ({"schemas": [GROUP], "displayName": "sales ", "members": 7}, "invalid_value"),
        ({"schemas": [GROUP], "displayName": "shop"}, "duplicate_group"),
        ({"schemas": [GROUP], "displayName": "Admins"}, "reserved_group"),
        ({"schemas": [GROUP], "displayName": "x", "externalId": "x"}, "duplicate_external_id"),
    ):  # fmt: skip
        assert await refusal(client, "createScimGroup", {"group": sent}) == (400, code)


async def test_admins(client: Client, db: asyncpg.Connection) -> None:
    """Its members are the users with isAdmin. Its name and externalId cannot be changed."""
    two, three, _ = await people(client)
    admins = await get(client, "0")
    assert (admins["displayName"], admins["members"]) == ("Admins", [ADMIN])
    added = {"op": "add", "path": "members", "value": values(two, three)}
    after = await patch(client, added, group_id="0", version=admins["meta"]["version"])
    assert after["members"] == [ADMIN, two, three]
    assert (await client.call("getUser", {"id": 2}))["isAdmin"] is True
    assert ("user.updated", 2, {"isAdmin": False}, {"isAdmin": True}) in await events(db, "patchScimGroup")
    stale = {"id": "0", "operations": [added], "version": admins["meta"]["version"]}
    assert await refusal(client, "patchScimGroup", stale) == (412, "version_mismatch")
    gone = await patch(client, {"op": "remove", "path": 'members[value eq "2"]'}, group_id="0")
    assert gone["members"] == [ADMIN, three]
    assert gone["meta"]["version"] != after["meta"]["version"]
    sent = {"schemas": [GROUP], "displayName": "Admins", "members": [{"value": "1"}]}
    assert (await put(client, sent, "0"))["members"] == [ADMIN]
    for method, more in (
        ("replaceScimGroup", {"group": sent | {"displayName": "x"}}), ("deleteScimGroup", {}),
        ("replaceScimGroup", {"group": sent | {"externalId": "x"}}),
        ("patchScimGroup", {"operations": [{"op": "replace", "path": "displayName", "value": "x"}]}),
    ):  # fmt: skip
        assert await refusal(client, method, {"id": "0"} | more) == (400, "reserved_group")


async def test_admins_need_a_scope(client: Client, db: asyncpg.Connection) -> None:
    """The scope is needed for Admins, and for any group if the member is an administrator."""
    (two, *_) = await people(client)
    await create(client)
    scopes = tuple(scope for scope in TENANT_SCOPES if scope != "users:admin")
    weak = client.using(await insert_key(db, scopes=scopes))
    before = await footprint(db)
    for group_id, value in (("0", two["value"]), ("1", "1")):
        operations = [{"op": "add", "path": "members", "value": [{"value": value}]}]
        params = {"id": group_id, "operations": operations}
        assert await refusal(weak, "patchScimGroup", params) == (403, "member_forbidden")
    params = {"id": "0", "group": {"schemas": [GROUP], "displayName": "Admins", "members": []}}
    assert await refusal(weak, "replaceScimGroup", params) == (403, "member_forbidden")
    assert await footprint(db) == before
    await patch(weak, {"op": "add", "path": "members", "value": values(two)})


async def test_versions(client: Client, db: asyncpg.Connection) -> None:
    """Every change of a group or of its visible members changes the version."""
    _, three, _ = await people(client)
    await create(client)
    seen = [(await get(client))["meta"]["version"]]

    async def changes(method: str, params: dict[str, Any]) -> None:
        await client.call(method, params)
        version = (await get(client))["meta"]["version"]
        assert version not in seen, method
        seen.append(version)

    who = {"email": "u2@example.com"}
    await changes("addToGroup", {"name": "Sales"} | who)
    await changes("removeFromGroup", {"name": "Sales"} | who)
    await changes("updateUserByEmail", who | {"groups": ["Sales"]})
    await changes("deleteUserByEmail", who)
    await changes("restoreUserByEmail", who)
    await changes("updateGroup", {"name": "Sales", "newName": "Shop"})
    await changes(
        "patchScimGroup",
        {"id": "1", "operations": [{"op": "add", "path": "members", "value": values(three)}]},
    )
    await client.call("addToGroup", {"name": "Shop"} | who)
    assert (await get(client))["meta"]["version"] == seen[-1]
    sent = {"schemas": [GROUP], "displayName": "Stall"}
    for method, more in (
        ("replaceScimGroup", {"group": sent}), ("deleteScimGroup", {}),
        ("patchScimGroup", {"operations": [{"op": "remove", "path": "members"}]}),
    ):  # fmt: skip
        params = {"id": "1", "version": seen[0]} | more
        assert await refusal(client, method, params) == (412, "version_mismatch")
    await client.call("deleteScimGroup", {"id": "1", "version": seen[-1]})


async def test_concurrent_additions(client: Client) -> None:
    """No addition is lost, whichever method adds; with a version, only one succeeds."""
    members = await people(client, 12)
    await create(client)

    def added(member: dict[str, str], **more: Any) -> Any:
        operations = [{"op": "add", "path": "members", "value": values(member)}]
        return client.outcome("patchScimGroup", {"id": "1", "operations": operations} | more)

    calls = [added(member) for member in members[:6]]
    calls += [
        client.outcome("addToGroup", {"name": "Sales", "email": f"u{number}@example.com"})
        for number in (8, 9)
    ]
    assert {status for status, _ in await asyncio.gather(*calls)} == {200}
    group = await get(client)
    assert group["members"] == members[:8]
    version = group["meta"]["version"]
    statuses = [
        status for status, _ in await asyncio.gather(*(added(one, version=version) for one in members[8:]))
    ]
    assert sorted(statuses) == [200, 412, 412, 412]


async def test_requested_attributes(client: Client) -> None:
    (two, *_) = await people(client)
    group = await create(client, members=values(two))
    without = {name: value for name, value in group.items() if name != "members"}
    assert await get(client, excludedAttributes=["members"]) == without
    assert await get(client, attributes=["displayName"]) == {
        "schemas": [GROUP],
        "id": "1",
        "displayName": "Sales",
    }
    assert (await get(client, attributes=["members.value"]))["members"] == [{"value": "2"}]


async def test_unknown_groups(client: Client, other: Client) -> None:
    """Groups of another instance get the same answers as unknown ids; its users cannot be members."""
    await other.call("createGroup", {"name": "Theirs"})
    sent = {"schemas": [GROUP], "displayName": "x"}
    operations = [{"op": "replace", "path": "displayName", "value": "x"}]
    for group_id in ("1", "x", "-1", "00", "99999999999999999999"):
        for method, params in (
            ("getScimGroup", {}), ("deleteScimGroup", {}), ("patchScimGroup", {"operations": operations}),
            ("replaceScimGroup", {"group": sent}),
        ):  # fmt: skip
            assert await refusal(client, method, {"id": group_id} | params) == (400, "not_found")
    await other.call("createUser", {"email": "x@other.example"})
    params = {"group": sent | {"members": [{"value": "2"}]}}
    assert await refusal(client, "createScimGroup", params) == (400, "invalid_value")
    assert (await get(other, "1"))["displayName"] == "Theirs"


async def test_deleted_users_are_not_members(client: Client) -> None:
    two, three, _ = await people(client)
    await create(client, members=values(two, three))
    await client.call("deleteScimUser", {"id": "2"})
    assert (await get(client))["members"] == [three]
    params = {"id": "1", "operations": [{"op": "add", "path": "members", "value": values(two)}]}
    assert await refusal(client, "patchScimGroup", params) == (400, "invalid_value")


async def test_dry_runs_and_idempotency(client: Client, db: asyncpg.Connection) -> None:
    (two, *_) = await people(client)
    before = await footprint(db)
    sent = {"group": {"schemas": [GROUP], "displayName": "Sales", "members": values(two)}}
    dry = await client.call("createScimGroup", sent | {"dryRun": True})
    assert dry["members"] == [two] and await footprint(db) == before
    headers = {"Idempotency-Key": "one"}
    created = await client.call("createScimGroup", sent, headers=headers)
    assert await client.call("createScimGroup", sent, headers=headers) == created
    assert await db.fetchval("SELECT count(*) FROM groups") == 1


async def test_the_membership_changes_of_a_call_are_limited(
    client: Client, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group with more members can be emptied in several calls, and deleted in one."""
    members = await people(client)
    await create(client, members=values(*members))
    monkeypatch.setattr(group_changes, "MOST_CHANGES", 2)
    before = await footprint(db)
    for method, params in (
        ("patchScimGroup", {"operations": [{"op": "remove", "path": "members"}]}),
        ("replaceScimGroup", {"group": {"schemas": [GROUP], "displayName": "Sales"}}),
    ):
        assert await refusal(client, method, {"id": "1"} | params) == (400, "invalid_value")
    assert await footprint(db) == before
    assert (await patch(client, {"op": "remove", "path": "members", "value": values(*members[1:])}))[
        "members"
    ] == members[:1]
    await client.call("deleteScimGroup", {"id": "1"})


@pytest.mark.slow
async def test_ten_thousand_members(client: Client) -> None:
    """They are added, read, excluded from an answer, and removed."""
    members = await people(client, 10_000)
    sent = {"schemas": [GROUP], "displayName": "All", "members": values(*members)}
    group = await client.call("createScimGroup", {"group": sent})
    assert group["members"] == members
    added = {"op": "add", "path": "members", "value": [{"value": "1"}]}
    short = {"excludedAttributes": ["members"]}
    after = await client.call("patchScimGroup", {"id": "1", "operations": [added]} | short)
    assert "members" not in after and len((await get(client))["members"]) == 10_001
    after = await client.call(
        "replaceScimGroup", {"id": "1", "group": sent | {"members": values(*members[1:])}}
    )
    assert after["members"] == members[1:]
    removed = [
        {"op": "remove", "path": f'members[value eq "{member["value"]}"]'} for member in members[1:401]
    ]
    assert len((await patch(client, *removed))["members"]) == 9_599
    assert "members" not in await patch(client, {"op": "remove", "path": "members"})
