"""Dry runs check everything, answer as usual and write nothing.

test_registry.py tests those of every method with its examples.
"""

import json
from typing import Any

import asyncpg
import pytest
from conftest import ADMIN, LINK_HOST, Client, Serve, contents, footprint

JANE = {"email": "jane@example.com", "password": "demo1234"}
DUPLICATE = 'duplicate key value violates unique constraint "users_email"'
MEMBER = {"login": "ann@example.com", "sponsorId": 1, "profile": {"firstname": "Ann", "lastname": "Lee"}}
STORE_USER = {"email": "one@example.com", "external_id": "shop-1", "only_sees_readable": True}
LINK = f"https://{LINK_HOST}/confirm?code={{{{code}}}}"


@pytest.fixture
async def still(serve: Serve) -> Client:
    """A server that does no jobs, so that nothing moves but by calls."""
    return await serve(run_jobs=False)


async def everything(db: asyncpg.Connection) -> Any:
    """What stands in every table, the queue's too."""
    return await contents(db), await footprint(db)


async def sent(client: Client, body: Any, **headers: str) -> tuple[int, Any, bool]:
    """Status, answer, and whether it is marked."""
    async with await client.post(body, headers=headers) as response:
        text = await response.read()
        return (
            response.status,
            json.loads(text) if text else None,
            response.headers.get("Dry-Run") == "true",
        )


def creation(**params: Any) -> dict[str, Any]:
    return {"method": "createUser", "params": JANE | params}


async def test_nothing_is_written_and_no_id_is_counted(still: Client, db: asyncpg.Connection) -> None:
    before = await everything(db)
    status, rehearsed, marked = await sent(still, creation(dryRun=True))
    assert (status, rehearsed["id"], marked) == (200, 2, True)
    assert await everything(db) == before
    status, created, marked = await sent(still, creation(dryRun=False))
    assert (status, marked) == (200, False)
    assert {**created, "createdAt": 0} == {**rehearsed, "createdAt": 0}
    assert (await still.call("login", JANE))["id"] == 2


@pytest.mark.parametrize(
    ("params", "status", "told"),
    [
        ({"email": ADMIN}, 400, DUPLICATE),
        ({"email": "nowhere"}, 400, "email: is not a valid e-mail address"),
        ({"planId": 9}, 400, "planId: is no plan of this instance"),
        ({"password": "short"}, 400, "password: must have at least 8 characters"),
        ({"instance": "OTHER"}, 403, "not-allowed"),
    ],
)
async def test_everything_is_checked(
    params: Any, status: int, told: str, still: Client, db: asyncpg.Connection
) -> None:
    """Constraints of the database and the password policy too; what is refused is marked as well."""
    await db.execute("""UPDATE instances SET settings = '{"passwordPolicy": {"minLength": 8}}'""")
    before = await everything(db)
    assert await sent(still, creation(**params, dryRun=True)) == (status, told, True)
    assert await everything(db) == before
    assert await sent(still, creation(**params)) == (status, told, False)


async def test_no_mail_no_job_and_no_event(still: Client, db: asyncpg.Connection) -> None:
    await still.call("createUser", JANE)
    before = await everything(db)
    for name, params in (
        ("createMember", MEMBER | {"confirmationUrl": LINK}),
        ("requestPasswordReset", {"email": "jane@example.com", "confirmationUrl": LINK}),
        ("updateProfile", {"id": 2, "profile": {"phone": "+97336000000"}}),
        ("deleteUserByEmail", {"email": "jane@example.com"}),
    ):
        status, _, marked = await sent(still, {"method": name, "params": params | {"dryRun": True}})
        assert (status, marked) == (200, True)
        assert await everything(db) == before


async def test_a_session_of_a_dry_run_is_none(still: Client) -> None:
    await still.call("createUser", JANE)
    answer = await still.call("login", JANE | {"dryRun": True})
    assert (await still.outcome("loginWithToken", {"token": answer["token"]}))[0] == 400
    assert (await still.outcome("login", JANE | {"password": "wrong", "dryRun": True}))[0] == 400


