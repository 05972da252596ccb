"""What HTTP asks for on every wire: HEAD, challenges, and cross-origin requests."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import asyncpg
import pytest
from aiohttp import web
from conftest import ADMIN, Client, Serve
from processes import connected, exchange, parsed, request, until_closed

from server.base.settings import Settings
from server.serving.app import create_app
from server.serving.connections import Runner, _Server
from server.serving.waiting import listen, prepared

KEYLESS = ("/livez", "/readyz", "/metrics", "/openapi.json")
OF_WIRES = (
    "/online-office/user/exists?login=" + ADMIN,
    "/api2/main-app/user/exists?login=" + ADMIN,
    "/Provisioning/Environment/MYINSTANCE/",
    "/integration-api/v1/dashboard/users",
    "/integration-api/v1/dashboard/users/" + ADMIN,
)
SHOP = "https://shop.example"


# --- HEAD ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", KEYLESS + OF_WIRES)
async def test_head_is_get_without_a_body(path: str, client: Client) -> None:
    answers = []
    for verb in ("GET", "HEAD"):
        async with client.http.request(
            verb, client.url + path, headers={"x-api-key": client.key}
        ) as response:
            answers.append((response.status, response.headers["Content-Type"], await response.read()))
            assert response.headers["X-Request-Id"]
    (status, kind, body), head = answers
    assert status == 200 and body
    assert head == (status, kind, b"")


async def test_head_of_errors(client: Client) -> None:
    """As GET's, and the connection serves the next request."""
    for path, status in (("/nowhere", 404), (OF_WIRES[-1], 401)):
        async with client.http.head(client.url + path) as response:
            assert (response.status, await response.read()) == (status, b"")
            assert response.headers["X-Error-Code"]
    async with client.http.get(client.url + "/livez") as response:
        assert response.status == 200


async def test_every_get_has_head_but_that_of_rpc(client: Client) -> None:
    """GET /rpc is a call: HEAD would make it and lose its result."""
    routes = create_app(Settings(), "postgresql://nowhere/none").router.routes()
    verbs: dict[Any, set[str]] = {}
    for route in routes:
        verbs.setdefault(route.resource, set()).add(route.method)
    without = {
        resource.canonical for resource, taken in verbs.items() if "GET" in taken and "HEAD" not in taken
    }
    assert without == {"/rpc", "/rpc/"}
    async with await client.post(
        {"method": "createUser", "params": {"email": "a@b.cc"}}, verb="HEAD"
    ) as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET, POST")


# --- the end of connections ---------------------------------------------------------------------------


def kept(client: Client, body: object) -> bytes:
    """A request to /rpc that leaves the connection open."""
    sent = request(json.dumps(body).encode(), b"x-api-key: " + client.key.encode())
    return sent.replace(b"Connection: close\r\n", b"")


async def ending(database_url: str, patience: float) -> Runner:
    """A server of its own, with the seconds that idle clients get at its end."""
    app = create_app(Settings(run_jobs=False), database_url)
    runner = Runner(app, lambda: patience)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner


async def test_clients_are_told_before_the_end(client: Client, database_url: str) -> None:
    """The answer after the end has begun says `Connection: close`; then nothing is left to wait for."""
    runner = await ending(database_url, patience=600)
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    look_up = kept(client, {"method": "getUserByEmail", "params": {"email": ADMIN}})
    async with connected(url) as (reader, writer):
        writer.write(look_up)
        assert b"Connection" not in await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"}")
        cleaning = asyncio.create_task(runner.cleanup())
        while not cast(_Server, runner.server).ending:
            await asyncio.sleep(0)
        writer.write(look_up)
        told = parsed(await reader.read())
        assert (told.status, told.header("Connection")) == (200, "close")
        await cleaning


async def test_a_request_that_crosses_the_end(
    client: Client, database_url: str, db: asyncpg.Connection
) -> None:
    """An idle connection is closed on one side first: what the client sends then is not run, and not reset."""
    runner = await ending(database_url, patience=0)
    async with connected(f"http://127.0.0.1:{runner.addresses[0][1]}") as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"}")
        cleaning = asyncio.create_task(runner.cleanup())
        assert await reader.read() == b""
        writer.write(kept(client, {"method": "createUser", "params": {"email": "late@example.com"}}))
        await writer.drain()
        writer.close()
        await cleaning
        await writer.wait_closed()  # raises where the connection was reset
    assert await db.fetchval("SELECT count(*) FROM users") == 1


# --- before the database is there ---------------------------------------------------------------------


@pytest.fixture
async def waiting() -> AsyncIterator[str]:
    """The address of a server whose database is never prepared."""
    with listen("127.0.0.1", 0) as listening:
        serving = asyncio.create_task(prepared(Settings(), listening, asyncio.Event().wait))
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


