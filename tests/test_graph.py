"""Users created through Microsoft Graph: a stand-in checks each request as Microsoft would."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import FAST_HASHES, Client, Log, Serve, insert_key, until
from pydantic import ValidationError

from server.base.settings import Settings
from server.jobs import queue
from server.outside import graph
from server.outside.graph import Busy, Graph, Office365, Refused
from server.tenants.instances import InstanceSettings

SECRET = "s3cret~of.the-application"
CREDENTIALS = {"tenantId": "acme.example", "clientId": "0f1e2d3c-app", "clientSecret": SECRET}
ANN = {
    "email": "ann.o'lee@example.com", "password": "ann's own password", "firstName": "Ann", "lastName": "O'Lee",
    "createInOffice365": True,
}  # fmt: skip


class Microsoft:
    """A stand-in for the login and for Graph. It answers as it is told to, then as it should."""

    def __init__(self) -> None:
        self.url = ""
        self.tokens = 0
        self.lifetime: Any = 3599
        self.created: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.login_answers: list[web.Response] = []
        self.answers: list[web.Response] = []
        self.lookups: list[web.Response] = []
        self.dies_after_creating = False
        self.wrong: list[str] = []
        self.gate: asyncio.Event | None = None

    async def login(self, request: web.Request) -> web.Response:
        self.requests.append("login")
        form = dict(await request.post())
        expected = {
            "grant_type": "client_credentials", "client_id": CREDENTIALS["clientId"], "client_secret": SECRET,
            "scope": f"{self.url}/.default",
        }  # fmt: skip
        if request.content_type != "application/x-www-form-urlencoded" or form != expected:
            self.wrong.append(f"login: {request.content_type} {form}")
        if request.match_info["tenant"] != CREDENTIALS["tenantId"]:
            self.wrong.append("tenant")
        if self.login_answers:
            return self.login_answers.pop(0)
        self.tokens += 1
        return web.json_response(
            {
                "token_type": "Bearer",
                "expires_in": self.lifetime,
                "ext_expires_in": 3599,
                "access_token": f"token-{self.tokens}",
            }
        )

    async def users(self, request: web.Request) -> web.Response:
        self.requests.append("users")
        if request.headers.get("Authorization") != f"Bearer token-{self.tokens}":
            return refusal(401, "InvalidAuthenticationToken", "Access token is empty.")
        if request.content_type != "application/json":
            self.wrong.append(f"users: {request.content_type}")
        user = await request.json()
        required = {
            "accountEnabled", "displayName", "mailNickname", "userPrincipalName", "passwordProfile",
            "onPremisesExtensionAttributes",
        }  # fmt: skip
        if not required <= set(user) <= required | {"givenName", "surname", "usageLocation"}:
            self.wrong.append(f"users: {sorted(user)}")
        if not re.fullmatch(r"[A-Za-z0-9'._!#^~-]{1,64}", user["mailNickname"]):
            self.wrong.append(f"mailNickname: {user['mailNickname']}")
        password = user["passwordProfile"].pop("password")
        kinds = [any(map(test, password)) for test in (str.islower, str.isupper, str.isdigit)]
        if (
            user["passwordProfile"] != {"forceChangePasswordNextSignIn": True}
            or not all(kinds)
            or len(password) < 8
        ):
            self.wrong.append("passwordProfile")
        if not re.fullmatch(r"officerpc:[0-9a-f-]{36}", user["onPremisesExtensionAttributes"][graph.MARK]):
            self.wrong.append("mark")
        if self.gate is not None:
            await self.gate.wait()
        if self.answers:
            answer = self.answers.pop(0)
            if answer.status == 504 and self.dies_after_creating:
                self.created.append(user | {"password": password})
            return answer
        if any(known["userPrincipalName"] == user["userPrincipalName"] for known in self.created):
            return EXISTS()
        self.created.append(user | {"password": password})
        return web.json_response({"id": f"object-{len(self.created)}"} | user, status=201)

    async def user(self, request: web.Request) -> web.Response:
        """One user by its name, with what was selected and no more: the marks are not given unasked."""
        self.requests.append("user")
        if request.headers.get("Authorization") != f"Bearer token-{self.tokens}":
            return refusal(401, "InvalidAuthenticationToken", "Access token is empty.")
        found = re.fullmatch(r"users\('((?:[^']|'')+)'\)", request.match_info["key"])
        if found is None or request.query.get("$select") != "id,onPremisesExtensionAttributes":
            self.wrong.append(f"user: {request.path_qs}")
            return refusal(400, "BadRequest", "x")
        if self.lookups:
            return self.lookups.pop(0)
        for number, known in enumerate(self.created, 1):
            if known["userPrincipalName"].lower() == found[1].replace("''", "'").lower():
                marks = dict.fromkeys((f"extensionAttribute{place}" for place in range(1, 16)), None)
                marks |= known.get("onPremisesExtensionAttributes", {})
                return web.json_response({"id": f"object-{number}", "onPremisesExtensionAttributes": marks})
        return refusal(404, "Request_ResourceNotFound", "Resource does not exist.")


def refusal(status: int, code: str, message: str, details: Any = None, **headers: str) -> web.Response:
    """An error as Graph words it."""
    error = {"code": code, "message": message, "innerError": {"request-id": "x"}}
    if details is not None:
        error["details"] = details
    return web.json_response({"error": error}, status=status, headers=headers)


def EXISTS() -> web.Response:
    return refusal(
        400,
        "Request_BadRequest",
        "Another object with the same value for property userPrincipalName already exists.",
        [{"code": "ObjectConflict", "message": "x", "target": "userPrincipalName"}],
    )


@pytest.fixture
async def microsoft() -> AsyncIterator[Microsoft]:
    stand_in = Microsoft()
    app = web.Application()
    app.router.add_post("/{tenant}/oauth2/v2.0/token", stand_in.login)
    app.router.add_post("/v1.0/users", stand_in.users)
    app.router.add_get(r"/v1.0/{key:users\(.+\)}", stand_in.user)
    server = TestServer(app)
    await server.start_server()
    stand_in.url = f"http://127.0.0.1:{server.port}"
    yield stand_in
    assert stand_in.wrong == []
    await server.close()


@pytest.fixture
async def shop(
    serve: Serve, microsoft: Microsoft, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> Client:
    """A key for MYINSTANCE, which has credentials, on a server whose queue does not pause for long."""
    monkeypatch.setattr(queue, "FIRST_PAUSE", 0.01)
    client = await serve(graph_url=microsoft.url + "/v1.0/", graph_login_url=microsoft.url)
    operator = client.using(await insert_key(db, operator=True))
    change = {"instance": "MYINSTANCE", "settings": {"office365": CREDENTIALS}}
    await operator.call("updateInstance", change)
    return client


@pytest.fixture
async def operator(shop: Client, db: asyncpg.Connection) -> Client:
    """An operator's key on the same server: another one would work the same queue."""
    return shop.using(await insert_key(db, operator=True))