async def test_passwords_are_not_hashed(still: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hash_nothing(password: str) -> str:
        raise AssertionError("hashed")

    monkeypatch.setattr(still.dispatcher._hasher, "hash", hash_nothing)
    assert (await sent(still, creation(dryRun=True)))[0] == 200


async def test_what_follows_a_commit_does_not(client: Client, operator: Client) -> None:
    params = {"instance": "MYINSTANCE", "isActive": False}
    assert await operator.call("updateInstance", params | {"dryRun": True}) is True
    assert (await client.outcome("getUserByEmail", {"email": ADMIN}))[0] == 200


@pytest.mark.parametrize("value", [1, 0, "true", None, [], {}])
async def test_values_that_are_none(value: Any, still: Client, db: asyncpg.Connection) -> None:
    before = await everything(db)
    assert await sent(still, creation(dryRun=value)) == (400, "dryRun: must be true or false", False)
    status, told, _ = await sent(still, creation(dryRun=value, email="nowhere"))
    assert (status, told) == (400, "email: is not a valid e-mail address; dryRun: must be true or false")
    assert (await sent(still, creation(), **{"Dry-Run": "perhaps"}))[:2] == (
        400, "the header Dry-Run must be true or false",
    )  # fmt: skip
    assert await everything(db) == before


async def test_reads_take_both_and_do_what_they_always_do(still: Client) -> None:
    """By the member or by the header alike; their answers are not marked."""
    look_up = {"method": "getUserByEmail", "params": {"email": ADMIN}}
    expected = await sent(still, look_up)
    asking = {"method": "getUserByEmail", "params": {"email": ADMIN, "dryRun": True}}
    assert await sent(still, asking) == expected
    assert await sent(still, look_up, **{"Dry-Run": "true"}) == expected
    bad = {"method": "getUserByEmail", "params": {"email": ADMIN, "dryRun": 1}}
    assert (await sent(still, bad))[:2] == (400, "dryRun: must be true or false")


async def test_a_batch_that_writes_nothing_is_marked(still: Client, db: asyncpg.Connection) -> None:
    """Reads among what is rehearsed make no difference."""
    look_up = {"jsonrpc": "2.0", "id": 1, "method": "getUserByEmail", "params": {"email": ADMIN}}
    create = {"jsonrpc": "2.0", "id": 2, **creation()}
    before = await everything(db)
    assert (await sent(still, [look_up, create], **{"Dry-Run": "true"}))[2] is True
    assert (await sent(still, [look_up, look_up], **{"Dry-Run": "true"}))[2] is False
    assert await everything(db) == before


async def test_logins_forgive_nothing(still: Client, db: asyncpg.Connection) -> None:
    """But a failed one counts: else it would be a way to guess."""
    await still.call("createUser", JANE)
    wrong = JANE | {"password": "wrong", "dryRun": True}
    for _ in range(3):
        assert (await still.outcome("login", wrong))[0] == 400
    before = await everything(db)
    for name, params in (("login", JANE), ("checkAuth", {"login": JANE["email"], "password": "demo1234"})):
        await still.call(name, params | {"dryRun": True})
        assert (await sent(still, {"method": name, "params": params}, **{"Dry-Run": "true"}))[0] == 200
    assert await everything(db) == before
    for _ in range(2):
        assert (await still.outcome("login", wrong))[0] == 400
    assert (await still.outcome("login", JANE | {"dryRun": True}))[0] == 429


async def test_in_json_rpc(still: Client, db: asyncpg.Connection) -> None:
    def item(number: int, **params: Any) -> dict[str, Any]:
        given = {"email": f"user{number}@example.com"} | params
        return {"jsonrpc": "2.0", "id": number, "method": "createUser", "params": given}

    before = await everything(db)
    status, answer, marked = await sent(still, item(1, dryRun=True))
    assert (status, answer["result"]["id"], marked) == (200, 2, True)
    _, answers, marked = await sent(still, [item(1, dryRun=True), item(1, dryRun=True)])
    assert ([answer["result"]["id"] for answer in answers], marked) == ([2, 2], True)
    positional = item(1) | {"params": ["user1@example.com"]}
    assert (await sent(still, [positional, item(2)], **{"Dry-Run": "true"}))[2] is True
    assert await everything(db) == before
    _, answers, marked = await sent(still, [item(1, dryRun=True), item(2)])
    assert not marked, "one of them was meant"
    assert await db.fetchval("SELECT array_agg(email ORDER BY id) FROM users") == [
        ADMIN, "user2@example.com",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "path", "body", "status"),
    [
        ("POST", "/online-office/user/create", MEMBER, 200),
        ("POST", "/Provisioning/MYINSTANCE/User/", {"EmailAddress": "one@example.com"}, 200),
        ("PUT", f"/Provisioning/MYINSTANCE/User/{ADMIN}/", {"FirstName": "Ann"}, 200),
        ("POST", "/integration-api/v1/dashboard/users", STORE_USER, 200),
        ("PUT", "/integration-api/v1/dashboard/users/1", STORE_USER, 204),
    ],
)
async def test_on_the_other_wires(
    verb: str, path: str, body: Any, status: int, still: Client, db: asyncpg.Connection
) -> None:
    """By the header, since their bodies are those of their documents."""
    before = await everything(db)
    for dry in ("true", "TRUE", "false"):
        assert (await everything(db) == before) is True
        async with still.http.request(
            verb, still.url + path, json=body, headers={"x-api-key": still.key, "Dry-Run": dry}
        ) as response:
            assert response.status == status, await response.text()
            assert response.headers.get("Dry-Run") == (None if dry == "false" else "true")
    assert await everything(db) != before


async def test_with_an_idempotency_key(still: Client, db: asyncpg.Connection) -> None:
    """A dry run leaves the key free, and answers what the call would: the stored answer where there is one."""
    before = await everything(db)
    key = {"Idempotency-Key": "order-17"}
    for _ in range(2):
        assert (await sent(still, creation(dryRun=True), **key))[0] == 200
    assert await everything(db) == before
    created = await sent(still, creation(), **key)
    assert created[0] == 200 and not created[2]
    async with await still.post(creation(dryRun=True), headers=key) as response:
        assert await response.json() == created[1]
        assert (response.headers["Dry-Run"], response.headers["Idempotency-Replayed"]) == ("true", "true")
    assert (await sent(still, creation(email="june@example.com", dryRun=True), **key))[0] == 422


@pytest.mark.parametrize("envelope", [{}, {"jsonrpc": "2.0", "id": 1}])
async def test_it_may_stand_beside_the_method(
    envelope: dict[str, Any], client: Client, db: asyncpg.Connection
) -> None:
    """Where idempotencyKey stands, too: nobody who puts it there gets a user."""
    before = await footprint(db)
    call = envelope | {"method": "createUser", "params": {"email": "jane@example.com"}}
    async with await client.post(call | {"dryRun": True}) as response:
        assert response.status == 200 and response.headers["Dry-Run"] == "true"
    async with await client.post(call | {"dryRun": "yes"}) as response:
        assert "dryRun" in await response.text() and "Dry-Run" not in response.headers
    assert await footprint(db) == before
