"""Searches for SCIM resources (RFC 7644, 3.4.2; RFC 9865): filters, order, pages."""

import json
from random import Random
from typing import Any

import pytest
from conftest import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scim2_models import InvalidFilterException, ScimFilter

from server.directory.scim import search
from server.directory.scim.models import GROUP_SCHEMA, POLICY, User

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


# --- random filters ---------------------------------------------------------------------------------------

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
    """A comparison with a string; the name can be in upper case."""
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
    """Users with different values of the attributes in the filters, the same in every run."""
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


class Crowd(dict[str, User]):  # type: ignore[valid-type]
    """All users by their ids."""

    def __repr__(self) -> str:
        return "crowd"


@pytest.fixture
async def resources(client: Client) -> Crowd:
    """Thirty users, six of them in groups, and the administrator."""
    for number, user in enumerate(crowd()):
        created = await client.call("createScimUser", {"user": {"schemas": [USER]} | user})
        if number % 5 == 0:
            name = ["a", "n o", "x.y", "work", "ö", "%"][number // 5]
            group = {"schemas": [GROUP], "displayName": f"g{name}", "members": [{"value": created["id"]}]}
            await client.call("createScimGroup", {"group": group})
    found = (await client.call("searchScimUsers", {"count": 200}))["Resources"]
    assert len(found) == 31
    return Crowd({user["id"]: User.model_validate(user, scim_policy=POLICY) for user in found})


def matching(text: str, resources: Crowd) -> set[str] | None:
    """The users that match a filter, as evaluated by scim2-models; None: the filter is invalid."""
    try:
        parsed = ScimFilter[User](text)
        return {user_id for user_id, user in resources.items() if parsed.match(user)}
    except InvalidFilterException:
        return None


@pytest.mark.slow
@settings(
    max_examples=200, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(text=FILTER)
async def test_a_filter_finds_the_same_as_scim2_models(text: str, client: Client, resources: Crowd) -> None:
    """In a large instance it finds the same, or is refused."""
    expected = matching(text, resources)
    status, answer = await client.outcome("searchScimUsers", {"filter": text, "count": 200})
    if status == 400:
        assert expected is None or "with a case-sensitive attribute in [ ]" in answer, (text, answer)
        return
    if (
        expected is None
    ):  # a text that the attribute cannot have, such as no e-mail address: it is found nowhere
        assert status == 200, (text, answer)
        return
    assert {user["id"] for user in answer["Resources"]} == expected, text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "MOST_ROWS", 30)
        status, answer = await client.outcome("searchScimUsers", {"filter": text, "count": 200})
    if status == 200:  # found by the indexes
        assert {user["id"] for user in answer["Resources"]} == expected, text
    else:
        assert "must use an index" in answer or "finds more than" in answer, (text, answer)


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


# --- pages and order --------------------------------------------------------------------------------------


@pytest.fixture
async def seven(client: Client) -> list[str]:
    """The userNames of seven users in the order of their creation, the administrator first."""
    created = ["d", "b", "e", "a", "f", "c"]
    for number, name in enumerate(created):
        title = {"title": f"t{number % 3}"} if number else {}
        await create(client, f"{name}@example.com", **title)
    return ["admin@example.com", *(f"{name}@example.com" for name in created)]


async def page(client: Client, **params: Any) -> tuple[int, int | None, list[str], str | None]:
    found = await client.call("searchScimUsers", params)
    shown = [user["userName"] for user in found["Resources"]]
    assert found["itemsPerPage"] == len(shown)
    return found["totalResults"], found.get("startIndex"), shown, found.get("nextCursor")


@pytest.mark.parametrize("more", [{}, {"filter": "userName pr"}], ids=["all", "filtered"])
async def test_pages_by_number(more: dict[str, str], client: Client, seven: list[str]) -> None:
    assert await page(client, **more) == (7, 1, seven, None)
    assert await page(client, startIndex=1, count=3, **more) == (7, 1, seven[:3], None)
    assert await page(client, startIndex=4, count=3, **more) == (7, 4, seven[3:6], None)
    assert await page(client, startIndex=7, count=3, **more) == (7, 7, seven[6:], None)
    assert await page(client, startIndex=8, count=3, **more) == (7, 8, [], None)
    assert await page(client, startIndex=-5, count=1, **more) == (7, 1, seven[:1], None)
    assert await page(client, count=0, **more) == (7, 1, [], None)
    assert await page(client, count=-1, **more) == (7, 1, [], None)


@pytest.mark.parametrize(
    "more", [{}, {"filter": "userName pr"}, {"sortBy": "userName"}], ids=["all", "filtered", "sorted"]
)
@pytest.mark.parametrize("size", [6, 7, 8])
async def test_pages_by_cursor(size: int, more: dict[str, str], client: Client, seven: list[str]) -> None:
    """RFC 9865: from an empty cursor on by nextCursor. The last page has none, even if it is full."""
    shown: list[str] = []
    cursor: str | None = ""
    pages = 0
    while cursor is not None:
        total, start, users, cursor = await page(client, count=size, cursor=cursor, **more)
        assert (total, start) == (7, None)
        shown += users
        pages += 1
    assert shown == (sorted(seven) if "sortBy" in more else seven)
    assert pages == (2 if size == 6 else 1)


async def test_a_page_by_cursor_does_not_shift(client: Client, seven: list[str]) -> None:
    """If a user is deleted between two pages, no other user is missed."""
    _, _, first, cursor = await page(client, count=3, cursor="")
    await client.call("deleteUserByEmail", {"email": "d@example.com"})
    _, _, second, _ = await page(client, count=3, cursor=cursor)
    assert first + second == seven[:6]


async def listed_groups(client: Client, **params: Any) -> list[list[str]]:
    """The pages of all groups by cursor, as names of groups with the number of their members."""
    pages, cursor = [], ""
    while cursor is not None:
        found = await client.call("searchScimGroups", params | {"cursor": cursor})
        pages.append([f"{one['displayName']} {len(one.get('members', []))}" for one in found["Resources"]])
        assert found["totalResults"] == 5
        cursor = found.get("nextCursor")
    return pages


@pytest.fixture
async def four_groups(client: Client) -> None:
    """Groups of 3, 0, 2 and 1 members; Admins has one."""
    members = [{"value": (await create(client, f"u{number}@example.com"))["id"]} for number in range(3)]
    for number, size in enumerate((3, 0, 2, 1)):
        group = {"schemas": [GROUP_SCHEMA], "displayName": f"g{number}", "members": members[:size]}
        await client.call("createScimGroup", {"group": group})


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
async def test_pages_of_groups(
    size: int, client: Client, four_groups: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With each page size, by cursor and by startIndex."""
    monkeypatch.setattr(search, "MOST_ROWS", size)
    every = ["Admins 1", "g0 3", "g1 0", "g2 2", "g3 1"]
    in_pages = [every[start : start + size] for start in range(0, 5, size)]
    assert await listed_groups(client, count=size) == in_pages
    for number, names in enumerate(in_pages):
        found = await client.call("searchScimGroups", {"startIndex": number * size + 1, "count": size})
        assert [one["displayName"] for one in found["Resources"]] == [name.split()[0] for name in names]
    found = await client.call("searchScimGroups", {"startIndex": 6, "count": size})
    assert (found["totalResults"], found["Resources"]) == (5, [])


@pytest.mark.parametrize("more", [{}, {"filter": "displayName pr"}], ids=["all", "filtered"])
async def test_a_page_of_groups_ends_after_many_members(
    more: dict[str, str], client: Client, four_groups: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has at least one group, and the next page continues after it. Without members there is no limit."""
    monkeypatch.setattr(search, "MOST_MEMBERS", 2)
    pages = [["Admins 1", "g0 3"], ["g1 0", "g2 2", "g3 1"]]
    assert await listed_groups(client, **more) == pages
    (whole,) = await listed_groups(client, excludedAttributes=["members"], **more)
    assert len(whole) == 5


async def test_a_cursor_belongs_to_its_query(client: Client, seven: list[str]) -> None:
    _, _, _, cursor = await page(client, count=3, cursor="")
    for params in (
        {"cursor": cursor, "filter": "userName pr"},
        {"cursor": cursor, "sortBy": "userName"},
        {"cursor": "x"},
    ):
        status, message = await client.outcome("searchScimUsers", params)
        assert (status, message.split(":")[0]) == (400, "cursor")


async def test_order(client: Client, seven: list[str]) -> None:
    """Users without the attribute are last in ascending order, first in descending (RFC 7644, 3.4.2.3)."""

    async def order(**params: Any) -> str:
        found = await client.call("searchScimUsers", params)
        return " ".join(user["userName"].partition("@")[0] for user in found["Resources"])

    assert await order(sortBy="userName") == "a admin b c d e f"
    assert await order(sortBy="USERNAME", sortOrder="descending") == "f e d c b admin a"
    assert await order(sortBy="emails.value", filter='userName sw "a"') == "a admin"
    assert await order(sortBy="title") == "a b f e c admin d"
    assert await order(sortBy="title", sortOrder="descending", count=3) == "admin d e"
    assert await order(sortBy="meta.created") == "admin d b e a f c"
    for name in ("password", "nobody", "name", "a b", "userName pr or title"):
        status, message = await client.outcome("searchScimUsers", {"sortBy": name})
        assert (status, str(message)[:6]) == (400, "sortBy"), name


# --- groups -----------------------------------------------------------------------------------------------


async def test_groups(client: Client, seven: list[str]) -> None:
    """Searches include Admins; members are read only if they are requested."""
    members = [{"value": "2"}, {"value": "3"}]
    for name, more in (("Sales", {"externalId": "g-1", "members": members}), ("Support", {})):
        await client.call("createScimGroup", {"group": {"schemas": [GROUP], "displayName": name} | more})

    async def groups(text: str | None = None, **params: Any) -> list[str]:
        given = params if text is None else {"filter": text} | params
        found = await client.call("searchScimGroups", given)
        assert found["totalResults"] >= len(found["Resources"])
        return [group["displayName"] for group in found["Resources"]]

    assert await groups() == ["Admins", "Sales", "Support"]
    assert await groups(sortBy="displayName", sortOrder="descending", count=2) == ["Support", "Sales"]
    assert await groups(count=1, startIndex=2) == ["Sales"]
    assert await groups('displayName eq "SALES"') == ["Sales"]
    assert await groups('displayName eq "admins"') == ["Admins"]
    assert await groups('externalId eq "g-1"') == ["Sales"]
    assert await groups('externalId eq "G-1"') == []
    assert await groups('id eq "2" or id eq "0"') == ["Admins", "Support"]
    assert await groups('members eq "2"') == ["Sales"]
    assert await groups('members.value eq "1"') == ["Admins"]
    assert await groups('members[value eq "3"] and displayName co "al"') == ["Sales"]
    assert await groups('displayName co "ale" or displayName sw "adm"') == ["Admins", "Sales"]
    assert await groups('displayName ew "ort"') == ["Support"]
    assert await groups('not (members pr) and meta.created gt "2020-01-01T00:00:00Z"') == ["Support"]
    shown = await client.call(
        "searchScimGroups", {"filter": 'displayName sw "s"', "excludedAttributes": ["members"]}
    )
    assert all("members" not in group for group in shown["Resources"])
    whole = await client.call("searchScimGroups", {"filter": 'displayName eq "Sales"'})
    assert whole["Resources"][0] == await client.call("getScimGroup", {"id": whole["Resources"][0]["id"]})


# --- what is refused --------------------------------------------------------------------------------------

REFUSED = {
    "userName": "invalid_filter",
    "userName eq": "invalid_filter",
    'userName eq "a': "invalid_filter",
    'nobody eq "a"': "invalid_filter",
    'password eq "secret1234"': "invalid_filter",
    "password pr": "invalid_filter",
    "active gt true": "invalid_filter",
    # A string that is compared with something else.
    **dict.fromkeys(
        (
            "id eq 5",
            "userName eq true",
            "externalId eq 5",
            "title co 5",
            "emails.value sw 5",
            "groups.value eq 5",
        ),
        "invalid_filter",
    ),
    'meta.created gt "yesterday"': "invalid_filter",
    'userName eq "\\u0000"': "invalid_filter",
    'userName eq "\\ud800"': "invalid_filter",
    "(" * 30 + "userName pr" + ")" * 30: "invalid_filter",
    'name[givenName eq "a"]': "invalid_filter",
    f"{OFFICE}:mailboxes.inbox eq 7": "invalid_filter",
    "userName pr or " * 200 + "userName pr": "filter",
}


async def test_what_is_refused(client: Client) -> None:
    for text, code in REFUSED.items():
        async with await client.post({"method": "searchScimUsers", "params": {"filter": text}}) as response:
            message = await response.json()
            assert response.status == 400, text
            assert response.headers["X-Error-Code"] == code or code == "filter", text
            assert message.startswith("filter"), message


async def test_a_large_instance_needs_an_index(
    client: Client, seven: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more users than a filter may read, filters with an index work, and the others are refused."""
    monkeypatch.setattr(search, "MOST_ROWS", 3)

    async def code(**params: Any) -> str | None:
        async with await client.post({"method": "searchScimUsers", "params": params}) as response:
            return response.headers.get("X-Error-Code")

    assert await names(client, 'title eq "t1" and userName eq "b@example.com"') == ["b@example.com"]
    assert await names(client, 'userName eq "a@example.com" or displayName co "dmi"') == [
        "admin@example.com",
        "a@example.com",
    ]
    assert await code(filter='title eq "t1"') == "invalid_filter"
    assert await code(filter='not (userName eq "a@example.com")') == "invalid_filter"
    assert await code(filter='emails co "@example"') == "too_many_matches"
    assert await code(sortBy="title") == "too_many_matches"
    assert await page(client, startIndex=2, count=2) == (7, 2, seven[1:3], None)
    assert await code(startIndex=1_000_001) == "invalid_value"


async def test_another_instance_is_not_seen(client: Client, operator: Client, seven: list[str]) -> None:
    await operator.call("createInstance", {"name": "OTHER", "admin": {"email": "boss@other.example"}})
    for params in (
        {},
        {"filter": 'userName co "example"'},
        {"filter": "userName pr"},
        {"filter": 'groups eq "0"'},
    ):
        found = await operator.call("searchScimUsers", params | {"instance": "OTHER"})
        assert [user["userName"] for user in found["Resources"]] == ["boss@other.example"]