async def settled(client: Client, email: str = ANN["email"]) -> Any:
    """The state of a user once nothing is under way."""

    async def state() -> Any:
        found = await client.call("getOffice365State", {"email": email})
        return found if found["state"] != "pending" else None

    return await until(state)


async def told(log: Log, tries: int = 1) -> list[tuple[str, str | None]]:
    """What the log says of each try, once it does: a moment after the state of the user."""

    async def lines() -> list[tuple[str, str | None]]:
        found = [
            (entry["outcome"], entry.get("cause", "").partition(" at ")[0] or None)
            for entry in log.lines()
            if entry["event"] == "job" and entry["kind"] == "office365"
        ]
        return found if len(found) >= tries else []

    return list(await until(lines))


async def test_a_user_is_created(
    shop: Client, microsoft: Microsoft, logged: Log, db: asyncpg.Connection
) -> None:
    await shop.call("createUser", ANN)
    state = await settled(shop)
    assert state == {"state": "done", "objectId": "object-1", "error": None, "updatedAt": state["updatedAt"]}
    (made,) = microsoft.created
    password = made.pop("password")
    uuid = await db.fetchval("SELECT uuid::text FROM users WHERE email = $1", ANN["email"])
    assert made.pop("onPremisesExtensionAttributes") == {graph.MARK: f"officerpc:{uuid}"}
    assert made == {
        "accountEnabled": True, "displayName": "Ann O'Lee", "givenName": "Ann", "surname": "O'Lee",
        "mailNickname": "ann.o'lee", "userPrincipalName": "ann.o'lee@example.com",
        "passwordProfile": {"forceChangePasswordNextSignIn": True},
    }  # fmt: skip
    assert await told(logged) == [("done", None)]
    # Neither password, nor the secret, nor a token is written down anywhere.
    assert password != ANN["password"]
    rows = await db.fetch(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'instances'"
    )
    for (table,) in rows:
        text = await db.fetchval(f"SELECT string_agg(t::text, ' ') FROM {table} AS t") or ""
        for hidden in (password, ANN["password"], SECRET, "token-1"):
            assert hidden not in text, table
    for hidden in (password, ANN["password"], SECRET, "token-1"):
        assert hidden.encode() not in logged.text


