"""Logins that are not e-mails: in addition to an e-mail, or without one."""

import asyncio
import re
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from conftest import ADMIN, Client, until

from server.base.errors import Invalid
from server.methods.codes import checked_link
from server.tenants.instances import InstanceSettings

NAMES = {"firstname": "Jo", "lastname": "Smith"}
DUPLICATE = 'duplicate key value violates unique constraint "users_email"'
LINK = "https://example.com/c?code={{code}}"


async def member(client: Client, login: str, email: str | None = None, **more: Any) -> Any:
    """A member with a password."""
    profile = NAMES | ({"email": email} if email else {}) | more.pop("profile", {})
    params = {"login": login, "sponsorId": 1, "profile": profile, "password": "demo1234"} | more
    return (await client.call("createMember", params))["member"]


async def refused(client: Client, method: str, params: dict[str, Any]) -> list[tuple[str, str]]:
    """Which members a call is refused for, and why."""
    async with await client.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}) as response:
        fields = (await response.json())["error"]["data"]["fields"]
    return [(bad["field"], bad["message"]) for bad in fields]


async def office(client: Client, verb: str, path: str, params: dict[str, Any]) -> Any:
    """The envelope of a request on the member platform's wire."""
    sent = {"params": params} if verb == "GET" else {"json": params}
    headers = {"Token": client.key}
    async with client.http.request(
        verb, f"{client.url}/online-office/user/{path}", headers=headers, **sent
    ) as response:
        return await response.json()


async def test_a_login_without_an_e_mail(client: Client) -> None:
    made = await member(client, "JSmith")
    assert (made["login"], "email" in made["profile"]) == ("JSmith", False)
    assert (await client.call("checkAuth", {"login": "jsmith", "password": "demo1234"}))["id"] == made["id"]
    assert (await client.call("userExists", {"login": "JSMITH"}))["exists"]
    user = await client.call("login", {"email": "jsmith", "password": "demo1234"})
    assert (user["id"], user["email"]) == (made["id"], "JSmith")
    assert (await client.call("loginWithToken", {"token": user["token"]}))["id"] == made["id"]
    assert [found["user"] for found in (await client.call("searchUsers", {"searchText": "jsm"}))["list"]] == [
        made["id"]
    ]
    [event] = (await client.call("listAuditEvents", {"type": "user.created", "limit": 1}))["events"]
    assert (event["after"]["email"], event["after"]["login"]) == (None, "JSmith")
    await client.call("deleteUserByEmail", {"email": "jsmith"})
    await client.call("restoreUserByEmail", {"email": "jsmith"})


async def test_a_login_beside_an_e_mail(client: Client, db: asyncpg.Connection) -> None:
    made = await member(client, "jsmith", "Jo@example.com")
    assert (made["login"], made["profile"]["email"]) == ("jsmith", "Jo@example.com")
    for name in ("JSMITH", "jo@EXAMPLE.com"):
        assert (await client.call("checkAuth", {"login": name, "password": "demo1234"}))["id"] == made["id"]
        assert (await client.call("login", {"email": name, "password": "demo1234"}))["id"] == made["id"]
    assert (await client.call("getUserByEmail", {"email": "jo@example.com"}))["id"] == made["id"]
    assert await client.outcome("getUserByEmail", {"email": "jsmith"}) == (400, "not found")
    await client.call("deleteUserById", {"id": made["id"]})
    await client.call("purgeUserByEmail", {"email": "jo@example.com"})
    assert await db.fetchval("SELECT count(*) FROM logins") == 0


