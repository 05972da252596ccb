"""The methods for users as SCIM resources: every attribute is written and read back."""

import asyncio
import json
import secrets
from typing import Any

import asyncpg
import pytest
from conftest import Client, footprint, insert_key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CORE = "urn:ietf:params:scim:schemas:core:2.0:User"
ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
OFFICE = "urn:ietf:params:scim:schemas:extension:officerpc:2.0:User"
ANN = "ann@example.com"

ATTRIBUTES: dict[str, tuple[Any, Any]] = {
    "externalId": ("00ujl29u0le5T6Aj10h7", "another"),
    "name": (
        {"formatted": "Ms. Barbara J Jensen, III", "familyName": "Jensen", "givenName": "Barbara",
         "middleName": "Jane", "honorificPrefix": "Ms.", "honorificSuffix": "III"},
        {"formatted": "Dr. Barb Jones", "familyName": "Jones", "givenName": "Barb", "honorificPrefix": "Dr."},
    ),
    "displayName": ("Babs Jensen", "Babs"),
    "nickName": ("Babs", "B"),
    "profileUrl": ("https://login.example.com/bjensen", "https://login.example.com/b"),
    "title": ("Tour Guide", "Guide"),
    "userType": ("Employee", "Contractor"),
    "preferredLanguage": ("fr-CA", "de"),
    "locale": ("en-US", "de-AT"),
    "timezone": ("America/Los_Angeles", "Europe/Vienna"),
    "active": (True, False),
    "emails": (
        [{"value": ANN, "type": "work", "primary": True, "display": "At work"},
         {"value": "babs@jensen.example", "type": "home"}],
        [{"value": ANN, "type": "other"}, {"value": "b@jensen.example", "type": "home", "primary": True}],
    ),
    "phoneNumbers": (
        [{"value": "tel:+1-201-555-0123", "type": "work", "primary": True},
         {"value": "+12015550123", "type": "mobile", "display": "Mine"}],
        [{"value": "+12015550124"}],
    ),
    "ims": ([{"value": "someaimhandle", "type": "aim"}], [{"value": "another", "type": "xmpp"}]),
    "photos": (
        [{"value": "https://photos.example.com/profilephoto/F", "type": "photo", "primary": True},
         {"value": "https://photos.example.com/profilephoto/T", "type": "thumbnail"}],
        [{"value": "https://photos.example.com/profilephoto/G", "type": "photo"}],
    ),
    "addresses": (
        [{"type": "work", "streetAddress": "100 Universal City Plaza", "locality": "Hollywood", "region": "CA",
          "postalCode": "91608", "country": "US", "formatted": "100 Universal City Plaza\nHollywood", "primary": True}],
        [{"type": "home", "locality": "Vienna", "country": "AT"}],
    ),
    "entitlements": ([{"value": "printing", "display": "Prints", "type": "right"}], [{"value": "scanning"}]),
    "roles": ([{"value": "admin", "primary": True}, {"value": "writer"}], [{"value": "reader"}]),
    "x509Certificates": ([{"value": "TUlJRFF6Q0NBcXk="}], [{"value": "TUlJ", "type": "x"}]),
    f"{ENTERPRISE}:employeeNumber": ("701984", "7"),
    f"{ENTERPRISE}:costCenter": ("4130", "4131"),
    f"{ENTERPRISE}:organization": ("Universal Studios", "Universal"),
    f"{ENTERPRISE}:division": ("Theme Park", "Park"),
    f"{ENTERPRISE}:department": ("Tour Operations", "Tours"),
    f"{ENTERPRISE}:manager": (
        {"value": "1", "$ref": "../Users/1", "displayName": "admin"},
        {"value": "2", "$ref": "../Users/2", "displayName": "Jane Doe"},
    ),
    f"{OFFICE}:quotas": ({"mail": 100, "files": 200}, {"mail": 5}),
}  # fmt: skip
"""Every writable attribute, with two values, which are read as they were sent."""
DEFAULTS: dict[str, Any] = {
    "displayName": "ann", "preferredLanguage": "en", "active": True,
    "emails": [{"value": ANN, "type": "work", "primary": True}],
}  # fmt: skip
"""The values of attributes that were not sent."""
KEPT_BY_PUT = {"active", "preferredLanguage"}
"""Attributes that keep their value if a PUT leaves them out."""


def user_with(values: dict[str, Any], name: str = ANN) -> dict[str, Any]:
    """A resource with these attributes, by their paths."""
    user: dict[str, Any] = {"schemas": [CORE, ENTERPRISE, OFFICE], "userName": name}
    for path, value in values.items():
        urn, _, attribute = path.rpartition(":")
        (user.setdefault(urn, {}) if urn else user)[attribute] = value
    return user


