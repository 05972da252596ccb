"""Errors before a call starts, in the envelope of the request."""

import asyncio
import io
import json
from typing import Any

import asyncpg
import pytest
from conftest import ADMIN, Client, Serve, insert_key
from hypothesis import given
from hypothesis import strategies as st
from processes import connected, parsed, until_closed
from processes import request as raw_request

from server.tenants.keys import new_key
from server.wires.rpc import PLAIN, Envelope, envelope_of

CALL = {"method": "getUserByEmail", "params": {"email": ADMIN}}
CALL_2_0 = {"jsonrpc": "2.0", **CALL, "id": 17}
PADDING = "x" * (1024 * 1024)


async def refused(client: Client, body: Any, **headers: str) -> tuple[int, Any, Any]:
    """Status, answer and headers of a request."""
    if not isinstance(body, bytes):
        body = io.BytesIO(json.dumps(body).encode())  # which aiohttp sends piece by piece
    async with await client.post(body, headers=headers) as response:
        return response.status, await response.json(), response.headers


def is_error(answer: Any, code: int, name: str, identifier: Any) -> bool:
    """Whether this is an error object of JSON-RPC 2.0."""
    told = answer["error"]
    return (answer["jsonrpc"], told["code"], told["data"]["code"], answer["id"]) == (
        "2.0",
        code,
        name,
        identifier,
    )


# --- each error ---------------------------------------------------------------------------------------


async def test_401(client: Client, db: asyncpg.Connection) -> None:
    """The same for a key that is missing, unknown, no key at all, revoked, or expired: all of it but ids."""
    revoked, expired = await insert_key(db), await insert_key(db)
    await db.execute("UPDATE api_keys SET revoked_at = now() WHERE prefix = $1", revoked[:11])
    await db.execute("UPDATE api_keys SET expires_at = now() WHERE prefix = $1", expired[:11])
    keys = {"missing": "", "unknown": new_key(), "none": "x", "revoked": revoked, "expired": expired}
    answers = []
    for key in keys.values():
        status, answer, headers = await refused(client.using(key), CALL_2_0, **{"X-Request-Id": "mine"})
        assert status == 401 and is_error(answer, -32001, "unauthenticated", 17)
        kept = {name: value for name, value in headers.items() if name != "Date"}
        answers.append((answer, kept))
    assert all(answer == answers[0] for answer in answers)
    assert answers[0][0]["error"]["data"] == {
        "code": "unauthenticated", "requestId": "mine", "retryable": False, "fields": [],
    }  # fmt: skip
    assert answers[0][1]["X-Error-Code"] == "unauthenticated"


@pytest.mark.parametrize("identifier", [0, -5, 1.5, "", "order 17", "\u4e2d", "x" * 1000, 2**63 - 1])
async def test_401_with_every_kind_of_id(identifier: Any, client: Client) -> None:
    nobody = client.using("x")
    status, answer, _ = await refused(nobody, {"id": identifier, **CALL, "jsonrpc": "2.0"})
    assert status == 401 and is_error(answer, -32001, "unauthenticated", identifier)


@pytest.mark.parametrize(
    "body",
    [
        b'{"jsonrpc": "2.0", "method": "x"}',
        b'{"jsonrpc": "2.0", "method": "x", "id": null}',
        b'{"jsonrpc": "2.0", "method": "x", "id": true}',
        b'{"jsonrpc": "2.0", "method": "x", "id": [1]}',
        b'{"jsonrpc": "2.0", "method": "x", "id": {}}',
        b'{"jsonrpc": "2.0", "method": "x", "id": 9223372036854775808}',
        b'{"jsonrpc": "2.0", "method": "x", "id": ' + b"9" * 5000 + b"}",
        b'{"jsonrpc": "2.0", "method": "x", "id": NaN}',
        b'{"jsonrpc": "2.0", "method": "x", "id": "\\ud800"}',
        b'{"jsonrpc": "2.0", "method": "x", "params": ' + b"[" * 30_000,
        b'{"params": "broken, "jsonrpc": "2.0", "id": 1}',
        b'[{"jsonrpc": "2.0", "method": "x", "id": 1}, {"jsonrpc": "2.0", "method": "x", "id": 2}]',
        b" [",
    ],
)
async def test_401_without_an_id_that_can_be_told(body: bytes, client: Client) -> None:
    """A batch gets one error object too: none of its items was looked at."""
    status, answer, _ = await refused(client.using("x"), body)
    assert status == 401 and is_error(answer, -32001, "unauthenticated", None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"1",
        b'"jsonrpc"',
        b'{"method": "x", "params": {"jsonrpc": "2.0"}}',
        b"\xff",
        b'{"a',
        b"{,}",
    ],
)
async def test_plain_callers_get_the_bare_string(body: bytes, client: Client) -> None:
    status, answer, _ = await refused(client.using("x"), body)
    assert (status, answer) == (401, "not-allowed")