@pytest.mark.parametrize(
    ("login", "email", "field"),
    [
        ("JSMITH", None, "login"), ("jo@example.com", None, "login"), ("JSMITH", "new@example.com", "login"),
        ("Other@example.com", None, "login"), (ADMIN, "new@example.com", "login"),
        ("new", "Jo@example.com", "profile.email"), ("new", "other@example.com", "profile.email"),
        ("plain", "new@example.com", "login"),
    ],
)  # fmt: skip
async def test_no_two_users_share_a_name(login: str, email: str | None, field: str, client: Client) -> None:
    await member(client, "jsmith", "jo@example.com")
    await member(client, "other@example.com", "mail@example.com")
    await member(client, "Plain")
    profile = NAMES | ({"email": email} if email else {})
    params = {"login": login, "sponsorId": 1, "profile": profile}
    assert await refused(client, "createMember", params) == [(field, DUPLICATE)]
    envelope = await office(client, "POST", "create", params)
    assert (envelope["errorCode"], envelope["primary"]["errors"]) == (
        409, [{"field": field, "message": DUPLICATE}],
    )  # fmt: skip


async def test_no_e_mail_is_the_login_of_another(client: Client) -> None:
    await member(client, "other@example.com", "mail@example.com")
    await client.call("createUser", {"email": "ann@example.com", "externalId": "ann"})
    other = {"email": "Other@example.com"}
    for method, params in (
        ("createUser", other), ("createUser", other | {"planId": 1}), ("createUsers", {"users": [other]}),
        ("createStoreUser", other | {"externalId": "x"}), ("ensureUser", other),
        ("ensureUser", other | {"externalId": "ann"}),
        ("renameUserByEmail", {"email": "ann@example.com", "newEmail": "other@example.com"}),
        ("replaceUserByEmail", {"email": "ann@example.com", "newEmail": "other@example.com"}),
        ("updateStoreUser", other | {"id": 3, "externalId": "ann", "onlySeesReadable": False}),
        ("updateProfile", {"id": 3, "profile": other}),
    ):  # fmt: skip
        [(field, message)] = await refused(client, method, params)
        assert (field.rpartition(".")[2], message) in (("email", DUPLICATE), ("newEmail", DUPLICATE)), method
    assert (await client.call("validateUser", other))["failures"] == [
        {"field": "email", "message": DUPLICATE}
    ]
    assert (await client.call("getInstance"))["users"] == 3


async def test_of_many_who_want_one_name_one_gets_it(client: Client, db: asyncpg.Connection) -> None:
    """As e-mail, as login, or by renaming, all at the same time."""
    for turn in range(5):
        name = f"name{turn}@example.com"
        before = [await client.call("createUser", {"email": f"u{turn}{n}@example.com"}) for n in range(3)]
        outcomes = await asyncio.gather(
            *(client.outcome("createUser", {"email": name}) for _ in range(3)),
            *(
                client.outcome(
                    "createMember",
                    {"login": name, "sponsorId": 1, "profile": NAMES | {"email": f"m{turn}{n}@example.com"}},
                )
                for n in range(3)
            ),
            *(
                client.outcome("renameUserByEmail", {"email": user["email"], "newEmail": name})
                for user in before
            ),
            client.outcome("ensureUser", {"email": name}),
        )
        bad = [answer for status, answer in outcomes[:-1] if status != 200]
        assert set(bad) <= {DUPLICATE, "concurrent changes got in each other's way, try again"}, bad
        holders = await db.fetchval(
            "SELECT (SELECT count(*) FROM users WHERE email_key = $1)"
            " + (SELECT count(*) FROM logins WHERE login_key = $1)",
            name,
        )
        assert holders == 1


