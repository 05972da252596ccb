"""Names that differ only in spelling (case, Unicode form) are one name."""

import unicodedata

import pytest
from conftest import Client
from test_logins import DUPLICATE, NAMES, member, refused

COMPOSED = "Jos\u00e9"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


@pytest.mark.parametrize("stored", [COMPOSED, DECOMPOSED])
async def test_a_login_is_one_in_both_normal_forms(stored: str, client: Client) -> None:
    made = await member(client, stored)
    assert made["login"] == COMPOSED
    for spelling in (COMPOSED, DECOMPOSED, DECOMPOSED.upper()):
        assert (await client.call("userExists", {"login": spelling}))["exists"]
        checked = {"login": spelling, "password": "demo1234"}
        assert (await client.call("checkAuth", checked))["id"] == made["id"]
        params = {"login": spelling, "sponsorId": 1, "profile": NAMES}
        assert await refused(client, "createMember", params) == [("login", DUPLICATE)]


@pytest.mark.parametrize("stored", [COMPOSED, DECOMPOSED])
async def test_a_login_beside_an_e_mail_is_one_in_both_normal_forms(stored: str, client: Client) -> None:
    made = await member(client, stored, "jo@example.com")
    for spelling in (COMPOSED, DECOMPOSED):
        checked = {"login": spelling, "password": "demo1234"}
        assert (await client.call("checkAuth", checked))["id"] == made["id"]


async def test_lower_case_that_has_a_composed_form_which_upper_case_lacks(client: Client) -> None:
    """J with caron is two code points; its lower case is one (U+01F0)."""
    made = await member(client, "J\u030c")
    assert (await client.call("checkAuth", {"login": "\u01f0", "password": "demo1234"}))["id"] == made["id"]


@pytest.mark.parametrize(
    ("stored", "spelling"),
    [
        ("jos\u00e9@example.com", "JOSE\u0301@example.com"),
        ("jo@b\u00fccher.example", "jo@XN--BCHER-KVA.example"),
    ],
)
async def test_an_e_mail_is_one_in_all_spellings(stored: str, spelling: str, client: Client) -> None:
    created = await client.call("createUser", {"email": stored, "externalId": "jo"})
    assert (await client.call("getUserByEmail", {"email": spelling}))["id"] == created["id"]
    for method, params in (
        ("createUser", {"email": spelling}),
        ("createUsers", {"users": [{"email": spelling}]}),
        ("createStoreUser", {"email": spelling, "externalId": "x"}),
    ):
        [(field, message)] = await refused(client, method, params)
        assert (field.rpartition(".")[2], message) == ("email", DUPLICATE), method
    ensured = await client.call("ensureUser", {"email": spelling, "displayName": "Jo"})
    assert (ensured["created"], ensured["user"]["email"]) == (False, stored)
    page = await client.call("listUsers", {"emailStartsWith": spelling})
    assert [user["email"] for user in page["users"]] == [stored]