@pytest.mark.parametrize("verb", [b"GET", b"HEAD"])
async def test_a_waiting_server_closes_and_says_so(verb: bytes, waiting: str) -> None:
    """Kept-alive clients learn by Connection: close that their next request needs another connection."""
    for path, status in ((b"/livez", 200), (b"/readyz", 503), (b"/rpc", 503)):
        async with connected(waiting) as (reader, writer):
            writer.write(verb + b" " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = parsed(await until_closed(reader))
        assert (answer.status, answer.header("Connection")) == (status, "close"), path
        assert bool(answer.body) == (verb == b"GET")


@pytest.mark.parametrize("path", [b"/rpc", b"/rpc/"])
async def test_a_waiting_server_answers_in_the_envelope(path: bytes, waiting: str) -> None:
    """As a serving one does: a bare text, or an error object with the id of the request."""
    call = {"method": "getUserByEmail", "params": {"email": ADMIN}}
    plain = await exchange(waiting, request(json.dumps(call).encode(), target=path))
    assert (plain.status, plain.header("X-Error-Code")) == (503, "unavailable")
    assert json.loads(plain.body) == "the service is busy or its database is away, try again"
    enveloped = json.dumps(call | {"jsonrpc": "2.0", "id": 7}).encode()
    answer = await exchange(waiting, request(enveloped, target=path))
    assert (answer.status, answer.header("Retry-After")) == (503, "1")
    told = json.loads(answer.body)
    assert (told["jsonrpc"], told["id"], told["error"]["data"]["code"]) == ("2.0", 7, "unavailable")


# --- 401 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/rpc", *OF_WIRES[:2], OF_WIRES[3]])
async def test_401_names_what_is_asked_for(path: str, client: Client) -> None:
    for headers in ({}, {"x-api-key": "wrong"}):
        async with client.http.get(client.url + path, headers=headers) as response:
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == 'ApiKey realm="officerpc", header="x-api-key"'
    async with client.http.get(client.url + path, headers={"x-api-key": client.key}) as response:
        assert "WWW-Authenticate" not in response.headers


# --- browsers -----------------------------------------------------------------------------------------


def cors(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("Access-Control")}


PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "x-api-key,content-type",
}


async def test_cors_is_off(client: Client) -> None:
    async with client.http.options(client.url + "/rpc", headers={"Origin": SHOP} | PREFLIGHT) as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET, POST")
        assert cors(response.headers) == {} and "Vary" not in response.headers


@pytest.mark.parametrize("path", ["/rpc", "/integration-api/v1/dashboard/users/", "/nowhere"])
async def test_a_preflight(path: str, serve: Serve) -> None:
    client = await serve(cors_origins=[SHOP, "http://localhost:3000"])
    async with client.http.options(client.url + path, headers={"Origin": SHOP} | PREFLIGHT) as response:
        assert (response.status, await response.read()) == (204, b"")
        told = cors(response.headers)
        assert response.headers["X-Request-Id"] and response.headers["Vary"] == "Origin"
    assert told["Access-Control-Allow-Origin"] == SHOP
    assert {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} == set(
        told["Access-Control-Allow-Methods"].split(", ")
    )
    allowed = told["Access-Control-Allow-Headers"].lower().split(", ")
    assert {"x-api-key", "content-type", "idempotency-key", "dry-run", "x-origin", "x-request-id"} <= set(
        allowed
    )
    assert "Access-Control-Allow-Credentials" not in told


async def test_a_page_reads_answers_and_errors(serve: Serve) -> None:
    client = await serve(cors_origins=[SHOP])
    for key, status in ((client.key, 200), ("wrong", 401)):
        body = {"method": "getUserByEmail", "params": {"email": ADMIN}}
        async with await client.using(key).post(body, headers={"Origin": SHOP}) as response:
            assert response.status == status
            assert response.headers["Access-Control-Allow-Origin"] == SHOP
            exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
            assert {"X-Request-Id", "X-Error-Code", "Retry-After", "RateLimit"} <= set(exposed)
            assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://shop.example.evil.example", "null", None]
)
async def test_other_origins_are_told_nothing(origin: str | None, serve: Serve) -> None:
    """And so are requests without one; caches know that the answer depends on it."""
    client = await serve(cors_origins=[SHOP])
    headers = {"Origin": origin} if origin else {}
    async with await client.post({"method": "getUserByEmail"}, headers=headers) as response:
        assert response.status == 400 and cors(response.headers) == {}
        assert response.headers["Vary"] == "Origin"
    async with client.http.options(client.url + "/rpc", headers=headers | PREFLIGHT) as response:
        assert response.status == 405 and cors(response.headers) == {}
