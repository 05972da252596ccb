"""Instances: operators create, list, change and suspend them."""

import asyncio
from typing import Any

import asyncpg
import pytest
from conftest import ADMIN, LINK_HOST, Client, footprint, insert_key, until

from server.methods.registry import METHODS
from server.tenants.instances import InstanceSettings


async def test_a_new_instance_has_its_administrator(operator: Client) -> None:
    created = await operator.call(
        "createInstance",
        {"name": "ACME", "title": "Acme Inc.", "admin": {"email": "boss@acme.example", "password": "demo1234",
                                                       "displayName": "The Boss"}},
    )  # fmt: skip
    assert (created["name"], created["title"], created["isActive"], created["adminId"]) == (
        "ACME",
        "Acme Inc.",
        True,
        1,
    )
    boss = await operator.call(
        "login", {"instance": "ACME", "email": "boss@acme.example", "password": "demo1234"}
    )
    assert (boss["isAdmin"], boss["displayName"], boss["inbox"]) == (True, "The Boss", 1)
    assert (await operator.call("getInstance", {"instance": "ACME"}))["users"] == 1


async def test_names_are_unique_and_nothing_is_left_of_a_refused_one(
    operator: Client, db: asyncpg.Connection
) -> None:
    before = await footprint(db)
    assert await operator.outcome("createInstance", {"name": "MYINSTANCE", "admin": {"email": ADMIN}}) == (
        400, 'duplicate key value violates unique constraint "instances_name"',
    )  # fmt: skip
    assert await footprint(db) == before


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"name": "a b"}, "name: must match pattern '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'"),
        ({"name": "x", "admin": {"email": "nobody"}}, "admin.email: is not a valid e-mail address"),
        ({"name": "x", "admin": {}}, "admin.email: is required"),
        ({"name": "x", "settings": {"colour": 1}}, "settings.colour: is not a member of this call"),
        (
            {"name": "x", "settings": {"passwordPolicy": {"minLength": 12}},
             "admin": {"email": ADMIN, "password": "short"}},
            "admin.password: must have at least 12 characters",
        ),
    ],
)  # fmt: skip
async def test_bad_instances(params: dict[str, Any], message: str, operator: Client) -> None:
    assert await operator.outcome("createInstance", {"admin": {"email": ADMIN}} | params) == (400, message)


async def test_only_operators_make_instances(client: Client, db: asyncpg.Connection) -> None:
    everything = client.using(await insert_key(db, scopes=("instances:write", "instances:read")))
    for method, params in (
        ("createInstance", {"name": "x", "admin": {"email": ADMIN}}), ("listInstances", {}),
        ("updateInstance", {"title": "x"}),
    ):  # fmt: skip
        assert await everything.outcome(method, params) == (403, "not-allowed")
    assert (await everything.call("getInstance"))["name"] == "MYINSTANCE"


async def test_pages_of_instances(operator: Client) -> None:
    for name in ("B", "A", "C"):
        await operator.call("createInstance", {"name": name, "admin": {"email": ADMIN}})
    first = await operator.call("listInstances", {"limit": 3})
    assert [instance["name"] for instance in first["instances"]] == ["A", "B", "C"]
    second = await operator.call("listInstances", {"limit": 3, "after": first["next"]})
    assert [instance["name"] for instance in second["instances"]] == ["MYINSTANCE"]
    assert second["next"] is None


async def test_settings_are_merged(operator: Client) -> None:
    mine = {"instance": "MYINSTANCE"}
    await operator.call("updateInstance", mine | {"settings": {"passwordPolicy": {"minLength": 12}}})
    await operator.call("updateInstance", mine | {"settings": {"retentionDays": 5}, "title": "Mine"})
    await operator.call("updateInstance", mine | {"settings": {"passwordPolicy": {"minClasses": 3}}})
    found = await operator.call("getInstance", mine)
    assert found["title"] == "Mine"
    untouched = InstanceSettings(confirmationHosts=[LINK_HOST]).model_dump()
    assert found["settings"] == untouched | {
        "passwordPolicy": {"minLength": 12, "minClasses": 3, "refuseCommon": False}, "retentionDays": 5,
    }  # fmt: skip
    await operator.call("updateInstance", mine | {"settings": {"retentionDays": None}})
    assert (await operator.call("getInstance", mine))["settings"]["retentionDays"] is None
    assert await operator.outcome("updateInstance", mine) == (
        400,
        "params: name at least one member to change",
    )


