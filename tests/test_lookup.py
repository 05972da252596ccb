"""getUser: all data of a user in one call."""

from typing import Any

import asyncpg
import pytest
from conftest import ADMIN, Client

from server.methods.lookup import WholeUser


async def test_everything_by_each_of_the_names(
    client: Client, operator: Client, db: asyncpg.Connection
) -> None:
    await operator.call(
        "updateInstance", {"instance": "MYINSTANCE", "settings": {"defaultQuotas": {"files": 500}}}
    )
    made = await client.call(
        "createMember",
        {"login": "jsmith", "sponsorId": 1, "password": "demo1234", "language": "ru",
         "profile": {"firstname": "Jo", "lastname": "Smith", "email": "Jo@example.com", "phone": "+97336000000"}},
    )  # fmt: skip
    user_id = made["member"]["id"]
    await client.call("createPlan", {"type": "prepaid", "name": "A year", "duration": 12})
    await client.call("createPlan", {"type": "recurring", "name": "Gold"})
    await client.call("assignPlan", {"userId": user_id, "planId": 1})
    await client.call("changePlan", {"userId": user_id, "planId": 2, "validFrom": "2099-01-01"})
    await client.call("createGroup", {"name": "Sales"})
    await client.call(
        "updateUserByEmail",
        {"email": "jo@example.com", "externalId": "shop-1", "quotas": {"mail": 100}, "groups": ["Sales"],
         "sessionsLimit": 3},
    )  # fmt: skip
    await client.call("login", {"email": "jsmith", "password": "demo1234"})
    whole = await client.call("getUser", {"id": user_id})
    for name in ({"email": "JO@example.com"}, {"email": "JSmith"}, {"externalId": "shop-1"}):
        assert await client.call("getUser", name) == whole
    assert (whole["email"], whole["login"], whole["externalId"]) == ("Jo@example.com", "jsmith", "shop-1")
    assert (whole["fullName"], whole["language"], whole["groups"]) == ("Jo Smith", "ru", ["Sales"])
    assert whole["quotas"] == {
        "mail": {"limit": 100, "isDefault": False}, "files": {"limit": 500, "isDefault": True},
    }  # fmt: skip
    assert [(plan["name"], plan["state"]) for plan in whole["plans"]] == [
        ("A year", "active"), ("Gold", "scheduled"),
    ]  # fmt: skip
    assert whole["account"] == {"id": 2, "title": "Jo Smith"}
    assert whole["fields"]["phone_e164"] == "+97336000000"
    assert (whole["sessions"], whole["sessionsLimit"]) == (1, 3)
    assert whole["lastLoginAt"] >= whole["createdAt"]
    shown = await client.call("getUserByEmail", {"email": "jo@example.com"})
    assert (whole["mailboxes"]["trash"], whole["folders"]["root"], whole["calendars"]["main"]) == (
        shown["trashEmail"], shown["rootFiles"], shown["mainCalendar"],
    )  # fmt: skip
    assert whole["mailboxes"]["archive"] == shown["drafts"] - 1
    assert set(whole) == set(WholeUser.model_fields)


async def test_a_user_without_an_e_mail_suspended_or_deleted(client: Client) -> None:
    profile = {"firstname": "Jo", "lastname": "Smith"}
    made = await client.call("createMember", {"login": "jsmith", "sponsorId": 1, "profile": profile})
    ref = {"id": made["member"]["id"]}
    whole = await client.call("getUser", {"email": "jsmith"})
    assert (whole["email"], whole["login"], whole["lastLoginAt"]) == (None, "jsmith", None)
    await client.call("deactivateUserById", ref)
    whole = await client.call("getUser", ref)
    assert (whole["isActive"], whole["suspendedAt"] is not None, whole["isDeleted"]) == (False, True, False)
    await client.call("deleteUserById", ref)
    whole = await client.call("getUser", ref)
    assert (whole["isDeleted"], whole["deletedAt"] is not None) == (True, True)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "params: give one of id, email and externalId"),
        ({"id": 1, "email": ADMIN}, "params: give one of id, email and externalId"),
        ({"id": "1"}, "id: must be an integer"),
        ({"id": 99}, "not found"), ({"email": "nobody@example.com"}, "not found"),
        ({"externalId": "none"}, "not found"),
    ],
)  # fmt: skip
async def test_bad_look_ups(params: dict[str, Any], message: str, client: Client) -> None:
    status, told = await client.outcome("getUser", params)
    assert status == 400 and message in told