def value_of(user: dict[str, Any], path: str) -> Any:
    urn, _, attribute = path.rpartition(":")
    return (user.get(urn, {}) if urn else user).get(attribute)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, ignoring the order of entries."""
    if isinstance(one, list) and isinstance(other, list):
        return sorted(map(repr, map(_sorted, one))) == sorted(map(repr, map(_sorted, other)))
    return bool(one == other)


def _sorted(value: Any) -> Any:
    return sorted(value.items()) if isinstance(value, dict) else value


async def create(client: Client, user_name: str = ANN, **more: Any) -> dict[str, Any]:
    created: dict[str, Any] = await client.call(
        "createScimUser", {"user": {"schemas": [CORE], "userName": user_name} | more}
    )
    return created


async def get(client: Client, user: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = await client.call("getScimUser", {"id": user["id"]})
    return found


async def patch(client: Client, user: dict[str, Any], *operations: Any, **more: Any) -> dict[str, Any]:
    """The user after operations. The answer must equal what a read returns."""
    params = {"id": user["id"], "operations": list(operations)} | more
    after: dict[str, Any] = await client.call("patchScimUser", params)
    assert after == await get(client, user)
    return after


async def put(client: Client, user: dict[str, Any], sent: dict[str, Any], **more: Any) -> dict[str, Any]:
    after: dict[str, Any] = await client.call("replaceScimUser", {"id": user["id"], "user": sent} | more)
    assert after == await get(client, user)
    return after


async def refusal(client: Client, method: str, params: dict[str, Any]) -> tuple[int, str, str]:
    """Status, code and message of a call that must fail."""
    async with await client.post({"method": method, "params": params}) as response:
        return response.status, response.headers["X-Error-Code"], await response.json()


async def events(db: asyncpg.Connection, *methods: str) -> list[Any]:
    """The events of these methods: type, before, after."""
    rows = await db.fetch(
        "SELECT type, before, after FROM events WHERE method = any($1::text[]) ORDER BY xid, place", methods
    )
    return [
        (row["type"], *(None if row[part] is None else json.loads(row[part]) for part in ("before", "after")))
        for row in rows
    ]


# --- attributes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ATTRIBUTES)
async def test_an_attribute_is_written_and_read(path: str, client: Client, jane: Any) -> None:
    """It is created, read, replaced by a PUT, patched back, removed, and left out of a PUT."""
    first, second = ATTRIBUTES[path]
    user = await client.call("createScimUser", {"user": user_with({path: first})})
    assert same(value_of(user, path), first)
    assert user == await get(client, user)
    after = await put(client, user, user_with({path: second}))
    assert same(value_of(after, path), second)
    after = await patch(client, user, {"op": "replace", "path": path, "value": first})
    if path == "name":  # a complex one keeps what is left out (RFC 7644, 3.5.2.3)
        assert after["name"] == first
    assert same(value_of(after, path), first)
    version = after["meta"]["version"]
    again = await patch(client, user, {"op": "replace", "path": path, "value": first})
    assert again["meta"]["version"] == version
    if path != "active":
        after = await patch(client, user, {"op": "remove", "path": path})
        assert same(value_of(after, path), DEFAULTS.get(path))
    await patch(client, user, {"op": "add", "path": path, "value": second})
    after = await put(client, user, user_with({}))
    assert same(value_of(after, path), second if path in KEPT_BY_PUT else DEFAULTS.get(path))


async def test_the_values_that_operations_search_are_limited(client: Client, jane: Any) -> None:
    """An operation with a filter searches the whole list: the sum over all operations is limited."""
    values = [{"value": f"role{number}"} for number in range(200)]
    user = await create(client, roles=values)
    remove = [{"op": "remove", "path": f'roles[value eq "role{number}"]'} for number in range(20)]
    params = {"id": user["id"], "operations": remove}
    status, code, message = await refusal(client, "patchScimUser", params)
    assert (status, code) == (400, "invalid_value") and "fewer operations" in message
    after = await patch(client, user, *remove[:10])
    assert len(after["roles"]) == 190


async def test_a_put_without_our_schema_keeps_the_quotas(client: Client) -> None:
    """test_an_attribute_is_written_and_read has a PUT with our schema, which removes them."""
    user = await client.call("createScimUser", {"user": user_with({f"{OFFICE}:quotas": {"mail": 100}})})
    after = await put(client, user, {"schemas": [CORE], "userName": ANN})
    assert after[OFFICE]["quotas"] == {"mail": 100}


async def test_all_attributes_together(client: Client, jane: Any) -> None:
    """A PUT of what was read changes nothing; a PATCH of one attribute keeps the others."""
    whole = user_with({path: first for path, (first, _) in ATTRIBUTES.items()})
    user = await client.call("createScimUser", {"user": whole})
    for path, (first, _) in ATTRIBUTES.items():
        assert same(value_of(user, path), first), path
    assert await put(client, user, user) == user
    after = await patch(client, user, {"op": "replace", "path": "title", "value": "Boss"})
    assert after | {"meta": user["meta"]} == user | {"title": "Boss"}
    for path, (_, second) in ATTRIBUTES.items():
        after = await patch(client, user, {"op": "replace", "path": path, "value": second})
        assert after["meta"]["version"] != user["meta"]["version"]


async def test_a_resource(client: Client, serve: Any) -> None:
    """The attributes that the service sets: schemas, id, meta, groups, provisioned data."""
    await client.call("createGroup", {"name": "Sales"})
    user = await create(client)
    await client.call("addToGroup", {"name": "Sales", "email": ANN})
    await client.call("updateUserByEmail", {"email": ANN, "isAdmin": True})
    await client.call("createPlan", {"type": "prepaid", "name": "A year", "duration": 12})
    await client.call("assignPlan", {"userId": int(user["id"]), "planId": 1, "planValidTo": "2099-12-31"})
    found = await get(client, user)
    assert found["schemas"] == [CORE, OFFICE] and found["id"] == "2"
    assert found["groups"] == [
        {"value": "0", "$ref": "../Groups/0", "display": "Admins", "type": "direct"},
        {"value": "1", "$ref": "../Groups/1", "display": "Sales", "type": "direct"},
    ]
    assert found[OFFICE] == {
        "mailboxes": {"inbox": 7, "spam": 8, "sent": 9, "trash": 10, "archive": 11, "drafts": 12},
        "calendars": {"main": 2}, "folders": {"root": 3, "trash": 4},
        "plans": [{"value": 1, "display": "A year", "validTo": "2099-12-31"}],
    }  # fmt: skip
    meta = found["meta"]
    assert meta["location"].endswith("/scim/v2/MYINSTANCE/Users/2") and meta["resourceType"] == "User"
    assert meta["version"].startswith('W/"') and meta["created"].endswith("Z")
    assert meta["lastModified"] > meta["created"]


async def test_requested_attributes(client: Client) -> None:
    user = await create(client, name={"givenName": "Ann", "familyName": "Lee"})
    for wanted, found in (
        (["USERNAME"], {"userName": ANN}),
        (["name.givenname"], {"name": {"givenName": "Ann"}}),
        ([f"{CORE}:displayName"], {"displayName": "Ann Lee"}),
        ([f"{OFFICE}:calendars"], {OFFICE: {"calendars": {"main": 2}}}),
        (["emails.value"], {"emails": [{"value": ANN}]}),
        (["nosuch"], {}),
    ):
        schemas = [CORE, OFFICE] if OFFICE in found else [CORE]
        shown = await client.call("getScimUser", {"id": user["id"], "attributes": wanted})
        assert shown == {"schemas": schemas, "id": user["id"]} | found
    shown = await client.call("getScimUser", {"id": user["id"], "excludedAttributes": [OFFICE, "id", "meta"]})
    assert shown == {name: value for name, value in user.items() if name not in (OFFICE, "meta")} | {
        "schemas": [CORE]
    }
    both = {"id": user["id"], "attributes": ["id"], "excludedAttributes": ["meta"]}
    assert (await refusal(client, "getScimUser", both))[:2] == (400, "invalid_value")


async def test_read_only_attributes_are_ignored(client: Client) -> None:
    user = await create(client, id="77", meta={"version": "x"}, groups=[{"value": "1"}], nosuch=1)
    assert user["id"] == "2" and "groups" not in user
    after = await put(client, user, user | {"id": "9", "groups": [{"value": "0"}], "title": "x"})
    assert after["id"] == "2" and "groups" not in after and after["title"] == "x"
    value = {"id": "9", "meta": {"version": "x"}, "groups": [], "title": "y"}
    assert (await patch(client, user, {"op": "replace", "value": value}))["title"] == "y"


# --- names ---------------------------------------------------------------------------------------------------


async def test_a_taken_user_name(client: Client) -> None:
    """Names are compared case-insensitively, and logins also with e-mails."""
    await create(client)
    await create(client, "Bob", emails=[{"value": "bob@example.com"}])
    for name, more in (
        ("ANN@Example.com", {}), ("BOB", {}), ("bob@EXAMPLE.com", {}),
        ("carl", {"emails": [{"value": "Ann@example.com"}]}),
    ):  # fmt: skip
        sent = {"schemas": [CORE], "userName": name} | more
        assert (await refusal(client, "createScimUser", {"user": sent}))[:2] == (400, "duplicate_email")
    carl = await create(client, "carl")
    for name in ("BOB", "Ann@example.com", "bob@example.com"):
        operations = [{"op": "replace", "path": "userName", "value": name}]
        params = {"id": carl["id"], "operations": operations}
        assert (await refusal(client, "patchScimUser", params))[:2] == (400, "duplicate_email")
        sent = {"schemas": [CORE], "userName": name}
        params = {"id": carl["id"], "user": sent}
        assert (await refusal(client, "replaceScimUser", params))[:2] == (400, "duplicate_email")
    await client.call("deleteScimUser", {"id": carl["id"]})
    assert (await refusal(client, "createScimUser", {"user": {"schemas": [CORE], "userName": "carl"}}))[
        1
    ] == "user_deleted"


async def test_a_taken_external_id(client: Client) -> None:
    await create(client, externalId="x")
    bob = await create(client, "bob@example.com")
    sent = {"schemas": [CORE], "userName": "carl@example.com", "externalId": "x"}
    assert (await refusal(client, "createScimUser", {"user": sent}))[1] == "duplicate_external_id"
    params = {"id": bob["id"], "operations": [{"op": "add", "path": "externalId", "value": "x"}]}
    assert (await refusal(client, "patchScimUser", params))[1] == "duplicate_external_id"


async def test_logins(client: Client, db: asyncpg.Connection) -> None:
    """A userName that is not an e-mail is the login; the e-mail is the primary entry, or else the first."""
    emails = [{"value": "b1@example.com"}, {"value": "b2@example.com", "primary": True}]
    user = await create(client, "bjensen", emails=emails, password="demo1234")
    assert user["userName"] == "bjensen" and same(user["emails"], emails)
    assert (await client.call("getUser", {"email": "bjensen"}))["email"] == "b2@example.com"
    for name in ("BJENSEN", "b2@example.com"):
        await client.call("login", {"email": name, "password": "demo1234"})
    after = await patch(client, user, {"op": "replace", "path": "emails", "value": emails[:1]})
    assert same(after["emails"], emails[:1])
    assert (await client.call("getUser", {"email": "bjensen"}))["email"] == "b1@example.com"
    after = await patch(client, user, {"op": "replace", "path": "userName", "value": "babs"})
    assert after["userName"] == "babs"
    await client.call("login", {"email": "babs", "password": "demo1234"})
    after = await patch(client, user, {"op": "replace", "path": "userName", "value": "c@example.com"})
    assert after["userName"] == "c@example.com"
    assert same(after["emails"], [{"value": "c@example.com", "type": "work", "primary": True}, *emails[:1]])
    assert await db.fetchval("SELECT count(*) FROM logins") == 0
    again = await create(client, "babs")
    assert "emails" not in again


async def test_users_without_an_email(client: Client) -> None:
    user = await create(client, "bjensen")
    assert "emails" not in user and user["displayName"] == "bjensen"
    assert (await client.call("getUser", {"email": "bjensen"}))["email"] is None
    after = await patch(
        client, user, {"op": "add", "path": "emails", "value": [{"value": ANN, "type": "work"}]}
    )
    assert after["userName"] == "bjensen" and after["emails"] == [{"value": ANN, "type": "work"}]
    assert (await client.call("getUser", {"email": ANN}))["login"] == "bjensen"
    after = await patch(client, user, {"op": "remove", "path": "emails"})
    assert after["userName"] == "bjensen" and "emails" not in after


async def test_a_new_user_name_replaces_the_address_of_its_entry(client: Client) -> None:
    user = await create(client)
    after = await patch(client, user, {"op": "replace", "path": "userName", "value": "New@Example.com"})
    assert after["userName"] == "New@example.com"
    assert after["emails"] == [{"value": "New@example.com", "type": "work", "primary": True}]
    typed = [{"value": "New@example.com", "type": "other", "display": "Mine"}]
    await patch(client, user, {"op": "replace", "path": "emails", "value": typed})
    after = await patch(client, user, {"op": "replace", "path": "userName", "value": "b@example.com"})
    assert after["emails"] == [{"value": "b@example.com", "type": "other", "display": "Mine"}]
    await client.call("renameUserByEmail", {"email": "b@example.com", "newEmail": "c@example.com"})
    after = await get(client, user)
    assert after["emails"] == [{"value": "c@example.com", "type": "other", "display": "Mine"}]


async def test_email_keys_are_stored_only_for_searches(client: Client, db: asyncpg.Connection) -> None:
    emails = [{"value": ANN, "type": "work"}, {"value": "Home@Example.org", "type": "home"}]
    user = await create(client, emails=emails)
    assert "emailKeys" not in str(user)
    stored = "SELECT id::text FROM users WHERE instance_id = 1 AND attributes @> $1::text::jsonb"
    for key in (ANN, "home@example.org"):
        assert await db.fetchval(stored, f'{{"emailKeys": ["{key}"]}}') == user["id"]
    assert "emailKeys" not in str(await client.call("listChanges", {"limit": 1000}))
    await patch(client, user, {"op": "remove", "path": "emails"})
    assert await db.fetchval("SELECT attributes::text FROM users WHERE id = 2") == "{}"


async def test_a_display_name_made_of_the_names_changes_with_them(client: Client) -> None:
    user = await create(client, name={"givenName": "Ann", "familyName": "Lee"})
    assert user["displayName"] == user["name"]["formatted"] == "Ann Lee"
    after = await patch(client, user, {"op": "replace", "path": "name.familyName", "value": "Roe"})
    assert after["displayName"] == after["name"]["formatted"] == "Ann Roe"
    after = await patch(client, user, {"op": "replace", "path": "displayName", "value": "Annie"})
    after = await patch(client, user, {"op": "replace", "path": "name.familyName", "value": "Doe"})
    assert after["displayName"] == "Annie" and after["name"]["formatted"] == "Ann Doe"


async def test_a_formatted_name_is_dropped_when_the_names_change(client: Client) -> None:
    name = {"givenName": "Ann", "familyName": "Lee", "formatted": "Dr. Ann Lee"}
    user = await create(client, name=name)
    assert user["name"] == name
    await client.call("replaceUserByEmail", {"email": ANN, "lastName": "Roe"})
    assert (await get(client, user))["name"]["formatted"] == "Ann Roe"
    alone = await create(client, "bob@example.com", name={"formatted": "Bob the Builder"})
    assert alone["name"] == {"formatted": "Bob the Builder"}


# --- Entra ID ------------------------------------------------------------------------------------------------

ENTRA: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = [
    ("a boolean as a string", [{"op": "Replace", "path": "active", "value": "False"}], {"active": False}),
    ("a capitalized op", [{"op": "Add", "path": "title", "value": "x"}], {"title": "x"}),
    ("a manager as a string", [{"op": "Add", "path": f"{ENTERPRISE}:manager", "value": "1"}],
     {f"{ENTERPRISE}:manager": {"value": "1", "$ref": "../Users/1", "displayName": "admin"}}),
    ("a manager in a list", [{"op": "Add", "path": f"{ENTERPRISE}:manager", "value": [{"$ref": None, "value": "1"}]}],
     {f"{ENTERPRISE}:manager": {"value": "1", "$ref": "../Users/1", "displayName": "admin"}}),
    ("an enterprise attribute", [{"op": "Replace", "path": f"{ENTERPRISE}:department", "value": "Sales"}],
     {f"{ENTERPRISE}:department": "Sales"}),
    ("a missing element", [{"op": "Add", "path": 'phoneNumbers[type eq "mobile"].value', "value": "+2"}],
     {"phoneNumbers": [{"value": "+2", "type": "mobile"}]}),
    ("parts of a missing element",
     [{"op": "Add", "path": 'addresses[type eq "work"].locality', "value": "Manama"},
      {"op": "Replace", "path": 'addresses[type eq "work"].country', "value": "BH"}],
     {"addresses": [{"type": "work", "locality": "Manama", "country": "BH"}]}),
    ("another work e-mail", [{"op": "Replace", "path": 'emails[type eq "home"].value', "value": "h@example.com"}],
     {"emails": [{"value": ANN, "type": "work", "primary": True}, {"value": "h@example.com", "type": "home"}]}),
    ("keys that are paths",
     [{"op": "Replace", "value": {
         "name.givenName": "Ann", "displayName": "Annie", f"{ENTERPRISE}:employeeNumber": "7",
         'phoneNumbers[type eq "work"].value': "+1", "nosuch": "x", "urn:x:custom:2.0:User:y": "z"}}],
     {"displayName": "Annie", "name": {"formatted": "Ann", "givenName": "Ann"},
      f"{ENTERPRISE}:employeeNumber": "7", "phoneNumbers": [{"value": "+1", "type": "work"}]}),
    ("a value in an object", [{"op": "Add", "path": "displayName", "value": [{"$ref": None, "value": "Annie"}]}],
     {"displayName": "Annie"}),
    ("a role as a string", [{"op": "Add", "path": "roles", "value": "admin"}], {"roles": [{"value": "admin"}]}),
    ("a boolean string in a filter", [{"op": "Add", "path": 'roles[primary eq "True"].value', "value": "admin"}],
     {"roles": [{"value": "admin", "primary": True}]}),
    ("an empty string", [{"op": "Add", "path": "title", "value": "x"}, {"op": "Replace", "path": "title", "value": ""}],
     {"title": None}),
    ("a value to remove",
     [{"op": "Add", "path": "roles", "value": [{"value": "a"}, {"value": "b"}]},
      {"op": "Remove", "path": "roles", "value": [{"value": "a"}]}],
     {"roles": [{"value": "b"}]}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "operations", "found"), ENTRA, ids=[name for name, *_ in ENTRA])
async def test_what_entra_sends(
    name: str, operations: list[dict[str, Any]], found: dict[str, Any], client: Client
) -> None:
    user = await create(client)
    after = await patch(client, user, *operations)
    assert {path: value_of(after, path) for path in found} == found


async def test_a_manager_is_a_user_of_the_instance(client: Client, other: Client) -> None:
    await other.call("createUser", {"email": "x@other.example"})
    user = await create(client)
    for manager in ("2000", "x", "0", "99999999999999999999", "-1", "1.0"):
        operations = [{"op": "Add", "path": f"{ENTERPRISE}:manager", "value": manager}]
        params = {"id": user["id"], "operations": operations}
        assert (await refusal(client, "patchScimUser", params))[:2] == (400, "invalid_value"), manager
    boss = await create(client, "boss@example.com")
    await patch(client, user, {"op": "Add", "path": f"{ENTERPRISE}:manager", "value": boss["id"]})
    await client.call("deleteScimUser", {"id": boss["id"]})
    assert ENTERPRISE not in await get(client, user)
    assert "title" in await patch(client, user, {"op": "Add", "path": "title", "value": "x"})


# --- Okta ----------------------------------------------------------------------------------------------------


async def test_what_okta_sends(client: Client) -> None:
    sent = {
        "schemas": [CORE], "userName": ANN, "name": {"givenName": "Ann", "familyName": "Lee"},
        "emails": [{"primary": True, "value": ANN, "type": "work"}], "displayName": "Ann Lee", "locale": "en-US",
        "externalId": "00ujl29u0le5T6Aj10h7", "groups": [], "password": "1mz050nq", "active": True,
    }  # fmt: skip
    user = await client.call("createScimUser", {"user": sent})
    await client.call("login", {"email": ANN, "password": "1mz050nq"})
    assert not (await patch(client, user, {"op": "replace", "value": {"active": False}}))["active"]
    assert (await patch(client, user, {"op": "replace", "value": {"id": user["id"], "active": True}}))[
        "active"
    ]
    again = user | {"name": {"givenName": "Ann", "middleName": "", "familyName": "Roe"}, "title": None}
    after = await put(client, user, again)
    assert after["name"]["familyName"] == "Roe" and "middleName" not in after["name"]
    await client.call("login", {"email": ANN, "password": "1mz050nq"})


async def test_a_put_keeps_a_picture_that_was_stored_here(
    client: Client, jane: Any, db: asyncpg.Connection
) -> None:
    """The administrator has one. Provisioning clients do not send it."""
    admin = await client.call("getScimUser", {"id": "1"})
    assert admin["photos"][0]["value"].startswith("http") and "/files/1-" in admin["photos"][0]["value"]
    sent = {"schemas": [CORE], "userName": "admin@example.com"}
    assert (await put(client, admin, sent))["photos"] == admin["photos"]
    assert (await put(client, admin, admin))["photos"] == admin["photos"]
    assert await db.fetchval("SELECT count(*) FROM pictures") == 1
    assert "photos" not in await patch(client, admin, {"op": "remove", "path": "photos"})
    assert await db.fetchval("SELECT count(*) FROM pictures") == 0


# --- what is refused -----------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"op": "replace", "path": "nosuch", "value": "x"}, "invalid_path"),
    ({"op": "replace", "path": "urn:x:y:2.0:User:z", "value": "x"}, "invalid_path"),
    ({"op": "replace", "path": "name[", "value": "x"}, "invalid_path"),
    ({"op": "replace", "path": "name.nosuch", "value": "x"}, "invalid_path"),
    ({"op": "replace", "path": 'emails[nosuch eq "x"].value', "value": "x"}, "invalid_path"),
    ({"op": "replace", "path": 7, "value": "x"}, "invalid_path"),
    ({"op": "replace", "path": "id", "value": "x"}, "mutability"),
    ({"op": "add", "path": "groups", "value": [{"value": "0"}]}, "mutability"),
    ({"op": "remove", "path": "meta.version"}, "mutability"),
    ({"op": "replace", "path": f"{OFFICE}:mailboxes.inbox", "value": 3}, "mutability"),
    ({"op": "remove", "path": "userName"}, "mutability"),
    ({"op": "replace", "path": "userName", "value": ""}, "mutability"),
    ({"op": "remove"}, "no_target"),
    ({"op": "replace", "path": 'emails[type ne "work"].value', "value": "x@example.com"}, "no_target"),
    ({"op": "move", "path": "title", "value": "x"}, "invalid_value"),
    ({"path": "title", "value": "x"}, "invalid_value"),
    ({"op": "add", "path": "title"}, "invalid_value"),
    ({"op": "add", "path": "title", "value": 7}, "invalid_value"),
    ({"op": "add", "path": "title", "value": "x" * 201}, "invalid_value"),
    ({"op": "add", "path": "title", "value": "x\ny"}, "invalid_value"),
    ({"op": "replace", "path": "active", "value": "perhaps"}, "invalid_value"),
    ({"op": "replace", "path": "active", "value": 1}, "invalid_value"),
    ({"op": "replace", "value": "x"}, "invalid_value"),
    ({"op": "add", "path": "emails", "value": [{"value": "nobody"}]}, "invalid_value"),
    ({"op": "add", "path": "emails", "value": [{"value": 7}]}, "invalid_value"),
    ({"op": "add", "path": "name", "value": "x"}, "invalid_value"),
    ({"op": "add", "path": "externalId", "value": "x" * 65}, "invalid_value"),
    ({"op": "add", "path": f"{OFFICE}:quotas", "value": {"mail": -1}}, "invalid_value"),
    ({"op": "add", "path": f"{OFFICE}:quotas.mail", "value": True}, "invalid_value"),
    ({"op": "add", "path": "nickName", "value": "x" * 70_000}, "invalid_value"),
    ({"op": "replace", "path": "userName", "value": "x@y"}, "invalid_value"),
    ({"op": "replace", "path": "userName", "value": "x" * 101}, "invalid_value"),
    ({"op": "replace", "path": "password", "value": 7}, "invalid_value"),
    ({"op": "add", "path": "x509Certificates", "value": [{"value": "not base64!"}]}, "invalid_value"),
    ({"op": "add", "path": "phoneNumbers", "value": [{"value": "1" * 41}]}, "invalid_value"),
]


@pytest.mark.parametrize(("operation", "code"), REFUSED, ids=[str(one)[:90] for one, _ in REFUSED])
async def test_what_is_refused(
    operation: dict[str, Any], code: str, client: Client, db: asyncpg.Connection
) -> None:
    """The valid operation before it is not applied either."""
    user = await create(client)
    before = await footprint(db)
    good = {"op": "add", "path": "nickName", "value": "Annie"}
    params = {"id": user["id"], "operations": [good, operation]}
    status, found, message = await refusal(client, "patchScimUser", params)
    assert (status, found) == (400, code), message
    assert "\n" not in message and "pydantic" not in message
    assert await get(client, user) == user
    assert await footprint(db) == before


@pytest.mark.parametrize(
    "sent",
    [
        {"userName": ANN}, {"schemas": [], "userName": ANN}, {"schemas": [CORE]}, {"schemas": [CORE], "userName": " "},
        {"schemas": [CORE], "userName": 7}, {"schemas": [CORE], "userName": ANN, "emails": "x"},
        {"schemas": [CORE], "userName": ANN, "name": "x"}, {"schemas": [CORE], "userName": ANN, "active": "perhaps"},
        {"schemas": [CORE], "userName": ANN, ENTERPRISE: "x"}, {"schemas": "x", "userName": ANN},
        {"schemas": [CORE], "userName": ANN, "password": 7}, {},
    ],
    ids=str,
)  # fmt: skip
async def test_invalid_users(sent: dict[str, Any], client: Client, db: asyncpg.Connection) -> None:
    user = await create(client, "bob@example.com")
    before = await footprint(db)
    for method, params in (("createScimUser", {}), ("replaceScimUser", {"id": user["id"]})):
        status, code, message = await refusal(client, method, params | {"user": sent})
        assert (status, code) == (400, "invalid_value"), message
    assert await footprint(db) == before


async def test_unknown_users(client: Client, other: Client) -> None:
    """Users of another instance, and deleted ones, get the same answers as ids that do not exist."""
    await other.call("createUser", {"email": "x@other.example"})
    await other.call("createUser", {"email": "y@other.example"})
    gone = await create(client)
    await client.call("deleteScimUser", {"id": gone["id"]})
    operations = [{"op": "replace", "path": "active", "value": True}]
    for user_id in (gone["id"], "3", "0", "x", "-1", "02", "99999999999999999999"):
        for method, params in (
            ("getScimUser", {}), ("deleteScimUser", {}), ("patchScimUser", {"operations": operations}),
            ("replaceScimUser", {"user": {"schemas": [CORE], "userName": "z@example.com"}}),
        ):  # fmt: skip
            answer = await refusal(client, method, {"id": user_id} | params)
            assert answer == (400, "not_found", "not found"), (method, user_id)


# --- versions, passwords, sessions ---------------------------------------------------------------------------


async def test_versions(client: Client) -> None:
    user = await create(client)
    old = user["meta"]["version"]
    title = {"op": "replace", "path": "title", "value": "x"}
    new = (await patch(client, user, title, version=old))["meta"]["version"]
    assert new != old
    sent = {"schemas": [CORE], "userName": ANN}
    for method, params in (
        ("patchScimUser", {"operations": [title]}), ("replaceScimUser", {"user": sent}), ("deleteScimUser", {}),
    ):  # fmt: skip
        answer = await refusal(client, method, {"id": user["id"], "version": old} | params)
        assert answer[:2] == (412, "version_mismatch")
    for version in (new, new.removeprefix("W/"), "*", f'"x", {new}'):
        assert (await patch(client, user, title, version=version))["meta"]["version"] == new
    await client.call("deleteScimUser", {"id": user["id"], "version": new})


async def test_one_of_many_with_the_same_version_wins(client: Client) -> None:
    user = await create(client)
    version = user["meta"]["version"]

    async def rename(name: str) -> int:
        operations = [{"op": "replace", "path": "nickName", "value": name}]
        params = {"id": user["id"], "operations": operations, "version": version}
        return (await client.outcome("patchScimUser", params))[0]

    statuses = await asyncio.gather(*(rename(f"name {number}") for number in range(10)))
    assert sorted(statuses) == [200] + [412] * 9


async def login(client: Client, password: str = "demo1234") -> int:
    return (await client.outcome("login", {"email": ANN, "password": password}))[0]


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "replace", "path": "password", "value": "onemoretime"},
        {"op": "replace", "value": {"Password": "onemoretime"}},
        {"op": "add", "path": f"{CORE}:password", "value": "onemoretime"},
        None,
    ],
    ids=str,
)
async def test_a_password_ends_sessions(operation: Any, client: Client, db: asyncpg.Connection) -> None:
    user = await create(client, password="demo1234")
    assert "password" not in user and await login(client) == 200
    if operation is None:
        sent = {"schemas": [CORE], "userName": ANN, "password": "onemoretime"}
        after = await put(client, user, sent)
    else:
        after = await patch(client, user, operation)
    assert "password" not in str(after)
    assert await db.fetchval("SELECT count(*) FROM sessions") == 0
    assert await login(client) == 400 and await login(client, "onemoretime") == 200
    emitted = await events(db, "patchScimUser", "replaceScimUser")
    assert [type_ for type_, *_ in emitted] == ["user.password_changed", "session.revoked"]
    all_events = await db.fetchval("SELECT string_agg(e::text, '') FROM events AS e")
    assert "onemoretime" not in all_events and "demo1234" not in all_events


async def test_the_password_policy_holds(client: Client, operator: Client) -> None:
    policy = {"passwordPolicy": {"minLength": 12}}
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "settings": policy})
    sent = {"schemas": [CORE], "userName": ANN, "password": "demo1234"}
    status, _, message = await refusal(client, "createScimUser", {"user": sent})
    assert status == 400 and message.startswith("password: ")
    user = await create(client)
    operations = [{"op": "replace", "path": "password", "value": "demo1234"}]
    for method, more in (("patchScimUser", {"operations": operations}), ("replaceScimUser", {"user": sent})):
        status, _, message = await refusal(client, method, {"id": user["id"]} | more)
        assert status == 400 and message.startswith("password: ")


async def test_suspension_ends_sessions(client: Client, db: asyncpg.Connection) -> None:
    user = await create(client, password="demo1234")
    assert await login(client) == 200
    after = await patch(client, user, {"op": "Replace", "path": "active", "value": "False"})
    assert after["active"] is False and await login(client) == 400
    expected = [
        ("user.suspended", {"isActive": True}, {"isActive": False}),
        ("session.revoked", {"sessions": 1}, {"sessions": 0}),
    ]
    assert await events(db, "patchScimUser") == expected
    await patch(client, user, {"op": "Replace", "path": "active", "value": "True"})
    assert await login(client) == 200


async def test_deletion(client: Client) -> None:
    user = await create(client, externalId="x", nickName="Annie")
    assert await client.call("deleteScimUser", {"id": user["id"]}) is True
    await client.call("restoreUserByEmail", {"email": ANN})
    assert (await get(client, user))["nickName"] == "Annie"


# --- events, scopes, dry runs, other methods ------------------------------------------------------------------


async def test_events(client: Client, db: asyncpg.Connection) -> None:
    user = await create(client, nickName="Annie", title="Dr.")
    ((type_, before, after),) = await events(db, "createScimUser")
    assert type_ == "user.created" and before is None
    assert after["attributes"] == {"nickName": "Annie"} and after["profile"]["title"] == "Dr."
    await patch(
        client,
        user,
        {"op": "replace", "path": "nickName", "value": "A"},
        {"op": "add", "path": "locale", "value": "de"},
    )
    assert await events(db, "patchScimUser") == [
        ("user.updated", {"attributes": {"nickName": "Annie", "locale": None}},
         {"attributes": {"nickName": "A", "locale": "de"}})
    ]  # fmt: skip
    await patch(client, user, {"op": "replace", "path": "nickName", "value": "A"})
    assert [type_ for type_, *_ in await events(db, "patchScimUser")] == ["user.updated", "patchScimUser"]


async def test_administrators_need_a_scope(client: Client, db: asyncpg.Connection) -> None:
    weak = client.using(await insert_key(db, scopes=("users:read", "users:write")))
    operations = [{"op": "replace", "path": "title", "value": "x"}]
    sent = {"schemas": [CORE], "userName": "admin@example.com", "title": "x"}
    for method, more in (
        ("patchScimUser", {"operations": operations}), ("replaceScimUser", {"user": sent}), ("deleteScimUser", {}),
    ):  # fmt: skip
        assert (await refusal(weak, method, {"id": "1"} | more))[:2] == (403, "member_forbidden")
    user = await create(weak)
    assert (await patch(weak, user, *operations))["title"] == "x"


async def test_dry_runs_and_idempotency(client: Client, db: asyncpg.Connection) -> None:
    before = await footprint(db)
    sent = {"user": {"schemas": [CORE], "userName": ANN, "password": "demo1234"}}
    dry = await client.call("createScimUser", sent | {"dryRun": True})
    assert dry["userName"] == ANN and await footprint(db) == before
    headers = {"Idempotency-Key": "one"}
    created = await client.call("createScimUser", sent, headers=headers)
    assert await client.call("createScimUser", sent, headers=headers) == created
    assert await db.fetchval("SELECT count(*) FROM users") == 2
    operations = [{"op": "replace", "path": "title", "value": "x"}]
    params = {"id": created["id"], "operations": operations}
    assert (await client.call("patchScimUser", params | {"dryRun": True}))["title"] == "x"
    assert "title" not in await get(client, created)


async def test_seats(client: Client, operator: Client) -> None:
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "settings": {"maxUsers": 1}})
    sent = {"user": {"schemas": [CORE], "userName": ANN}}
    assert (await refusal(client, "createScimUser", sent))[1] == "seats_exhausted"


async def test_users_of_other_methods(client: Client) -> None:
    """Values that other methods wrote are shown, and a PUT of them changes nothing."""
    params = {
        "email": ANN, "firstName": "Ann", "lastName": "Lee", "externalId": "x", "avatar": "https://example.com/a.png",
        "profile": {"uid": "u", "title": "Dr.", "phones": ["+1", "+1", "+2"], "grade": "A"},
        "values": {"timezone": "Asia/Bahrain", "editorTemplates": [1]}, "quotas": {"mail": 5},
    }  # fmt: skip
    await client.call("createUser", params)
    before = await client.call("getUser", {"email": ANN})
    user = await client.call("getScimUser", {"id": str(before["id"])})
    assert user["phoneNumbers"] == [{"value": "+1"}, {"value": "+1"}, {"value": "+2"}]
    assert user["photos"] == [{"value": "https://example.com/a.png", "type": "photo"}]
    assert await put(client, user, user) == user
    assert await client.call("getUser", {"email": ANN}) == before
    await client.call("changeLanguage", {"id": before["id"], "language": "ru"})
    assert (await get(client, user))["preferredLanguage"] == "ru"


# --- random input --------------------------------------------------------------------------------------------

PATHS = [
    *ATTRIBUTES, "userName", "password", "schemas", "id", "meta.version", "groups", "name.givenName", "emails.value",
    'emails[type eq "work"]', 'emails[type eq "work"].value', 'addresses[type eq "x" and primary eq true].country',
    'roles[value co "a" or value pr]', f"{ENTERPRISE}:manager.value", ENTERPRISE, OFFICE, CORE, "", "x[", "nosuch",
    f"{OFFICE}:quotas.mail", "emails[", "x" * 300, "emails.type.value", "photos.value", "active.x",
]  # fmt: skip
TEXT = st.sampled_from(["", " ", "x", "2", "True", ANN, "https://example.com/a", "en-GB", "1e9"]) | st.text(
    max_size=5
)
LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-5, 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
MEMBERS = st.sampled_from(
    ["value", "type", "primary", "display", "$ref", "mail", "country", "familyName", "x", *PATHS]
)
VALUE = st.recursive(
    LEAF, lambda part: st.lists(part, max_size=3) | st.dictionaries(MEMBERS, part, max_size=3), max_leaves=6
)
OPERATION = st.fixed_dictionaries(
    {"op": st.sampled_from(["add", "Replace", "remove", "x"])},
    optional={"path": st.sampled_from(PATHS) | TEXT, "value": VALUE},
)


@pytest.mark.slow
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
@given(
    operations=st.lists(OPERATION, min_size=1, max_size=3), more=st.dictionaries(MEMBERS, VALUE, max_size=4)
)
async def test_arbitrary_operations_and_resources(client: Client, operations: Any, more: Any) -> None:
    """They succeed or are refused. A read returns the result, and a PUT of it changes nothing."""
    name = f"u{secrets.token_hex(8)}@example.com"
    user = await create(client, name)
    params = {"id": user["id"], "operations": operations}
    status, after = await client.outcome("patchScimUser", params)
    assert status in (200, 400), after
    found = await get(client, user)
    assert found == (after if status == 200 else user)
    assert await put(client, user, found) == found
    sent = {"schemas": [CORE], "userName": name} | more
    status, after = await client.outcome("replaceScimUser", {"id": user["id"], "user": sent})
    assert status in (200, 400), after
    await client.outcome("deleteScimUser", {"id": user["id"]})