async def test_a_creation_that_waited_for_a_login_looks_again(
    client: Client, db: asyncpg.Connection, database_url: str
) -> None:
    """Its statement began before the login was there, and went on after."""
    made = await member(client, "jsmith", "jo@example.com")
    watching = await asyncpg.connect(database_url)
    async with db.transaction():
        await db.execute("UPDATE instance_counters SET logins = logins + 1 WHERE instance_id = 1")
        creation = asyncio.create_task(client.outcome("createUser", {"email": "new@example.com"}))

        async def is_waiting() -> bool:
            query = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock')"
            return bool(await watching.fetchval(query))

        await until(is_waiting)
        await db.execute("UPDATE logins SET login_key = 'new@example.com' WHERE user_id = $1", made["id"])
    assert await creation == (400, DUPLICATE)
    await watching.close()


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("renameUserByEmail", {"email": "ann@example.com", "newEmail": "new@example.com"}),
        ("replaceUserByEmail", {"email": "ann@example.com", "newEmail": "new@example.com"}),
        ("updateStoreUser", {"id": 2, "email": "new@example.com", "externalId": "a", "onlySeesReadable": False}),
        ("ensureUser", {"email": "new@example.com", "externalId": "a"}),
        ("updateProfile", {"id": 2, "profile": {"email": "new@example.com"}}),
    ],
)  # fmt: skip
async def test_a_renaming_writes_nothing_before_it_holds_the_counters(
    method: str, params: dict[str, Any], client: Client, db: asyncpg.Connection, database_url: str
) -> None:
    """A creation holds the counters and then writes the name: it must not have to wait for the renaming."""
    await client.call("createUser", {"email": "ann@example.com", "externalId": "a"})
    await client.call("createUser", {"email": "bob@example.com"})
    watching = await asyncpg.connect(database_url)
    async with db.transaction():
        await db.execute("SET LOCAL lock_timeout = '200ms'")
        await db.execute("UPDATE instance_counters SET users = users WHERE instance_id = 1")
        renaming = asyncio.create_task(client.outcome(method, params))

        async def is_waiting() -> bool:
            query = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock')"
            return bool(await watching.fetchval(query))

        await until(is_waiting)
        await db.execute(
            "UPDATE users SET email = $1, email_key = $1 WHERE email_key = 'bob@example.com'",
            "new@example.com",
        )
    status, message = await renaming
    assert status == 400 and message.endswith(DUPLICATE)
    await watching.close()


async def test_profile_update_changes_the_e_mail_and_not_the_login(client: Client) -> None:
    made = await member(client, "jo@example.com", profile={"countryId": 643, "card_id": "17"})
    ref = {"id": made["id"]}

    async def change(email: str | None) -> tuple[str, str | None]:
        await client.call("updateProfile", ref | {"profile": {"email": email}})
        now = await client.call("getUserById", ref)
        return now["login"], now["profile"].get("email")

    assert await change("new@example.com") == ("jo@example.com", "new@example.com")
    assert (await client.call("getUserByEmail", {"email": "new@example.com"}))["id"] == made["id"]
    assert (await client.call("checkAuth", {"login": "jo@example.com", "password": "demo1234"}))["id"]
    assert await change(None) == ("jo@example.com", "jo@example.com")
    plain = await member(client, "plain", "plain@example.com")
    ref = {"id": plain["id"]}
    assert await change(None) == ("plain", None)
    assert await change("again@example.com") == ("plain", "again@example.com")
    assert await refused(client, "updateProfile", ref | {"profile": {"email": ADMIN}}) == [
        ("profile.email", DUPLICATE)
    ]
    assert await refused(client, "updateProfile", ref | {"profile": {"email": "no"}}) == [
        ("profile.email", "is not a valid e-mail address")
    ]


async def test_renaming_takes_an_e_mail_login_along(client: Client) -> None:
    made = await member(client, "jo@example.com", "mail@example.com")
    await client.call("renameUserByEmail", {"email": "mail@example.com", "newEmail": "new@example.com"})
    assert (await client.call("getUserById", {"id": made["id"]}))["login"] == "new@example.com"
    await client.call("createUser", {"email": "jo@example.com"})  # free again
    plain = await member(client, "plain")
    for rename in (
        {"email": "plain", "newEmail": "plain@example.com"},
        {"email": "plain@example.com", "newEmail": "other@example.com"},
    ):
        await client.call("replaceUserByEmail", rename)
        assert (await client.call("getUserById", {"id": plain["id"]}))["login"] == "plain"
    await client.call("updateUserByEmail", {"email": "other@example.com", "externalId": "p"})
    await client.call("ensureUser", {"externalId": "p", "email": "third@example.com"})
    assert (await client.call("checkAuth", {"login": "plain", "password": "demo1234"}))["profile"][
        "email"
    ] == "third@example.com"


