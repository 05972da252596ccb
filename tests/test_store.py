"""The store's methods on /rpc. test_client_publica.py tests its wire."""

import asyncio
from typing import Any

import asyncpg
import pytest
from conftest import Client, footprint, until

from server.methods.store import DEEPEST

STORE = {"externalId": "shop-1", "sessionsLimit": 2, "isPlanAdmin": True, "onlySeesReadable": True}
DUPLICATE = (400, 'duplicate key value violates unique constraint "users_external_id"')


@pytest.fixture
async def plan(client: Client) -> int:
    """A plan without an end."""
    return int((await client.call("createPlan", {"type": "recurring", "name": "For good"}))["id"])


async def test_create_user_takes_what_the_store_adds(client: Client, plan: int) -> None:
    """And answers, as getUserByEmail does, what the document says and no more."""
    bare = await client.call("createUser", {"email": "bare@example.com"})
    created = await client.call(
        "createUser",
        STORE | {"email": "ann@example.com", "planId": plan, "planValidTo": "2099-12-31"},
    )
    assert set(created) == set(bare)
    assert not STORE.keys() & (await client.call("getUserByEmail", {"email": "ann@example.com"})).keys()
    shown = await client.call("getStoreUser", {"externalId": "shop-1"})
    assert {name: shown[name] for name in STORE} == STORE
    assert [(held["planId"], held["validTo"]) for held in shown["plans"]] == [(plan, "2099-12-31")]


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"externalId": "taken"}, "externalId", DUPLICATE[1]),
    ({"externalId": ""}, "externalId", "must have at least 1 character"),
    ({"externalId": "a\nb"}, "externalId", "holds control characters"),
    ({"sessionsLimit": 0}, "sessionsLimit", "must be greater than or equal to 1"),
    ({"planId": 9}, "planId", "is no plan of this instance"),
    ({"planId": 1, "planValidTo": "2020-01-01"}, "planValidTo", "must not lie in the past"),
    ({"planId": 1, "planValidTo": "tomorrow"}, "planValidTo", "must be a date such as 2024-02-29"),
    ({"planValidTo": "2099-01-01"}, "planValidTo", "needs a plan that it is the last day of"),
]


@pytest.mark.parametrize(("given", "field", "message"), BAD)
async def test_create_user_and_validate_user_agree(
    given: dict[str, Any], field: str, message: str, client: Client, plan: int, db: asyncpg.Connection
) -> None:
    await client.call("createUser", {"email": "taken@example.com", "externalId": "taken"})
    before = await footprint(db), await db.fetch("SELECT * FROM instance_counters")
    params = {"email": "new@example.com"} | given
    status, told = await client.outcome("createUser", params)
    assert (status, told) == (
        400,
        message if field == "externalId" and "taken" in given.values() else f"{field}: {message}",
    )
    validation = await client.call("validateUser", params)
    assert validation == {"valid": False, "failures": [{"field": field, "message": message}]}
    assert (await footprint(db), await db.fetch("SELECT * FROM instance_counters")) == before


async def test_update_user_changes_what_is_given(client: Client, jane: Any) -> None:
    """Null takes the external id and the limit away; what is left out stays."""
    jane_ref = {"email": "jane@example.com"}
    await client.call("updateUserByEmail", jane_ref | STORE)
    await client.call("updateUserByEmail", jane_ref | {"displayName": "J", "isPlanAdmin": False})
    shown = await client.call("getStoreUser", {"id": 2})
    assert {name: shown[name] for name in STORE} == STORE | {"isPlanAdmin": False}
    await client.call("updateUserByEmail", jane_ref | {"externalId": None, "sessionsLimit": None})
    shown = await client.call("getStoreUser", jane_ref)
    assert (shown["externalId"], shown["sessionsLimit"], shown["onlySeesReadable"]) == (None, None, True)
    await client.call("createUser", {"email": "b@example.com", "externalId": "b"})
    assert (
        await client.outcome("updateUserByEmail", jane_ref | {"externalId": "b", "displayName": "X"})
        == DUPLICATE
    )
    assert (await client.call("getUserByEmail", jane_ref))["displayName"] == "J"


async def test_a_user_is_named_by_something(client: Client, jane: Any) -> None:
    assert await client.outcome("getStoreUser", {}) == (400, "params: give id, email or externalId")
    assert await client.outcome("getStoreUser", {"id": 99, "externalId": "x"}) == (400, "not found")
    found = await client.call("getStoreUser", {"id": 2, "email": "admin@example.com"})
    assert found["id"] == 2