async def test_the_outcome_is_written_down(shop: Client, microsoft: Microsoft) -> None:
    """Once, however often it was tried, and for the request that had asked for it."""
    microsoft.answers = [web.Response(status=503), refusal(403, "Authorization_RequestDenied", "No.")]
    call = {"method": "createUser", "params": ANN}
    async with await shop.post(call, headers={"X-Request-Id": "order-17"}) as response:
        assert response.status == 200
    await settled(shop)
    await shop.call("createInOffice365", {"email": ANN["email"]}, headers={"X-Request-Id": "order-18"})
    await settled(shop)
    page = await shop.call("listAuditEvents", {"email": ANN["email"], "type": "createInOffice365"})
    said = "Authorization_RequestDenied: No."
    assert [
        (event["requestId"], event["keyName"], event["before"], event["after"]) for event in page["events"]
    ] == [
        ("order-18", "officerpc", {"office365": "pending"}, {"office365": "done", "objectId": "object-1"}),
        ("order-18", "test", {"office365": "failed"}, {"office365": "pending"}),
        ("order-17", "officerpc", {"office365": "pending"}, {"office365": "failed", "error": said}),
    ]


async def test_domain_country_and_nickname(shop: Client, microsoft: Microsoft, operator: Client) -> None:
    more = {"office365": CREDENTIALS | {"domain": "acme.onmicrosoft.example", "usageLocation": "BH"}}
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "settings": more})
    given = {"email": "jürgen+1@example.com", "isActive": False, "createInOffice365": True}
    await shop.call("createUser", given)
    await settled(shop, given["email"])
    made = microsoft.created[0]
    assert made["userPrincipalName"] == "jürgen+1@acme.onmicrosoft.example"
    assert (made["mailNickname"], made["usageLocation"], made["accountEnabled"]) == ("jrgen1", "BH", False)
    assert "givenName" not in made and "surname" not in made


async def test_one_token_serves_many(shop: Client, microsoft: Microsoft) -> None:
    for number in range(3):
        email = f"user{number}@example.com"
        await shop.call("createUser", {"email": email, "createInOffice365": True})
        assert (await settled(shop, email))["state"] == "done"
    assert microsoft.requests == ["login", "users", "users", "users"]


@pytest.mark.parametrize("lifetime", [30, 0, None, "soon"])
async def test_a_token_near_its_end_is_not_used_again(
    lifetime: Any, shop: Client, microsoft: Microsoft
) -> None:
    microsoft.lifetime = lifetime
    for number in range(2):
        email = f"user{number}@example.com"
        await shop.call("createUser", {"email": email, "createInOffice365": True})
        await settled(shop, email)
    assert microsoft.requests == ["login", "users"] * 2