@pytest.mark.parametrize(
    ("password", "message"),
    [
        ("Abcdef1", "password: must have at least 8 characters"),
        ("abcdefgh", "password: must mix at least 3 of lower case, upper case, digits and other characters"),
        ("Abcdefg1", None),
        ("äÖ-abcde", None),
    ],
)
async def test_the_password_policy_holds_wherever_a_password_is_set(
    password: str, message: str | None, operator: Client, client: Client
) -> None:
    policy = {"minLength": 8, "minClasses": 3}
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "settings": {"passwordPolicy": policy}})
    new = {"email": "new@example.com", "password": password}
    failures = (await client.call("validateUser", new))["failures"]
    assert ["{field}: {message}".format(**failure) for failure in failures] == ([message] if message else [])
    expected = (400, message) if message else (200, True)
    assert (await client.outcome("createUser", new))[0] == expected[0]
    assert await client.outcome("resetPasswordByEmail", {"email": ADMIN, "password": password}) == expected


async def test_a_suspended_instance_refuses_its_keys(operator: Client, client: Client) -> None:
    look_up = {"email": ADMIN}
    await client.call("getUserByEmail", look_up)
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "isActive": False})
    assert await client.outcome("getUserByEmail", look_up) == (403, "not-allowed")
    await operator.call("getUserByEmail", look_up | {"instance": "MYINSTANCE"})
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "isActive": True})
    await client.call("getUserByEmail", look_up)


SUSPENDED = {"instance": "MYINSTANCE", "isActive": False}
MAY_WRITE = {
    "updateInstance": "reactivates it",
    "deleteInstance": "ends the contract",
    "createApiKey": "keys are the operator's to manage",
    "updateApiKey": "keys are the operator's to manage",
    "rotateApiKey": "keys are the operator's to manage, leaked ones too",
    "revokeApiKey": "keys are the operator's to manage, leaked ones too",
}
"""What operators can do about a suspended instance beside looking at it, and why."""
OF_NO_INSTANCE = {"createInstance", "validateInstance", "retryJob", "getPicture"}
"""Methods that are about no instance that the call names."""


@pytest.fixture
async def suspended(operator: Client, client: Client, jane: dict[str, Any]) -> None:
    """MYINSTANCE, in which somebody is logged in, suspended."""
    await operator.call("updateInstance", SUSPENDED)


async def test_a_suspended_instance_can_only_be_looked_at_and_managed(
    suspended: None, operator: Client, client: Client, db: asyncpg.Connection
) -> None:
    """Whatever writes or logs in is refused to operators too, but for MAY_WRITE; its own keys can do nothing."""
    before = await footprint(db)
    asked = [(registered, example) for registered in METHODS.values() for example in registered.examples]
    for registered, example in asked:
        name = registered.name
        mine = {"instance": "MYINSTANCE"} if "instance" in registered.params.model_fields else {}
        if not mine:
            assert name in OF_NO_INSTANCE or not registered.writes, name
            continue
        for key, allowed in (
            (client, False),
            (operator, registered.scope.endswith(":read") or name in MAY_WRITE),
        ):
            async with await key.post(
                {"method": name, "params": mine | example.params, "dryRun": True}
            ) as response:
                refused = response.headers.get("X-Error-Code") in (
                    "instance_suspended",
                    "operators_only",
                    "missing_scope",
                )
                assert refused is not allowed, (name, await response.text())
                if refused:
                    assert (response.status, await response.json()) == (403, "not-allowed")
    assert await footprint(db) == before


async def test_a_suspension_ends_sessions_and_is_told(
    operator: Client, jane: dict[str, Any], client: Client
) -> None:
    start = (await client.call("listChanges", {"begin": "now"}))["cursor"]
    login = {"instance": "MYINSTANCE", "email": "jane@example.com", "password": "demo1234"}
    token = (await operator.call("login", login))["token"]
    await operator.call("updateInstance", SUSPENDED)
    for method, params in (
        ("login", login), ("loginWithToken", {"instance": "MYINSTANCE", "token": token}),
        ("checkAuth", {"instance": "MYINSTANCE", "login": "jane@example.com", "password": "demo1234"}),
    ):  # fmt: skip
        assert await operator.outcome(method, params) == (403, "not-allowed"), method
    assert (await operator.call("getInstance", {"instance": "MYINSTANCE"}))["isActive"] is False
    await operator.call("updateInstance", SUSPENDED)  # once more, which changes nothing
    await operator.call("updateInstance", SUSPENDED | {"isActive": True})
    assert await client.outcome("loginWithToken", {"token": token}) == (
        400, "Login or password is incorrect",
    )  # fmt: skip
    page = await client.call("listChanges", {"cursor": start})
    told = [
        (event["type"], event["data"]["before"])
        for event in page["events"]
        if event["type"].startswith("instance.")
    ]
    assert told == [
        ("instance.suspended", {"isActive": True, "sessions": 2}),
        ("instance.reactivated", {"isActive": False}),
    ]
    await client.call("login", login)


async def waits_for_lock(db: asyncpg.Connection) -> bool:
    """Whether any statement waits for a lock."""
    query = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock')"
    return bool(await db.fetchval(query))


