"""The OneOffice document (seeds/000), call by call: members, their order and types."""

import asyncpg
from conftest import ADMIN, Client

CREATED = [
    "email", "displayName", "profile", "isAdmin", "apps", "createdAt", "settings", "values", "id",
    "mainCalendar", "inbox", "spam", "sent", "trashEmail", "drafts", "rootFiles", "trashFiles",
]  # fmt: skip
LOOKED_UP = [
    "id", "instance", "email", "avatar", "groups", "settings", "apps", "values", "profile", "displayName",
    "isActive", "isAdmin", "isSysAdmin", "rootFiles", "trashFiles", "inbox", "spam", "sent", "trashEmail",
    "drafts", "mainCalendar", "token", "tokenExpiresAt",
]  # fmt: skip
FIRST = {
    "email": "test1@oneoffice.bh",
    "instance": "MYINSTANCE",
    "displayName": "TestUser",
    "password": "demo1234",
}


async def test_the_document_from_top_to_bottom(client: Client, db: asyncpg.Connection) -> None:
    """Create, create again, disable, enable, change the password, look up; each as a GET with a body."""
    created = await client.call("createUser", FIRST, verb="GET")
    assert list(created) == CREATED
    stored = "SELECT floor(extract(EPOCH FROM created_at))::bigint FROM users WHERE id = 2"
    assert created.pop("createdAt") == await db.fetchval(stored)
    assert created == {
        "email": "test1@oneoffice.bh",
        "displayName": "TestUser",
        "profile": {
            "uid": None, "title": None, "department": None, "location": None, "phones": [], "grade": None,
        },
        "isAdmin": False,
        "apps": "{0,0,0}",
        "settings": "{84,213,10,92}",
        "values": {"notificationReminder": 3, "timezone": None, "editorTemplates": None},
        "id": 2, "mainCalendar": 2, "inbox": 7, "spam": 8, "sent": 9, "trashEmail": 10, "drafts": 12,
        "rootFiles": 3, "trashFiles": 4,
    }  # fmt: skip
    assert list(created["profile"]) == ["uid", "title", "department", "location", "phones", "grade"]
    assert list(created["values"]) == ["notificationReminder", "timezone", "editorTemplates"]

    again = {"email": "test1@oneoffice.bh", "password": "demo1234"}
    async with await client.post({"method": "createUser", "params": again}, verb="GET") as response:
        assert response.status == 400
        assert await response.text() == '"duplicate key value violates unique constraint \\"users_email\\""'

    user = {"email": "test1@oneoffice.bh"}
    for change in (
        ("updateUserByEmail", user | {"isActive": False}),
        ("updateUserByEmail", user | {"isActive": True}),
        ("resetPasswordByEmail", user | {"password": "onemoretime"}),
    ):
        async with await client.post({"method": change[0], "params": change[1]}, verb="GET") as response:
            assert (response.status, await response.text()) == (200, "true")

    found = await client.call("getUserByEmail", user, verb="GET")
    assert list(found) == LOOKED_UP
    assert found == {
        "id": 2, "instance": "MYINSTANCE", "email": "test1@oneoffice.bh", "avatar": "", "groups": [],
        "settings": [84, 213, 10, 92], "apps": [0, 0, 0],
        "values": {"timezone": None, "editorTemplates": None, "notificationReminder": 3},
        "profile": {
            "uid": None, "grade": None, "title": None, "phones": [], "location": None, "department": None,
        },
        "displayName": "TestUser", "isActive": True, "isAdmin": False, "isSysAdmin": False,
        "rootFiles": 3, "trashFiles": 4, "inbox": 7, "spam": 8, "sent": 9, "trashEmail": 10, "drafts": 12,
        "mainCalendar": 2, "token": "", "tokenExpiresAt": 0,
    }  # fmt: skip
    assert list(found["values"]) == ["timezone", "editorTemplates", "notificationReminder"]
    assert list(found["profile"]) == ["uid", "grade", "title", "phones", "location", "department"]


async def test_post_is_the_same_as_get(client: Client) -> None:
    assert await client.call("getUserByEmail", {"email": ADMIN}) == await client.call(
        "getUserByEmail", {"email": ADMIN}, verb="GET"
    )


async def test_every_fresh_instance_counts_from_one(operator: Client) -> None:
    """The second user of any fresh instance has the documented ids, whatever other instances hold."""
    await operator.call("createUser", FIRST)
    for name in ("SECOND", "THIRD"):
        await operator.call("createInstance", {"name": name, "admin": {"email": "boss@example.com"}})
        created = await operator.call("createUser", FIRST | {"instance": name})
        assert {part: created[part] for part in ("id", "mainCalendar", "inbox", "drafts", "trashFiles")} == {
            "id": 2, "mainCalendar": 2, "inbox": 7, "drafts": 12, "trashFiles": 4,
        }  # fmt: skip


async def test_a_refused_creation_takes_no_ids(client: Client) -> None:
    for _ in range(3):
        await client.outcome("createUser", {"email": ADMIN})
    assert (await client.call("createUser", FIRST))["id"] == 2


async def test_only_method_and_params_of_the_plain_envelope_count(client: Client) -> None:
    body = {"method": "getUserByEmail", "params": {"email": ADMIN}, "id": 7, "version": 2, "x": [None]}
    async with await client.post(body) as response:
        assert response.status == 200
        assert (await response.json())["email"] == ADMIN


async def test_instance_as_a_number(operator: Client) -> None:
    """A number means the instance of that name, which is echoed as it is stored."""
    await operator.call("createInstance", {"name": "42", "admin": {"email": "boss@example.com"}})
    found = await operator.call("getUserByEmail", {"email": "boss@example.com", "instance": 42})
    assert found["instance"] == "42"


async def test_defaults(client: Client) -> None:
    """Without instance the key's own, without displayName the local part of the e-mail."""
    created = await client.call("createUser", {"email": "Jane.Doe@Example.com"})
    assert created["displayName"] == "Jane.Doe"
    assert created["email"] == "Jane.Doe@example.com"
    assert (await client.call("getUserByEmail", {"email": "JANE.DOE@EXAMPLE.COM"}))[
        "instance"
    ] == "MYINSTANCE"