async def test_a_withdrawn_token_is_replaced(shop: Client, microsoft: Microsoft, logged: Log) -> None:
    await shop.call("createUser", {"email": "user1@example.com", "createInOffice365": True})
    await settled(shop, "user1@example.com")
    microsoft.tokens += 1  # token-1 is not the good one any more; the next to be given out is token-3
    await shop.call("createUser", ANN)
    assert (await settled(shop))["state"] == "done"
    assert microsoft.requests == ["login", "users", "users", "login", "users"]
    assert await told(logged, 2) == [("done", None)] * 2


async def test_what_passes_is_tried_again(shop: Client, microsoft: Microsoft, logged: Log) -> None:
    microsoft.login_answers = [web.Response(status=503, text="<html>")]
    microsoft.answers = [
        refusal(429, "TooManyRequests", "Too many requests", **{"Retry-After": "1"}),
        refusal(500, "Service_InternalServerError", "Encountered an internal server error."),
        web.Response(status=504),
    ]
    began = asyncio.get_running_loop().time()
    await shop.call("createUser", ANN)
    assert (await shop.call("getOffice365State", {"email": ANN["email"]}))["state"] == "pending"
    assert await settled(shop) == {
        "state": "done", "objectId": "object-1", "error": None,
        "updatedAt": (await settled(shop))["updatedAt"],
    }  # fmt: skip
    assert [outcome for outcome, _ in await told(logged, 5)] == ["retried"] * 4 + ["done"]
    assert [cause for _, cause in await told(logged, 5)] == [
        "Busy http_503", "Busy http_429", "Busy http_500", "Busy http_504", None,
    ]  # fmt: skip
    assert asyncio.get_running_loop().time() - began >= 1  # as Retry-After asked, whatever our own pause


async def test_what_the_last_try_met_is_seen_meanwhile(shop: Client, microsoft: Microsoft) -> None:
    microsoft.answers = [refusal(503, "UnknownError", "", **{"Retry-After": "3600"})]
    await shop.call("createUser", ANN)

    async def waiting() -> Any:
        return (await shop.call("getOffice365State", {"email": ANN["email"]}))["error"]

    assert await until(waiting) == "http_503"
    assert (await shop.call("getOffice365State", {"email": ANN["email"]}))["state"] == "pending"


@pytest.mark.parametrize(
    "answer",
    [
        EXISTS,
        lambda: refusal(409, "Conflict", "x"),
        lambda: refusal(400, "Request_BadRequest", "Another object with the same value for property userPrincipalName already exists."),
    ],
)  # fmt: skip
async def test_the_work_of_an_earlier_try_counts_as_created(
    answer: Any, shop: Client, microsoft: Microsoft
) -> None:
    """Which had created it, and died before it could note it; the next sees it only after a while."""
    microsoft.answers = [web.Response(status=504), answer(), answer()]
    microsoft.dies_after_creating = True
    microsoft.lookups = [refusal(404, "Request_ResourceNotFound", "x")]
    await shop.call("createUser", ANN)
    state = await settled(shop)
    assert (state["state"], state["objectId"], state["error"]) == ("done", "object-1", None)
    assert microsoft.requests == ["login", "users", "users", "user", "users", "user"]


@pytest.mark.parametrize("mark", [None, "officerpc:af5af4f9-9b8d-4d79-b162-0cec4279cae5"])
async def test_a_stranger_of_the_same_name_is_not_ours(
    mark: str | None, shop: Client, microsoft: Microsoft, logged: Log
) -> None:
    stranger = {"userPrincipalName": ANN["email"]}
    microsoft.created.append(stranger | {"onPremisesExtensionAttributes": {graph.MARK: mark}})
    await shop.call("createUser", ANN)
    state = await settled(shop)
    assert (state["state"], state["objectId"], state["error"]) == ("failed", None, "name_taken")
    assert await told(logged) == [("parked", "Refused name_taken")]
    # Once the stranger has another name it can be asked for again.
    microsoft.created.clear()
    await shop.call("createInOffice365", {"email": ANN["email"]})
    assert (await settled(shop))["state"] == "done"


