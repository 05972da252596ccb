"""Okta: its public suite of SCIM 2.0 tests, and the messages that its documentation shows.

Sources: Okta's "SCIM 2.0 specification test" (the suite for BlazeMeter), "SCIM 2.0 protocol reference" (users and groups).
"""

import pytest
from conftest import Client
from dirty_equals import IsPartialDict, IsStr
from scim_client import ENTERPRISE, ERROR, GROUP, LIST, USER, Scim, group, user, where

RUNSCOPE = {
    "schemas": [USER],
    "userName": "Runscope300Nztmb5@atko.com",
    "name": {"givenName": "Runscope", "familyName": "Hntd1iqm"},
    "emails": [{"primary": True, "value": "Runscope300Nztmb5@atko.com", "type": "work"}],
    "displayName": "Runscope Hntd1iqm",
    "locale": "en-US",
    "externalId": "00ujl29u0le5T6Aj10h7",
    "groups": [],
    "password": "1mz050nq",
    "active": True,
}
PAGE = "startIndex=1&count=100"


@pytest.fixture
async def okta(client: Client) -> Scim:
    return Scim(client, media_type="application/scim+json; charset=utf-8")


async def test_the_suite_of_users(okta: Scim) -> None:
    """The requests are in the order of the suite."""
    listed = await okta.done("GET", "/Users?count=1&startIndex=1")
    assert listed == IsPartialDict(schemas=[LIST], itemsPerPage=1, startIndex=1, totalResults=1)
    first = listed["Resources"][0]
    assert first == IsPartialDict(
        id=IsStr, userName=IsStr, active=True, schemas=[USER, *first["schemas"][1:]]
    )
    assert first["emails"][0]["value"]
    shown = await okta.done("GET", f"/Users/{first['id']}")
    assert shown["id"] == first["id"] and shown["userName"] == first["userName"]
    nobody = await okta.done("GET", "/Users" + where('userName eq "nobody@atko.com"') + "&" + PAGE)
    assert nobody == {
        "schemas": [LIST],
        "totalResults": 0,
        "startIndex": 1,
        "itemsPerPage": 0,
        "Resources": [],
    }
    missing = await okta("GET", "/Users/00919288221112222")
    assert (missing.status, missing.body["schemas"]) == (404, [ERROR])
    created = await okta("POST", "/Users", RUNSCOPE)
    assert created.status == 201
    assert created.body == IsPartialDict(
        active=True, id=IsStr, userName=RUNSCOPE["userName"], name=IsPartialDict(RUNSCOPE["name"])
    )
    assert USER in created.body["schemas"] and "password" not in created.body and "groups" not in created.body
    assert await okta.done("GET", f"/Users/{created.body['id']}") == created.body
    again = await okta("POST", "/Users", RUNSCOPE)
    assert (again.status, again.body["schemas"]) == (409, [ERROR])
    for name in (RUNSCOPE["userName"], str(RUNSCOPE["userName"]).lower()):
        found = await okta.done("GET", "/Users" + where(f'userName eq "{name}"') + "&" + PAGE)
        assert [one["id"] for one in found["Resources"]] == [created.body["id"]]


