"""Bulk calls: all or nothing or each separately, in order, with concurrent changes."""

import asyncio
from typing import Any

import asyncpg
import pytest
from conftest import ADMIN, Client, Serve, footprint, insert_key

from server.base.settings import Settings
from server.directory import users as user_models
from server.directory.many import MOST, checked
from server.directory.users import NewUser, email_key

HASH = "$argon2id$v=19$m=64,t=1,p=1$" + "A" * 22 + "$" + "A" * 43
DUPLICATE = 'duplicate key value violates unique constraint "users_email"'
DUPLICATE_ID = 'duplicate key value violates unique constraint "users_external_id"'


def people(count: int, **members: Any) -> list[dict[str, Any]]:
    return [{"email": f"user{number}@example.com"} | members for number in range(count)]


def codes(answer: dict[str, Any]) -> list[str | None]:
    return [item["error"] and item["error"]["code"] for item in answer["results"]]


async def test_a_plan_of_a_duration_ends_on_its_last_day(client: Client, db: asyncpg.Connection) -> None:
    plan = await client.call("createPlan", {"type": "prepaid", "name": "A month", "duration": 1})
    await client.call("createUsers", {"users": [{"email": "a@example.com", "planId": plan["id"]}]})
    assert await db.fetchval(
        "SELECT valid_to + 1 = (valid_from + interval '1 month')::date AND ended_at IS NULL FROM user_plans"
    )


async def test_each_is_created_as_create_user_creates_one(client: Client, db: asyncpg.Connection) -> None:
    """The same answer, the same rows, and the numbers go on where they were."""
    members = {
        "displayName": "Ä", "password": "demo1234", "isActive": False, "isAdmin": True,
        "profile": {"title": "Dr.", "phones": ["+1 2"]}, "values": {"timezone": "Asia/Bahrain"},
        "settings": [1, 2], "apps": [], "avatar": "https://example.com/a.png", "firstName": "A",
        "lastName": "B", "externalId": "x-1", "sessionsLimit": 3, "isPlanAdmin": True,
        "onlySeesReadable": True,
    }  # fmt: skip
    plan = await client.call("createPlan", {"type": "prepaid", "name": "A year", "duration": 12})
    one = await client.call(
        "createUser",
        members | {"email": "One@example.com", "planId": plan["id"], "planValidTo": "2999-01-31"},
    )
    many = await client.call(
        "createUsers",
        {
            "users": [
                {"email": "plain@example.com"},
                members
                | {
                    "email": "Two@example.com", "externalId": "x-2", "planId": plan["id"],
                    "planValidTo": "2999-01-31",
                },
            ]
        },
    )  # fmt: skip
    assert (many["succeeded"], many["failed"]) == (2, 0)
    two = many["results"][1]["result"]
    numbered = {
        "email": "Two@example.com", "id": 4, "createdAt": two["createdAt"], "mainCalendar": 4, "inbox": 19,
        "spam": 20, "sent": 21, "trashEmail": 22, "drafts": 24, "rootFiles": 7, "trashFiles": 8,
    }  # fmt: skip
    assert two == one | numbered
    assert list(two) == list(one) and list(two["profile"]) == list(one["profile"])
    for table in ("users", "mailboxes", "calendars", "file_folders", "user_plans", "credentials"):
        rows = {}
        for user_id in (one["id"], two["id"]):
            found = await db.fetch(
                f"SELECT * FROM {table} WHERE {'id' if table == 'users' else 'user_id'} = $1 ORDER BY 1, 2",
                user_id,
            )
            rows[user_id] = [
                {
                    name: value
                    for name, value in row.items()
                    if name not in ("id", "user_id", "uuid", "password_hash") and not name.endswith("_at")
                }
                for row in found
            ]
            assert rows[user_id]
        text = str(rows[one["id"]]).replace("One@", "Two@").replace("one@", "two@").replace("x-1", "x-2")
        assert text == str(rows[two["id"]]), table
    shown = [await client.call("getUserByEmail", {"email": f"{name}@example.com"}) for name in ("one", "two")]
    assert {name for name in shown[0] if shown[0][name] != shown[1][name]} == set(numbered) - {"createdAt"}
    await client.call("updateUserByEmail", {"email": "two@example.com", "isActive": True})
    await client.call("login", {"email": "two@example.com", "password": "demo1234"})
    assert (await client.call("createUser", {"email": "three@example.com"}))["id"] == 5
    events = await db.fetch(
        "SELECT user_id, type, after FROM events WHERE method = 'createUsers' ORDER BY place"
    )
    assert [(row["user_id"], row["type"]) for row in events] == [
        (3, "user.created"), (4, "user.created"), (4, "user.updated"),
    ]  # fmt: skip
    assert "demo1234" not in str(events)


