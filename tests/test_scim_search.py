"""Lists of SCIM resources (RFC 7644, 3.4.2; RFC 9865): what a filter finds, in which order, in which pages."""

import json
from random import Random
from typing import Any

import pytest
from conftest import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scim2_models import ScimFilter

from server.directory.scim import search
from server.directory.scim.models import POLICY, User

USER = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP = "urn:ietf:params:scim:schemas:core:2.0:Group"
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


# --- any filter -------------------------------------------------------------------------------------------

TEXTS = [
    "a",
    "an",
    "ann",
    "Ann",
    "ANN",
    "o",
    "ö",
    "Ö",
    "é",
    "n o",
    "x.y",
    ".",
    "+",
    "%",
    "_",
    "\\",
    '"',
    "'",
    "work",
    "0",
    "1",
]
OFFICE = "urn:ietf:params:scim:schemas:extension:officerpc:2.0:User"
SINGLE = [
    "userName", "displayName", "name.givenName", "name.familyName", "name.formatted", "nickName", "title", "userType",
    "externalId", "profileUrl", "preferredLanguage", "locale", "timezone", "id", f"{ENTERPRISE}:department",
    f"{ENTERPRISE}:costCenter", f"{ENTERPRISE}:manager.value", f"{ENTERPRISE}:manager.displayName",
    f"{USER}:nickName",
]  # fmt: skip
SEVERAL = {
    "emails": ["value", "type", "display"],
    "phoneNumbers": ["value", "type"],
    "photos": ["value", "type"],
    "addresses": ["locality", "country", "type"],
    "roles": ["value", "type"],
    "groups": ["value", "display"],
}
OPERATORS = ["eq", "ne", "co", "sw", "ew", "gt", "ge", "lt", "le"]


def comparison(names: list[str], operators: list[str] = OPERATORS) -> st.SearchStrategy[str]:
    """A comparison of a text, in any case."""
    parts = st.tuples(
        st.sampled_from(names), st.sampled_from(operators), st.sampled_from(TEXTS), st.booleans()
    )
    return parts.map(
        lambda part: (
            f"{part[0].upper() if part[3] and ':' not in part[0] else part[0]} {part[1]} {json.dumps(part[2])}"
        )
    )


def selection(name: str) -> st.SearchStrategy[str]:
    inner = comparison(SEVERAL[name], ["eq", "ne", "co", "sw", "ew"])
    both = st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join)
    return (inner | both | inner.map(lambda text: f"not ({text})")).map(lambda text: f"{name}[{text}]")


LEAVES = st.one_of(
    comparison(SINGLE),
    comparison([f"{name}.{part}" for name, parts in SEVERAL.items() for part in parts]),
    st.sampled_from(sorted(SEVERAL)).flatmap(selection),
    st.sampled_from([*SINGLE, *SEVERAL, "name", "emails.type", "active", f"{OFFICE}:quotas.mail"]).map(
        lambda name: f"{name} pr"
    ),
    st.sampled_from([
        "active eq true", "active eq false", 'active ne "True"', f"{OFFICE}:quotas.mail gt 5",
        f"{OFFICE}:quotas.mail le 5", 'emails[primary eq true and type eq "work"]', "nickName eq null", "title ne null",
        'meta.created gt "2020-01-01T00:00:00Z"', 'meta.lastModified lt "2020-01-01T00:00:00+05:00"',
        'meta.resourceType eq "User"',
    ]),
)  # fmt: skip
FILTER = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or", "AND"]), inner).map(" ".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"not ({text})"),
    ),
    max_leaves=6,
)