async def test_two_users_of_one_name_in_the_domain(
    shop: Client, microsoft: Microsoft, operator: Client
) -> None:
    settings = {"office365": CREDENTIALS | {"domain": "corp.example"}}
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "settings": settings})
    states = []
    for email in ("ann@shop-a.example", "ann@shop-b.example"):
        await shop.call("createUser", {"email": email, "createInOffice365": True})
        state = await settled(shop, email)
        states.append((state["state"], state["objectId"], state["error"]))
    assert states == [("done", "object-1", None), ("failed", None, "name_taken")]
    assert len(microsoft.created) == 1


async def test_a_look_that_may_not_be_taken_is_final(shop: Client, microsoft: Microsoft) -> None:
    microsoft.answers = [EXISTS()]
    microsoft.lookups = [refusal(403, "Authorization_RequestDenied", "Insufficient privileges.")]
    await shop.call("createUser", ANN)
    state = await settled(shop)
    assert (state["state"], state["error"]) == (
        "failed", "Authorization_RequestDenied: Insufficient privileges.",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "error", "cause"),
    [
        (lambda: refusal(403, "Authorization_RequestDenied", "Insufficient privileges to complete the operation."), "Authorization_RequestDenied: Insufficient privileges to complete the operation.", "Refused Authorization_RequestDenied"),
        (lambda: refusal(400, "Request_BadRequest", "The domain portion of the userPrincipalName\nproperty is invalid.", [{"code": "InvalidValue", "target": "userPrincipalName"}]), "Request_BadRequest: The domain portion of the userPrincipalName property is invalid.", "Refused Request_BadRequest"),
        (lambda: refusal(400, "Request_BadRequest", "x", [{"code": "ObjectConflict", "target": "proxyAddresses"}]), "Request_BadRequest: x", "Refused Request_BadRequest"),
        (lambda: refusal(404, "Request_Resource\nNotFound <x>", ""), "Request_ResourceNotFoundx", "Refused Request_ResourceNotFoundx"),
        (lambda: web.Response(status=302, headers={"Location": "http://127.0.0.1:9/"}), "http_302", "Refused http_302"),
        (lambda: web.json_response([1], status=410), "http_410", "Refused http_410"),
    ],
)  # fmt: skip
async def test_a_refusal_is_final(
    answer: Any,
    error: str,
    cause: str,
    shop: Client,
    microsoft: Microsoft,
    logged: Log,
    db: asyncpg.Connection,
) -> None:
    microsoft.answers = [answer()]
    await shop.call("createUser", ANN)
    state = await settled(shop)
    assert (state["state"], state["objectId"], state["error"]) == ("failed", None, error)

    async def parked() -> bool:
        return await db.fetchval("SELECT state FROM jobs") == "parked"

    await until(parked)
    assert await told(logged) == [("parked", cause)]
    assert b"userPrincipalName" not in logged.text
    # Here the user is whole all the same.
    await shop.call("login", {"email": ANN["email"], "password": ANN["password"]})


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda: web.json_response({"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."}, status=401), "invalid_client: AADSTS7000215: Invalid client secret provided."),
        (lambda: web.json_response({"error": "unauthorized_client"}, status=400), "unauthorized_client"),
    ],
)  # fmt: skip
async def test_wrong_credentials_are_final(
    answer: Any, error: str, shop: Client, microsoft: Microsoft
) -> None:
    microsoft.login_answers = [answer()]
    await shop.call("createUser", ANN)
    state = await settled(shop)
    assert (state["state"], state["error"]) == ("failed", error)
    assert microsoft.requests == ["login"]


async def test_two_401_are_final(shop: Client, microsoft: Microsoft) -> None:
    microsoft.answers = [refusal(401, "InvalidAuthenticationToken", "") for _ in range(2)]
    await shop.call("createUser", ANN)
    assert (await settled(shop))["error"] == "InvalidAuthenticationToken"
    assert microsoft.requests == ["login", "users", "login", "users"]