async def test_each_bad_item_has_its_error_and_the_others_are_made(
    client: Client, operator: Client, db: asyncpg.Connection
) -> None:
    await client.call("createUser", {"email": "taken@example.com", "externalId": "taken"})
    await client.call("createUser", {"email": "gone@example.com"})
    await client.call("deleteUserByEmail", {"email": "gone@example.com"})
    policy = {"passwordPolicy": {"minLength": 8}}
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "settings": policy})
    users: list[Any] = [
        {"email": "a@example.com"},
        {"email": "nonsense", "isActive": "yes", "unheard": 1},
        {"email": "TAKEN@example.com"},
        {"email": "gone@example.com"},
        {"email": "A@example.com"},
        {"email": "b@example.com", "externalId": "taken"},
        {"email": "b@example.com", "externalId": "new"},
        {"email": "c@example.com", "externalId": "new"},
        {"email": "d@example.com", "password": "short"},
        {"email": "e@example.com", "planId": 7},
        {"email": "f@example.com", "instance": "OTHER"},
        {"email": "g@example.com", "createInOffice365": True},
        {"email": "h@example.com", "passwordHash": "5f4dcc3b5aa765d61d8327deb882cf99"},
        "no object",
        {"email": "z@example.com", "password": "long enough"},
    ]
    answer = await client.call("createUsers", {"users": users, "mode": "each"})
    made = [index for index, item in enumerate(answer["results"]) if item["result"]]
    assert made == [0, 6, 14] and (answer["succeeded"], answer["failed"]) == (3, 12)
    assert [item["index"] for item in answer["results"]] == list(range(len(users)))
    assert codes(answer) == [
        None, "invalid_params", "duplicate_email", "user_deleted", "duplicate_email",
        "duplicate_external_id", None, "duplicate_external_id", "invalid_params", "invalid_params",
        "invalid_params", "invalid_params", "invalid_params", "invalid_params", None,
    ]  # fmt: skip
    fields = {field["field"] for field in answer["results"][1]["error"]["fields"]}
    assert fields == {"email", "isActive", "unheard"}
    assert answer["results"][2]["error"]["message"] == DUPLICATE
    assert answer["results"][7]["error"]["message"] == DUPLICATE_ID
    # Who failed left no gap in the numbers.
    assert [answer["results"][index]["result"]["id"] for index in made] == [4, 5, 6]
    for email in ("a@example.com", "b@example.com", "z@example.com"):
        await client.call("getUserByEmail", {"email": email})
    # The same errors as createUser's, word for word.
    for index in (1, 2, 8, 9, 11, 12):
        status, message = await client.outcome("createUser", users[index])
        assert (status, message) == (400, answer["results"][index]["error"]["message"]), index
    assert await db.fetchval("SELECT living_users FROM instance_counters") == 5


async def test_atomic_is_all_or_nothing_and_names_every_bad_item(
    client: Client, db: asyncpg.Connection
) -> None:
    await client.call("createUser", {"email": "taken@example.com"})
    before = await footprint(db)
    users = [
        {"email": "a@example.com"},
        {"email": "nonsense"},
        {"email": "b@example.com", "isActive": 1, "apps": "x"},
        {"email": "taken@example.com"},
    ]
    status, message = await client.outcome("createUsers", {"users": users})
    assert (status, message) == (
        400,
        "users.1.email: is not a valid e-mail address; users.2.isActive: must be true or false;"
        " users.2.apps: must be a list",
    )
    taken = [{"email": "a@example.com"}, {"email": "taken@example.com"}, {"email": "A@example.com"}]
    async with await client.post({"method": "createUsers", "params": {"users": taken}}) as response:
        assert response.headers["X-Error-Code"] == "duplicate_email"
        assert await response.json() == f"users.1.email: {DUPLICATE}; users.2.email: {DUPLICATE}"
    assert await footprint(db) == before
    body = {"jsonrpc": "2.0", "id": 1, "method": "createUsers", "params": {"users": taken}}
    async with await client.post(body) as response:
        fields = (await response.json())["error"]["data"]["fields"]
    assert [field["field"] for field in fields] == ["users.1.email", "users.2.email"]


@pytest.mark.parametrize("name", ["createUsers", "updateUsers", "deleteUsers", "ensureUsers"])
async def test_how_many(name: str, client: Client, db: asyncpg.Connection) -> None:
    before = await footprint(db)
    for users, problem in (
        ([], "users: must have at least 1 item after validation, not 0"),
        (people(MOST + 1), "users: must have at most 1000 items after validation, not 1001"),
        ({"email": "a@example.com"}, "users: must be a list"),
    ):
        assert await client.outcome(name, {"users": users}) == (400, problem)
    assert (await client.outcome(name, {"users": people(1), "mode": "some"}))[0] == 400
    assert await footprint(db) == before