@pytest.mark.parametrize(
    ("login", "message"),
    [
        ("", "login: must have at least 1 character"),
        ("x" * 101, "login: must have at most 100 characters"),
        ("a@b", "login: is not a valid e-mail address"),
        (" x", "login: must not begin or end with a space"),
        ("a\nb", "login: holds control characters"),
        (5, "login: must be a string"),
    ],
)
async def test_bad_logins(login: Any, message: str, client: Client) -> None:
    params = {"login": login, "sponsorId": 1, "profile": NAMES}
    status, told = await client.outcome("createMember", params)
    assert status == 400 and told.startswith(message)


async def test_the_system_fields_of_the_document(client: Client) -> None:
    fields = await client.call("listProfileFields")
    system = [field["alias"] for field in fields if field["system"]]
    assert system[:11] == [
        "firstname", "lastname", "email", "phone", "countryId", "skype", "gender", "birth_date",
        "Mailing_address", "Postal/ZIP_code", "card_id",
    ]  # fmt: skip
    given = {"countryId": "BH", "Mailing_address": "1 Road\nManama", "Postal/ZIP_code": "317", "card_id": "9"}
    made = await member(client, "jo@example.com", profile=given)
    assert made["profile"] == {"email": "jo@example.com"} | NAMES | given
    assert await refused(client, "updateProfile", {"id": made["id"], "profile": {"countryId": True}}) == [
        ("profile.countryId", "must be a string")
    ]


async def test_mails_go_to_the_e_mail_and_without_one_nowhere(client: Client, tmp_path: Path) -> None:
    await member(client, "jsmith", "jo@example.com", confirmationUrl=LINK)

    async def mails() -> list[str]:
        texts = [path.read_text() for path in tmp_path.glob("mail/[!.]*.eml")]
        return [to for text in texts for to in re.findall(r"(?m)^To: (.*)$", text)]

    assert await until(mails) == ["jo@example.com"]
    params = {"login": "plain", "sponsorId": 1, "profile": NAMES}
    assert await refused(client, "createMember", params | {"confirmationUrl": LINK}) == [
        ("profile.email", "is required: confirmationUrl goes there")
    ]
    await client.call("createMember", params)
    await client.call("requestPasswordReset", {"email": "plain", "confirmationUrl": LINK})
    await client.call("requestPasswordReset", {"email": "jo@example.com", "confirmationUrl": LINK})

    async def both() -> bool:
        return len(await mails()) == 2

    await until(both)
    assert await mails() == ["jo@example.com"] * 2
    assert await refused(client, "createInOffice365", {"email": "plain"}) == []  # no credentials at all


async def test_set_password_takes_the_documented_integer(client: Client) -> None:
    made = await member(client, "jsmith")
    for kind in (1, 7, "member"):
        sent = {"userId": made["id"], "type": kind, "newPassword": f"onemoretime{kind}"}
        assert (await office(client, "POST", "set-password", sent))["errorCode"] == 0
        checked = {"login": "jsmith", "password": f"onemoretime{kind}"}
        assert (await office(client, "GET", "check-auth", checked))["primary"]["success"]
    for kind in ("1", True, 1.5):  # null is as if left out
        envelope = await office(
            client, "POST", "set-password", {"userId": made["id"], "type": kind, "newPassword": "onemoretime"}
        )
        assert envelope["primary"]["errors"] == [{"field": "type", "message": "must be member"}]


async def test_links_by_http_lead_to_hosts_that_the_instance_names(operator: Client, client: Client) -> None:
    await operator.call(
        "updateInstance", {"instance": "MYINSTANCE", "settings": {"httpConfirmationHosts": ["intra.example"]}}
    )
    for scheme in ("http", "https"):
        link = f"{scheme}://intra.example/c?code={{{{code}}}}"
        await client.call("requestPasswordReset", {"email": ADMIN, "confirmationUrl": link})
    [(field, _)] = await refused(
        client,
        "requestPasswordReset",
        {"email": ADMIN, "confirmationUrl": "http://example.com/c?code={{code}}"},
    )
    assert field == "confirmationUrl"
    with pytest.raises(Invalid):
        checked_link("http://intra.example/{{code}}", InstanceSettings(confirmationHosts=["intra.example"]))
