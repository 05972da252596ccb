"""publica.la's document (seeds/003): every request as the bytes that a client sends."""

import asyncio
import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from conftest import ADMIN, Client, Log, Serve, contents, footprint, insert_key
from processes import Raw, exchange

from server.base.settings import Settings
from server.directory.upkeep import purge_expired
from server.postgres.db import Database

USERS = "/integration-api/v1/dashboard/users"
PLANS = "/integration-api/v1/dashboard/plans"
SESSIONS = "/integration-api/v1/auth-sessions"
# The document's own message, but for its comments and its last comma, which are no JSON.
DOCUMENTED = b"""{
"email":"reader@example.com",
"external_id":"user-id-in-your-platform",
"new_password":"Abcd1234",
"sessions_limit":null,
"assign_new_plan": null,
"new_plan_custom_valid_to":"",
"admin":false,
"plan_admin":false,
"only_sees_readable":true
}"""
DOCUMENTED_PLAN = b"""{
"type":"recurring",
"name":"Demo Plan",
"details":"<div>This is the description of the Demo Plan</div>",
"duration":null,
"recommended":true,
"private":false,
"assigns_collections":true,
"concurrency_limit":"1",
"collections":["Prepaid"],
"download_files":false,
"prices":{"ARS":0,"USD":"1","EUR":0},
"free_trial":true,
"free_trial_days":"15"
}"""
READER = {"email": "reader@example.com", "password": "Abcd1234"}
EXTERNAL_ID = "user-id-in-your-platform"


def today(days: int = 0) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).strftime("%Y-%m-%d")


class Store:
    """A client of the dialect, which sends bytes."""

    def __init__(self, client: Client, header: str = "X-User-Token") -> None:
        self.client, self.header = client, header

    async def send(self, verb: str, target: str, body: Any = None, *headers: str) -> Raw:
        """One request; a body that is bytes goes as it is."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        lines = [
            f"{verb} {target} HTTP/1.1", "Host: example.publica.la", "Connection: close",
            "Content-Type: application/json", "Accept: application/json",
            *([f"{self.header}: {self.client.key}"] if self.client.key else []), *headers,
            *([f"Content-Length: {len(body)}"] if body is not None else []),
        ]  # fmt: skip
        return await exchange(self.client.url, "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))

    async def json(self, verb: str, target: str, body: Any = None, *, status: int = 200) -> Any:
        """The body of an answer that must have the status, and the headers that every one has."""
        answer = await self.send(verb, target, body)
        assert answer.status == status, answer
        assert answer.header("Content-Type") == "application/json"
        assert answer.header("Cache-Control") == "no-store"
        assert answer.header("X-RateLimit-Limit") == "100"
        assert answer.header("X-Request-Id") and answer.header("Server") is None
        return json.loads(answer.body)

    async def done(self, verb: str, target: str, body: Any = None) -> None:
        """An answer that must be 204 without a body."""
        answer = await self.send(verb, target, body)
        assert (answer.status, answer.body) == (204, b"")
        assert answer.header("X-RateLimit-Limit") == "100"

    async def listed(self, query: str = "") -> list[str]:
        """The e-mails of a page."""
        data = (await self.json("GET", USERS + query))["data"]["paginator"]["data"]
        return [user["email"] for user in data]


@pytest.fixture
def store(client: Client) -> Store:
    return Store(client)


@pytest.fixture
async def reader(store: Store) -> int:
    """The id of the document's user."""
    created = await store.json("POST", USERS + "/", DOCUMENTED)
    return int(created["data"]["id"])


async def logins(client: Client, token: str | None = None) -> list[Any]:
    """What every means of logging in answers for the document's user."""
    answers: list[Any] = [await client.outcome("login", READER)]
    if token:
        answers.append(await client.outcome("loginWithToken", {"token": token}))
    answers.append(
        await client.outcome("checkAuth", {"login": READER["email"], "password": READER["password"]})
    )
    given = {"login": READER["email"], "password": READER["password"]}
    async with client.http.get(
        client.url + "/online-office/user/check-auth", params=given, headers={"Token": client.key}
    ) as response:
        body = await response.json()
        answers.append((200 if body["primary"]["success"] else 400, body["errorMessage"]))
    async with await client.post(
        {"jsonrpc": "2.0", "id": 1, "method": "login", "params": READER}
    ) as response:
        body = await response.json()
        answers.append((400, body["error"]["message"]) if "error" in body else (200, ""))
    return answers


# --- users --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["X-User-Token", "x-api-key"])
@pytest.mark.parametrize("slash", ["/", ""])
async def test_create(slash: str, header: str, client: Client, db: asyncpg.Connection) -> None:
    answer = await Store(client, header).send("POST", USERS + slash, DOCUMENTED)
    assert answer.status == 200
    row = await db.fetchrow("SELECT * FROM users WHERE email = 'reader@example.com'")
    moment = {
        "timestamp": int(row["created_at"].timestamp()),
        "date": row["created_at"].strftime("%Y-%m-%d %H:%M:%S"),
        "timezone": "UTC",
    }
    expected = {
        "CODE": "success",
        "data": {
            "id": 2, "email": "reader@example.com", "uuid": str(row["uuid"]), "picture": "", "admin": False,
            "plan_admin": False, "only_sees_readable": True, "sessions_limit": None, "created_at": moment,
            "updated_at": moment, "deleted_at": None,
        },
    }  # fmt: skip
    assert answer.body == json.dumps(expected, separators=(",", ":")).encode()
    assert row["external_id"] == EXTERNAL_ID
    assert [status for status, *_ in await logins(client)] == [200, 200, 200, 200]


async def test_flags_and_numbers_in_every_documented_form(store: Store, client: Client) -> None:
    """Booleans as 1 and 0; what is empty counts as left out."""
    given = {
        "email": "flags@example.com", "external_id": "x" * 64, "new_password": "", "sessions_limit": "999999",
        "assign_new_plan": "", "admin": 1, "plan_admin": 1, "only_sees_readable": 0,
    }  # fmt: skip
    created = (await store.json("POST", USERS, given))["data"]
    flags = ("admin", "plan_admin", "only_sees_readable", "sessions_limit")
    assert [created[name] for name in flags] == [True, True, False, 999_999]
    assert (await client.outcome("login", {"email": "flags@example.com", "password": "x"}))[0] == 400