async def test_after_all_tries_it_has_failed(
    shop: Client, microsoft: Microsoft, logged: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "TRIES", 3)
    microsoft.answers = [web.Response(status=500) for _ in range(3)]
    await shop.call("createUser", ANN)
    state = await settled(shop)
    assert (state["state"], state["error"]) == ("failed", "http_500")
    # Asked again, once Microsoft is well.
    await shop.call("createInOffice365", {"email": ANN["email"]})
    assert (await settled(shop))["state"] == "done"


async def test_asking_for_an_existing_user(shop: Client, microsoft: Microsoft, operator: Client) -> None:
    given = {"email": "bob@example.com"}
    await shop.call("createUser", given)
    assert await shop.outcome("getOffice365State", given) == (400, "not found")
    await shop.call("createInOffice365", given)
    assert (await settled(shop, given["email"]))["state"] == "done"
    assert await shop.outcome("createInOffice365", given) == (400, "this is under way or done already")
    assert await shop.outcome("createInOffice365", {"email": "no@example.com"}) == (400, "not found")
    without = {"instance": "MYINSTANCE", "settings": {"office365": None}}
    await operator.call("updateInstance", without)
    assert await shop.outcome("createInOffice365", given) == (
        400, "the instance has no Microsoft Graph credentials (office365)",
    )  # fmt: skip
    assert len(microsoft.created) == 1


async def test_what_nobody_works_at_any_more_can_be_asked_for_again(
    shop: Client, microsoft: Microsoft, db: asyncpg.Connection
) -> None:
    """The note that it had failed got lost, with the database perhaps."""
    given = {"email": "bob@example.com"}
    await shop.call("createUser", given)
    await db.execute(
        "INSERT INTO office365_accounts (instance_id, user_id, state, updated_at)"
        " SELECT instance_id, id, 'pending', now() - interval '5 hours 59 minutes' FROM users"
        " WHERE email = $1",
        given["email"],
    )
    assert await shop.outcome("createInOffice365", given) == (400, "this is under way or done already")
    await db.execute("UPDATE office365_accounts SET updated_at = now() - interval '361 minutes'")
    assert await shop.call("createInOffice365", given) is True
    assert (await settled(shop, given["email"]))["state"] == "done"
    assert len(microsoft.created) == 1


async def waits_for_microsoft(db: asyncpg.Connection) -> bool:
    """Whether the first try has failed, and the job waits for the next one."""
    return (
        await db.fetchval("SELECT error FROM office365_accounts") is not None
        and await db.fetchval("SELECT state FROM jobs") == "waiting"
    )


async def test_a_user_that_is_gone_is_not_created(
    shop: Client, microsoft: Microsoft, db: asyncpg.Connection
) -> None:
    microsoft.login_answers = [web.Response(status=503, headers={"Retry-After": "3600"})]
    await shop.call("createUser", ANN)

    await until(lambda: waits_for_microsoft(db))
    await shop.call("deleteUserByEmail", {"email": ANN["email"]})
    await db.execute("UPDATE jobs SET due_at = now() - interval '1 second'")

    async def noted() -> bool:
        return await db.fetchval("SELECT error FROM office365_accounts") == "deleted"

    await until(noted)
    assert microsoft.created == []


async def test_nobody_is_created_for_a_suspended_instance(
    shop: Client, microsoft: Microsoft, operator: Client, db: asyncpg.Connection
) -> None:
    """The job waits and goes on once the instance is reactivated."""
    microsoft.login_answers = [web.Response(status=503, headers={"Retry-After": "3600"})]
    await shop.call("createUser", ANN)

    async def error_is(expected: str) -> bool:
        return await db.fetchval("SELECT error FROM office365_accounts") == expected

    async def is_queued() -> bool:
        return await db.fetchval("SELECT state FROM jobs") == "waiting"

    await until(lambda: error_is("http_503"))
    await until(is_queued)
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "isActive": False})
    await db.execute("UPDATE jobs SET due_at = now() - interval '1 second'")
    await until(lambda: error_is("instance_suspended"))
    await until(is_queued)
    assert microsoft.requests == ["login"]
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "isActive": True})
    await db.execute("UPDATE jobs SET due_at = now() - interval '1 second'")
    assert (await settled(shop))["state"] == "done"


