"""Microsoft Entra ID: the sequence of its public validator, and the messages that its documentation shows.

Sources: Microsoft's "Develop and plan provisioning for a SCIM endpoint" (requests and answers of users and groups), "Known
issues with SCIM 2.0 protocol compliance" (both forms of op, active and members), and its SCIM Validator (scimvalidator.microsoft.com).
"""

from typing import Any

import pytest
from conftest import Client
from dirty_equals import IsPartialDict
from scim_client import ENTERPRISE, GROUP, LIST, USER, Scim, user, where

NAME = "Test_User_fd0ea19b-0777-472c-9f96-4f70d2226f2e@testuser.com"
NEW = {
    "schemas": [USER, ENTERPRISE],
    "externalId": "0a21f0f2-8d2a-4f8e-bf98-7363c4aed4ef",
    "userName": NAME,
    "active": True,
    "emails": [{"primary": True, "type": "work", "value": "Test_User_fd0ea19b@testuser.com"}],
    "meta": {"resourceType": "User"},
    "name": {"formatted": "givenName familyName", "familyName": "familyName", "givenName": "givenName"},
    "roles": [],
}
ENTRA_GROUP = {
    "schemas": [GROUP, "http://schemas.microsoft.com/2006/11/ResourceManagement/ADSCIM/2.0/Group"],
    "externalId": "8aa1a0c0-c4c3-4bc0-b4a5-2ef676900159",
    "displayName": "displayName",
    "meta": {"resourceType": "Group"},
}


@pytest.fixture
async def entra(client: Client) -> Scim:
    """A client like Entra ID: URL with the instance, charset in the media type."""
    return Scim(client, base="/scim/v2/MYINSTANCE", media_type="application/scim+json; charset=utf-8")


@pytest.fixture
async def entra_user(entra: Scim) -> dict[str, Any]:
    new: dict[str, Any] = await entra.done("POST", "/Users", NEW)
    return new


async def test_connection(entra: Scim) -> None:
    """ "Test Connection" looks for a user of a random name."""
    found = await entra.done("GET", "/Users" + where('userName eq "1e5b8f1c-ee32-4e37-9bbb-2b8c0c87a2a0"'))
    assert found == {
        "schemas": [LIST],
        "totalResults": 0,
        "Resources": [],
        "startIndex": 1,
        "itemsPerPage": 0,
    }


async def test_the_validators_sequence_of_users(entra: Scim) -> None:
    created = await entra("POST", "/Users", NEW)
    assert created.status == 201
    path = f"/Users/{created.body['id']}"
    for name in ("userName", "externalId", "active", "name"):
        assert created.body[name] == NEW[name], name
    assert (await entra("POST", "/Users", NEW)).outcome == (409, "uniqueness")
    for text in (
        f'userName eq "{NAME}"',
        f'userName eq "{NAME.upper()}"',
        f'USERNAME EQ "{NAME}"',
        f'externalId eq "{NEW["externalId"]}"',
        f'emails[type eq "work"].value eq "{NEW["emails"][0]["value"]}"',  # type: ignore[index]
    ):
        found = await entra.done("GET", "/Users" + where(text))
        assert [one["id"] for one in found["Resources"]] == [created.body["id"]], text
    several = await entra.patch(
        path,
        {"op": "Replace", "path": 'emails[type eq "work"].value', "value": "updatedEmail@microsoft.com"},
        {"op": "Replace", "path": "name.familyName", "value": "updatedFamilyName"},
    )
    assert several.status in (200, 204)
    shown = await entra.done("GET", path)
    assert shown["name"]["familyName"] == "updatedFamilyName"
    assert [one["value"] for one in shown["emails"] if one.get("type") == "work"] == [
        "updatedEmail@microsoft.com"
    ]
    renamed = "5b50642d-79fc-4410-9e90-4c077cdd1a59@testuser.com"
    await entra.patch(path, {"op": "Replace", "path": "userName", "value": renamed})
    found = await entra.done("GET", "/Users" + where(f'userName eq "{renamed}"'))
    assert found["totalResults"] == 1
    disabled = await entra.patch(path, {"op": "Replace", "path": "active", "value": False})
    assert disabled.body["active"] is False
    # Searches still find a disabled user.
    found = await entra.done("GET", "/Users" + where(f'externalId eq "{NEW["externalId"]}"'))
    assert [one["active"] for one in found["Resources"]] == [False]
    assert (await entra("DELETE", path)).status == 204
    assert (await entra("DELETE", path)).status == 404
    assert (await entra("GET", path)).status == 404
    assert (await entra.done("GET", "/Users" + where(f'userName eq "{renamed}"')))["totalResults"] == 0


