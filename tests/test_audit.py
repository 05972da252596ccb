"""The audit: before and after of every method, and who may read it."""

import asyncio
import json
from typing import Any

import asyncpg
import pytest
from conftest import ADMIN, Client, insert_key, until

from server.base.settings import Settings
from server.base.tokens import digest
from server.directory.upkeep import purge_expired
from server.events import audit
from server.events.audit import shortened
from server.methods.avatars import EXAMPLE_DOT
from server.methods.codes import EXAMPLE_CODES
from server.methods.sessions import EXAMPLE_TOKEN
from server.postgres.db import Database
from server.postgres.queries import load_queries

JANE = "jane@example.com"
WHO = {"email": JANE, "displayName": "Jane Doe"}
DOT = {"data": EXAMPLE_DOT, "baseName": "dot", "extension": "png"}
ENDED = ("session.revoked", {"sessions": 1}, {"sessions": 0})
PASSWORD = ("user.password_changed", {"password": "***"}, {"password": "***"})

CHANGES: dict[str, tuple[str, dict[str, Any], list[tuple[str, Any, Any]]]] = {
    "several members": (
        "updateUserByEmail",
        {"email": JANE, "displayName": "J.", "isAdmin": True, "profile": {"title": "Dr."}, "externalId": "x1"},
        [("user.updated",
          {"displayName": "Jane Doe", "isAdmin": False, "profile": {"title": None}, "externalId": None},
          {"displayName": "J.", "isAdmin": True, "profile": {"title": "Dr."}, "externalId": "x1"})],
    ),
    "suspension, with something else": (
        "updateUserByEmail", {"email": JANE, "isActive": False, "apps": [1]},
        [("user.suspended", {"isActive": True}, {"isActive": False}),
         ("user.updated", {"apps": [0, 0, 0]}, {"apps": [1]}), ENDED],
    ),
    "nothing": (
        "updateUserByEmail", {"email": JANE, "isActive": True},
        [("updateUserByEmail", None, {"email": JANE, "isActive": True})],
    ),
    "password": ("resetPasswordByEmail", {"email": JANE, "password": "onemoretime"}, [PASSWORD, ENDED]),
    "password by id": ("setPassword", {"id": 2, "newPassword": "onemoretime"}, [PASSWORD, ENDED]),
    "password by code": (
        "resetPasswordWithCode", {"code": EXAMPLE_CODES["reset"], "newPassword": "onemoretime"}, [PASSWORD, ENDED],
    ),
    "first password": (
        "resetPasswordByEmail", {"email": ADMIN, "password": "onemoretime"},
        [("user.password_changed", {"password": None}, {"password": "***"})],
    ),
    "rename": (
        "renameUserByEmail", {"email": JANE, "newEmail": "j@example.com"},
        [("user.updated", {"email": JANE}, {"email": "j@example.com"})],
    ),
    "replace": (
        "replaceUserByEmail",
        {"email": JANE, "newEmail": "j@example.com", "firstName": "Jo", "password": "onemoretime"},
        [("user.updated", {"email": JANE, "displayName": "Jane Doe", "fields": {"firstname": None}},
          {"email": "j@example.com", "displayName": "Jo", "fields": {"firstname": "Jo"}}), PASSWORD, ENDED],
    ),
    "delete": ("deleteUserByEmail", {"email": JANE}, [("user.deleted", WHO, None), ENDED]),
    "delete by id": (
        "deleteUserById", {"id": 2, "withAccount": True}, [("user.deleted", WHO, {"accountClosed": True}), ENDED],
    ),
    "restore": (
        "restoreUserByEmail", {"email": "gone@example.com"},
        [("user.restored", None, {"email": "gone@example.com", "displayName": "gone"})],
    ),
    "purge": (
        "purgeUserByEmail", {"email": "gone@example.com"},
        [("user.purged", {"email": "gone@example.com", "displayName": "gone"}, None)],
    ),
    "language": (
        "changeLanguage", {"id": 2, "language": "ru"}, [("user.updated", {"language": "en"}, {"language": "ru"})],
    ),
    "avatar away": (
        "removeAvatar", {"id": 2}, [("user.updated", {"avatar": "https://a.example/b.png"}, {"avatar": ""})],
    ),
    "logout": ("logout", {"token": EXAMPLE_TOKEN}, [("session.revoked", {"sessionId": 1}, None)]),
    "end a session": ("endSession", {"id": 1}, [("session.revoked", {"sessionId": 1}, None)]),
    "force logout": ("forceLogoutByEmail", {"email": JANE}, [ENDED]),
    "force logout by id": ("forceLogoutById", {"id": 2}, [ENDED]),
    "nobody to log out": ("forceLogoutById", {"email": ADMIN}, [("forceLogoutById", None, {"email": ADMIN})]),
    "deactivate": (
        "deactivateUserById", {"id": 2}, [("user.suspended", {"isActive": True}, {"isActive": False}), ENDED],
    ),
    "confirm": (
        "confirmEmail", {"code": EXAMPLE_CODES["confirm"]},
        [("user.confirmed", {"isConfirmed": False}, {"isConfirmed": True})],
    ),
    "store": (
        "updateStoreUser",
        {"id": 2, "email": "j@example.com", "externalId": "s1", "onlySeesReadable": True, "planId": 1,
         "planValidTo": "2999-12-31", "planName": "Mine"},
        [("user.updated", {"email": JANE, "externalId": None, "onlySeesReadable": False},
          {"email": "j@example.com", "externalId": "s1", "onlySeesReadable": True}),
         ("user.updated", {"plan": None}, "a plan until 2999"),
         ("user.updated", {"plan": {"planId": 1, "name": None}}, {"plan": {"planId": 1, "name": "Mine"}})],
    ),
    "plan": (
        "updatePlan", {"id": 1, "name": "Twelve"},
        [("updatePlan", {"id": 1, "name": "A year"}, {"id": 1, "name": "Twelve"})],
    ),
    "field": (
        "defineProfileField", {"alias": "shoe_size", "title": "Shoes", "type": "string"},
        [("defineProfileField",
          {"alias": "shoe_size", "title": "Shoe size", "type": "number", "choices": [], "mandatory": False},
          {"alias": "shoe_size", "title": "Shoes", "type": "string", "choices": [], "mandatory": False})],
    ),
    "place": (
        "addToTree", {"accountId": 1, "treeId": 7},
        [("addToTree", None, {"accountId": 1, "treeId": 7, "sponsorPositionId": None, "positionId": 2})],
    ),
}  # fmt: skip