async def test_get(store: Store, client: Client, reader: int, db: asyncpg.Connection) -> None:
    """By e-mail in any case; also by id and by external id."""
    row = await db.fetchrow("SELECT * FROM users WHERE id = 2")
    moment = row["created_at"].strftime("%Y-%m-%dT%H:%M:%S.000000Z")
    expected = {
        "CODE": "success",
        "data": {
            "id": 2, "uuid": str(row["uuid"]), "admin": False, "plan_admin": False,
            "email": "reader@example.com", "sessions_limit": None, "only_sees_readable": 1, "picture": "",
            "created_at": moment, "updated_at": moment, "deleted_at": None,
            "purchased_issues_with_cancelled_count": 0, "user_plans_count": 0, "can_be_edited": True,
            "created_at_date_string": moment[:10], "impersonate": "", "sessions": None, "ip_ranges": [],
            "referrers": [], "purchased_issues_with_cancelled": [], "user_plans": [],
        },
    }  # fmt: skip
    for name in ("reader@example.com", "READER%40example.com", "2", EXTERNAL_ID):
        for slash in ("", "/"):
            answer = await store.send("GET", f"{USERS}/{name}{slash}")
            assert (answer.status, answer.body) == (
                200, json.dumps(expected, separators=(",", ":")).encode(),
            )  # fmt: skip
    assert await store.json("GET", USERS + "/nobody@example.com", status=404) == {
        "message": "Object not found"
    }


async def test_the_picture_is_the_avatar(store: Store, client: Client, reader: int) -> None:
    await client.call("updateUserByEmail", {"email": READER["email"], "avatar": "https://x.example/me.png"})
    shown = await store.json("GET", f"{USERS}/{reader}")
    assert shown["data"]["picture"] == "https://x.example/me.png"


@pytest.mark.parametrize("slash", ["", "/"])
async def test_list(slash: str, store: Store, client: Client, reader: int) -> None:
    one = (await store.json("GET", f"{USERS}/{reader}"))["data"]
    admin = (await store.json("GET", f"{USERS}/{ADMIN}"))["data"]
    path = "http://127.0.0.1:8080" + USERS
    answer = await store.json("GET", USERS + slash)
    assert answer == {
        "CODE": "success",
        "data": {
            "paginator": {
                "current_page": 1, "data": [admin, one], "first_page_url": path + "?page=1", "from": 1,
                "last_page": 1, "last_page_url": path + "?page=1", "next_page_url": None, "path": path,
                "per_page": 10, "prev_page_url": None, "to": 2, "total": 2,
            }
        },
    }  # fmt: skip
    assert list(answer["data"]["paginator"]) == [
        "current_page", "data", "first_page_url", "from", "last_page", "last_page_url", "next_page_url", "path",
        "per_page", "prev_page_url", "to", "total",
    ]  # fmt: skip


async def test_pages(store: Store, client: Client) -> None:
    for number in range(4):
        await client.call("createUser", {"email": f"u{number}@example.com"})
    path = "http://127.0.0.1:8080" + USERS
    page = (await store.json("GET", USERS + "/?per_page=2&page=2"))["data"]["paginator"]
    assert [user["id"] for user in page.pop("data")] == [3, 4]
    assert page == {
        "current_page": 2, "first_page_url": path + "?per_page=2&page=1", "from": 3, "last_page": 3,
        "last_page_url": path + "?per_page=2&page=3", "next_page_url": path + "?per_page=2&page=3",
        "path": path, "per_page": 2, "prev_page_url": path + "?per_page=2&page=1", "to": 4, "total": 5,
    }  # fmt: skip
    beyond = (await store.json("GET", USERS + "?per_page=2&page=9"))["data"]["paginator"]
    assert (beyond["data"], beyond["from"], beyond["to"], beyond["total"]) == ([], None, None, 5)


async def test_filters(store: Store, client: Client, reader: int) -> None:
    assert await store.listed("/?query=deactivated") == []
    assert await store.listed("/?query=admins") == [ADMIN]
    assert await store.listed("?query=Reader@example.com") == [READER["email"]]
    assert await store.listed("?email=nobody@example.com") == []
    await store.json("DELETE", f"{USERS}/{reader}")
    await client.call("deleteUserByEmail", {"email": (await added(client, "gone@example.com"))})
    assert await store.listed() == [ADMIN]
    page = (await store.json("GET", USERS + "?query=deactivated"))["data"]["paginator"]
    assert [user["email"] for user in page["data"]] == [READER["email"]] and page["total"] == 1
    assert page["data"][0]["deleted_at"].endswith(".000000Z")
    await store.json("DELETE", USERS + "/1")
    assert await store.listed("?query=admins") == []


async def added(client: Client, email: str) -> str:
    """A user made on /rpc."""
    await client.call("createUser", {"email": email})
    return email


async def test_update(store: Store, client: Client, reader: int, db: asyncpg.Connection) -> None:
    token = (await client.call("login", READER))["token"]
    given = {
        "external_id": "another", "email": "other@example.com", "new_password": "Efgh5678", "sessions_limit": 3,
        "assign_new_plan": None, "new_plan_custom_valid_to": "", "admin": 1, "plan_admin": 1,
        "only_sees_readable": 0, "user_plan_name": "",
    }  # fmt: skip
    await store.done("PUT", f"{USERS}/{reader}", given)
    shown = (await store.json("GET", f"{USERS}/{reader}"))["data"]
    names = ("email", "admin", "plan_admin", "only_sees_readable", "sessions_limit", "deleted_at")
    assert [shown[name] for name in names] == ["other@example.com", True, True, 0, 3, None]
    assert await db.fetchval("SELECT external_id FROM users WHERE id = 2") == "another"
    assert (await client.outcome("loginWithToken", {"token": token}))[0] == 400
    assert (await client.outcome("login", READER))[0] == 400
    await client.call("login", {"email": "other@example.com", "password": "Efgh5678"})


