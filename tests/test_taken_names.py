"""E-mails and external ids of deleted users: the errors on every wire."""

from typing import Any

import pytest
from conftest import ADMIN, Client

DELETED = "this user is deleted: restore or purge it first"
ANN = "ann@example.com"
BOB = {"email": "bob@example.com"}


@pytest.fixture
async def ann(client: Client) -> None:
    """A user who was deleted, and bob who was not."""
    await client.call("createUser", {"email": ANN, "externalId": "shop-1"})
    await client.call("createUser", BOB)
    await client.call("deleteUserByEmail", {"email": ANN})


async def answer(client: Client, verb: str, path: str, body: Any, header: str) -> tuple[int, str | None, Any]:
    """Status, error code and body of a request on one of the other wires."""
    async with client.http.request(
        verb, client.url + path, json=body, headers={header: client.key}
    ) as response:
        return response.status, response.headers.get("X-Error-Code"), await response.json()


@pytest.mark.parametrize(
    ("method", "params", "field"),
    [
        ("createUser", {"email": ANN.upper()}, "email"),
        ("createUser", {"email": "new@example.com", "externalId": "shop-1"}, "externalId"),
        ("createUser", {"email": ANN, "dryRun": True}, "email"),
        ("createUsers", {"users": [{"email": ANN}]}, "users.0.email"),
        ("createUsers", {"users": [{"email": "new@example.com", "externalId": "shop-1"}]}, "users.0.externalId"),
        ("createMember", {"login": ANN, "sponsorId": 1, "profile": {"firstname": "A", "lastname": "L"}}, "login"),
        ("createStoreUser", {"email": ANN, "externalId": "shop-2"}, "email"),
        ("renameUserByEmail", BOB | {"newEmail": ANN}, "newEmail"),
        ("replaceUserByEmail", BOB | {"newEmail": ANN}, "newEmail"),
        ("updateUserByEmail", BOB | {"externalId": "shop-1"}, "externalId"),
        ("updateUsers", {"users": [BOB | {"externalId": "shop-1"}]}, "users.0.externalId"),
        ("updateStoreUser", {"id": 3, "email": ANN, "externalId": "b", "onlySeesReadable": False}, "email"),
    ],
)  # fmt: skip
async def test_a_deleted_user_has_a_code_of_its_own(
    method: str, params: dict[str, Any], field: str, ann: None, client: Client
) -> None:
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    async with await client.post(request) as response:
        data = (await response.json())["error"]["data"]
    assert (data["code"], data["fields"]) == ("user_deleted", [{"field": field, "message": DELETED}])
    status, message = await client.outcome(method, params)
    assert status == 400 and message.endswith(DELETED)


async def test_ensure_user_and_validate_user_say_the_same(ann: None, client: Client) -> None:
    assert await client.outcome("ensureUser", {"email": ANN}) == (400, DELETED)
    assert (await client.call("validateUser", {"email": ANN, "externalId": "shop-1"}))["failures"] == [
        {"field": "email", "message": DELETED}, {"field": "externalId", "message": DELETED},
    ]  # fmt: skip


async def test_a_living_user_keeps_the_documented_text(ann: None, client: Client) -> None:
    duplicate = 'duplicate key value violates unique constraint "users_email"'
    assert await client.outcome("createUser", BOB) == (400, duplicate)
    assert await client.outcome("renameUserByEmail", BOB | {"newEmail": ADMIN}) == (400, duplicate)


async def test_each_wire_says_it_in_its_own_form(ann: None, client: Client) -> None:
    new = {"login": ANN, "sponsorId": 1, "profile": {"firstname": "A", "lastname": "L"}}
    status, code, body = await answer(client, "POST", "/online-office/user/create", new, "Token")
    assert (status, code, body["errorCode"], body["errorMessage"]) == (200, "user_deleted", 409, DELETED)
    assert body["primary"]["errors"] == [{"field": "login", "message": DELETED}]
    told = "is that of a deleted user: restore or purge that user first"
    assert await answer(
        client, "POST", "/Provisioning/MYINSTANCE/User/", {"EmailAddress": ANN}, "ProvisioningKey"
    ) == (400, "user_deleted", [{"MemberNames": ["EmailAddress"], "ErrorMessage": f"EmailAddress {told}"}])
    assert await answer(
        client, "POST", "/integration-api/v1/dashboard/users",
        {"email": ANN, "external_id": "shop-2", "new_password": "Abcd1234"}, "X-User-Token",
    ) == (422, "user_deleted", {"message": "The given data was invalid.",
                                "errors": {"email": [f"The email {told}."]}})  # fmt: skip


async def test_add_to_group_says_which_of_the_two_is_not_there(client: Client) -> None:
    await client.call("createGroup", {"name": "Sales"})
    for method in ("addToGroup", "removeFromGroup"):
        assert await client.outcome(method, {"name": "Sales", "email": ANN}) == (
            400, "not found: there is no such user",
        )  # fmt: skip
        assert await client.outcome(method, {"name": "Shop", "email": ADMIN}) == (
            400, "not found: there is no such group",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "params", "field"),
    [
        ("createUser", {}, "email"),
        ("createUsers", None, "users.0.email"),
        ("createStoreUser", {"externalId": "x"}, "email"),
        ("ensureUser", {}, "email"),
        ("renameUserByEmail", None, "newEmail"),
    ],
)
async def test_the_login_of_a_deleted_user_has_the_same_code(
    method: str, params: dict[str, Any] | None, field: str, client: Client
) -> None:
    await make_ann(client)
    given = {
        "createUsers": {"users": [{"email": ANN}]},
        "renameUserByEmail": {"email": ADMIN, "newEmail": ANN},
    }.get(method, {"email": ANN} | (params or {}))
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": given}
    async with await client.post(request) as response:
        data = (await response.json())["error"]["data"]
    assert (data["code"], data["fields"]) == ("user_deleted", [{"field": field, "message": DELETED}])


async def make_ann(client: Client) -> int:
    """A deleted user whose login is another address than its e-mail."""
    profile = {"firstname": "A", "lastname": "L", "email": "mail@example.com"}
    made = await client.call("createMember", {"login": ANN, "sponsorId": 1, "profile": profile})
    user_id: int = made["member"]["id"]
    await client.call("deleteUserById", {"id": user_id})
    return user_id


async def test_a_deleted_user_is_restored_and_purged_by_its_login(client: Client) -> None:
    user_id = await make_ann(client)
    await client.call("restoreUserByEmail", {"email": ANN.upper()})
    assert (await client.call("getUserByEmail", {"email": "mail@example.com"}))["id"] == user_id
    assert await client.outcome("purgeUserByEmail", {"email": ANN}) == (
        400, "the user is not deleted: call deleteUserByEmail first",
    )  # fmt: skip
    assert await client.outcome("restoreUserByEmail", {"email": ANN}) == (400, "not found")
    await client.call("deleteUserById", {"id": user_id})
    await client.call("purgeUserByEmail", {"email": ANN})
    assert await client.outcome("purgeUserByEmail", {"email": ANN}) == (400, "not found")
    await client.call("createUser", {"email": ANN})