async def test_a_thousand_with_everything_fit_into_a_body(client: Client) -> None:
    """1,000 items with a hash and every member of a user that an export writes."""
    full = {
        "displayName": "A Name Of Some Length", "passwordHash": HASH, "isActive": True, "isAdmin": False,
        "profile": {"uid": "E000001", "title": "Engineer", "department": "Engineering", "location": "Manama",
                    "phones": ["+973 17 1234567", "+973 17 7654321"], "grade": "A1"},
        "values": {"notificationReminder": 3, "timezone": "Asia/Bahrain", "editorTemplates": None},
        "settings": [84, 213, 10, 92], "apps": [0, 0, 0], "avatar": "https://example.com/pictures/1.png",
        "sessionsLimit": 3, "isPlanAdmin": False, "onlySeesReadable": False,
    }  # fmt: skip
    users = [
        full | {"email": f"u{number}@example.com", "externalId": f"id-{number}"} for number in range(1000)
    ]
    answer = await client.call("createUsers", {"users": users})
    assert answer["succeeded"] == 1000
    first, last = (answer["results"][place]["result"] for place in (0, 999))
    assert last["id"] - first["id"] == 999 and last["inbox"] - first["inbox"] == 999 * 6
    assert (await client.call("getUserByEmail", {"email": "u999@example.com"}))["inbox"] == last["inbox"]
    again = await client.call("ensureUsers", {"users": users, "mode": "each"})
    assert again["succeeded"] == 1000
    assert not any(item["result"]["created"] or item["result"]["changed"] for item in again["results"])


@pytest.mark.parametrize(
    ("name", "member"),
    [("createUsers", True), ("updateUsers", False), ("ensureUsers", True), ("ensureUser", True)],
)
async def test_is_admin_needs_its_scope(
    name: str, member: bool, client: Client, db: asyncpg.Connection
) -> None:
    """In mode each it is that item's error."""
    await client.call("createUser", {"email": "user1@example.com"})
    poor = client.using(await insert_key(db, scopes=("users:write",)))
    before = await footprint(db)
    users = people(3, displayName="x")
    users[1]["isAdmin"] = member
    if name != "createUsers":  # which would be told of the one who is there
        users[1]["isAdmin"] = True
    params = users[1] if name == "ensureUser" else {"users": users}
    assert await poor.outcome(name, params) == (403, "not-allowed")
    assert await footprint(db) == before
    if name != "ensureUser":
        answer = await poor.call(name, {"users": users, "mode": "each"})
        assert codes(answer)[1] == "member_forbidden" and "member_forbidden" not in codes(answer)[::2]
        assert (await client.call("getUserByEmail", {"email": "user1@example.com"}))["isAdmin"] is False


async def test_ensuring_cannot_unmake_an_administrator(client: Client, db: asyncpg.Connection) -> None:
    poor = client.using(await insert_key(db, scopes=("users:write",)))
    assert await poor.outcome("ensureUser", {"email": ADMIN, "isAdmin": False}) == (403, "not-allowed")
    assert (await poor.call("ensureUser", {"email": ADMIN, "isActive": True}))["changed"] is False
    new = await poor.call("ensureUser", {"email": "new@example.com", "isAdmin": False})
    assert new["created"] is True


async def test_another_tenants_users_are_not_there(
    client: Client, other: Client, db: asyncpg.Connection
) -> None:
    await client.call("createUser", {"email": "mine@example.com", "externalId": "x", "displayName": "Mine"})
    theirs = {"users": [{"email": "mine@example.com"}], "mode": "each"}
    none = {"users": [{"email": "nobody@example.com"}], "mode": "each"}
    assert await other.call("deleteUsers", theirs) == await other.call("deleteUsers", none)
    for params in (theirs, none):
        params["users"][0] |= {"displayName": "x"}
    assert await other.call("updateUsers", theirs) == await other.call("updateUsers", none)
    assert await other.outcome("ensureUser", {"externalId": "x", "displayName": "x"}) == (
        400,
        "email: is required: nobody has this externalId",
    )
    created = await other.call("createUsers", {"users": [{"email": "mine@example.com", "externalId": "x"}]})
    assert created["results"][0]["result"]["id"] == 2
    assert (await client.call("getUserByEmail", {"email": "mine@example.com"}))["displayName"] == "Mine"