def crowd() -> list[dict[str, Any]]:
    """Users who differ in whatever a filter can name, the same in every run."""
    random = Random(7)
    some = [text for text in TEXTS if text.strip() and text not in ('"', "\\")]

    def text() -> str:
        return " ".join(random.sample(some, random.randint(1, 2)))

    users = []
    for number in range(30):
        user: dict[str, Any] = {
            "userName": random.choice([f"ann{number}@example.com", f"x.y_{number}", f"Ö{number}@ö.example"])
        }
        for name in ("displayName", "nickName", "title", "userType", "locale", "timezone"):
            if random.random() < 0.5:
                user[name] = text()
        if random.random() < 0.6:
            user["name"] = {random.choice(["givenName", "familyName"]): text(), "honorificPrefix": text()}
        if random.random() < 0.3:
            user["externalId"] = f"{text()}{number}"
        if random.random() < 0.4:
            kinds = random.sample(["work", "home", "other"], 2)
            user["emails"] = [
                {
                    "value": f"{kind}{number}@Example.com",
                    "type": kind,
                    "display": text(),
                    "primary": place == 1,
                }
                for place, kind in enumerate(kinds)
            ]
        if random.random() < 0.4:
            user["phoneNumbers"] = [{"value": f"+973 36{number:02}", "type": "work"}, {"value": text()}]
        if random.random() < 0.3:
            user["photos"] = [
                {"value": f"https://x.y/Ann{number}", "type": "photo"},
                {"value": "https://x.y/a", "type": "thumbnail"},
            ]
            user["profileUrl"] = "https://x.y/Ann"
        if random.random() < 0.3:
            user["addresses"] = [{"locality": text(), "country": "BH", "type": "work"}, {"locality": text()}]
        if random.random() < 0.3:
            user["roles"] = [{"value": text(), "primary": True}, {"value": text(), "type": "work"}]
        if random.random() < 0.4:
            manager = {"manager": {"value": "1"}} if random.random() < 0.5 else {}
            user[ENTERPRISE] = {"department": text(), "costCenter": text()} | manager
        if random.random() < 0.3:
            user[OFFICE] = {"quotas": {"mail": random.randint(1, 9)}}
        user["active"] = random.random() < 0.8
        user["preferredLanguage"] = random.choice(["en", "ru-RU", "de", "en_US"])
        users.append(user)
    return users


@pytest.fixture
async def resources(client: Client) -> list[dict[str, Any]]:
    """All users as they are shown."""
    for number, user in enumerate(crowd()):
        made = await client.call("createScimUser", {"user": {"schemas": [USER]} | user})
        if number % 5 == 0:
            name = TEXTS[number]
            await client.call(
                "createScimGroup",
                {
                    "group": {
                        "schemas": [GROUP],
                        "displayName": f"g{name}",
                        "members": [{"value": made["id"]}],
                    }
                },
            )
    found = (await client.call("searchScimUsers", {"count": 200}))["Resources"]
    assert len(found) == 31
    return [dict(user) for user in found]


@settings(
    max_examples=200, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(text=FILTER)
async def test_a_filter_finds_what_it_says(
    text: str, client: Client, resources: list[dict[str, Any]]
) -> None:
    """The same as the filter evaluated here over all resources; on a large instance that, or a refusal."""
    models = {user["id"]: User.model_validate(user, scim_policy=POLICY) for user in resources}
    wanted = {user_id for user_id, model in models.items() if ScimFilter[User](text).match(model)}
    status, answer = await client.outcome("searchScimUsers", {"filter": text, "count": 200})
    if status == 400:
        assert "beside an attribute that compares with case" in answer, (text, answer)
        return
    assert {user["id"] for user in answer["Resources"]} == wanted, text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "MOST_ROWS", 30)
        status, answer = await client.outcome("searchScimUsers", {"filter": text, "count": 200})
    if status == 200:  # found by the indexes
        assert {user["id"] for user in answer["Resources"]} == wanted, text
    else:
        assert "no index finds this" in answer or "finds more than" in answer, (text, answer)


@settings(
    max_examples=100, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    text=st.text(max_size=60)
    | st.lists(
        st.sampled_from([*TEXTS, " eq ", "userName", "(", ")", "[", "]", "not ", " and ", '"']), max_size=12
    ).map("".join)
)
async def test_any_text_is_a_filter_or_refused(text: str, client: Client) -> None:
    status, _ = await client.outcome("searchScimUsers", {"filter": text})
    assert status in (200, 400)