async def test_admin_as_it_is_needs_no_scope(
    store: Store, client: Client, reader: int, db: asyncpg.Connection
) -> None:
    """A client puts the whole user: only to change it asks for a right of its own."""
    shop = Store(client.using(await insert_key(db, scopes=("users:read", "users:write"))))
    whole = {"external_id": EXTERNAL_ID, "email": READER["email"], "only_sees_readable": 1}
    await shop.done("PUT", f"{USERS}/{reader}", whole | {"admin": False, "sessions_limit": 7})
    before = await contents(db)
    answer = await shop.json("PUT", f"{USERS}/{reader}", whole | {"admin": 1}, status=403)
    assert answer == {"message": "This action is unauthorized."}
    assert await contents(db) == before
    await store.done("PUT", f"{USERS}/{reader}", whole | {"admin": True})
    await shop.done("PUT", f"{USERS}/{reader}", whole | {"admin": True, "sessions_limit": 7})
    for more in (
        {"admin": 0}, {"new_password": "Abcd12345"}, {"email": "mine@example.com"}, {"sessions_limit": 8},
        {"external_id": "mine"}, {"email": READER["email"].upper()},
    ):  # fmt: skip
        await shop.json("PUT", f"{USERS}/{reader}", whole | more, status=403)
    assert (await client.call("getStoreUser", {"id": reader}))["sessionsLimit"] == 7


async def test_update_leaves_what_is_left_out(store: Store, client: Client, reader: int) -> None:
    """And can be sent again; a limit of null is no limit."""
    least = {"external_id": EXTERNAL_ID, "email": "READER@example.com", "only_sees_readable": 1}
    await store.done("PUT", f"{USERS}/{reader}", least | {"sessions_limit": 5, "plan_admin": True})
    token = (await client.call("login", READER))["token"]
    for _ in range(2):
        await store.done("PUT", f"{USERS}/{reader}/", least)
    shown = (await store.json("GET", f"{USERS}/{reader}"))["data"]
    assert (shown["sessions_limit"], shown["plan_admin"], shown["email"]) == (5, True, "READER@example.com")
    await client.call("loginWithToken", {"token": token})
    await store.done("PUT", f"{USERS}/{reader}", least | {"sessions_limit": None})
    assert (await store.json("GET", f"{USERS}/{reader}"))["data"]["sessions_limit"] is None


WRONG = (400, "Login or password is incorrect")


@pytest.mark.parametrize("end", ["", "/"])
async def test_a_deactivated_user_cannot_log_in(end: str, store: Store, client: Client, reader: int) -> None:
    """By no means: password or token, on /rpc in both envelopes and on the member platform's wire."""
    token = (await client.call("login", READER))["token"]
    assert [status for status, *_ in await logins(client, token)] == [200] * 5
    answer = await store.send("DELETE", f"{USERS}/{reader}{end}")
    assert (answer.status, answer.body) == (200, b'{"CODE":"success","data":[]}')
    assert await logins(client, token) == [WRONG] * 5
    answer = await store.send("PUT", f"{USERS}/{reader}/re-activate{end}")
    assert (answer.status, answer.body) == (200, b'{"CODE":"success","data":1}')
    assert await client.outcome("loginWithToken", {"token": token}) == WRONG
    assert [status for status, *_ in await logins(client)] == [200] * 4


async def test_deactivated_is_suspended_on_rpc(store: Store, client: Client, reader: int) -> None:
    """And the other way round; the time does not change when it is done twice."""
    await client.call("updateUserByEmail", {"email": READER["email"], "isActive": False})
    first = (await store.json("GET", f"{USERS}/{reader}"))["data"]["deleted_at"]
    assert first is not None
    await client.call("updateUserByEmail", {"email": READER["email"], "displayName": "R"})
    await store.json("DELETE", f"{USERS}/{reader}")
    assert (await store.json("GET", f"{USERS}/{reader}"))["data"]["deleted_at"] == first
    await store.json("PUT", f"{USERS}/{reader}/re-activate")
    assert (await client.call("getUserByEmail", {"email": READER["email"]}))["isActive"] is True
    await client.call("createUser", {"email": "away@example.com", "isActive": False})
    assert await store.listed("?query=deactivated") == ["away@example.com"]


FORCE_LOGOUT = ["/integration-api/v1/users/{}/force-logout", USERS + "/{}/force-logout"]


@pytest.mark.parametrize("path", [path + end for path in FORCE_LOGOUT for end in ("", "/")])
@pytest.mark.parametrize("name", ["2", EXTERNAL_ID])
async def test_force_logout(path: str, name: str, store: Store, client: Client, reader: int) -> None:
    token = (await client.call("login", READER))["token"]
    answer = await store.send("POST", path.format(name))
    assert (answer.status, answer.body) == (200, b'{"CODE":"success","data":[]}')
    assert await client.outcome("loginWithToken", {"token": token}) == WRONG
    await client.call("login", READER)


async def test_an_external_id_that_is_no_number_of_ours(store: Store, client: Client) -> None:
    """Nineteen digits, and more than any id: nobody can be meant but who has it as external id."""
    for place, name in enumerate(("9223372036854775808", "9" * 19, "9" * 20)):
        given = {"email": f"x{place}@example.com", "externalId": name}
        created = await client.call("createUser", given)
        assert (await store.json("GET", f"{USERS}/{name}"))["data"]["id"] == created["id"]
        await store.json("POST", f"/integration-api/v1/users/{name}/force-logout")
        assert await store.json("PUT", f"{USERS}/{name}", WHOLE, status=404) == {
            "message": "Object not found"
        }


@pytest.mark.parametrize("path", FORCE_LOGOUT)
async def test_force_logout_takes_the_id_first(path: str, store: Store, client: Client, reader: int) -> None:
    """An external id may look like another user's id, or like nobody's."""
    tokens = []
    for email, external_id in (("b@example.com", "2"), ("c@example.com", "77")):
        await client.call("createUser", {"email": email, "password": "x", "externalId": external_id})
        tokens.append((await client.call("login", {"email": email, "password": "x"}))["token"])
    token = (await client.call("login", READER))["token"]
    await store.json("POST", path.format("2"))
    assert await client.outcome("loginWithToken", {"token": token}) == WRONG
    await client.call("loginWithToken", {"token": tokens[0]})
    await store.json("POST", path.format("77"))
    assert await client.outcome("loginWithToken", {"token": tokens[1]}) == WRONG


# --- sessions -----------------------------------------------------------------------------------------


async def test_a_login_beyond_the_limit_ends_the_oldest_session(
    store: Store, client: Client, reader: int
) -> None:
    least = {"external_id": EXTERNAL_ID, "email": READER["email"], "only_sees_readable": 1}
    await store.done("PUT", f"{USERS}/{reader}", least | {"sessions_limit": 2})
    tokens = [(await client.call("login", READER))["token"] for _ in range(4)]
    alive = [(await client.outcome("loginWithToken", {"token": token}))[0] for token in tokens]
    assert alive == [400, 400, 200, 200]