async def test_updates(client: Client, jane: dict[str, Any], db: asyncpg.Connection) -> None:
    await client.call("createUsers", {"users": people(4, password="demo1234")})
    await client.call("login", {"email": "user0@example.com", "password": "demo1234"})
    await client.call("updateUserByEmail", {"email": "user3@example.com", "externalId": "three"})
    users: list[Any] = [
        {"email": "USER0@example.com", "isActive": False},
        {"email": "user1@example.com", "profile": {"title": "Dr."}, "values": {"timezone": "Asia/Bahrain"},
         "displayName": "One", "settings": [1], "apps": [], "avatar": "https://example.com/1.png",
         "externalId": "one", "sessionsLimit": 1, "isPlanAdmin": True, "onlySeesReadable": True,
         "isAdmin": True},
        {"email": "nobody@example.com", "isActive": True},
        {"email": "user1@example.com", "isActive": True},
        {"email": "user2@example.com", "externalId": "three"},
        {"email": "user2@example.com"},
        {"email": "user3@example.com", "externalId": None},
    ]  # fmt: skip
    answer = await client.call("updateUsers", {"users": users, "mode": "each"})
    assert codes(answer) == [
        None, None, "not_found", "named_twice", "duplicate_external_id", "invalid_params", None,
    ]  # fmt: skip
    assert [item["result"] for item in answer["results"]] == [True, True, None, None, None, None, True]
    one = await client.call("getUserByEmail", {"email": "user1@example.com"})
    assert (one["displayName"], one["isAdmin"], one["settings"], one["apps"]) == ("One", True, [1], [])
    assert one["profile"] == {
        "uid": None, "title": "Dr.", "department": None, "location": None, "phones": [], "grade": None,
    }  # fmt: skip
    assert one["values"]["timezone"] == "Asia/Bahrain" and one["values"]["notificationReminder"] == 3
    stored = await client.call("getStoreUser", {"externalId": "one"})
    assert (stored["sessionsLimit"], stored["isPlanAdmin"], stored["onlySeesReadable"]) == (1, True, True)
    assert await client.outcome("getStoreUser", {"externalId": "three"}) == (400, "not found")
    assert await client.call("listSessions", {"email": "user0@example.com"}) == []
    assert (await client.call("getStoreUser", {"email": "user0@example.com"}))["deactivatedAt"]
    events = await db.fetch(
        "SELECT type, user_id, before, after FROM events WHERE method = 'updateUsers' ORDER BY place"
    )
    assert [(row["type"], row["user_id"]) for row in events] == [
        ("user.suspended", 3), ("user.updated", 4), ("user.updated", 6), ("session.revoked", 3),
    ]  # fmt: skip
    assert events[2]["before"] == '{"externalId": "three"}' and events[2]["after"] == '{"externalId": null}'
    before = await footprint(db)
    status, message = await client.outcome(
        "updateUsers",
        {
            "users": [
                {"email": "user1@example.com", "isActive": False},
                users[2],
                users[4] | {"externalId": "one"},
            ]
        },
    )
    assert (status, message) == (400, f"users.1: not found; users.2.externalId: {DUPLICATE_ID}")
    assert await footprint(db) == before
    assert (await client.call("getUserByEmail", {"email": "user1@example.com"}))["isActive"] is True


async def test_a_suspension_ends_the_session_of_a_login_under_way(client: Client) -> None:
    await client.call("createUsers", {"users": people(5, password="demo1234")})
    for _ in range(5):
        logins = [
            client.outcome("login", user | {"password": "demo1234"}) for user in people(5) for _ in range(2)
        ]
        suspend = client.call("updateUsers", {"users": people(5, isActive=False)})
        await asyncio.gather(*logins, suspend)
        for user in people(5):
            assert await client.call("listSessions", user) == []
        await client.call("updateUsers", {"users": people(5, isActive=True)})