async def test_413(client: Client) -> None:
    """With the id where it stands within the first 64 KiB, and with null where it comes behind more."""
    for name, identifier in (("first", 17), ("last", None)):
        member = {"id": 17} if name == "first" else {}
        body = {"jsonrpc": "2.0", **member, "method": "x", "params": {"a": PADDING}, "id": 17}
        status, answer, headers = await refused(client, body)
        assert status == 413 and is_error(answer, -32013, "too_large", identifier)
        assert headers["X-Error-Code"] == "too_large"

    async def chunks() -> Any:
        yield b'{"jsonrpc": "2.0", "id": 17, "params": ["'
        for _ in range(20):
            yield PADDING[:65536].encode()

    headers = {"x-api-key": client.key, "Content-Type": "application/json"}
    async with client.http.post(client.url + "/rpc", data=chunks(), headers=headers) as response:
        assert response.status == 413
        assert is_error(await response.json(), -32013, "too_large", 17)
    status, answer, _ = await refused(client, {"method": "x", "params": {"a": PADDING}})
    assert (status, answer) == (413, "the body is too large")


async def test_413_where_a_picture_might_be(client: Client) -> None:
    """The body has been read then."""
    body = {"jsonrpc": "2.0", "id": 17, "method": "createUser", "params": {"setAvatarByEmail": PADDING}}
    status, answer, _ = await refused(client, body)
    assert status == 413 and is_error(answer, -32013, "too_large", 17)


async def test_415(client: Client) -> None:
    status, answer, _ = await refused(client, CALL_2_0, **{"Content-Type": "text/plain"})
    assert status == 415 and is_error(answer, -32015, "unsupported_media_type", 17)
    status, answer, _ = await refused(client, CALL, **{"Content-Type": "text/plain"})
    assert (status, answer) == (415, "send the body as Content-Type: application/json")


async def test_429(serve: Serve) -> None:
    client = await serve(key_rate_limit=1)
    await refused(client, CALL)
    status, answer, headers = await refused(client, CALL_2_0)
    assert status == 429 and is_error(answer, -32029, "too_many_calls", 17)
    assert answer["error"]["data"]["retryAfter"] == int(headers["Retry-After"]) > 0
    status, answer, _ = await refused(client, [CALL_2_0])
    assert status == 429 and is_error(answer, -32029, "too_many_calls", None)
    status, answer, _ = await refused(client, CALL)
    assert (status, answer) == (429, "too many calls, try again later")


async def test_408(serve: Serve) -> None:
    """A body that stops arriving: what came of it tells the id."""
    client = await serve(body_timeout=0.2)
    text = b'{"jsonrpc": "2.0", "id": 17, "method": "getUs'
    data = raw_request(b" " * 200, b"x-api-key: " + client.key.encode())
    async with connected(client.url) as (reader, writer):
        writer.write(data.removesuffix(b" " * 200) + text)
        answer = parsed(await until_closed(reader))
    assert answer.status == 408
    assert is_error(json.loads(answer.body), -32008, "request_timeout", 17)


async def test_400_before_the_body(client: Client) -> None:
    """Two keys, and a body that is not what its headers say."""
    keys = [("x-api-key", "a"), ("x-api-key", "b"), ("Content-Type", "application/json")]
    async with client.http.post(client.url + "/rpc", json=CALL_2_0, headers=keys) as response:
        assert response.status == 400
        assert is_error(await response.json(), -32602, "several_keys", 17)