@pytest.fixture
async def world(client: Client, jane: dict[str, Any], db: asyncpg.Connection) -> Client:
    """Jane, unconfirmed but logged in, with an avatar; a deleted user, a plan and a profile field."""
    await client.call("createUser", {"email": "gone@example.com"})
    await client.call("deleteUserByEmail", {"email": "gone@example.com"})
    await client.call("createPlan", {"type": "prepaid", "name": "A year", "duration": 12})
    await client.call("defineProfileField", {"alias": "shoe_size", "title": "Shoe size", "type": "number"})
    await db.execute("UPDATE users SET confirmed_at = NULL, avatar = 'https://a.example/b.png' WHERE id = 2")
    return client


@pytest.mark.parametrize("what", CHANGES)
async def test_before_and_after(what: str, world: Client) -> None:
    name, params, expected = CHANGES[what]
    await world.call(name, params, headers={"X-Request-Id": "this-one"})
    page = await world.call("listAuditEvents", {"method": name})
    events = [event for event in reversed(page["events"]) if event["requestId"] == "this-one"]
    assert [event["type"] for event in events] == [kind for kind, _, _ in expected]
    for event, (_, before, after) in zip(events, expected, strict=True):
        assert event["before"] == before
        if after == "a plan until 2999":
            assert event["after"]["plan"]["validTo"] == "2999-12-31"
        else:
            assert event["after"] == after