async def test_an_update_replaces_the_stored_picture(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    kept = (await client.call("getUserByEmail", {"email": ADMIN}))["avatar"]
    await client.call("updateUsers", {"users": [{"email": ADMIN, "avatar": kept.replace("http:", "https:")}]})
    assert await db.fetchval("SELECT count(*) FROM pictures") == 1
    await client.call("updateUsers", {"users": [{"email": ADMIN, "avatar": ""}]})
    assert await db.fetchval("SELECT count(*) FROM pictures") == 0


CHANGES: list[dict[str, Any]] = [
    {"isActive": False},
    {"isActive": True, "displayName": "New", "profile": {"title": "Dr."}, "values": {"timezone": "Asia/Bahrain"}},
    {"settings": [1], "apps": [], "avatar": "https://example.com/1.png", "isAdmin": True},
    {"externalId": "{}", "sessionsLimit": 2, "isPlanAdmin": True, "onlySeesReadable": True},
    {"quotas": {"mail": 5}},
    {"quotas": {"mail": None, "files": 7}, "externalId": None},
    {"groups": ["sales", "Admins"]},
    {"groups": []},
]  # fmt: skip


async def test_changes_are_told_as_those_of_one(client: Client, db: asyncpg.Connection) -> None:
    """Whichever way a user is changed or deleted: the same rows, the same events."""
    await client.call("createGroup", {"name": "Sales"})
    await client.call("createUsers", {"users": people(2, password="demo1234")})
    ids = [
        await db.fetchval("SELECT id FROM users WHERE email_key = $1", user["email"]) for user in people(2)
    ]
    for changes in [None, *CHANGES]:
        for number, user in enumerate(people(2)):
            if changes is None:
                await client.call("login", user | {"password": "demo1234"})
                continue
            item = user | changes
            if item.get("externalId"):
                item["externalId"] = f"number {number}"
            await (
                client.call("updateUserByEmail", item)
                if number == 0
                else client.call("updateUsers", {"users": [item]})
            )
    shown = [await client.call("getUserByEmail", user) for user in people(2)]
    assert {name for name in shown[0] if shown[0][name] != shown[1][name]} == {
        "id", "email", "rootFiles", "trashFiles", "inbox", "spam", "sent", "trashEmail", "drafts", "mainCalendar",
    }  # fmt: skip
    quotas = [await client.call("getQuotasByEmail", user) for user in people(2)]
    assert quotas[0] == quotas[1] and quotas[0]["files"]["limit"] == 7
    await client.call("login", people(1)[0] | {"password": "demo1234"})
    await client.call("login", people(2)[1] | {"password": "demo1234"})
    await client.call("deleteUserByEmail", people(1)[0])
    await client.call("deleteUsers", {"users": people(2)[1:]})
    told = []
    for user_id in ids:
        rows = await db.fetch(
            "SELECT type, before, after FROM events WHERE user_id = $1 ORDER BY xid, place", user_id
        )
        told.append([tuple(row) for row in rows])
    one, many = (str([event for event in events if event[0] != "session.created"]) for events in told)
    assert (
        one.replace("user0@", "user1@").replace("number 0", "number 1").replace('"user0"', '"user1"') == many
    )
    assert [event[0] for event in told[0]] == [
        "user.created", "session.created", "user.suspended", "session.revoked", "user.reactivated",
        *["user.updated"] * 8, "session.created", "user.deleted", "session.revoked",
    ]  # fmt: skip


async def test_groups_of_many(client: Client, db: asyncpg.Connection) -> None:
    """All of them in their statements; a group that there is not is its item's error."""
    for name in ("Sales", "Support"):
        await client.call("createGroup", {"name": name})
    await client.call("createUsers", {"users": people(3)})
    users = [
        {"email": "user0@example.com", "groups": ["Sales", "SUPPORT"]},
        {"email": "user1@example.com", "groups": ["Sales"]},
        {"email": "user2@example.com", "groups": ["Nobody's", "Sales"], "displayName": "x"},
    ]
    answer = await client.call("updateUsers", {"users": users, "mode": "each"})
    assert codes(answer) == [None, None, "invalid_params"]
    assert answer["results"][2]["error"]["fields"] == [
        {"field": "groups.0", "message": "is no group of this instance"}
    ]
    shown = [(await client.call("getUserByEmail", user))["groups"] for user in people(3)]
    assert shown == [["Sales", "Support"], ["Sales"], []]
    poor = client.using(await insert_key(db, scopes=("users:write", "groups:write")))
    users = [
        {"email": "user0@example.com", "groups": ["Admins"]},
        {"email": "user1@example.com", "groups": []},
    ]
    assert codes(await poor.call("updateUsers", {"users": users, "mode": "each"})) == [
        "member_forbidden",
        None,
    ]
    poorer = client.using(await insert_key(db, scopes=("users:write",)))
    assert await poorer.outcome("updateUsers", {"users": users[1:]}) == (403, "not-allowed")


async def test_ensuring_tells_the_groups_and_changes_the_quotas(
    client: Client, db: asyncpg.Connection
) -> None:
    await client.call("createGroup", {"name": "Sales"})
    await client.call("addToGroup", {"name": "Sales", "email": ADMIN})
    ensured = await client.call("ensureUser", {"email": ADMIN, "quotas": {"mail": 100}})
    assert ensured["changed"] is True
    assert ensured["user"] == await client.call("getUserByEmail", {"email": ADMIN})
    assert ensured["user"]["groups"] == ["Admins", "Sales"]
    assert (await client.call("getQuotasByEmail", {"email": ADMIN}))["mail"]["limit"] == 100
    event = await db.fetchrow("SELECT * FROM events WHERE method = 'ensureUser'")
    assert (event["type"], event["before"], event["after"]) == (
        "user.updated", '{"quotas": {"mail": null}}', '{"quotas": {"mail": 100}}',
    )  # fmt: skip
    again = await client.call("ensureUsers", {"users": [{"email": ADMIN, "quotas": {"mail": 100}}]})
    assert again["results"][0]["result"]["changed"] is False


async def test_seats_of_many(client: Client, operator: Client, db: asyncpg.Connection) -> None:
    """Who finds no seat is refused, in the items' order; atomic: all of them."""
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "settings": {"maxUsers": 3}})
    before = await footprint(db)
    for name in ("createUsers", "ensureUsers"):
        status, message = await client.outcome(name, {"users": people(3)})
        assert (status, message) == (400, "users.2.params: the instance has no seat left (maxUsers)")
        assert await footprint(db) == before
    users = [{"email": "nonsense"}, *people(4)]
    answer = await client.call("createUsers", {"users": users, "mode": "each"})
    assert codes(answer) == ["invalid_params", None, None, "seats_exhausted", "seats_exhausted"]
    answer = await client.call("ensureUsers", {"users": people(3, displayName="x"), "mode": "each"})
    assert codes(answer) == [None, None, "seats_exhausted"]
    assert await client.outcome("ensureUser", {"email": "new@example.com"}) == (
        400, "the instance has no seat left (maxUsers)",
    )  # fmt: skip