async def test_the_limit_holds_under_parallel_logins(
    store: Store, client: Client, reader: int, db: asyncpg.Connection
) -> None:
    await client.call("updateUserByEmail", {"email": READER["email"], "sessionsLimit": 3})
    tokens = [
        user["token"] for user in await asyncio.gather(*(client.call("login", READER) for _ in range(20)))
    ]
    assert await db.fetchval("SELECT count(*) FROM sessions") == 3
    alive = [(await client.outcome("loginWithToken", {"token": token}))[0] for token in tokens]
    assert alive.count(200) == 3


async def test_auth_sessions(store: Store, client: Client, reader: int) -> None:
    await client.call("createUser", {"email": "b@example.com", "password": "x"})
    for login in (READER, {"email": "b@example.com", "password": "x"}, READER):
        await client.call("login", login)
    answer = await store.json("GET", SESSIONS)
    assert answer["pagination"] == {"per_page": 100, "next_cursor": None, "has_more": False}
    sized = await store.json("GET", SESSIONS + "?per_page=&per_page=5")
    assert sized["pagination"]["per_page"] == 5
    newest = answer["data"][0]
    times = {name: newest.pop(name) for name in ("created_at", "expires_at")}
    assert all(moment.endswith(".000000Z") for moment in times.values())
    assert newest == {
        "id": "3", "user_id": 2, "user_email": READER["email"], "user_external_id": EXTERNAL_ID,
        "ip_address": None, "user_agent": None,
    }  # fmt: skip
    assert [session["id"] for session in answer["data"]] == ["3", "2", "1"]
    for query, found in (
        ("user_id=2", ["3", "1"]), (f"external_id={EXTERNAL_ID}", ["3", "1"]), ("user_id=99", []),
        ("external_id=nobody", []), (f"user_id=3&external_id={EXTERNAL_ID}", []),
    ):  # fmt: skip
        data = (await store.json("GET", f"{SESSIONS}/?{query}"))["data"]
        assert [session["id"] for session in data] == found
    assert await store.json("DELETE", f"{SESSIONS}/3") == {"CODE": "success", "data": []}
    assert await store.json("DELETE", f"{SESSIONS}/3", status=404) == {"message": "Object not found"}
    assert await store.json("DELETE", f"{SESSIONS}/users/2/") == {"CODE": "success", "data": []}
    assert [session["id"] for session in (await store.json("GET", SESSIONS))["data"]] == ["2"]


async def test_the_cursor_of_auth_sessions(store: Store, client: Client, reader: int) -> None:
    """Sessions that begin and end meanwhile shift nothing."""
    for _ in range(5):
        await client.call("login", READER)
    seen, cursor = [], ""
    for _ in range(3):
        page = await store.json("GET", f"{SESSIONS}?per_page=2&cursor={cursor}")
        seen += [session["id"] for session in page["data"]]
        cursor = page["pagination"]["next_cursor"]
        assert page["pagination"] == {"per_page": 2, "next_cursor": cursor, "has_more": cursor is not None}
        await client.call("login", READER)
        await store.json("DELETE", f"{SESSIONS}/5") if "5" in seen and len(seen) == 2 else None
    assert seen == ["5", "4", "3", "2", "1"] and cursor is None


# --- plans --------------------------------------------------------------------------------------------


async def test_plans(store: Store, db: asyncpg.Connection) -> None:
    answer = await store.send("POST", PLANS, DOCUMENTED_PLAN)
    assert answer.status == 201
    moment = (await db.fetchval("SELECT created_at FROM plans")).strftime("%Y-%m-%dT%H:%M:%S.000000Z")
    plan = {
        "id": 1, "type": "recurring", "name": "Demo Plan",
        "details": "<div>This is the description of the Demo Plan</div>", "duration": None,
        "recommended": True, "private": False, "assigns_collections": True, "concurrency_limit": 1,
        "collections": ["Prepaid"], "download_files": False, "prices": {"ARS": 0, "EUR": 0, "USD": 1},
        "free_trial": True, "free_trial_days": 15, "created_at": moment, "updated_at": moment,
    }  # fmt: skip
    assert json.loads(answer.body) == {"CODE": "success", "data": plan}
    assert list(json.loads(answer.body)["data"]) == list(plan)
    assert await store.json("GET", PLANS + "/1") == {"CODE": "success", "data": plan}
    year = {"type": "prepaid", "name": "A year", "duration": 12}
    assert (await store.json("POST", PLANS + "/", year, status=201))["data"]["id"] == 2
    await store.done("PUT", PLANS + "/1", {"name": "Another", "recommended": 0})
    page = (await store.json("GET", PLANS + "/?query=ANOTH"))["data"]["paginator"]
    changed = plan | {"name": "Another", "recommended": False, "updated_at": page["data"][0]["updated_at"]}
    assert (page["data"], page["total"], page["per_page"]) == ([changed], 1, 10)
    assert (await store.json("GET", PLANS + "?per_page=1&page=2"))["data"]["paginator"]["data"][0]["id"] == 2
    assert (await store.json("GET", PLANS + "?query=%25"))["data"]["paginator"]["total"] == 0