async def test_credentials_that_went_meanwhile(
    shop: Client, microsoft: Microsoft, operator: Client, db: asyncpg.Connection
) -> None:
    microsoft.login_answers = [web.Response(status=503, headers={"Retry-After": "3600"})]
    await shop.call("createUser", ANN)

    await until(lambda: waits_for_microsoft(db))
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "settings": {"office365": None}})
    await db.execute("UPDATE jobs SET due_at = now() - interval '1 second'")
    state = await settled(shop)
    assert (state["state"], state["error"]) == ("failed", "no_credentials")
    assert microsoft.requests == ["login"]


async def test_without_credentials_nothing_is_written(client: Client, db: asyncpg.Connection) -> None:
    problem = (
        "createInOffice365: is not possible: the instance has no Microsoft Graph credentials (office365)"
    )
    assert await client.outcome("createUser", ANN) == (400, problem)
    failures = (await client.call("validateUser", ANN))["failures"]
    assert ["{field}: {message}".format(**failure) for failure in failures] == [problem]
    assert await db.fetchval("SELECT count(*) FROM users WHERE email LIKE 'ann%'") == 0
    assert await db.fetchval("SELECT count(*) FROM jobs") == 0


async def test_a_refused_creation_leaves_no_job(
    shop: Client, microsoft: Microsoft, db: asyncpg.Connection
) -> None:
    taken = {"email": "admin@example.com", "createInOffice365": True}
    assert (await shop.outcome("createUser", taken))[0] == 400
    assert await db.fetchval("SELECT count(*) FROM jobs") == 0
    assert microsoft.requests == []


async def test_other_tenants_see_nothing(shop: Client, other: Client) -> None:
    await shop.call("createUser", ANN)
    await settled(shop)
    theirs = other
    for method in ("getOffice365State", "createInOffice365"):
        assert await theirs.outcome(method, {"email": ANN["email"]}) == (400, "not found")
        refused = await theirs.outcome(method, {"email": ANN["email"], "instance": "MYINSTANCE"})
        assert refused == await theirs.outcome(method, {"email": ANN["email"], "instance": "NOWHERE"})


async def test_over_the_wire_of_workspace365(shop: Client, microsoft: Microsoft) -> None:
    body = {
        "EmailAddress": "new@example.com",
        "FirstName": "New",
        "LastName": "One",
        "CreateInOffice365": True,
    }
    url = shop.url + "/Provisioning/MYINSTANCE/User/"
    async with shop.http.post(url, json=body, headers={"ProvisioningKey": shop.key}) as response:
        assert (response.status, await response.json()) == (200, 2)
    assert (await settled(shop, "new@example.com"))["objectId"] == "object-1"
    assert microsoft.created[0]["displayName"] == "New One"


# --- the secret -----------------------------------------------------------------------------------------


async def test_the_secret_is_never_shown(
    operator: Client, client: Client, db: asyncpg.Connection, logged: Log
) -> None:
    given = {"name": "ACME", "admin": {"email": "boss@acme.example"}, "settings": {"office365": CREDENTIALS}}
    shown = {
        "tenantId": "acme.example",
        "clientId": "0f1e2d3c-app",
        "clientSecret": None,
        "domain": None,
        "usageLocation": None,
    }
    created = await operator.call("createInstance", given)
    assert created["settings"]["office365"] == shown
    for change in ({"office365": shown | {"usageLocation": "BH"}}, {"retentionDays": 5}):
        assert await operator.call("updateInstance", {"instance": "ACME", "settings": change}) is True
    found = await operator.call("getInstance", {"instance": "ACME"})
    assert found["settings"]["office365"] == shown | {"usageLocation": "BH"}
    listed = await operator.call("listInstances")
    assert SECRET not in str(listed)
    # It is there, and what was changed beside it left it alone.
    stored = "SELECT settings #>> '{office365,clientSecret}' FROM instances WHERE name = 'ACME'"
    assert await db.fetchval(stored) == SECRET
    await operator.call("updateInstance", {"instance": "ACME", "settings": {"office365": None}})
    assert (await operator.call("getInstance", {"instance": "ACME"}))["settings"]["office365"] is None
    assert await db.fetchval(stored) is None
    assert SECRET.encode() not in logged.text
    described = str(await client.call("rpc.discover"))
    assert SECRET not in described