async def test_the_second_of_two_is_made_where_the_first_is_not(client: Client) -> None:
    """Its password is hashed, although it looked like a duplicate."""
    users = [
        {"email": "x@example.com", "planId": 999},
        {"email": "x@example.com", "password": "demo1234"},
    ]
    for name in ("createUsers", "ensureUsers"):
        answer = await client.call(name, {"users": users, "mode": "each"})
        assert codes(answer) == (["invalid_params", None] if name == "createUsers" else [None, "named_twice"])
        if name == "createUsers":
            await client.call("login", {"email": "x@example.com", "password": "demo1234"})
    new = [user | {"email": "y@example.com"} for user in users]
    assert codes(await client.call("ensureUsers", {"users": new, "mode": "each"})) == ["invalid_params", None]
    await client.call("login", {"email": "y@example.com", "password": "demo1234"})
    await client.call("login", {"email": "x@example.com", "password": "demo1234"})


async def test_deletions(client: Client, db: asyncpg.Connection) -> None:
    await client.call("createUsers", {"users": people(4, password="demo1234")})
    await client.call("login", {"email": "user0@example.com", "password": "demo1234"})
    before = await footprint(db)
    named = [{"email": "User0@example.com"}, {"email": "nobody@example.com"}, {"email": "user0@example.com"}]
    assert await client.outcome("deleteUsers", {"users": named}) == (
        400,
        "users.1: not found; users.2: not found",
    )
    assert await footprint(db) == before
    answer = await client.call(
        "deleteUsers", {"users": [*named, {"email": "user1@example.com"}], "mode": "each"}
    )
    assert codes(answer) == [None, "not_found", "not_found", None]
    assert await db.fetchval("SELECT living_users FROM instance_counters") == 3
    assert await db.fetchval("SELECT count(*) FROM sessions") == 0
    listed = await client.call("listUsers", {"status": "deleted"})
    assert [user["email"] for user in listed["users"]] == ["user0@example.com", "user1@example.com"]
    await client.call("restoreUserByEmail", {"email": "user0@example.com"})
    types = await db.fetch("SELECT type, user_id FROM events WHERE method = 'deleteUsers' ORDER BY place")
    assert [tuple(row) for row in types] == [
        ("user.deleted", 2), ("user.deleted", 3), ("session.revoked", 2),
    ]  # fmt: skip


async def test_what_changes_nothing_is_written_down_in_one_line(
    client: Client, db: asyncpg.Connection
) -> None:
    await client.call("createUsers", {"users": people(3, password="Sesame-4711")})
    await client.call("createUsers", {"users": people(3, password="Sesame-4711"), "mode": "each"})
    await client.call("ensureUsers", {"users": people(3, password="Sesame-4711")})
    rows = await db.fetch(
        "SELECT type, after FROM events WHERE xid > (SELECT min(xid) FROM events WHERE method = 'createUsers') ORDER BY xid"
    )
    assert [(row["type"], row["after"]) for row in rows] == [
        ("createUsers", '{"users": 3, "failed": 3}'),
        ("ensureUsers", '{"users": 3, "failed": 0}'),
    ]


# --- ensuring -----------------------------------------------------------------------------------------


async def test_ensuring_creates_then_changes_then_leaves_alone(
    client: Client, db: asyncpg.Connection
) -> None:
    wanted = {
        "email": "Ann@example.com",
        "externalId": "shop-1",
        "displayName": "Ann",
        "password": "demo1234",
    }
    first = await client.call("ensureUser", wanted)
    assert (first["created"], first["changed"], first["user"]["displayName"]) == (True, True, "Ann")
    assert first["user"] == await client.call("getUserByEmail", {"email": "ann@example.com"})
    again = await client.call("ensureUser", wanted | {"email": "ANN@example.com"})
    assert again == {"created": False, "changed": False, "user": first["user"]}
    changed = await client.call(
        "ensureUser",
        {"email": "ann@example.com", "profile": {"title": "Dr."}, "isActive": False, "lastName": "Lee"},
    )
    assert (changed["created"], changed["changed"]) == (False, True)
    user = changed["user"]
    assert (user["displayName"], user["isActive"], user["profile"]["title"]) == ("Lee", False, "Dr.")
    # The password is for new users alone: she may have changed it.
    await client.call("ensureUser", wanted | {"password": "another", "isActive": True})
    await client.call("login", {"email": "ann@example.com", "password": "demo1234"})
    types = await db.fetch("SELECT type FROM events WHERE method = 'ensureUser' ORDER BY xid, place")
    assert [row["type"] for row in types] == [
        "user.created", "ensureUser", "user.suspended", "user.updated", "user.reactivated", "user.updated",
    ]  # fmt: skip