async def test_profile_pushes_and_deactivation(okta: Scim) -> None:
    """PUT with everything that was read, then PATCH without a path."""
    created = await okta.done("POST", "/Users", RUNSCOPE)
    path = f"/Users/{created['id']}"
    whole = created | {"name": {"givenName": "Another", "familyName": "Name"}, "title": "Boss", "groups": []}
    whole["emails"] = [{"primary": True, "value": "another@atko.com", "type": "work"}]
    replaced = await okta.done("PUT", path, whole)
    assert (replaced["name"]["givenName"], replaced["title"], replaced["active"]) == ("Another", "Boss", True)
    # The userName is the e-mail, and is always among the entries.
    assert [one["value"] for one in replaced["emails"] if one.get("type") == "work"] == ["another@atko.com"]
    assert {one["value"] for one in replaced["emails"]} == {"another@atko.com", RUNSCOPE["userName"]}
    assert replaced["id"] == created["id"] and replaced["meta"]["created"] == created["meta"]["created"]
    # A PUT without a password keeps it.
    login = {"email": RUNSCOPE["userName"], "password": RUNSCOPE["password"]}
    await okta.client.call("login", login)
    for active in (False, True, False):
        patched = await okta.patch(path, {"op": "replace", "value": {"active": active}})
        assert (patched.status, patched.body["active"]) == (200, active)
    found = await okta.done("GET", "/Users" + where(f'userName eq "{RUNSCOPE["userName"]}"') + "&" + PAGE)
    assert [one["active"] for one in found["Resources"]] == [False]
    # A PATCH with a password sets it.
    patched = await okta.patch(path, {"op": "replace", "value": {"password": "t1meToChange"}})
    assert patched.status == 200 and "password" not in patched.body
    await okta.done("PUT", path, whole | {"active": True})
    await okta.client.call("login", login | {"password": "t1meToChange"})


async def test_updates_of_unknown_users(okta: Scim) -> None:
    for verb in ("PUT", "DELETE"):
        assert (await okta(verb, "/Users/23a35c27", RUNSCOPE)).status == 404
    assert (await okta.patch("/Users/23a35c27", {"op": "replace", "value": {"active": False}})).status == 404


async def test_group_push(okta: Scim) -> None:
    """A group is created, gets members, is renamed without a path, read, replaced and deleted."""
    ids = [(await okta.done("POST", "/Users", user(f"u{n}@atko.com")))["id"] for n in range(3)]
    assert (await okta.done("GET", f"/Groups?{PAGE}"))["itemsPerPage"] == 1  # Admins
    assert (await okta.done("GET", "/Groups" + where('displayName eq "Test SCIMv2"') + "&" + PAGE))[
        "totalResults"
    ] == 0
    created = await okta("POST", "/Groups", group("Test SCIMv2"))
    assert created.status == 201 and created.body == IsPartialDict(displayName="Test SCIMv2", id=IsStr)
    path = f"/Groups/{created.body['id']}"
    added = await okta.patch(
        path, {"op": "add", "path": "members", "value": [{"value": one, "display": one} for one in ids[:2]]}
    )
    assert added.status in (200, 204)
    renamed = {"op": "replace", "value": {"id": created.body["id"], "displayName": "Test SCIMv2 renamed"}}
    assert (await okta.patch(path, renamed)).status in (200, 204)
    changed = await okta.patch(
        path,
        {"op": "remove", "path": f'members[value eq "{ids[0]}"]'},
        {"op": "add", "path": "members", "value": [{"value": ids[2], "display": "u2@atko.com"}]},
    )
    assert changed.status in (200, 204)
    shown = await okta.done("GET", path)
    assert shown["displayName"] == "Test SCIMv2 renamed"
    assert {one["value"] for one in shown["members"]} == set(ids[1:])
    whole = {
        "schemas": [GROUP],
        "id": created.body["id"],
        "displayName": "Test SCIMv2",
        "members": [{"value": ids[0]}],
    }
    replaced = await okta.done("PUT", path, whole)
    assert (replaced["displayName"], [one["value"] for one in replaced["members"]]) == (
        "Test SCIMv2",
        ids[:1],
    )
    assert (await okta("DELETE", path)).status == 204
    assert (await okta("GET", path)).status == 404


async def test_import_reads_all_pages(okta: Scim) -> None:
    """Ids are strings, and each user is on one page only."""
    for number in range(5):
        await okta.done("POST", "/Users", user(f"u{number}@atko.com") | {ENTERPRISE: {"department": "Sales"}})
    seen: list[str] = []
    while True:
        page = await okta.done("GET", f"/Users?startIndex={len(seen) + 1}&count=2")
        assert all(isinstance(one["id"], str) for one in page["Resources"])
        seen += [one["id"] for one in page["Resources"]]
        if len(seen) >= page["totalResults"]:
            break
    assert len(set(seen)) == len(seen) == 6
