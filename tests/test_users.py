"""Users on /rpc beyond the OneOffice document: changing, renaming, deleting, listing, validating."""

import asyncio
from typing import Any

import asyncpg
import pytest
from conftest import ADMIN, Client, Serve, contents, footprint, insert_key, until

DUPLICATE = 'duplicate key value violates unique constraint "users_email"'
DELETED = "this user is deleted: restore or purge it first"
JANE = {"email": "jane@example.com"}


@pytest.fixture(autouse=True)
async def _jane(jane: dict[str, Any]) -> None:
    """Every test here starts with jane@example.com, user 2, who has a living session."""


async def count(db: asyncpg.Connection, table: str) -> int:
    return int(await db.fetchval(f"SELECT count(*) FROM {table}"))


async def test_creation_with_every_member(client: Client) -> None:
    given = {
        "email": "full@example.com",
        "displayName": "Full Member",
        "isActive": False,
        "isAdmin": True,
        "profile": {"title": "Dr.", "phones": ["+973 1700 0000"], "grade": "A"},
        "values": {"timezone": "Asia/Bahrain", "editorTemplates": {"letter": ["a"]}},
        "settings": [1, 2],
        "apps": [],
        "avatar": "https://example.com/a.png",
    }
    created = await client.call("createUser", given)
    assert created["apps"] == "{}" and created["settings"] == "{1,2}"
    found = await client.call("getUserByEmail", {"email": "full@example.com"})
    assert found["profile"] == {
        "uid": None, "title": "Dr.", "department": None, "location": None, "phones": ["+973 1700 0000"],
        "grade": "A",
    }  # fmt: skip
    assert found["values"] == {
        "notificationReminder": 3, "timezone": "Asia/Bahrain", "editorTemplates": {"letter": ["a"]}
    }  # fmt: skip
    for member in ("displayName", "isActive", "isAdmin", "settings", "apps", "avatar"):
        assert found[member] == given[member]


async def test_creation_provisions_everything_in_order(client: Client, db: asyncpg.Connection) -> None:
    rows = await db.fetch("SELECT id, role FROM mailboxes WHERE user_id = 2 ORDER BY id")
    assert [tuple(row) for row in rows] == [
        (7, "inbox"), (8, "spam"), (9, "sent"), (10, "trash"), (11, "archive"), (12, "drafts"),
    ]  # fmt: skip
    rows = await db.fetch("SELECT id, role FROM file_folders WHERE user_id = 2 ORDER BY id")
    assert [tuple(row) for row in rows] == [(3, "root"), (4, "trash")]
    assert await db.fetchval("SELECT id FROM calendars WHERE user_id = 2 AND role = 'main'") == 2


@pytest.mark.parametrize("email", ["jane@example.com", "JANE@EXAMPLE.COM", "Jane@Example.Com"])
async def test_an_email_is_unique_in_any_case(email: str, client: Client, db: asyncpg.Connection) -> None:
    before = await footprint(db)
    assert await client.outcome("createUser", {"email": email}) == (400, DUPLICATE)
    assert await footprint(db) == before


async def test_twenty_parallel_creations_of_one_email(client: Client, db: asyncpg.Connection) -> None:
    params = {"email": "race@example.com", "password": "demo1234"}
    outcomes = await asyncio.gather(*(client.outcome("createUser", params) for _ in range(20)))
    won = [answer for status, answer in outcomes if status == 200]
    lost = [outcome for outcome in outcomes if outcome[0] != 200]
    assert len(won) == 1
    assert lost == [(400, DUPLICATE)] * 19
    assert await count(db, "mailboxes") == 18


async def test_addresses_beyond_ascii(client: Client) -> None:
    """Unicode and punycode spellings of one domain are one address (RFC 6531, RFC 5891)."""
    created = await client.call("createUser", {"email": "Jörg@bücher.example"})
    assert created["email"] == "Jörg@bücher.example"
    for spelling in ("jörg@bücher.example", "JÖRG@xn--bcher-kva.example"):
        assert (await client.call("getUserByEmail", {"email": spelling}))["id"] == created["id"]
    assert await client.outcome("createUser", {"email": "jörg@xn--bcher-kva.example"}) == (400, DUPLICATE)