async def test_two_first_passwords_at_the_same_time(client: Client, db: asyncpg.Connection) -> None:
    """The second one replaces the first one, which was set while it waited for the user."""
    async with db.transaction():
        await db.execute("SELECT FROM users WHERE id = 1 FOR NO KEY UPDATE")
        calls = [
            asyncio.create_task(
                client.call("resetPasswordByEmail", {"email": ADMIN, "password": f"demo{one}"})
            )
            for one in range(2)
        ]
        waiting = "datname = current_database() AND wait_event_type = 'Lock'"
        await until(lambda: db.fetchval(f"SELECT count(*) = 2 FROM pg_stat_activity WHERE {waiting}"))
    await asyncio.gather(*calls)
    told = await db.fetch(
        "SELECT before FROM events WHERE type = 'user.password_changed' ORDER BY xid, place"
    )
    assert [json.loads(row["before"] or "null") for row in told] == [{"password": None}, {"password": "***"}]


async def test_who_what_when_and_from_where(client: Client, db: asyncpg.Connection) -> None:
    headers = {"X-Request-Id": "order-17", "X-Origin": "shop"}
    given = {"email": JANE, "password": "demo1234", "firstName": "Jane", "externalId": "s1"}
    await client.call("createUser", given, headers=headers)
    (event,) = (await client.call("listAuditEvents", {"email": JANE}))["events"]
    assert event["after"] == {
        "email": JANE, "displayName": "Jane", "isActive": True, "isAdmin": False, "isConfirmed": True,
        "language": "en", "fields": {"firstname": "Jane"}, "externalId": "s1",
    }  # fmt: skip
    key_id = await db.fetchval("SELECT id FROM api_keys WHERE digest = $1", digest(client.key))
    shown = {name: event[name] for name in ("type", "userId", "before", "method", "keyId", "keyName")}
    assert shown == {
        "type": "user.created", "userId": 2, "before": None, "method": "createUser", "keyId": key_id, "keyName": "test",
    }  # fmt: skip
    assert (event["requestId"], event["address"], event["origin"]) == ("order-17", "127.0.0.1", "shop")
    assert event["createdAt"].endswith("Z")


@pytest.mark.parametrize("origin", ["x" * 65, "two words", "Ä"])
async def test_an_origin_that_is_no_name(origin: str, client: Client, db: asyncpg.Connection) -> None:
    status, told = await client.outcome("createUser", {"email": JANE}, headers={"X-Origin": origin})
    assert status == 400 and told.startswith("X-Origin: must be")
    assert await db.fetchval("SELECT count(*) FROM users") == 1


async def test_what_the_queue_changes_is_theirs_who_asked(client: Client, jane: dict[str, Any]) -> None:
    """The event is written in the transaction that changes the user, not before."""
    headers = {"X-Request-Id": "ask-1", "X-Origin": "crm"}
    profile = {"firstname": "Janet", "lastname": "Doe", "avatar": DOT}
    await client.call("updateProfile", {"id": 2, "profile": profile}, headers=headers)

    async def written() -> Any:
        page = await client.call("listAuditEvents", {"userId": 2, "method": "updateProfile"})
        return len(page["events"]) == 2 and page["events"]

    (event, picture) = await until(written)
    assert event["type"] == picture["type"] == "user.updated"
    assert event["before"] == {"displayName": "Jane Doe", "fields": {"firstname": None, "lastname": None}}
    assert event["after"] == {"displayName": "Janet Doe", "fields": {"firstname": "Janet", "lastname": "Doe"}}
    for one in (event, picture):
        assert (one["requestId"], one["origin"], one["keyName"]) == ("ask-1", "crm", "test")
    assert list(picture["after"]) == ["avatar"]


async def test_a_call_that_changes_nothing_names_its_user(client: Client, jane: dict[str, Any]) -> None:
    await client.call("createGroup", {"name": "Sales"})
    plan = (await client.call("createPlan", {"type": "recurring", "name": "A plan"}))["id"]
    email, user_id = {"email": "jane@example.com"}, {"userId": 2}
    for method, params in (
        ("removeFromGroup", email | {"name": "Sales"}),
        ("removeFromGroup", email | {"name": "Admins"}),
        ("updateUserByEmail", email | {"isActive": True}),
        ("forceConfirmEmail", email),
        ("assignPlan", user_id | {"planId": plan}),
    ):
        await client.call(method, params)
        await client.call(method, params)
        page = await client.call("listAuditEvents", {"userId": 2, "method": method, "limit": 1})
        event = page["events"][0]
        assert (event["type"], event["userId"]) == (method, 2) and event["after"].items() >= params.items()