async def test_plans_are_assigned(store: Store, reader: int) -> None:
    """With a custom end, by their duration, or without an end; named for the user; again with another end."""
    for plan in (
        {"type": "recurring", "name": "For good"}, {"type": "prepaid", "name": "A month", "duration": 1}
    ):  # fmt: skip
        await store.json("POST", PLANS, plan, status=201)
    created = {"email": "b@example.com", "external_id": "b", "assign_new_plan": 1}
    await store.json("POST", USERS, created | {"new_plan_custom_valid_to": today(9)})
    shown = (await store.json("GET", USERS + "/b"))["data"]
    assert shown["user_plans_count"] == 1
    assert shown["user_plans"] == [
        {"id": 1, "plan_id": 1, "name": "For good", "valid_from": today(), "valid_to": today(9), "state": "active"}
    ]  # fmt: skip
    least = {"external_id": EXTERNAL_ID, "email": READER["email"], "only_sees_readable": 1}
    await store.done("PUT", f"{USERS}/{reader}", least | {"assign_new_plan": "1"})
    await store.done("PUT", f"{USERS}/{reader}", least | {"assign_new_plan": 2, "user_plan_name": "My month"})
    plans = (await store.json("GET", f"{USERS}/{reader}"))["data"]["user_plans"]
    assert [(plan["plan_id"], plan["name"]) for plan in plans] == [(1, "For good"), (2, "My month")]
    assert plans[0]["valid_to"] is None and today(27) < plans[1]["valid_to"] < today(32)
    await store.done("PUT", f"{USERS}/{reader}", least | {"user_plan_name": "Renamed"})
    for _ in range(2):
        given = {"assign_new_plan": 1, "new_plan_custom_valid_to": today()}
        await store.done("PUT", f"{USERS}/{reader}", least | given)
    shown = (await store.json("GET", f"{USERS}/{reader}"))["data"]
    plans = [(plan["name"], plan["valid_to"], plan["state"]) for plan in shown["user_plans"]]
    assert plans[0] == ("For good", today(), "active") and plans[1][0] == "Renamed"
    assert shown["user_plans_count"] == 2


async def test_a_plan_sent_again_is_no_longer(store: Store, reader: int, db: asyncpg.Connection) -> None:
    """A client that puts the whole user puts its plan too: on another day as well."""
    await store.json("POST", PLANS, {"type": "prepaid", "name": "A month", "duration": 1}, status=201)
    whole = {
        "external_id": EXTERNAL_ID, "email": READER["email"], "only_sees_readable": 1, "assign_new_plan": 1,
    }  # fmt: skip

    async def put(**more: Any) -> tuple[str, str, int]:
        await store.done("PUT", f"{USERS}/{reader}", whole | more)
        shown = (await store.json("GET", f"{USERS}/{reader}"))["data"]
        plan = shown["user_plans"][-1]
        return plan["valid_from"], plan["valid_to"], shown["user_plans_count"]

    month = await put()
    # The last day of a month is the one before the same day of the next month.
    last_day = "SELECT bool_and(valid_to + 1 = (valid_from + interval '1 month')::date) FROM user_plans"
    assert await db.fetchval(last_day)
    await db.execute("UPDATE user_plans SET valid_from = valid_from - 9, valid_to = valid_to - 9")
    begun = today(-9)
    ends = (date.fromisoformat(month[1]) - timedelta(9)).isoformat()
    assert await put() == (begun, ends, 1)
    assert await put(new_plan_custom_valid_to=today(5)) == (begun, today(5), 1)
    assert await put() == (begun, today(5), 1)
    # Its last day counts; the day after it begins anew.
    await db.execute("UPDATE user_plans SET valid_to = (now() AT TIME ZONE 'UTC')::date")
    assert await put() == (begun, today(), 1)
    await db.execute("UPDATE user_plans SET valid_to = (now() AT TIME ZONE 'UTC')::date - 1")
    assert await put() == month


async def test_plans_end_by_themselves(
    store: Store, reader: int, db: asyncpg.Connection, database_url: str
) -> None:
    """By the database's day, seen at once and noted by the queue; assigned anew, it is another period."""
    await store.json("POST", PLANS, {"type": "recurring", "name": "For good"}, status=201)
    await store.json("POST", PLANS, {"type": "recurring", "name": "Ends today"}, status=201)
    least = {"external_id": EXTERNAL_ID, "email": READER["email"], "only_sees_readable": 1}
    await store.done("PUT", f"{USERS}/{reader}", least | {"assign_new_plan": 1})
    await store.done(
        "PUT", f"{USERS}/{reader}", least | {"assign_new_plan": 2, "new_plan_custom_valid_to": today()}
    )
    await db.execute(
        "UPDATE user_plans SET valid_from = valid_from - 9, valid_to = (now() AT TIME ZONE 'UTC')::date - 1"
        " WHERE plan_id = 1"
    )

    async def states() -> list[str]:
        shown = (await store.json("GET", f"{USERS}/{reader}"))["data"]
        return [plan["state"] for plan in shown["user_plans"]]

    assert await states() == ["ended", "active"]
    settings = Settings()
    database = Database(settings, database_url)
    await database.open()
    assert (await purge_expired(database, settings))["plans"] == 1
    assert (await purge_expired(database, settings))["plans"] == 0
    await database.close()
    ended = await db.fetch("SELECT plan_id, ended_at IS NOT NULL AS over FROM user_plans ORDER BY id")
    assert [tuple(row) for row in ended] == [(1, True), (2, False)]
    page = await store.client.call("listAuditEvents", {"userId": reader, "method": "planEnd"})
    (event,) = page["events"]
    plan = {"planId": 1, "name": None, "validFrom": today(-9), "validTo": today(-1)}
    assert (event["type"], event["before"], event["after"]) == (
        "user.updated",
        {"plan": plan},
        {"plan": None},
    )
    assert (event["keyId"], event["keyName"]) == (0, "officerpc")
    await store.done("PUT", f"{USERS}/{reader}", least | {"assign_new_plan": 1})
    assert await states() == ["ended", "active", "active"]


# --- limits, keys, tenants ----------------------------------------------------------------------------


async def test_rate_limit(serve: Serve, db: asyncpg.Connection) -> None:
    """Each key has its own; what is refused does nothing, and other wires go on."""
    client = await serve(rate_limit=2)
    store = Store(client)
    left = []
    for _ in range(2):
        answer = await store.send("GET", USERS)
        left.append((answer.header("X-RateLimit-Limit"), answer.header("X-RateLimit-Remaining")))
        reset = int(answer.header("X-RateLimit-Reset") or 0)
        assert 0 < reset - datetime.now(UTC).timestamp() <= 61
    assert left == [("2", "1"), ("2", "0")]
    before = await footprint(db)
    answer = await store.send("POST", USERS, DOCUMENTED)
    assert (answer.status, answer.body) == (429, b'{"message":"Too Many Attempts."}')
    assert 0 < int(answer.header("Retry-After") or 0) <= 60
    assert answer.header("X-RateLimit-Remaining") == "0"
    assert await footprint(db) == before
    assert (await Store(client.using(await insert_key(db))).send("GET", USERS)).status == 200
    await client.call("getUserByEmail", {"email": ADMIN})
    unlimited = await serve(rate_limit=0)
    assert (await Store(unlimited).send("GET", USERS)).header("X-RateLimit-Limit") is None