async def test_pages_have_an_end(client: Client) -> None:
    last = {"page": DEEPEST // 100, "perPage": 100}
    assert (await client.call("listStoreUsers", last))["users"] == []
    status, told = await client.outcome("listStoreUsers", last | {"page": DEEPEST // 100 + 1})
    assert (status, told) == (400, f"page: lies beyond the first {DEEPEST} users")


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("deactivateUserById", {"id": 2}),
        ("updateUserByEmail", {"email": "jane@example.com", "isActive": False}),
        ("forceLogoutById", {"id": 2}),
    ],
)
async def test_a_session_that_begins_meanwhile_ends_too(
    name: str, params: dict[str, Any], client: Client, jane: Any, db: asyncpg.Connection
) -> None:
    """That of a login which holds the user while it is to be logged out."""
    login = db.transaction()
    await login.start()
    await db.execute("SELECT FROM users WHERE id = 2 FOR NO KEY UPDATE")
    call = asyncio.create_task(client.call(name, params))

    async def waits() -> bool:
        return bool(await db.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"))

    await until(waits)
    await db.execute(
        "INSERT INTO sessions (instance_id, id, user_id, token_digest, expires_at)"
        " VALUES (1, 7, 2, 'x', now() + interval '1 day')"
    )
    await login.commit()
    assert await call is True
    assert await db.fetchval("SELECT count(*) FROM sessions") == 0


async def test_plans(client: Client, other: Client, plan: int, jane: Any) -> None:
    """On /rpc: partial changes, names, and nobody else's."""
    year = {"type": "prepaid", "name": "100%_year", "duration": 12, "prices": {"USD": 9900}}
    created = await client.call("createPlan", year)
    assert await client.call("getPlan", {"id": created["id"]}) == created
    assert [found["id"] for found in (await client.call("listPlans", {"query": "%_YEAR"}))["plans"]] == [2]
    await client.call("updatePlan", {"id": 2, "type": "recurring", "duration": None})
    changed = await client.call("getPlan", {"id": 2})
    assert (changed["type"], changed["duration"], changed["prices"]) == ("recurring", None, {"USD": 9900})
    assert await client.outcome("updatePlan", {"id": 9, "name": "x"}) == (400, "not found")
    given = {"userId": 2, "planId": plan}
    assert await client.call("assignPlan", given) == await client.call("assignPlan", given)
    assert await client.outcome("assignPlan", given | {"userId": 99}) == (400, "not found")
    assert await client.outcome("assignPlan", given | {"planId": 9}) == (
        400, "planId: is no plan of this instance",
    )  # fmt: skip
    for name, params in (
        ("getPlan", {"id": 1}), ("updatePlan", {"id": 1, "name": "x"}), ("assignPlan", given),
        ("getStoreUser", {"id": 2}), ("deactivateUserById", {"id": 2}), ("endSession", {"id": 1}),
    ):  # fmt: skip
        assert await other.outcome(name, params) == (400, "not found"), name


async def test_parallel_assignments_of_a_plan(
    client: Client, plan: int, jane: Any, db: asyncpg.Connection
) -> None:
    given = {"userId": 2, "planId": plan}
    ids = await asyncio.gather(*(client.call("assignPlan", given) for _ in range(10)))
    assert len({found["id"] for found in ids}) == 1
    assert await db.fetchval("SELECT count(*) FROM user_plans") == 1


async def test_purging_a_user_takes_its_plans(
    client: Client, plan: int, jane: Any, db: asyncpg.Connection
) -> None:
    await client.call("assignPlan", {"userId": 2, "planId": plan})
    for name in ("deleteUserByEmail", "purgeUserByEmail"):
        await client.call(name, {"email": "jane@example.com"})
    assert await db.fetchval("SELECT count(*) FROM user_plans") == 0


async def test_users_who_were_suspended_before_there_was_a_time(db: asyncpg.Connection) -> None:
    """The migration gives them the time of their last change."""
    from server.postgres.migrations import load_migrations

    statements = next(migration for migration in load_migrations() if migration.name == "store").statements
    (backfill,) = [statement for statement in statements if statement.startswith("UPDATE users")]
    await db.execute("UPDATE users SET is_active = false, updated_at = '2024-01-01' WHERE id = 1")
    await db.execute(backfill)
    assert (await db.fetchval("SELECT suspended_at FROM users")).year == 2024