async def test_a_body_that_follows_its_headers(client: Client) -> None:
    """Many clients send them one after the other; an answer that does not wait would not know the envelope."""
    data = raw_request(json.dumps(CALL_2_0).encode(), b"x-api-key: x")
    head, _, body = data.partition(b"\r\n\r\n")
    async with connected(client.url) as (reader, writer):
        writer.write(head + b"\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(body)
        answer = parsed(await until_closed(reader))
    assert answer.status == 401 and is_error(json.loads(answer.body), -32001, "unauthenticated", 17)


async def test_a_body_that_never_comes_is_not_waited_for(client: Client) -> None:
    """Whoever has no key holds a connection no longer than a second."""
    data = raw_request(b"x" * 100, b"x-api-key: x")
    async with connected(client.url) as (reader, writer):
        writer.write(data.removesuffix(b"x" * 100))
        answer = parsed(await until_closed(reader))
    assert (answer.status, json.loads(answer.body)) == (401, "not-allowed")


async def test_a_connection_is_kept_after_401(client: Client) -> None:
    """The body has been read, so that the next request can follow."""
    head = b"POST /rpc HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    body = json.dumps(CALL_2_0).encode()
    first = head % len(body) + b"\r\n" + body
    last = raw_request(body, b"x-api-key: " + client.key.encode())
    async with connected(client.url) as (reader, writer):
        writer.write(first + last)
        data = await until_closed(reader)
    assert data.count(b"HTTP/1.1 401") == 1 and data.count(b"HTTP/1.1 200") == 1


# --- the envelope by its beginning --------------------------------------------------------------------


@given(
    st.dictionaries(
        st.sampled_from(["jsonrpc", "id", "method", "params", "idempotencyKey"]),
        st.one_of(st.none(), st.booleans(), st.integers(-100, 100), st.text("a:,{}[]\"\\\u4e2d", max_size=5), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3)),
    ),
    st.sampled_from([None, 2]),
)  # fmt: skip
def test_a_whole_envelope_is_known(request: dict[str, Any], indent: int | None) -> None:
    identifier = request.get("id")
    if isinstance(identifier, (bool, list)):
        identifier = None
    expected = Envelope(True, identifier) if "jsonrpc" in request else PLAIN
    assert envelope_of(json.dumps(request, indent=indent).encode()) == expected


@given(st.binary(max_size=100), st.integers(0, 100))
def test_no_beginning_breaks_it(noise: bytes, cut: int) -> None:
    whole = json.dumps(
        {"jsonrpc": "2.0", "id": "\u4e2d", "params": {"a": [1.5, None]}}, ensure_ascii=False
    ).encode()
    for text in (noise, whole[:cut] + noise, noise + whole, b"{" + noise):
        found = envelope_of(text)
        assert found.is_jsonrpc or found == PLAIN, "only JSON-RPC has an id"
    assert envelope_of(whole[:cut]).identifier in (None, "\u4e2d")


# --- content types ------------------------------------------------------------------------------------


JSON_TYPES = (
    "application/json", "application/json; charset=utf-8", "application/json-rpc", "application/jsonrequest",
    "Application/JSON-RPC; charset=UTF-8", "application/vnd.api+json", "application/problem+json", "text/x+json",
)  # fmt: skip
OTHER_TYPES = (
    "text/plain", "application/xml", "application/jsonp", "application/json-seq", "application/json+xml", "+json2",
    "application/json-rpc; charset=latin-1", "application/vnd.api+json; charset=utf-16",
)  # fmt: skip


@pytest.mark.parametrize("content_type", JSON_TYPES)
async def test_what_is_json(content_type: str, client: Client) -> None:
    """On every wire."""
    headers = {"x-api-key": client.key, "Content-Type": content_type}
    for path, body, status in (
        ("/rpc", CALL, 200),
        ("/Provisioning/MYINSTANCE/User/Validate/", {"EmailAddress": "a@example.com", "FirstName": "A", "LastName": "B"}, 200),
        ("/integration-api/v1/dashboard/users", {}, 422),
        ("/online-office/user/create", {}, 200),
    ):  # fmt: skip
        data = json.dumps(body).encode()
        async with client.http.post(client.url + path, data=data, headers=headers) as response:
            assert response.status == status, (path, await response.text())


@pytest.mark.parametrize("content_type", OTHER_TYPES)
async def test_what_is_no_json(content_type: str, client: Client) -> None:
    status, _, headers = await refused(client, CALL, **{"Content-Type": content_type})
    assert (status, headers["X-Error-Code"]) == (415, "unsupported_media_type")