async def test_a_login_under_way_makes_no_session_in_a_suspended_instance(
    operator: Client, jane: dict[str, Any], client: Client, db: asyncpg.Connection, database_url: str
) -> None:
    """It has verified the password and waits at the counters while the instance is suspended."""
    waiting = await asyncpg.connect(database_url)
    async with db.transaction():
        await db.execute("SELECT FROM instance_counters WHERE instance_id = 1 FOR NO KEY UPDATE")
        login = asyncio.create_task(
            client.outcome("login", {"email": "jane@example.com", "password": "demo1234"})
        )
        await until(lambda: waits_for_lock(waiting))
        await db.execute("UPDATE instances SET is_active = false WHERE id = 1")
        await db.execute("UPDATE instance_counters SET is_suspended = true WHERE instance_id = 1")
        await db.execute("DELETE FROM sessions WHERE instance_id = 1")
    assert (await login)[0] == 400
    assert await db.fetchval("SELECT count(*) FROM sessions") == 0
    await waiting.close()


@pytest.mark.parametrize("params", [{"isActive": True}, {"isActive": False}, {"title": "Back"}])
@pytest.mark.damages
async def test_a_change_that_waits_for_a_deletion_changes_nothing(
    params: dict[str, Any], operator: Client, client: Client, db: asyncpg.Connection, database_url: str
) -> None:
    """updateInstance waits for the row while the instance is deleted; the deletion commits first."""
    stored = "SELECT title, is_active, deleted_at IS NULL FROM instances WHERE id = 1"
    waiting = await asyncpg.connect(database_url)
    async with db.transaction():
        await db.execute("SELECT FROM instances WHERE id = 1 FOR UPDATE")
        change = asyncio.create_task(operator.outcome("updateInstance", {"instance": "MYINSTANCE"} | params))
        await until(lambda: waits_for_lock(waiting))
        await db.execute("UPDATE instances SET is_active = false, deleted_at = now() WHERE id = 1")
    assert await change == (403, "not-allowed")
    assert tuple(await db.fetchrow(stored)) == ("", False, False)
    await waiting.close()


async def test_deletion_ends_sessions_and_logins_under_way(
    operator: Client, client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    await operator.call("deleteInstance", {"instance": "MYINSTANCE"})
    assert await db.fetchval("SELECT count(*) FROM sessions WHERE instance_id = 1") == 0
    # What create_session, the last step of a login that was under way, looks at.
    assert await db.fetchval("SELECT is_suspended FROM instance_counters WHERE instance_id = 1") is True


@pytest.mark.parametrize("method", ["deleteInstance", "updateInstance"])
async def test_who_creates_a_user_does_not_wait_for_who_waits_for_it(
    method: str, operator: Client, client: Client, db: asyncpg.Connection, database_url: str
) -> None:
    """createUser holds the counters and then locks the instance's row, for its foreign key."""
    waiting = await asyncpg.connect(database_url)
    params = {"instance": "MYINSTANCE"} | ({"isActive": False} if method == "updateInstance" else {})
    async with db.transaction():
        await db.execute("SELECT FROM instance_counters WHERE instance_id = 1 FOR NO KEY UPDATE")
        change = asyncio.create_task(operator.outcome(method, params))
        await until(lambda: waits_for_lock(waiting))
        await db.execute("SELECT FROM instances WHERE id = 1 FOR KEY SHARE NOWAIT")
    assert await change == (200, True)
    await waiting.close()


async def test_a_key_whose_default_instance_was_deleted(
    operator: Client, other: Client, db: asyncpg.Connection
) -> None:
    """It holds that instance no more, named or not, and keeps the others that it holds."""
    both = operator.using(await insert_key(db, instances=("MYINSTANCE", "OTHER")))
    await operator.call("deleteInstance", {"instance": "MYINSTANCE"})
    for named in ({}, {"instance": "MYINSTANCE"}):
        async with await both.post({"method": "listUsers", "params": named}) as response:
            assert (response.status, response.headers["X-Error-Code"]) == (403, "not_held"), named
    assert (await both.call("getInstance", {"instance": "OTHER"}))["name"] == "OTHER"


async def test_403_tells_scope_operator_instance_and_suspension_apart(
    operator: Client, client: Client, db: asyncpg.Connection
) -> None:
    async def code(key: Client, method: str, params: dict[str, Any]) -> str | None:
        async with await key.post({"method": method, "params": params}) as response:
            assert (response.status, await response.json()) == (403, "not-allowed")
            return response.headers.get("X-Error-Code")

    reader = client.using(await insert_key(db, scopes=("users:read", "instances:write")))
    assert await code(reader, "createUser", {"email": "new@example.com"}) == "missing_scope"
    assert await code(reader, "updateInstance", {"title": "x"}) == "operators_only"
    assert await code(reader, "getUserByEmail", {"email": ADMIN, "instance": "NOWHERE"}) == "not_held"
    await operator.call("updateInstance", SUSPENDED)
    assert await code(reader, "getUserByEmail", {"email": ADMIN}) == "instance_suspended"