async def test_keys(store: Store, client: Client, reader: int, db: asyncpg.Connection) -> None:
    for key in ("", "nonsense"):
        for verb, target in (("GET", USERS), ("DELETE", f"{USERS}/{reader}"), ("POST", USERS)):
            answer = await Store(client.using(key)).send(verb, target)
            assert (answer.status, answer.body) == (401, b'{"message":"Unauthenticated."}')
            assert answer.header("X-RateLimit-Limit") is None
    answer = await store.send("GET", USERS, None, f"x-api-key: {client.key}")
    assert (answer.status, answer.body) == (400, b'{"message":"send one API key"}')
    poor = Store(client.using(await insert_key(db, scopes=("users:read", "users:write"))))
    for verb, target, body in (
        ("POST", USERS, {"email": "x@example.com", "external_id": "x", "admin": 1}),
        ("PUT", f"{USERS}/2", {"email": "x@example.com", "external_id": "x", "only_sees_readable": 1, "admin": 1}),
        ("POST", PLANS, {"type": "recurring", "name": "x"}),
        ("POST", f"{USERS}/2/force-logout", None),
    ):  # fmt: skip
        assert await poor.json(verb, target, body, status=403) == {"message": "This action is unauthorized."}
    operator = Store(client.using(await insert_key(db, operator=True)))
    assert await operator.json("GET", USERS, status=422) == {
        "message": "The given data was invalid.",
        "errors": {"instance": ["The instance is required: this key has no default."]},
    }


async def test_isolation(
    store: Store, client: Client, other: Client, reader: int, db: asyncpg.Connection
) -> None:
    """Another tenant's key is told the same of our users as of nobody, byte for byte."""
    await store.json("POST", PLANS, {"type": "recurring", "name": "Ours"}, status=201)
    await client.call("login", READER)
    theirs = Store(other)
    before = await footprint(db), await db.fetch("SELECT * FROM users ORDER BY instance_id, id")
    least = {"external_id": "x", "email": "x@example.com", "only_sees_readable": 1}
    for verb, target, body in (
        ("GET", USERS + "/{}", None), ("PUT", USERS + "/{}", least), ("DELETE", USERS + "/{}", None),
        ("PUT", USERS + "/{}/re-activate", None), ("POST", USERS + "/{}/force-logout", None),
        ("POST", "/integration-api/v1/users/{}/force-logout", None), ("GET", PLANS + "/{}", None),
        ("PUT", PLANS + "/{}", {"name": "x"}), ("DELETE", SESSIONS + "/{}", None),
        ("DELETE", SESSIONS + "/users/{}", None),
    ):  # fmt: skip
        ours = {PLANS: 1, SESSIONS: 1}.get(target.partition("/{}")[0], reader)
        answers = [await theirs.send(verb, target.format(name), body) for name in (ours, 99)]
        assert [answer.status for answer in answers] == [404, 404], target
        assert answers[0].body == answers[1].body == b'{"message":"Object not found"}'
    for name in (READER["email"], EXTERNAL_ID):
        assert (await theirs.send("GET", f"{USERS}/{name}")).status == 404
    assert (await theirs.send("POST", f"{USERS}/{EXTERNAL_ID}/force-logout")).status == 404
    assert await theirs.listed() == ["boss@other.example"]
    assert await theirs.listed(f"?query={READER['email']}") == []
    assert (await theirs.json("GET", SESSIONS))["data"] == []
    assert (await theirs.json("GET", PLANS))["data"]["paginator"]["data"] == []
    for plan in (1, 99):
        body = {"email": "x@example.com", "external_id": "x", "assign_new_plan": plan}
        assert (await theirs.json("POST", USERS, body, status=422))["errors"] == {
            "assign_new_plan": ["The assign new plan is no plan of this instance."]
        }
    assert (await footprint(db), await db.fetch("SELECT * FROM users ORDER BY instance_id, id")) == before
    await theirs.json("POST", USERS, DOCUMENTED)  # the same names are free in another store


async def test_a_user_that_was_deleted_does_not_exist(store: Store, client: Client, reader: int) -> None:
    await client.call("deleteUserByEmail", {"email": READER["email"]})
    for verb, target in (
        ("GET", f"{USERS}/{reader}"), ("DELETE", f"{USERS}/{reader}"), ("PUT", f"{USERS}/{reader}/re-activate"),
        ("POST", f"{USERS}/{EXTERNAL_ID}/force-logout"),
    ):  # fmt: skip
        assert await store.json(verb, target, status=404) == {"message": "Object not found"}
    assert await store.listed("?query=deactivated") == []


# --- bad input ----------------------------------------------------------------------------------------

