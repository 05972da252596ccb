"""Sessions, codes, pictures, mails and webhooks end with suspension and deletion."""

import asyncio
import json
from typing import Any

import asyncpg
import pytest
from conftest import ADMIN, Client, Serve, insert_key, until
from test_avatars import fetch, give

from server.base.metrics import Metrics
from server.base.settings import Settings
from server.base.tokens import digest
from server.jobs.queue import Services
from server.jobs.worker import Suspended
from server.methods.codes import EXAMPLE_CODES, issue_code
from server.methods.profiles import apply_profile
from server.postgres.db import Database

JANE = {"email": "jane@example.com"}
RIGHT = JANE | {"password": "demo1234"}
WRONG_CODE = (400, "the code is not valid or has expired")
WRONG_LOGIN = (400, "Login or password is incorrect")
NEW = {"email": "jane.roe@example.com"}
Step = tuple[str, dict[str, Any]]


@pytest.fixture
async def database(database_url: str) -> Any:
    database = Database(Settings(), database_url)
    await database.open()
    yield database
    await database.close()


# --- logins -------------------------------------------------------------------------------------------


async def test_a_login_is_not_answered_from_the_store(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    """Under an idempotency key each login checks the password, and answers a living session or none."""
    key = {"headers": {"Idempotency-Key": "login-1"}}
    first = await client.call("login", RIGHT, **key)
    again = await client.call("login", RIGHT, **key)
    assert first["token"] != again["token"]
    await client.call("resetPasswordByEmail", JANE | {"password": "another1"})
    assert await client.outcome("login", RIGHT, **key) == WRONG_LOGIN
    new = await client.call("login", JANE | {"password": "another1"}, **key)
    assert (await client.call("loginWithToken", {"token": new["token"]}))["id"] == jane["id"]
    async with await client.post(
        {"method": "login", "params": JANE | {"password": "another1"}}, **key
    ) as response:
        assert response.status == 200 and "Idempotency-Replayed" not in response.headers
    assert await db.fetchval("SELECT count(*) FROM idempotency_keys") == 0


# --- codes --------------------------------------------------------------------------------------------


ENDS: dict[str, tuple[list[Step], list[Step]]] = {
    "deleted by e-mail": ([("deleteUserByEmail", JANE)], [("restoreUserByEmail", JANE)]),
    "deleted by id": ([("deleteUserById", {"id": 2})], [("restoreUserByEmail", JANE)]),
    "deleted among many": ([("deleteUsers", {"users": [JANE]})], [("restoreUserByEmail", JANE)]),
    "suspended": (
        [("updateUserByEmail", JANE | {"isActive": False})],
        [("updateUserByEmail", JANE | {"isActive": True})],
    ),
    "suspended by id": ([("deactivateUserById", {"id": 2})], [("reactivateUserById", {"id": 2})]),
    "suspended among many": (
        [("updateUsers", {"users": [JANE | {"isActive": False}]})],
        [("updateUsers", {"users": [JANE | {"isActive": True}]})],
    ),
    "suspended by ensureUser": (
        [("ensureUser", JANE | {"isActive": False})],
        [("ensureUser", JANE | {"isActive": True})],
    ),
    "renamed": (
        [("renameUserByEmail", JANE | {"newEmail": NEW["email"]})],
        [("renameUserByEmail", NEW | {"newEmail": JANE["email"]})],
    ),
    "replaced": (
        [("replaceUserByEmail", JANE | {"newEmail": NEW["email"]})],
        [("replaceUserByEmail", NEW | {"newEmail": JANE["email"]})],
    ),
    "renamed by the store": (
        [("updateStoreUser", {"id": 2, "externalId": "1", "onlySeesReadable": False} | NEW)],
        [("updateStoreUser", {"id": 2, "externalId": "1", "onlySeesReadable": False} | JANE)],
    ),
    "renamed by ensureUser": (
        [("ensureUser", JANE | {"externalId": "1"}), ("ensureUser", NEW | {"externalId": "1"})],
        [("ensureUser", JANE | {"externalId": "1"})],
    ),
    "instance suspended": (
        [("updateInstance", {"instance": "MYINSTANCE", "isActive": False})],
        [("updateInstance", {"instance": "MYINSTANCE", "isActive": True})],
    ),
}


@pytest.mark.parametrize("end", ENDS)
async def test_codes_end_and_do_not_come_back(
    end: str, client: Client, operator: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    """Neither while the user or instance is away nor afterwards."""
    assert jane["id"] == 2
    caller = operator if end == "instance suspended" else client
    gone, back = ENDS[end]
    for method, params in gone:
        await caller.call(method, params)
    assert await db.fetchval("SELECT count(*) FROM codes") == 0
    for method, params in back:
        await caller.call(method, params)
    code, password = EXAMPLE_CODES["reset"], {"newPassword": "stolen12"}
    assert await client.outcome("resetPasswordWithCode", {"code": code} | password) == WRONG_CODE
    assert await client.outcome("confirmEmail", {"code": EXAMPLE_CODES["confirm"]}) == WRONG_CODE
    assert (await client.call("login", RIGHT))["id"] == 2


async def test_another_spelling_of_the_same_address_ends_no_code(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    await client.call("renameUserByEmail", JANE | {"newEmail": "Jane@Example.com"})
    assert await db.fetchval("SELECT count(*) FROM codes") == 2


async def test_a_logout_ends_sessions_and_no_code(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    await client.call("forceLogoutByEmail", JANE)
    assert await db.fetchval("SELECT count(*) FROM sessions") == 0
    await client.call("resetPasswordByEmail", RIGHT)
    assert [row["purpose"] for row in await db.fetch("SELECT purpose FROM codes")] == ["confirm"]


@pytest.mark.parametrize("gone", ["is_active = false", "deleted_at = now()"])
@pytest.mark.damages
async def test_a_code_that_is_there_all_the_same_sets_no_password(
    gone: str, client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    """As of a user who was suspended by an older version, or by hand."""
    await db.execute(f"UPDATE users SET {gone} WHERE id = 2")
    given = {"code": EXAMPLE_CODES["reset"], "newPassword": "stolen12"}
    assert await client.outcome("resetPasswordWithCode", given) == WRONG_CODE
    assert await client.outcome("confirmEmail", {"code": EXAMPLE_CODES["confirm"]}) == WRONG_CODE


async def waits_for_lock(db: asyncpg.Connection) -> bool:
    return bool(await db.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))


@pytest.mark.damages
async def test_a_code_that_is_redeemed_while_its_user_is_suspended(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection, database_url: str
) -> None:
    """The redemption waits for the suspension, and then finds no user who may log in."""
    suspending = await asyncpg.connect(database_url)
    transaction = suspending.transaction()
    await transaction.start()
    await suspending.execute("UPDATE users SET is_active = false WHERE id = 2")
    given = {"code": EXAMPLE_CODES["reset"], "newPassword": "stolen12"}
    redeeming = asyncio.create_task(client.outcome("resetPasswordWithCode", given))
    await until(lambda: waits_for_lock(db))
    await transaction.commit()
    assert await redeeming == WRONG_CODE
    await suspending.close()


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("deleteUserByEmail", JANE),
        ("updateUserByEmail", JANE | {"isActive": False}),
        ("renameUserByEmail", JANE | {"newEmail": NEW["email"]}),
        ("resetPasswordByEmail", RIGHT),
        ("updateInstance", {"instance": "MYINSTANCE", "isActive": False}),
    ],
)
async def test_a_code_that_is_made_meanwhile_ends_too(
    method: str, params: dict[str, Any], client: Client, operator: Client, jane: dict[str, Any],
    db: asyncpg.Connection, database: Database,
) -> None:  # fmt: skip
    """Whatever ends codes waits for one that is being made, and sees it."""
    async with database.transaction() as making:
        assert await issue_code(making, 1, JANE["email"], "reset", 3600) is not None
        ending = asyncio.create_task(operator.call(method, {"instance": "MYINSTANCE"} | params))
        await until(lambda: waits_for_lock(db))
    await ending
    assert await db.fetchval("SELECT count(*) FROM codes WHERE purpose = 'reset'") == 0


@pytest.mark.parametrize(
    ("method", "params"), [("deleteUserByEmail", JANE), ("deleteUsers", {"users": [JANE]})]
)
async def test_a_deletion_does_not_deadlock_with_the_suspension_of_its_instance(
    method: str, params: dict[str, Any], client: Client, jane: dict[str, Any], db: asyncpg.Connection,
    database_url: str,
) -> None:  # fmt: skip
    """Both hold the counters before they end sessions and codes."""
    await client.call("login", RIGHT)
    suspending = await asyncpg.connect(database_url)
    transaction = suspending.transaction()
    await transaction.start()
    await suspending.execute("SELECT FROM instance_counters FOR NO KEY UPDATE")
    deleting = asyncio.create_task(client.call(method, params))
    await until(lambda: waits_for_lock(db))
    await suspending.execute("SET LOCAL lock_timeout = '500ms'")
    assert await suspending.execute("DELETE FROM sessions") != "DELETE 0"
    assert await suspending.execute("DELETE FROM codes") != "DELETE 0"
    await transaction.commit()
    await deleting
    await suspending.close()


@pytest.mark.parametrize(
    "gone",
    [
        "UPDATE users SET is_active = false WHERE id = 2",
        "UPDATE users SET deleted_at = now() WHERE id = 2",
        "UPDATE instances SET is_active = false",
        "UPDATE instances SET is_active = false, deleted_at = now()",
    ],
)
@pytest.mark.damages
async def test_a_mail_that_waited_is_not_sent_to_who_is_gone(
    gone: str, jane: dict[str, Any], db: asyncpg.Connection, database: Database
) -> None:
    await db.execute(gone)
    async with database.transaction() as making:
        assert await issue_code(making, 1, JANE["email"], "reset", 3600) is None
    assert await db.fetchval("SELECT count(*) FROM codes WHERE digest <> ALL($1)",
                             [digest(code) for code in EXAMPLE_CODES.values()]) == 0  # fmt: skip


async def test_a_document_shows_no_deleted_user(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    """What came of a change is told for a week, but not who is gone."""
    asked = await client.call("updateProfile", {"id": 2, "profile": {"firstname": "Jane"}})
    member = await client.call("getUserById", {"id": 2})
    result = {"success": True, "message": "", "member": member}
    await db.execute("UPDATE documents SET result = $1::text::jsonb", json.dumps(result))
    document = {"id": asked["documentId"]}
    assert (await client.call("getDocument", document))["result"] == result
    await client.call("deleteUserByEmail", JANE)
    assert (await client.call("getDocument", document))["result"] == result | {"member": None}
    await client.call("restoreUserByEmail", JANE)
    assert (await client.call("getDocument", document))["result"] == result


async def test_a_change_that_waits_does_not_reach_who_became_an_administrator(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection, database: Database
) -> None:
    """Asked for by a key without users:admin, while that was enough."""
    weak = client.using(await insert_key(db, scopes=("users:read", "users:write")))
    asked = await weak.call("updateProfile", {"id": 2, "profile": {"firstname": "Mallory"}})
    await client.call("updateUserByEmail", JANE | {"isAdmin": True})
    services = Services(Settings(), database, Metrics())
    await apply_profile(services, {"instance_id": 1, "user_id": 2})
    outcome = (await client.call("getDocument", {"id": asked["documentId"]}))["result"]
    assert outcome == {"success": False, "message": "not-allowed", "member": None}
    assert (await client.call("getUserById", {"id": 2}))["profile"] == {"email": "jane@example.com"}


async def test_an_administrators_profile_that_is_so_already_may_be_sent_again(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection, database: Database
) -> None:
    """By a key without users:admin: nothing changes."""
    profile = {"id": 2, "profile": {"firstname": "Jane", "phone": "+973 3600 0000"}}
    services = Services(Settings(), database, Metrics())
    await client.call("updateUserByEmail", JANE | {"isAdmin": True})
    await client.call("updateProfile", profile)
    await apply_profile(services, {"instance_id": 1, "user_id": 2})
    weak = client.using(await insert_key(db, scopes=("users:read", "users:write")))
    assert (await weak.outcome("updateProfile", {"id": 2, "profile": {"firstname": "Mallory"}}))[0] == 403
    before = await client.call("getUserById", {"id": 2})
    asked = await weak.call("updateProfile", profile)
    await apply_profile(services, {"instance_id": 1, "user_id": 2})
    outcome = (await client.call("getDocument", {"id": asked["documentId"]}))["result"]
    assert outcome == {"success": True, "message": "", "member": before}


async def test_a_change_that_waits_is_not_done_in_a_suspended_or_deleted_instance(
    client: Client, operator: Client, jane: dict[str, Any], db: asyncpg.Connection, database: Database
) -> None:
    """It waits for the end of the suspension; nothing is written in an instance that was deleted."""
    mine = {"instance": "MYINSTANCE"}
    services, user = Services(Settings(), database, Metrics()), {"instance_id": 1, "user_id": 2}
    stored = "SELECT fields ->> 'firstname' FROM users WHERE instance_id = 1 AND id = 2"
    asked = await client.call("updateProfile", {"id": 2, "profile": {"firstname": "Jane"}})
    await operator.call("updateInstance", mine | {"isActive": False})
    with pytest.raises(Suspended):
        await apply_profile(services, user)
    assert await db.fetchval(stored) is None
    await operator.call("updateInstance", mine | {"isActive": True})
    assert (await client.call("getDocument", {"id": asked["documentId"]}))["result"] is None
    await apply_profile(services, user)
    assert await db.fetchval(stored) == "Jane"
    await client.call("updateProfile", {"id": 2, "profile": {"firstname": "Janet"}})
    await operator.call("deleteInstance", mine)
    await apply_profile(services, user)
    assert await db.fetchval(stored) == "Jane"


# --- pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end",
    ["deleted by e-mail", "deleted by id", "deleted among many", "suspended", "suspended by id",
     "suspended among many", "suspended by ensureUser", "instance suspended"],
)  # fmt: skip
async def test_pictures_are_public_while_their_user_is_there(
    end: str, client: Client, operator: Client, jane: dict[str, Any]
) -> None:
    """A cache asks each time, and is told that the picture is gone, and that it is back."""
    caller = operator if end == "instance suspended" else client
    address = await give(client)
    status, headers, _ = await fetch(client, address)
    assert (status, headers["Cache-Control"]) == (200, "public, no-cache")
    known = {"If-None-Match": headers["ETag"]}
    assert (await fetch(client, address, headers=known))[0] == 304
    gone, back = ENDS[end]
    for method, params in gone:
        await caller.call(method, params)
    for asked in (None, known):
        status, headers, body = await fetch(client, address, headers=asked or {})
        assert (status, body, headers["Cache-Control"]) == (404, b'"not found"', "no-store")
    for method, params in back:
        await caller.call(method, params)
    assert (await fetch(client, address, headers=known))[0] == 304
    assert (await fetch(client, address))[0] == 200


async def test_pictures_of_a_deleted_instance_are_gone(
    client: Client, operator: Client, jane: dict[str, Any]
) -> None:
    address = await give(client)
    await operator.call("deleteInstance", {"instance": "MYINSTANCE"})
    assert (await fetch(client, address))[0] == 404


# --- webhooks -----------------------------------------------------------------------------------------


async def test_webhooks_of_a_suspended_instance_wait(
    serve: Serve, operator: Client, db: asyncpg.Connection, database: Database
) -> None:
    """Nothing of its events is sent until it is back, and nothing is lost."""
    hook = {"instance": "MYINSTANCE", "url": "https://hooks.example.com/"}
    await operator.call("createWebhook", hook)
    await operator.call("createUser", {"instance": "MYINSTANCE"} | JANE)
    await db.execute(
        "INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body)"
        " SELECT 1, 1, id, type, '' FROM events WHERE type = 'user.created' LIMIT 1"
    )
    claim = {"lease": 0.0, "instance_ids": [1], "lanes": [1], "shares": [9]}

    async def work() -> tuple[bool, bool]:
        async with database.transaction() as looking:
            unread = await looking.all("find_waiting_webhooks")
            return bool(unread), bool(await looking.all("claim_deliveries", **claim))

    assert await work() == (True, True)
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "isActive": False})
    assert await work() == (False, False)
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "isActive": True})
    assert await work() == (True, True)


async def test_keys_of_a_deleted_instance_open_nothing(client: Client, operator: Client) -> None:
    await operator.call("deleteInstance", {"instance": "MYINSTANCE"})
    for method, params in (
        ("getUserByEmail", {"email": ADMIN}),
        ("createUser", JANE),
        ("listApiKeys", {}),
        ("createApiKey", {"name": "x", "scopes": ["users:read"]}),
        ("listAuditEvents", {}),
        ("listChanges", {}),
    ):
        assert (await client.outcome(method, params))[0] == 403, method