async def test_change_replaces_and_merges(client: Client) -> None:
    await client.call("updateUserByEmail", JANE | {"profile": {"title": "CTO", "uid": "u1"}})
    await client.call(
        "updateUserByEmail",
        {"email": "JANE@example.com", "displayName": "J. Doe", "profile": {"title": None, "location": "Manama"},
         "values": {"timezone": "UTC"}, "settings": [], "apps": [7]},
    )  # fmt: skip
    found = await client.call("getUserByEmail", JANE)
    assert found["displayName"] == "J. Doe"
    assert found["profile"] == {
        "uid": "u1", "title": None, "department": None, "location": "Manama", "phones": [], "grade": None,
    }  # fmt: skip
    assert found["values"] == {"notificationReminder": 3, "timezone": "UTC", "editorTemplates": None}
    assert (found["settings"], found["apps"]) == ([], [7])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "params: name at least one member to change"),
        ({"instance": "MYINSTANCE"}, "params: name at least one member to change"),
        ({"displayName": None}, "params: name at least one member to change"),
        ({"password": "x"}, "password: is not a member of this call"),
        ({"newEmail": "x@example.com"}, "newEmail: is not a member of this call"),
    ],
)
async def test_changes_that_are_refused(change: dict[str, Any], message: str, client: Client) -> None:
    assert await client.outcome("updateUserByEmail", JANE | change) == (400, message)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("getUserByEmail", {}),
        ("updateUserByEmail", {"isActive": False}),
        ("resetPasswordByEmail", {"password": "new"}),
        ("renameUserByEmail", {"newEmail": "x@example.com"}),
        ("deleteUserByEmail", {}),
        ("restoreUserByEmail", {}),
        ("purgeUserByEmail", {}),
        ("listSessions", {}),
        ("forceLogoutByEmail", {}),
    ],
)
async def test_nobody_is_found_by_an_unknown_email(method: str, more: dict[str, Any], client: Client) -> None:
    assert await client.outcome(method, {"email": "nobody@example.com"} | more) == (400, "not found")


@pytest.mark.parametrize(
    "change",
    [("updateUserByEmail", {"isActive": False}), ("resetPasswordByEmail", {"password": "new"}),
     ("deleteUserByEmail", {}), ("forceLogoutByEmail", {})],
)  # fmt: skip
async def test_what_ends_sessions(change: tuple[str, Any], client: Client, db: asyncpg.Connection) -> None:
    assert await count(db, "sessions") == 1
    await client.call(change[0], JANE | change[1])
    assert await count(db, "sessions") == 0


async def test_what_keeps_sessions(client: Client, db: asyncpg.Connection) -> None:
    await client.call("updateUserByEmail", JANE | {"displayName": "Jane"})
    await client.call("renameUserByEmail", JANE | {"newEmail": "jane.roe@example.com"})
    assert await count(db, "sessions") == 1


async def test_rename(client: Client) -> None:
    await client.call("renameUserByEmail", JANE | {"newEmail": "Jane.Roe@example.com"})
    assert await client.outcome("getUserByEmail", JANE) == (400, "not found")
    found = await client.call("getUserByEmail", {"email": "jane.roe@example.com"})
    assert (found["id"], found["email"]) == (2, "Jane.Roe@example.com")
    assert await client.outcome("renameUserByEmail", {"email": "jane.roe@example.com", "newEmail": ADMIN}) == (
        400, DUPLICATE,
    )  # fmt: skip
    # Another spelling of one's own address is no duplicate.
    await client.call(
        "renameUserByEmail", {"email": "jane.roe@example.com", "newEmail": "jane.ROE@example.com"}
    )


async def test_delete_restore_purge(client: Client, db: asyncpg.Connection) -> None:
    assert await client.outcome("purgeUserByEmail", JANE) == (
        400, "the user is not deleted: call deleteUserByEmail first",
    )  # fmt: skip
    await client.call("deleteUserByEmail", JANE)
    for method, more in (
        ("getUserByEmail", {}),
        ("updateUserByEmail", {"isAdmin": True}),
        ("deleteUserByEmail", {}),
    ):
        assert await client.outcome(method, JANE | more) == (400, "not found")
    assert await client.outcome("createUser", JANE) == (400, DELETED)
    assert (await client.call("getInstance"))["users"] == 1
    await client.call("restoreUserByEmail", JANE)
    assert (await client.call("getInstance"))["users"] == 2
    assert await client.outcome("restoreUserByEmail", JANE) == (400, "not found")
    assert (await client.call("getUserByEmail", JANE))["inbox"] == 7
    await client.call("deleteUserByEmail", JANE)
    await client.call("purgeUserByEmail", JANE)
    assert await count(db, "mailboxes") == 6 and await count(db, "credentials") == 0
    assert (await client.call("createUser", JANE))["id"] == 3


async def test_lists(client: Client) -> None:
    for number in range(7):
        await client.call("createUser", {"email": f"user{number}@example.com", "isAdmin": number == 1})
    await client.call("updateUserByEmail", {"email": "user2@example.com", "isActive": False})
    await client.call("deleteUserByEmail", {"email": "user3@example.com"})

    async def emails(**params: Any) -> list[str]:
        found, after = [], None
        while True:
            page = await client.call("listUsers", params | {"after": after, "limit": 2})
            found += [user["email"].partition("@")[0] for user in page["users"]]
            after = page["next"]
            if after is None:
                return found

    assert await emails() == ["admin", "jane", "user0", "user1", "user2", "user4", "user5", "user6"]
    assert await emails(status="admins") == ["admin", "user1"]
    assert await emails(status="suspended") == ["user2"]
    assert await emails(status="deleted") == ["user3"]
    assert await emails(emailStartsWith="USER") == ["user0", "user1", "user2", "user4", "user5", "user6"]
    assert await emails(emailStartsWith="user%") == []


