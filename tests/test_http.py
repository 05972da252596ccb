"""What HTTP asks for on every wire: HEAD, challenges, and cross-origin requests."""

from typing import Any

import pytest
from conftest import ADMIN, Client, Serve

from server.app import create_app
from server.settings import Settings

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
    assert without == {"/rpc"}
    async with await client.post(
        {"method": "createUser", "params": {"email": "a@b.cc"}}, verb="HEAD"
    ) as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET, POST")


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
    assert {"GET", "HEAD", "POST", "PUT", "DELETE"} == set(told["Access-Control-Allow-Methods"].split(", "))
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
