"""Instances: made, listed, changed and suspended by operators."""

from typing import Any

import asyncpg
import pytest
from conftest import ADMIN, LINK_HOST, Client, footprint, insert_key

from server.auth import InstanceSettings


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