@pytest.mark.parametrize("after", ["?", "ÿ", "_w", "AA"])
async def test_cursors_that_are_none(after: str, client: Client) -> None:
    assert await client.outcome("listUsers", {"after": after}) == (
        400, "after: is not what a page gave as next",
    )  # fmt: skip


@pytest.mark.parametrize("limit", [0, 1001, "10", True])
async def test_limits_of_pages(limit: Any, client: Client) -> None:
    status, message = await client.outcome("listUsers", {"limit": limit})
    assert status == 400 and message.startswith("limit: must be")


async def test_validation_names_everything_and_writes_nothing(client: Client, db: asyncpg.Connection) -> None:
    before = await footprint(db)
    bad = {"email": ADMIN, "displayName": "", "password": 5, "isSysAdmin": True}
    validation = await client.call("validateUser", bad)
    assert validation == {
        "valid": False,
        "failures": [
            {"field": "displayName", "message": "must have at least 1 character"},
            {"field": "password", "message": "must be a string"},
            {"field": "isSysAdmin", "message": "is not a member of this call"},
            {"field": "email", "message": DUPLICATE},
        ],
    }
    good = {"email": "new@example.com", "password": "x", "displayName": "New"}
    assert await client.call("validateUser", good) == {"valid": True, "failures": []}
    assert await footprint(db) == before
    await client.call("createUser", good)


async def test_validation_of_nothing(client: Client) -> None:
    assert (await client.call("validateUser"))["failures"] == [{"field": "email", "message": "is required"}]


async def test_isadmin_needs_its_own_scope(client: Client, db: asyncpg.Connection) -> None:
    """Security line 8: with users:write alone nobody becomes an administrator, nor ceases to be one."""
    shop = client.using(await insert_key(db, scopes=("users:read", "users:write")))
    assert await shop.outcome("createUser", {"email": "x@example.com", "isAdmin": True}) == (
        403,
        "not-allowed",
    )
    assert await shop.outcome("updateUserByEmail", JANE | {"isAdmin": True}) == (403, "not-allowed")
    assert await shop.outcome("updateUserByEmail", {"email": ADMIN, "isAdmin": False}) == (403, "not-allowed")
    assert (await shop.call("validateUser", {"email": "x@example.com", "isAdmin": True}))["failures"] == [
        {"field": "isAdmin", "message": "true needs the scope users:admin"}
    ]
    await shop.call("createUser", {"email": "x@example.com", "isAdmin": False})


async def test_isolation(client: Client, other: Client, db: asyncpg.Connection) -> None:
    """Another tenant's user is answered byte for byte like one that does not exist."""
    for method, more in (
        ("getUserByEmail", {}), ("updateUserByEmail", {"isActive": False}), ("deleteUserByEmail", {}),
        ("resetPasswordByEmail", {"password": "x"}), ("renameUserByEmail", {"newEmail": "y@example.com"}),
        ("listSessions", {}), ("forceLogoutByEmail", {}), ("purgeUserByEmail", {}),
    ):  # fmt: skip
        theirs = await other.outcome(method, JANE | more)
        assert theirs == await other.outcome(method, {"email": "nobody@example.com"} | more)
        assert theirs == (400, "not found")
        assert await other.outcome(method, JANE | more | {"instance": "MYINSTANCE"}) == (403, "not-allowed")
        assert await other.outcome(method, JANE | more | {"instance": "NOWHERE"}) == (403, "not-allowed")
    assert (await client.call("getUserByEmail", JANE))["isActive"] is True
    # The same address in two tenants is two users.
    assert (await other.call("createUser", JANE))["id"] == 2


# --- administrators -------------------------------------------------------------------------------------