async def test_ensuring_by_external_id(client: Client, db: asyncpg.Connection) -> None:
    await client.call("createUser", {"email": "ann@example.com"})
    await client.call("createUser", {"email": "bob@example.com", "externalId": "b"})
    await db.execute(
        "INSERT INTO codes (instance_id, user_id, purpose, digest, expires_at)"
        " VALUES (1, 3, 'reset', 'x', now() + interval '1 day')"
    )
    # Found by e-mail, the user is given the external id.
    linked = await client.call("ensureUser", {"email": "ann@example.com", "externalId": "a"})
    assert (linked["created"], linked["changed"], linked["user"]["id"]) == (False, True, 2)
    # Found by external id, it moves to the new e-mail; codes that went to the old one are void.
    moved = await client.call("ensureUser", {"externalId": "b", "email": "bob.roe@example.com"})
    assert (moved["user"]["id"], moved["user"]["email"]) == (3, "bob.roe@example.com")
    assert await db.fetchval("SELECT count(*) FROM codes") == 0
    named = await client.call("ensureUser", {"externalId": "b", "displayName": "Bob"})
    assert (named["changed"], named["user"]["displayName"]) == (True, "Bob")
    before = await footprint(db)
    for params, code in (
        ({"externalId": "b", "email": "ann@example.com"}, "duplicate_email"),
        ({"externalId": "c", "email": "ann@example.com"}, "duplicate_email"),
        ({"externalId": "c"}, "invalid_params"),
        ({"displayName": "x"}, "invalid_params"),
        ({"email": "new@example.com", "planId": 9}, "invalid_params"),
    ):
        async with await client.post({"method": "ensureUser", "params": params}) as response:
            assert (response.status, response.headers["X-Error-Code"]) == (400, code), params
    await client.call("deleteUserByEmail", {"email": "ann@example.com"})
    for params in ({"email": "ann@example.com"}, {"externalId": "a"}):
        async with await client.post({"method": "ensureUser", "params": params}) as response:
            assert response.headers["X-Error-Code"] == "user_deleted"
    after = await footprint(db)
    assert after | {"events": 0} == before | {"events": 0}


async def test_ensuring_many(client: Client, db: asyncpg.Connection) -> None:
    await client.call("createUser", {"email": "ann@example.com", "externalId": "a"})
    await client.call("createUser", {"email": "bob@example.com"})
    users: list[Any] = [
        {"email": "new@example.com", "displayName": "New", "password": "demo1234"},
        {"email": "ann@example.com"},
        {"email": "bob@example.com", "displayName": "Bob"},
        {"email": "NEW@example.com"},
        {"externalId": "a", "displayName": "x"},
        {"externalId": "nobody"},
        {"email": "carol@example.com", "externalId": "c"},
        {"email": "dave@example.com", "externalId": "c"},
        {"email": "nonsense"},
    ]
    answer = await client.call("ensureUsers", {"users": users, "mode": "each"})
    assert codes(answer) == [
        None, None, None, "duplicate_email", "named_twice", "invalid_params", None, "duplicate_external_id",
        "invalid_params",
    ]  # fmt: skip
    done = [
        item["result"] and (item["result"]["created"], item["result"]["changed"])
        for item in answer["results"]
    ]
    assert done == [(True, True), (False, False), (False, True), None, None, None, (True, True), None, None]
    assert [item["result"]["user"]["email"] for item in answer["results"] if item["result"]] == [
        "new@example.com", "ann@example.com", "bob@example.com", "carol@example.com",
    ]  # fmt: skip
    before = await footprint(db)
    assert (await client.outcome("ensureUsers", {"users": [{"email": "x@example.com"}, users[5]]}))[0] == 400
    assert await footprint(db) == before
    await client.call("login", {"email": "new@example.com", "password": "demo1234"})


# --- others at the same time --------------------------------------------------------------------------


async def test_twenty_who_ensure_the_same_user(client: Client, db: asyncpg.Connection) -> None:
    for round_ in range(3):
        email = f"ann{round_}@example.com"
        answers = await asyncio.gather(
            *(client.call("ensureUser", {"email": email, "displayName": f"Ann {n % 2}"}) for n in range(20))
        )
        assert sum(answer["created"] for answer in answers) == 1
        assert len({answer["user"]["id"] for answer in answers}) == 1
    assert await db.fetchval("SELECT count(*) FROM users") == 4
    assert await db.fetchval("SELECT count(*) FROM events WHERE type = 'user.created' AND user_id > 1") == 3