async def test_the_retention_writes_down_whom_it_purges(
    client: Client, other: Client, db: asyncpg.Connection, database_url: str
) -> None:
    for tenant in (client, other):
        for number in range(2):
            await tenant.call("createUser", {"email": f"{number}@example.com"})
            await tenant.call("deleteUserByEmail", {"email": f"{number}@example.com"})
    await db.execute("UPDATE users SET deleted_at = now() - interval '31 days' WHERE deleted_at IS NOT NULL")
    settings = Settings()
    database = Database(settings, database_url)
    await database.open()
    assert (await purge_expired(database, settings))["users"] == 4
    await database.close()
    for tenant in (client, other):
        events = (await tenant.call("listAuditEvents", {"type": "user.purged"}))["events"]
        assert {(event["userId"], event["before"]["email"]) for event in events} == {
            (2, "0@example.com"), (3, "1@example.com"),
        }  # fmt: skip
        assert {(event["method"], event["keyId"]) for event in events} == {("retention", 0)}
        by_email = (await tenant.call("listAuditEvents", {"email": "1@Example.com"}))["events"]
        assert [event["type"] for event in by_email] == ["user.purged", "user.deleted", "user.created"]


@pytest.mark.parametrize(
    ("login", "email"), [("JSmith", None), ("JSmith", "jo@example.com"), ("in@example.com", "jo@example.com")]
)
async def test_a_user_is_found_by_its_login_before_and_after_its_purge(
    login: str, email: str | None, client: Client
) -> None:
    profile = {"firstname": "Jo", "lastname": "Smith"} | ({"email": email} if email else {})
    made = await client.call("createMember", {"login": login, "sponsorId": 1, "profile": profile})

    async def types(name: str) -> set[str]:
        events = (await client.call("listAuditEvents", {"email": name}))["events"]
        assert {event["userId"] for event in events} == {made["member"]["id"]}
        return {event["type"] for event in events}

    names = [login.upper()] + ([email] if email else [])
    for name in names:
        assert "user.created" in await types(name)
    await client.call("deleteUserById", {"id": made["member"]["id"]})
    await client.call("purgeUserByEmail", {"email": names[-1]})
    for name in names:
        assert "user.purged" in await types(name)


async def test_events_go_after_a_year(client: Client, db: asyncpg.Connection, database_url: str) -> None:
    for days in (364, 366):
        await db.execute(
            "INSERT INTO events (instance_id, place, type, method, key_id, key_name, request_id, created_at)"
            " VALUES (1, $1, 'user.created', 'x', 1, 'x', 'x', now() - make_interval(days => $1))",
            days,
        )
    written = await db.fetchval("SELECT count(*) FROM events")
    settings = Settings()
    database = Database(settings, database_url)
    await database.open()
    assert (await purge_expired(database, settings))["events"] == 1
    await database.close()
    assert await db.fetchval("SELECT count(*) FROM events") == written - 1
    assert await db.fetchval("SELECT count(*) FROM events WHERE place = 364") == 1


