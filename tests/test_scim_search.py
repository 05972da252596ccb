"""Lists of SCIM resources (RFC 7644, 3.4.2; RFC 9865): what a filter finds, in which order, in which pages."""

from typing import Any

from conftest import Client

USER = "urn:ietf:params:scim:schemas:core:2.0:User"
ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"


async def create(client: Client, user_name: str, **members: Any) -> dict[str, Any]:
    user = {"schemas": [USER], "userName": user_name} | members
    return dict(await client.call("createScimUser", {"user": user}))


async def names(client: Client, text: str, **more: Any) -> list[str]:
    found = await client.call("searchScimUsers", {"filter": text} | more)
    assert found["totalResults"] >= len(found["Resources"]) == found["itemsPerPage"]
    return [user["userName"] for user in found["Resources"]]


FILTERS = {
    'userName eq "ANN@example.com"': ["ann@example.com"],
    'userName sw "a"': ["admin@example.com", "ann@example.com"],
    'displayName co "n o"': ["ann@example.com"],
    'name.familyName eq "other"': ["ann@example.com"],
    'title eq "dr." or nickName eq "bo"': ["ann@example.com", "bob"],
    'title pr and not (userName eq "bob")': ["ann@example.com"],
    "active eq false": ["bob"],
    'externalId eq "E-1"': ["ann@example.com"],
    'externalId eq "e-1"': [],
    'emails co "HOME.example"': ["ann@example.com"],
    'emails[type eq "home" and value sw "ann"]': ["ann@example.com"],
    'emails.type eq "work"': ["admin@example.com", "ann@example.com"],
    'phoneNumbers[type eq "mobile"]': ["ann@example.com"],
    f'{ENTERPRISE}:employeeNumber eq "17"': ["ann@example.com"],
    f'{ENTERPRISE}:manager.displayName eq "ADMIN"': ["bob"],
    'groups.display eq "admins"': ["admin@example.com"],
    'groups eq "0"': ["admin@example.com"],
    'meta.created gt "2020-01-01T00:00:00Z" and userName ew "m"': ["admin@example.com", "ann@example.com"],
    'addresses[locality eq "Manama"]': ["ann@example.com"],
    'nickName ne "bo" and userName ne "admin@example.com"': ["ann@example.com"],
    'USERNAME EQ "bob" AND ACTIVE EQ "False"': ["bob"],
}


async def test_filters(client: Client) -> None:
    await create(
        client, "ann@example.com", name={"givenName": "Ann", "familyName": "Other"}, title="Dr.", externalId="E-1",
        emails=[{"value": "ann@example.com", "type": "work", "primary": True},
                {"value": "ann@home.example", "type": "home"}],
        phoneNumbers=[{"value": "+973 3600 0000", "type": "mobile"}], addresses=[{"locality": "MANAMA"}],
        **{ENTERPRISE: {"employeeNumber": "17"}},
    )  # fmt: skip
    await create(client, "bob", nickName="Bo", active=False, **{ENTERPRISE: {"manager": {"value": "1"}}})
    found = {text: sorted(await names(client, text)) for text in FILTERS}
    assert found == FILTERS