def test_settings_hide_it_wherever_they_are_printed() -> None:
    settings = InstanceSettings(office365=Office365(**CREDENTIALS))
    for text in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert SECRET not in text


@pytest.mark.parametrize(
    "bad",
    [{"tenantId": "../x"}, {"tenantId": "a/b"}, {"clientId": "a b"}, {"clientSecret": ""}, {"clientSecret": 5}, {"usageLocation": "bh"}, {"domain": "x/y"}, {"secret": "x"}],
)  # fmt: skip
async def test_bad_credentials(bad: dict[str, Any], operator: Client) -> None:
    settings = {"office365": CREDENTIALS | bad}
    status, message = await operator.outcome(
        "updateInstance", {"instance": "MYINSTANCE", "settings": settings}
    )
    assert (status, message.partition(":")[0]) == (400, f"settings.office365.{next(iter(bad))}")


# --- the module alone -----------------------------------------------------------------------------------


def test_addresses_are_encrypted_or_of_this_machine() -> None:
    assert (
        Settings(graph_url="https://graph.microsoft.us/v1.0/").graph_url == "https://graph.microsoft.us/v1.0"
    )
    for url in ("http://graph.microsoft.com", "http://127.0.0.1.evil.example", "ftp://x", ""):
        with pytest.raises(ValidationError):
            Settings(graph_url=url)


@pytest.mark.parametrize("status", [200, 201])
async def test_odd_answers_of_the_login(status: int, microsoft: Microsoft) -> None:
    settings = Settings(**FAST_HASHES, graph_url=microsoft.url + "/v1.0", graph_login_url=microsoft.url)
    service = Graph()
    user = {
        "email": "a@example.com",
        "display_name": "A",
        "first_name": None,
        "last_name": None,
        "is_active": True,
        "mark": "officerpc:af5af4f9-9b8d-4d79-b162-0cec4279cae5",
    }
    for answer in ({}, {"access_token": 5}, {"access_token": "a\r\nb"}, {"access_token": ""}):
        microsoft.login_answers = [web.json_response(answer, status=status)]
        with pytest.raises((Busy, Refused)):
            await service.create_user(settings, Office365(**CREDENTIALS), **user)
    assert microsoft.requests == ["login"] * 4
    await service.close()


async def test_nobody_there_and_nobody_answering(
    microsoft: Microsoft, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = {
        "email": "a@example.com",
        "display_name": "A",
        "first_name": None,
        "last_name": None,
        "is_active": True,
        "mark": "officerpc:af5af4f9-9b8d-4d79-b162-0cec4279cae5",
    }
    service = Graph()
    nobody = Settings(graph_url="http://127.0.0.1:9", graph_login_url="http://127.0.0.1:9")
    with pytest.raises(Busy, match="unreachable"):
        await service.create_user(nobody, Office365(**CREDENTIALS), **user)
    await service.close()
    monkeypatch.setattr(graph, "TIMEOUT", 0.2)
    microsoft.gate = asyncio.Event()
    settings = Settings(graph_url=microsoft.url + "/v1.0", graph_login_url=microsoft.url)
    with pytest.raises(Busy, match="unreachable"):
        await service.create_user(settings, Office365(**CREDENTIALS), **user)
    microsoft.gate.set()
    await service.close()