async def test_whoever_comes_in_between(client: Client, db: asyncpg.Connection) -> None:
    """Overlapping batches, single creations and renames at once: nobody twice, nobody half."""
    for number in range(10):
        await client.call("createUser", {"email": f"old{number}@example.com"})
    batches = [
        client.outcome(name, {"users": people(60)[start : start + 30], "mode": "each"})
        for start in (0, 10, 20, 30)
        for name in ("createUsers", "ensureUsers")
    ]
    singles = [client.outcome("createUser", user) for user in people(60)[::7]]
    renames = [
        client.outcome(
            "renameUserByEmail", {"email": f"old{n}@example.com", "newEmail": f"user{n * 6}@example.com"}
        )
        for n in range(10)
    ]
    outcomes = await asyncio.gather(*batches, *singles, *renames)
    assert {status for status, _ in outcomes} <= {200, 400}, outcomes
    for status, answer in outcomes[: len(batches)]:
        assert status == 200
        assert set(codes(answer)) <= {None, "duplicate_email"}
    emails = [row["email_key"] for row in await db.fetch("SELECT email_key FROM users")]
    assert {user["email"] for user in people(60)} <= set(emails)
    counters = await db.fetchrow("SELECT * FROM instance_counters")
    assert counters["living_users"] == len(emails)
    for table, each in (("mailboxes", 6), ("calendars", 1), ("file_folders", 2)):
        assert await db.fetchval(f"SELECT count(*) FROM {table}") == each * len(emails)
        assert counters[table] == each * counters["users"]


async def test_someone_takes_the_address_while_the_batch_runs(client: Client, db: asyncpg.Connection) -> None:
    """Between the look and the insertion: the batch begins again, and answers as if it had come later."""
    await client.call("createUser", {"email": "old@example.com"})
    async with db.transaction():
        await db.execute(
            "UPDATE users SET email = 'user1@example.com', email_key = 'user1@example.com' WHERE id = 2"
        )
        waiting = asyncio.create_task(client.call("createUsers", {"users": people(3), "mode": "each"}))
        while not await db.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            await db.execute("SELECT pg_stat_clear_snapshot()")
            await asyncio.sleep(0.01)
    assert codes(await waiting) == [None, "duplicate_email", None]


@pytest.mark.slow
async def test_others_get_their_turn_while_many_are_hashed(serve: Serve) -> None:
    client = await serve(hash_threads=1, hash_queue=2, argon2_memory=19456, argon2_time=2)
    many = asyncio.create_task(client.call("createUsers", {"users": people(40, password="demo1234")}))
    await asyncio.sleep(0.1)
    for number in range(3):
        await client.call("createUser", {"email": f"single{number}@example.com", "password": "demo1234"})
    assert not many.done()
    assert (await many)["succeeded"] == 40


async def test_others_have_the_event_loop_meanwhile() -> None:
    """Between the items, again and again."""
    turns, done = 0, False

    async def count() -> None:
        nonlocal turns
        while not done:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    batch = await checked(NewUser, "each", people(1000, displayName="A name", passwordHash=HASH), Settings())
    done = True
    await counting
    assert len(batch.items) == 1000 and turns > 5


@pytest.mark.parametrize("method", ["createUsers", "updateUsers", "deleteUsers", "ensureUsers"])
async def test_addresses_in_other_scripts_leave_the_event_loop_to_others(
    method: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """email-validator takes up to half a millisecond for each."""
    in_turn, most, done = 0, 0, False
    validate = user_models.address

    def counted(email: str) -> str:
        nonlocal in_turn
        in_turn += 1
        return validate(email)

    async def watch() -> None:
        nonlocal in_turn, most
        while not done:
            await asyncio.sleep(0)
            most, in_turn = max(most, in_turn), 0

    items = [{"email": f"ü{number}@{method.lower()}.example"} for number in range(400)]
    if method in ("createUsers", "ensureUsers"):
        items = [item | {"passwordHash": HASH} for item in items]
    if method == "updateUsers":
        items = [item | {"displayName": "A name"} for item in items]
    monkeypatch.setattr(user_models, "address", counted)
    watching = asyncio.create_task(watch())
    answer = await client.call(method, {"mode": "each", "users": items})
    done = True
    await watching
    assert answer["succeeded"] == (400 if method in ("createUsers", "ensureUsers") else 0)
    assert 0 < most < 50


def test_keys_of_addresses_in_other_scripts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    key = email_key("Kept-Ü@Example.com")
    monkeypatch.setattr(user_models, "address", None)
    assert key == email_key("Kept-Ü@Example.com") == "kept-ü@example.com"