async def test_the_validators_sequence_of_groups(entra: Scim, entra_user: dict[str, Any]) -> None:
    created = await entra("POST", "/Groups", ENTRA_GROUP)
    assert created.status == 201
    assert created.body == IsPartialDict(displayName="displayName", externalId=ENTRA_GROUP["externalId"])
    path = f"/Groups/{created.body['id']}"
    assert (await entra("POST", "/Groups", ENTRA_GROUP)).outcome == (409, "uniqueness")
    shown = await entra.done("GET", f"{path}?excludedAttributes=members")
    assert "members" not in shown
    for text in ('displayName eq "displayName"', f'externalId eq "{ENTRA_GROUP["externalId"]}"'):
        found = await entra.done("GET", "/Groups" + where(text) + "&excludedAttributes=members")
        assert [one["id"] for one in found["Resources"]] == [created.body["id"]], text
    renamed = await entra.patch(path, {"op": "Replace", "path": "displayName", "value": "1879db59-3bdf-4490"})
    assert renamed.status in (200, 204)
    member = {"op": "Add", "path": "members", "value": [{"$ref": None, "value": entra_user["id"]}]}
    assert (await entra.patch(path, member)).status in (200, 204)
    assert (await entra.patch(path, member)).status in (200, 204)  # again
    shown = await entra.done("GET", path)
    assert (shown["displayName"], [one["value"] for one in shown["members"]]) == (
        "1879db59-3bdf-4490",
        [entra_user["id"]],
    )
    # Entra ID sends the members to remove in `value`, not in a filter.
    assert (await entra.patch(path, member | {"op": "Remove"})).status in (200, 204)
    assert "members" not in await entra.done("GET", path)
    assert (await entra("DELETE", path)).status == 204
    assert (await entra("DELETE", path)).status == 404


async def test_booleans_as_strings(entra: Scim, entra_user: dict[str, Any]) -> None:
    """Without the flag aadOptscim062020, `active` is a capitalized string."""
    path = f"/Users/{entra_user['id']}"
    for sent, active in (("False", False), ("True", True), ("false", False), ("true", True)):
        patched = await entra.patch(path, {"op": "Replace", "path": "active", "value": sent})
        assert patched.body["active"] is active, sent
    assert (await entra.patch(path, {"op": "Replace", "value": {"active": "False"}})).body["active"] is False
    assert (await entra.patch(path, {"op": "Replace", "path": "active", "value": "no"})).status == 400


async def test_paths_create_missing_elements(entra: Scim, entra_user: dict[str, Any]) -> None:
    patched = await entra.patch(
        f"/Users/{entra_user['id']}",
        {"op": "Add", "path": 'phoneNumbers[type eq "mobile"].value', "value": "+1 425 555 0100"},
        {"op": "Replace", "path": 'emails[type eq "other"].value', "value": "other@testuser.com"},
        {"op": "Add", "path": 'addresses[type eq "work"].locality', "value": "Redmond"},
        {"op": "Add", "path": 'addresses[type eq "work"].country', "value": "US"},
        {"op": "Add", "path": 'roles[primary eq "True"].value', "value": "editor"},
    )
    assert patched.status == 200
    assert patched.body["phoneNumbers"] == [IsPartialDict(type="mobile", value="+1 425 555 0100")]
    assert IsPartialDict(type="other", value="other@testuser.com") in patched.body["emails"]
    assert patched.body["addresses"] == [IsPartialDict(type="work", locality="Redmond", country="US")]
    assert patched.body["roles"] == [IsPartialDict(value="editor")]


async def test_enterprise_attributes(entra: Scim, entra_user: dict[str, Any]) -> None:
    """Paths with the URN and a colon; a manager as a string, and its removal."""
    boss = await entra.done("POST", "/Users", user("boss@testuser.com", displayName="Boss"))
    path = f"/Users/{entra_user['id']}"
    patched = await entra.patch(
        path,
        {"op": "Add", "path": f"{ENTERPRISE}:department", "value": "Sales"},
        {"op": "Add", "path": f"{ENTERPRISE}:employeeNumber", "value": "701984"},
        {"op": "Add", "path": f"{ENTERPRISE}:manager", "value": boss["id"]},
    )
    assert patched.body[ENTERPRISE] == IsPartialDict(department="Sales", employeeNumber="701984")
    assert patched.body[ENTERPRISE]["manager"] == IsPartialDict(value=boss["id"], displayName="Boss")
    patched = await entra.patch(
        path, {"op": "Replace", "path": f"{ENTERPRISE}:manager", "value": {"value": entra_user["id"]}}
    )
    assert patched.body[ENTERPRISE]["manager"]["value"] == entra_user["id"]
    patched = await entra.patch(path, {"op": "Remove", "path": f"{ENTERPRISE}:manager"})
    assert "manager" not in patched.body[ENTERPRISE]


async def test_values_without_a_path(entra: Scim, entra_user: dict[str, Any]) -> None:
    """The keys of the value can have dots, or be whole paths."""
    patched = await entra.patch(
        f"/Users/{entra_user['id']}",
        {
            "op": "Replace",
            "value": {
                "displayName": "New Name",
                "name.givenName": "New",
                f"{ENTERPRISE}:department": "R&D",
                'emails[type eq "work"].value': "new@testuser.com",
            },
        },
    )
    assert patched.status == 200, patched.body
    assert (patched.body["displayName"], patched.body["name"]["givenName"]) == ("New Name", "New")
    assert patched.body[ENTERPRISE]["department"] == "R&D"
    assert [one["value"] for one in patched.body["emails"] if one.get("type") == "work"] == [
        "new@testuser.com"
    ]


async def test_disabling_a_user_ends_its_sessions(entra: Scim) -> None:
    client = entra.client
    await entra.done("POST", "/Users", NEW | {"password": "demo1234"})
    logged_in = await client.call("login", {"email": NAME, "password": "demo1234"})
    found = await entra.done("GET", "/Users" + where(f'userName eq "{NAME}"'))
    await entra.patch(
        f"/Users/{found['Resources'][0]['id']}", {"op": "Replace", "path": "active", "value": "False"}
    )
    status, _ = await client.outcome("loginWithToken", {"token": logged_in["token"]})
    assert status == 400