NEW = {"email": "x@example.com", "external_id": "x"}
WHOLE = NEW | {"only_sees_readable": 1}
DUPLICATES = {"email": ["The email has already been taken."]}
BAD: dict[str, tuple[str, str, Any, dict[str, list[str]]]] = {
    "create without anything": ("POST", USERS, {}, {"email": ["The email is required."], "external_id": ["The external id is required."]}),
    "create without a body": ("POST", USERS + "/", None, {"email": ["The email is required."], "external_id": ["The external id is required."]}),
    "create from a list": ("POST", USERS, [], {"body": ["The body must be an object."]}),
    "create with what is empty": ("POST", USERS, {"email": "", "external_id": None}, {"email": ["The email is required."], "external_id": ["The external id is required."]}),
    "create with a bad e-mail": ("POST", USERS, NEW | {"email": "x"}, {"email": ["The email must have at least 3 characters."]}),
    "create with another bad e-mail": ("POST", USERS, NEW | {"email": "x@y"}, {"email": ["The email is not a valid e-mail address: the domain has no dot."]}),
    "create with a list of e-mails": ("POST", USERS, NEW | {"email": ["x@example.com"]}, {"email": ["The email must be a string."]}),
    "create with a taken e-mail": ("POST", USERS, NEW | {"email": "READER@example.com"}, DUPLICATES),
    "create with a taken external id": ("POST", USERS, NEW | {"external_id": EXTERNAL_ID}, {"external_id": ["The external id has already been taken."]}),
    "create with a long external id": ("POST", USERS, NEW | {"external_id": "x" * 65}, {"external_id": ["The external id must have at most 64 characters."]}),
    "create with a number for an external id": ("POST", USERS, NEW | {"external_id": 7}, {"external_id": ["The external id must be a string."]}),
    "create with a short password": ("POST", USERS, NEW | {"new_password": "Abcd123"}, {"new_password": ["The new password must have at least 8 characters."]}),
    "create with a long password": ("POST", USERS, NEW | {"new_password": "x" * 256}, {"new_password": ["The new password must have at most 255 characters."]}),
    "create with no sessions": ("POST", USERS, NEW | {"sessions_limit": 0}, {"sessions_limit": ["The sessions limit must be greater than or equal to 1."]}),
    "create with many sessions": ("POST", USERS, NEW | {"sessions_limit": 1_000_000}, {"sessions_limit": ["The sessions limit must be less than or equal to 999999."]}),
    "create with bad types": ("POST", USERS, NEW | {"admin": "yes", "plan_admin": 2, "only_sees_readable": [], "sessions_limit": 1.5}, {"sessions_limit": ["The sessions limit must be an integer."], "admin": ["The admin must be true or false."], "plan_admin": ["The plan admin must be true or false."], "only_sees_readable": ["The only sees readable must be true or false."]}),
    "create with no such plan": ("POST", USERS, NEW | {"assign_new_plan": 9}, {"assign_new_plan": ["The assign new plan is no plan of this instance."]}),
    "create with a plan that is over": ("POST", USERS, NEW | {"assign_new_plan": 1, "new_plan_custom_valid_to": "2020-01-01"}, {"new_plan_custom_valid_to": ["The new plan custom valid to must not lie in the past."]}),
    "create with a bad day": ("POST", USERS, NEW | {"assign_new_plan": 1, "new_plan_custom_valid_to": "2027-02-30"}, {"new_plan_custom_valid_to": ["The new plan custom valid to must be a date such as 2024-02-29."]}),
    "create with a day and a time": ("POST", USERS, NEW | {"assign_new_plan": 1, "new_plan_custom_valid_to": "20270228"}, {"new_plan_custom_valid_to": ["The new plan custom valid to must be a date such as 2024-02-29."]}),
    "create with a day and no plan": ("POST", USERS, NEW | {"new_plan_custom_valid_to": "2099-01-01"}, {"new_plan_custom_valid_to": ["The new plan custom valid to needs a plan that it is the last day of."]}),
    "create with an unknown member": ("POST", USERS, NEW | {"isSysAdmin": True, "id": 7}, {"isSysAdmin": ["The isSysAdmin is not a member of this call."], "id": ["The id is not a member of this call."]}),
    "update without anything": ("PUT", USERS + "/2", {}, {"email": ["The email is required."], "external_id": ["The external id is required."], "only_sees_readable": ["The only sees readable is required."]}),
    "update to a taken e-mail": ("PUT", USERS + "/2", WHOLE | {"email": ADMIN}, DUPLICATES),
    "update to a taken external id": ("PUT", USERS + "/2", WHOLE | {"external_id": "taken"}, {"external_id": ["The external id has already been taken."]}),
    "update with a short password": ("PUT", USERS + "/2", WHOLE | {"new_password": "x"}, {"new_password": ["The new password must have at least 8 characters."]}),
    "update with no such plan": ("PUT", USERS + "/2", WHOLE | {"assign_new_plan": 9}, {"assign_new_plan": ["The assign new plan is no plan of this instance."]}),
    "update back into the past": ("PUT", USERS + "/2", WHOLE | {"assign_new_plan": 1, "new_plan_custom_valid_to": today(-1)}, {"new_plan_custom_valid_to": ["The new plan custom valid to must not lie in the past."]}),
    "list an unknown query": ("GET", USERS + "?query=everybody", None, {"query": ["The query must be deactivated, admins or an e-mail."]}),
    "list a NUL": ("GET", USERS + "?query=%00@x", None, {"query": ["The query must be deactivated, admins or an e-mail."]}),
    "list nobody's e-mail": ("GET", USERS + "?email=", None, {"email": ["The email must not be empty."]}),
    "plans with a NUL": ("GET", PLANS + "?query=%00", None, {"query": ["The query holds control characters."]}),
    "sessions of nobody": ("GET", SESSIONS + "?user_id=", None, {"user_id": ["The user id must not be empty."]}),
    "sessions of no external id": ("GET", SESSIONS + "?external_id=", None, {"external_id": ["The external id must not be empty."]}),
    "sessions of a NUL": ("GET", SESSIONS + "?external_id=%00", None, {"external_id": ["The external id holds control characters."]}),
    "list page 0": ("GET", USERS + "?page=0", None, {"page": ["The page must be greater than or equal to 1."]}),
    "list too many": ("GET", USERS + "?per_page=101", None, {"per_page": ["The per page must be less than or equal to 100."]}),
    "list with words": ("GET", USERS + "?page=one", None, {"page": ["The page must be an integer."]}),
    "list too deep": ("GET", USERS + "?page=10001&per_page=100", None, {"page": ["The page lies beyond the first 1000000 users."]}),
    "list twice": ("GET", USERS + "?page=1&page=2", None, {"page": ["The page is given twice."]}),
    "list with something else": ("GET", USERS + "?sort=id", None, {"sort": ["The sort is not a member of this call."]}),
    "plan without anything": ("POST", PLANS, {}, {"type": ["The type is required."], "name": ["The name is required."]}),
    "plan of no type": ("POST", PLANS, {"type": "weekly", "name": "x"}, {"type": ["The type must be 'recurring' or 'prepaid'."]}),
    "prepaid plan without an end": ("POST", PLANS, {"type": "prepaid", "name": "x"}, {"duration": ["The duration is required for a prepaid plan."]}),
    "recurring plan with an end": ("POST", PLANS, {"type": "recurring", "name": "x", "duration": "1"}, {"duration": ["The duration must be null for a recurring plan."]}),
    "plan with a trial of no days": ("POST", PLANS, {"type": "recurring", "name": "x", "free_trial": 1}, {"free_trial_days": ["The free trial days is required for a free trial."]}),
    "plan with bad prices": ("POST", PLANS, {"type": "recurring", "name": "x", "prices": {"USD": "1.5"}}, {"prices.USD": ["The prices USD must be an integer."]}),
    "plan with bad currencies": ("POST", PLANS, {"type": "recurring", "name": "x", "prices": {"dollars": 1}}, {"prices": ["The prices must map codes of ISO 4217, such as USD, to amounts."]}),
    "plan made prepaid": ("PUT", PLANS + "/1", {"type": "prepaid"}, {"duration": ["The duration is required for a prepaid plan."]}),
    "plan without a name": ("PUT", PLANS + "/1", {"name": 5}, {"name": ["The name must be a string."]}),
    "plans, too many": ("GET", PLANS + "?per_page=500", None, {"per_page": ["The per page must be less than or equal to 100."]}),
    "sessions, too many": ("GET", SESSIONS + "?per_page=201", None, {"per_page": ["The per page must be less than or equal to 200."]}),
    "sessions of no number": ("GET", SESSIONS + "?user_id=x", None, {"user_id": ["The user id must be an integer."]}),
    "sessions from nowhere": ("GET", SESSIONS + "?cursor=!", None, {"cursor": ["The cursor is not what a page gave as next."]}),
    "sessions from elsewhere": ("GET", SESSIONS + "?cursor=YWRtaW4", None, {"cursor": ["The cursor is not what a page gave as next."]}),
}  # fmt: skip