async def test_pages_and_filters(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        await client.call("createUser", {"email": f"{number}@example.com"})
        await client.call("updateUserByEmail", {"email": f"{number}@example.com", "displayName": "x"})

    async def pages(**asked: Any) -> list[tuple[str, int]]:
        seen, after = [], None
        while True:
            page = await client.call("listAuditEvents", asked | {"after": after})
            seen += [(event["type"], event["userId"]) for event in page["events"]]
            after = page["next"]
            if after is None:
                return seen

    everything = await pages(limit=3)
    assert everything == await pages(limit=1000) and len(everything) >= 11
    assert everything[:2] == [("user.updated", 6), ("user.created", 6)]
    assert await pages(limit=2, userId=4) == [("user.updated", 4), ("user.created", 4)]
    assert await pages(email="2@example.com", userId=3) == []
    assert await pages(limit=2, method="updateUserByEmail") == [
        ("user.updated", id) for id in (6, 5, 4, 3, 2)
    ]
    assert await pages(limit=1, until=1) == await pages(**{"from": 4_000_000_000}) == []
    assert await pages(limit=5, until=4_000_000_000, **{"from": 1}) == everything
    # However few of many are asked for, a call looks at a bounded number, and the next goes on from there.
    monkeypatch.setattr(audit, "LOOKS", 3)
    assert await pages(limit=100, type="user.created") == [
        one for one in everything if one[0] == "user.created"
    ]


@pytest.mark.parametrize(
    "bad",
    [{"after": "x"}, {"after": "MjAyMy0wMS0wMSAxIDE"}, {"limit": 0}, {"from": -1}, {"until": "now"}, {"from_": 1},
     {"userId": 0}],
)  # fmt: skip
async def test_bad_params(bad: dict[str, Any], client: Client) -> None:
    status, told = await client.outcome("listAuditEvents", bad)
    assert status == 400 and next(iter(bad)) in told


async def test_tenants_see_their_own(client: Client, other: Client, operator: Client) -> None:
    await client.call("createUser", {"email": JANE})
    assert (await other.call("listAuditEvents", {"email": JANE}))["events"] == []
    made = (await other.call("listAuditEvents"))["events"]
    assert [event["type"] for event in made] == ["user.created", "createInstance"]
    assert await other.outcome("listAuditEvents", {"instance": "MYINSTANCE"}) == (403, "not-allowed")
    mine = await operator.call("listAuditEvents", {"instance": "MYINSTANCE", "email": JANE})
    assert len(mine["events"]) == 1


async def test_what_belongs_to_no_instance_is_the_operators(
    client: Client, operator: Client, db: asyncpg.Connection
) -> None:
    created = await operator.call(
        "createApiKey", {"name": "ops", "scopes": ["jobs:read"], "isOperator": True}
    )
    (event,) = (await operator.call("listAuditEvents"))["events"]
    assert (event["type"], event["after"]["name"], event["after"]["key"]) == ("createApiKey", "ops", "***")
    assert created["key"] not in str(event)
    mine = (await client.call("listAuditEvents", {"limit": 1000}))["events"]
    assert "createApiKey" not in {one["type"] for one in mine}
    poor = client.using(await insert_key(db, scopes=("users:read",)))
    assert await poor.outcome("listAuditEvents") == (403, "not-allowed")


async def test_actors(client: Client, operator: Client, db: asyncpg.Connection) -> None:
    """A key, the system, and a person; events of versions that stored no kind tell a key from the system by its id."""
    await client.call("createUser", {"email": JANE})
    key_id = await db.fetchval("SELECT id FROM api_keys WHERE name = 'test'")

    async def shown() -> tuple[dict[str, Any], int, str]:
        (event,) = (await client.call("listAuditEvents", {"limit": 1}))["events"]
        return event["actor"], event["keyId"], event["keyName"]

    assert await shown() == ({"kind": "key", "id": key_id, "name": "test"}, key_id, "test")
    for place, (kind, actor_id, told, told_key) in enumerate(
        [(None, 7, "key", 7), (None, 0, "system", 0), ("system", 0, "system", 0), ("person", 7, "person", 0)]
    ):
        await db.execute(
            "INSERT INTO events (instance_id, place, type, method, actor_kind, key_id, key_name, request_id)"
            " VALUES (1, $1, 'x', 'x', $2, $3, 'ann', 'x')",
            place, kind, actor_id,
        )  # fmt: skip
        assert await shown() == ({"kind": told, "id": actor_id, "name": "ann"}, told_key, "ann")


async def test_what_the_command_line_does_is_the_systems(client: Client, officerpc: Any) -> None:
    await officerpc("users", "create", JANE, "-i", "MYINSTANCE")
    listed = await officerpc("audit", "-i", "MYINSTANCE", "--type", "user.created", "--limit", "1", "--json")
    assert listed.json["actor"] == {"kind": "system", "id": 0, "name": "command line"}


def test_what_is_long_is_shown_shortened() -> None:
    """And nothing is hidden by the name of a member: events hold no secrets."""
    given = {
        "password": "x",
        "nested": [{"key": "x", "token": None}],
        "long": "y" * 2000,
        "big": ["z"] * 9000,
    }
    assert shortened(given) == given | {"long": "y" * 1000 + "...", "big": "..."}


ENDING = {
    "updateUserByEmail": {"email": JANE, "isActive": False},
    "resetPasswordByEmail": {"email": JANE, "password": "onemoretime"},
    "replaceUserByEmail": {"email": JANE, "password": "onemoretime"},
    "deleteUserByEmail": {"email": JANE},
    "forceLogoutByEmail": {"email": JANE},
    "setPassword": {"id": 2, "newPassword": "onemoretime"},
    "deleteUserById": {"id": 2},
    "deactivateUserById": {"id": 2},
    "forceLogoutById": {"id": 2},
    "resetPasswordWithCode": {"code": EXAMPLE_CODES["reset"], "newPassword": "onemoretime"},
    "updateStoreUser": {
        "id": 2, "email": JANE, "externalId": "x", "onlySeesReadable": False, "newPassword": "onemoretime",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ENDING)
async def test_a_login_that_commits_meanwhile_keeps_no_session(
    name: str, client: Client, jane: dict[str, Any], db: asyncpg.Connection, database_url: str
) -> None:
    """The call waits for the user's row, which a login holds; that login's session ends with the others."""
    login = await asyncpg.connect(database_url)
    transaction = login.transaction()
    await transaction.start()
    await login.execute("SELECT FROM users WHERE instance_id = 1 AND id = 2 FOR NO KEY UPDATE")
    await login.execute(
        "INSERT INTO sessions (instance_id, id, user_id, token_digest, expires_at)"
        " VALUES (1, 99, 2, 'another', now() + interval '1 day')"
    )
    ending = asyncio.create_task(client.call(name, ENDING[name]))

    async def waiting() -> bool:
        return bool(
            await db.fetchval(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        )

    await until(waiting)
    await transaction.commit()
    await login.close()
    await ending
    assert await db.fetchval("SELECT count(*) FROM sessions") == 0
    revoked = await db.fetchval("SELECT before FROM events WHERE type = 'session.revoked'")
    assert revoked == '{"sessions": 2}'


@pytest.mark.damages
async def test_the_events_of_a_user_are_found_by_user(client: Client, db: asyncpg.Connection) -> None:
    """In a large instance among small ones too, where the average says that an instance has few events."""
    await db.execute(
        "INSERT INTO events (instance_id, place, type, user_id, method, key_id, key_name, request_id, created_at)"
        " SELECT CASE WHEN n % 20 = 0 THEN 100 + n % 400 ELSE 1 END, n, 'user.updated', n % 2000, 'x', 1, 'x', 'x',"
        " now() - n * interval '1 second' FROM generate_series(1, 40000) AS n"
    )
    await db.execute("VACUUM ANALYZE events")
    query = load_queries()["list_events"]
    await db.execute("SET plan_cache_mode = force_generic_plan")
    await db.execute(f"PREPARE audited AS {query.sql}")
    given = {
        "instance_id": "1", "user_ids": "'{3,7,11}'", "type": "NULL", "method": "NULL", "since": "'2000-01-01'",
        "until": "'infinity'", "before_time": "'infinity'", "before_xid": "'0'", "before_seq": "0", "look": "10000",
        "row_limit": "101", "byte_limit": "1000000",
    }  # fmt: skip
    values = ", ".join(given[param] for param in query.params)
    told = await db.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE audited ({values})")
    waiting, looked = [json.loads(told)[0]["Plan"]], []
    while waiting:
        node = waiting.pop()
        waiting += node.get("Plans", [])
        if node.get("Relation Name") == "events" and node["Actual Loops"]:
            looked.append(node)
    assert [(node["Index Name"], node["Actual Loops"]) for node in looked] == [("events_by_user", 3)]
    assert looked[0].get("Rows Removed by Filter", 0) == 0