_TAKES_OVER: list[tuple[str, dict[str, Any]]] = [
    ("resetPasswordByEmail", {"email": "{email}", "password": "onemoretime"}),
    ("setPassword", {"id": "{id}", "newPassword": "onemoretime"}),
    ("renameUserByEmail", {"email": "{email}", "newEmail": "mine@example.com"}),
    ("replaceUserByEmail", {"email": "{email}", "newEmail": "mine@example.com"}),
    ("replaceUserByEmail", {"email": "{email}", "password": "onemoretime"}),
    ("updateStoreUser", {"id": "{id}", "email": "mine@example.com", "externalId": "x", "onlySeesReadable": False}),
    ("updateStoreUser", {"id": "{id}", "email": "{email}", "externalId": "x", "onlySeesReadable": False, "newPassword": "onemoretime"}),
    ("updateUserByEmail", {"email": "{email}", "isActive": False}),
    ("updateUsers", {"users": [{"email": "{email}", "isActive": False}]}),
    ("ensureUser", {"email": "{email}", "isActive": False}),
    ("ensureUser", {"email": "mine@example.com", "externalId": "known"}),
    ("ensureUsers", {"users": [{"email": "mine@example.com", "externalId": "known"}]}),
    ("deactivateUserById", {"id": "{id}"}),
    ("deleteUserByEmail", {"email": "{email}"}),
    ("deleteUserById", {"id": "{id}"}),
    ("deleteUsers", {"users": [{"email": "{email}"}]}),
]  # fmt: skip


def _about(params: Any, user: dict[str, Any]) -> Any:
    if isinstance(params, dict):
        return {name: _about(value, user) for name, value in params.items()}
    if isinstance(params, list):
        return [_about(value, user) for value in params]
    return {"{email}": user["email"], "{id}": user["id"]}.get(params, params)


@pytest.mark.parametrize(("method", "params"), _TAKES_OVER)
async def test_administrators_cannot_be_taken_over(
    method: str, params: dict[str, Any], client: Client, db: asyncpg.Connection
) -> None:
    """Not by a key that may write users alone; who is no administrator is any such key's to change."""
    for name, is_admin in (("boss", True), ("ann", False)):
        user = await client.call(
            "createUser",
            {
                "email": f"{name}@example.com",
                "password": "demo1234",
                "isAdmin": is_admin,
                "externalId": "known",
            },
        )
        given = _about(params, user)
        shop = client.using(await insert_key(db, scopes=("users:read", "users:write")))
        before = await contents(db)
        if is_admin:
            status, told = await shop.outcome(method, given)
            assert (status, told.rpartition(": ")[2]) == (403, "not-allowed")
            assert await contents(db) == before
            await client.call("updateUserByEmail", {"email": user["email"], "externalId": None})
        else:
            await shop.call(method, given)
            assert await contents(db) != before


async def test_what_takes_no_administrator_over(client: Client, db: asyncpg.Connection) -> None:
    """What is so already, and all of it with the scope; tests/test_access.py has the rest."""
    shop = client.using(await insert_key(db, scopes=("users:read", "users:write")))
    boss = {"email": "admin@example.com"}
    await shop.call("updateUserByEmail", boss | {"displayName": "admin", "isActive": True})
    await shop.call("replaceUserByEmail", boss | {"isAdmin": True})
    await shop.call("updateUsers", {"users": [boss | {"isActive": True, "displayName": "admin"}]})
    each = {"users": [boss, {"email": "nobody@example.com"}], "mode": "each"}
    done = await shop.call("deleteUsers", each)
    assert [item["error"]["code"] for item in done["results"]] == ["member_forbidden", "not_found"]
    await client.call("deleteUserByEmail", boss)
    assert await shop.outcome("restoreUserByEmail", boss) == (403, "not-allowed")
    await client.call("restoreUserByEmail", boss)
    await client.call("updateUserByEmail", boss | {"isActive": False})
    assert await shop.outcome("reactivateUserById", {"id": 1}) == (403, "not-allowed")
    await client.call("reactivateUserById", {"id": 1})


async def test_only_a_new_name_replaces_a_given_display_name(serve: Serve) -> None:
    client = await serve(run_jobs=True)
    given = {"email": "sales@example.com", "firstName": "Ann", "lastName": "Lee", "displayName": "Sales desk"}
    user_id = (await client.call("createUser", given))["id"]
    shown = {"email": given["email"]}

    async def display_name() -> Any:
        return (await client.call("getUserByEmail", shown))["displayName"]

    async def update_profile(**fields: str) -> None:
        queued = await client.call("updateProfile", {"id": user_id, "profile": fields})

        async def done() -> Any:
            return (await client.call("getDocument", {"id": queued["documentId"]}))["result"]

        assert (await until(done))["success"]

    await update_profile(phone="+973 3600 0000")
    assert await display_name() == "Sales desk"
    for same in ({"firstName": "Ann"}, {"firstName": "Ann", "lastName": "Lee"}):
        assert (await client.call("ensureUser", shown | same))["changed"] is False
    assert await display_name() == "Sales desk"
    await update_profile(firstname="Anna", phone="+973 3600 0001")
    assert await display_name() == "Anna Lee"
    await client.call("updateUserByEmail", shown | {"displayName": "Sales desk"})
    await client.call("ensureUser", shown | {"lastName": "Kim"})
    assert await display_name() == "Anna Kim"
