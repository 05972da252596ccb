"""Each member that a user can be given is in every call, list, file and event that should have it.

For a new member of NewUser or UserChanges (server/directory/users.py) add a line to MEMBERS, or to APART with the reason
and the test that covers it instead. Failing tests name the calls that lose the value.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Client

from server.directory.users import NewUser, User, UserChanges
from server.methods.users import ListedUser

MEMBERS: dict[str, Any] = {
    "displayName": "Ann Other",
    "isActive": False,
    "isAdmin": True,
    "profile": {
        "uid": "u-17", "title": "Dr.", "department": "Sales", "location": "Manama", "phones": ["+973 3600 0000"],
        "grade": "A",
    },
    "values": {"notificationReminder": 7, "timezone": "Asia/Bahrain", "editorTemplates": ["a", "b"]},
    "settings": [1, 2, 3],
    "apps": [4, 5],
    "avatar": "https://pictures.example/ann.png",
    "firstName": "Ann",
    "lastName": "Other",
    "externalId": "shop-17",
    "sessionsLimit": 3,
    "isPlanAdmin": True,
    "onlySeesReadable": True,
    "quotas": {"mail": 100, "files": 200},
}  # fmt: skip
"""Each member with a value that is not its default."""
APART = {
    "email": "says which user is meant: test_users.py, test_taken_names.py",
    "password": "never shown: test_users.py, test_logins.py",
    "passwordHash": "never shown: test_passwords.py",
    "createInOffice365": "work for the queue, not stored with the user: test_graph.py",
    "planId": "becomes a plan of the user: test_plans.py",
    "planValidTo": "belongs to that plan: test_plans.py",
    "groups": "memberships, with events of their own: test_groups.py",
}
"""Members that are not stored with the user and shown as they were given, and why."""
IN_FIELDS = {"firstName": "firstname", "lastName": "lastname"}
"""Members that are shown among the profile fields."""
NEW = {name: value for name, value in MEMBERS.items() if name in NewUser.model_fields}
CHANGES = {name: value for name, value in MEMBERS.items() if name in UserChanges.model_fields}

EMAIL = "ann@example.com"
ANN = {"email": EMAIL}


def test_every_member_has_a_value_here() -> None:
    known = set(NewUser.model_fields) | set(UserChanges.model_fields)
    assert known - set(MEMBERS) - set(APART) == set(), (
        "add these to MEMBERS or APART: see the top of this file"
    )
    assert (set(MEMBERS) | set(APART)) - known == set(), "these are no members any more"
    for model in (NewUser, UserChanges):
        for name, field in model.model_fields.items():
            default = field.get_default(call_default_factory=True)
            assert name in APART or MEMBERS[name] != default, f"{name}: a default says nothing"


def shown(user: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those members of a user, as getUser or an event shows it, in the form in which they are given."""
    found = {}
    for name in names:
        value = user["fields"].get(IN_FIELDS[name]) if name in IN_FIELDS else user[name]
        if name == "quotas":  # getUser tells of each whether it is the instance's
            value = {
                what: limit["limit"] if isinstance(limit, dict) else limit for what, limit in value.items()
            }
        found[name] = value
    return found


async def stored(client: Client, names: Iterable[str]) -> dict[str, Any]:
    return shown(await client.call("getUser", ANN), names)


async def last_changes(client: Client, cursor: str) -> dict[str, Any]:
    """All that events since a cursor say of the user afterwards."""
    after: dict[str, Any] = {"fields": {}}
    for event in (await client.call("listChanges", {"cursor": cursor}))["events"]:
        if event["type"].startswith("user."):
            after |= event["data"]["after"] or {}
    return after


async def now(client: Client) -> str:
    return str((await client.call("listChanges", {"limit": 1000}))["cursor"])


CREATIONS: dict[str, Any] = {
    "createUser": ANN | NEW,
    "createUsers": {"users": [ANN | NEW]},
    "ensureUser": ANN | NEW,
    "ensureUsers": {"users": [ANN | NEW]},
}


@pytest.mark.parametrize("method", CREATIONS)
async def test_creation(method: str, client: Client) -> None:
    """The user has it, and so has the event user.created."""
    cursor = await now(client)
    await client.call(method, CREATIONS[method])
    assert await stored(client, NEW) == NEW
    assert shown(await last_changes(client, cursor), NEW) == NEW


UPDATES: dict[str, Any] = {
    "updateUserByEmail": (CHANGES, ANN | CHANGES),
    "updateUsers": (CHANGES, {"users": [ANN | CHANGES]}),
    "ensureUser": (NEW, ANN | NEW),
    "ensureUsers": (NEW, {"users": [ANN | NEW]}),
}


@pytest.mark.parametrize("method", UPDATES)
async def test_change(method: str, client: Client) -> None:
    """The user has it, and the events tell of it."""
    given, params = UPDATES[method]
    await client.call("createUser", ANN)
    assert all(value != given[name] for name, value in (await stored(client, given)).items())
    cursor = await now(client)
    await client.call(method, params)
    assert await stored(client, given) == given
    assert shown(await last_changes(client, cursor), given) == given


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_of_one_member_changes_no_other(name: str, client: Client) -> None:
    """By the method for one user and by that for many."""
    await client.call("createUser", ANN | NEW)
    back = {"isActive": True, "isAdmin": False, "isPlanAdmin": False, "onlySeesReadable": False, "avatar": ""}
    other: Any = back.get(name, None if name in ("externalId", "sessionsLimit") else MEMBERS[name])
    if name == "displayName":
        other = "Somebody"
    elif isinstance(other, list):
        other = [9]
    elif isinstance(other, dict):
        other = dict.fromkeys(other) | ({"phones": []} if name == "profile" else {})
    for method, params in (
        ("updateUserByEmail", ANN | {name: other}),
        ("updateUsers", {"users": [ANN | {name: MEMBERS[name]}]}),
    ):
        await client.call(method, params)
        given = (params["users"][0] if "users" in params else params)[name]
        assert await stored(client, NEW) == NEW | {name: given}, method


async def test_look_ups_and_the_list(client: Client) -> None:
    """What getUserByEmail and listUsers show is what was given. A suspended user is in them too."""
    await client.call("createUser", ANN | NEW)
    listed = (await client.call("listUsers"))["users"]
    (in_list,) = [user for user in listed if user["email"] == EMAIL]
    for user, model in ((await client.call("getUserByEmail", ANN), User), (in_list, ListedUser)):
        members = MEMBERS.keys() & model.model_fields.keys()
        assert {name: user[name] for name in members} == {name: MEMBERS[name] for name in members}


async def test_export_and_import(client: Client, officerpc: Any, operator: Client, tmp_path: Path) -> None:
    """What is exported is what was given, and an import of it makes the same user elsewhere."""
    await operator.call("createInstance", {"name": "COPY", "admin": {"email": "boss@copy.example"}})
    await client.call("createUser", ANN | NEW)
    lines = (await officerpc("users", "export", "--instance", "MYINSTANCE")).out.splitlines()
    (line,) = [line for line in lines if json.loads(line)["email"] == EMAIL]
    assert json.loads(line) == ANN | NEW
    file = tmp_path / "users.jsonl"
    file.write_text(line + "\n")
    assert (await officerpc("users", "import", str(file), "--instance", "COPY")).status == 0
    copied = await operator.call("getUser", ANN | {"instance": "COPY"})
    assert shown(copied, NEW) == NEW