@pytest.fixture
async def world(store: Store, client: Client, reader: int) -> None:
    """The document's user, another one, and a plan."""
    await client.call("createUser", {"email": "taken@example.com", "externalId": "taken"})
    await client.call("createPlan", {"type": "recurring", "name": "For good"})


async def everything(db: asyncpg.Connection) -> Any:
    """All that a call could have changed."""
    rows = [
        await db.fetch(f"SELECT * FROM {table} ORDER BY 1, 2")
        for table in ("users", "plans", "instance_counters")
    ]
    return await footprint(db), rows


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_is_named_and_nothing_is_written(
    name: str, store: Store, world: None, db: asyncpg.Connection
) -> None:
    verb, target, body, errors = BAD[name]
    before = await everything(db)
    answer = await store.json(verb, target, body, status=422)
    assert answer == {"message": "The given data was invalid.", "errors": errors}
    assert await everything(db) == before


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("GET", USERS + "/{}"), ("PUT", USERS + "/{}"), ("DELETE", USERS + "/{}"), ("PUT", USERS + "/{}/re-activate"),
        ("POST", USERS + "/{}/force-logout"), ("POST", "/integration-api/v1/users/{}/force-logout"),
        ("GET", PLANS + "/{}"), ("PUT", PLANS + "/{}"), ("DELETE", SESSIONS + "/{}"),
        ("DELETE", SESSIONS + "/users/{}"),
    ],
)  # fmt: skip
async def test_names_of_nothing(
    verb: str, path: str, store: Store, world: None, db: asyncpg.Connection
) -> None:
    """Whatever stands in the path: 404, without a look at the body's members where it cannot be a name."""
    before = await everything(db)
    body = WHOLE if path.startswith(USERS) else {"name": "x"}
    names = (
        "99",
        "0",
        "-1",
        "9" * 30,
        "nobody",
        "x" * 300,
        "a%00b",
        "a%00@b.c",
        "%FF",
        "n%27--",
        "1.0",
        "%20",
    )
    for name in names:
        answer = await store.json(verb, path.format(name), body if verb == "PUT" else None, status=404)
        assert answer == {"message": "Object not found"}, name
    assert await everything(db) == before


async def test_addresses_verbs_and_bodies_that_are_none(store: Store, db: asyncpg.Connection) -> None:
    before = await footprint(db)
    for verb, target, body, status, message in (
        ("GET", "/integration-api/v1/nothing", None, 404, "Not Found"),
        ("GET", "/integration-api/v2/dashboard/users", None, 404, "Not Found"),
        ("PATCH", USERS, None, 405, "this address does not take that HTTP method"),
        ("POST", USERS, b"{", 400, "the body is not valid JSON"),
        ("POST", USERS, b'{"email":"a@example.com","email":"b@example.com"}', 400, "the JSON names a member twice"),
        ("POST", USERS, b'{"email":"a\\u0000@example.com"}', 400, "the JSON holds a NUL character"),
        ("POST", USERS, DOCUMENTED[:-2] + b', // comment\n"admin":1}', 400, "the body is not valid JSON"),
        ("POST", USERS, b'{"email":"' + b"x" * 2**20 + b'"}', 413, "the body is too large"),
    ):  # fmt: skip
        answer = await store.send(verb, target, body)
        assert (answer.status, json.loads(answer.body)) == (status, {"message": message})
    async with store.client.http.post(
        store.client.url + USERS, data=b"email=x", headers={"X-User-Token": store.client.key}
    ) as response:
        assert response.status == 415 and "message" in await response.json()
    assert await footprint(db) == before


async def test_parallel_creations_of_one_external_id(store: Store, db: asyncpg.Connection) -> None:
    """One of them, whole; the others are duplicates and leave nothing."""
    answers = await asyncio.gather(
        *(store.send("POST", USERS, {"email": f"u{number}@example.com", "external_id": "one"}) for number in range(12))
    )  # fmt: skip
    assert sorted(answer.status for answer in answers) == [200] + [422] * 11
    assert {answer.body for answer in answers if answer.status == 422} == {
        b'{"message":"The given data was invalid.","errors":{"external_id":["The external id has already been taken."]}}'
    }
    assert await db.fetchval("SELECT count(*) FROM users") == 2
    assert await db.fetchval("SELECT users FROM instance_counters") == 2


async def test_a_restored_user_still_has_its_external_id(store: Store, client: Client, reader: int) -> None:
    await client.call("deleteUserByEmail", {"email": READER["email"]})
    answer = await store.json("POST", USERS, NEW | {"external_id": EXTERNAL_ID}, status=422)
    assert list(answer["errors"]) == ["external_id"]
    await client.call("restoreUserByEmail", {"email": READER["email"]})
    assert (await store.json("GET", f"{USERS}/{EXTERNAL_ID}"))["data"]["id"] == reader


async def test_neither_addresses_nor_passwords_are_logged(store: Store, reader: int, logged: Log) -> None:
    await store.send("GET", f"{USERS}/{READER['email']}?query=s3cret-query")
    await store.send("PUT", f"{USERS}/{reader}", WHOLE | {"new_password": "s3cret-password"})
    for secret in (b"s3cret", READER["email"].encode(), store.client.key.encode()):
        assert secret not in logged.text
