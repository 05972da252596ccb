"""Invalid input to /rpc: a one-line 4xx, and nothing is written."""

import base64
import gzip
import io
import json
import zlib
from datetime import datetime, timedelta, timezone
from typing import Any

import asyncpg
import orjson
import pytest
from conftest import ADMIN, Client, footprint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.base.errors import Malformed
from server.base.parsing import parse_json
from server.methods.registry import METHODS


def creation(**members: Any) -> dict[str, Any]:
    return {"method": "createUser", "params": {"email": "new@example.com"} | members}


BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "malformed_json"),
    "broken": (b'{"method": "createUser", "params": {', "malformed_json"),
    "not UTF-8": (b'{"method": "\xff"}', "malformed_json"),
    "a byte order mark": (b'\xef\xbb\xbf{"method": "createUser"}', "malformed_json"),
    "trailing text": (b'{"method": "createUser"} x', "malformed_json"),
    "NaN": (b'{"method": "createUser", "params": {"email": NaN}}', "malformed_json"),
    "Infinity": (b'{"method": "createUser", "params": {"email": -Infinity}}', "malformed_json"),
    "a duplicate member": (
        b'{"method": "createUser", "params": {"email": "a@example.com", "email": "b@example.com"}}',
        "malformed_json",
    ),
    "depth 33": (b'{"method": "x", "params": ' + b"[" * 32 + b"]" * 32 + b"}", "malformed_json"),
    "depth 2,000": (b'{"method": "x", "params": ' + b"[" * 2000 + b"]" * 2000 + b"}", "malformed_json"),
    "2^63": (b'{"method": "createUser", "params": {"settings": [9223372036854775808]}}', "malformed_json"),
    "2^64": (b'{"method": "createUser", "params": {"settings": [18446744073709551616]}}', "malformed_json"),
    "5,000 digits": (b'{"method": "x", "params": {"n": ' + b"9" * 5000 + b"}}", "malformed_json"),
    "110,000 values": (b'{"method": "x", "params": [' + b"0," * 110_000 + b"0]}", "malformed_json"),
    "300 members": (orjson.dumps(creation(**{f"m{n}": n for n in range(300)})), "invalid_params"),
    "NUL": (b'{"method": "createUser", "params": {"email": "a\\u0000@example.com"}}', "malformed_json"),
    "a lone surrogate": (b'{"method": "createUser", "params": {"email": "\\ud800"}}', "malformed_json"),
    "a string": (b'"createUser"', "invalid_params"),
    "a number": (b"1", "invalid_params"),
    "null": (b"null", "invalid_params"),
    "no method": (b"{}", "unknown_method"),
    "a method that is a number": (b'{"method": 1}', "unknown_method"),
    "an unknown method": (b'{"method": "dropTables"}', "unknown_method"),
    "params that are a string": (b'{"method": "createUser", "params": "x"}', "invalid_params"),
    "a 10 kB e-mail": (orjson.dumps(creation(email="a" * 10_000 + "@example.com")), "invalid_params"),
    "an e-mail without @": (orjson.dumps(creation(email="example.com")), "invalid_params"),
    "an array for an e-mail": (orjson.dumps(creation(email=["a@example.com"])), "invalid_params"),
    "null for an e-mail": (orjson.dumps(creation(email=None)), "invalid_params"),
    "a number for a password": (orjson.dumps(creation(password=12345678)), "invalid_params"),
    "an empty password": (orjson.dumps(creation(password="")), "invalid_params"),
    "1,025 characters of password": (orjson.dumps(creation(password="x" * 1025)), "invalid_params"),
    "true for an integer": (orjson.dumps(creation(settings=[True])), "invalid_params"),
    "an integer for a boolean": (orjson.dumps(creation(isActive=1)), "invalid_params"),
    "a string for a boolean": (orjson.dumps(creation(isActive="true")), "invalid_params"),
    "a fraction for an integer": (orjson.dumps(creation(settings=[1.5])), "invalid_params"),
    "33 bits": (orjson.dumps(creation(settings=[2**31])), "invalid_params"),
    "an unknown member": (orjson.dumps(creation(nickname="x")), "invalid_params"),
    "an unknown member of the profile": (orjson.dumps(creation(profile={"shoe": 1})), "invalid_params"),
    "id": (orjson.dumps(creation(id=7)), "invalid_params"),
    "isSysAdmin": (orjson.dumps(creation(isSysAdmin=True)), "invalid_params"),
    "token": (orjson.dumps(creation(token="x")), "invalid_params"),
    "a newline in a name": (orjson.dumps(creation(displayName="a\nb")), "invalid_params"),
    "an http avatar": (orjson.dumps(creation(avatar="http://example.com/a.png")), "invalid_params"),
    "both secrets": (
        orjson.dumps(creation(password="x", passwordHash="$argon2id$v=19$m=8,t=1,p=1$" + "A" * 22 + "$" + "A" * 43)),
        "invalid_params",
    ),
    "a costly hash": (
        orjson.dumps(creation(passwordHash="$argon2id$v=19$m=4194304,t=1,p=1$" + "A" * 22 + "$" + "A" * 43)),
        "invalid_params",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
async def test_bad_bodies(name: str, client: Client, db: asyncpg.Connection) -> None:
    body, code = BODIES[name]
    before = await footprint(db)
    async with await client.post(body) as response:
        text = await response.text()
        assert response.headers["X-Error-Code"] == code, text
        assert response.content_type == "application/json"
        assert response.status == 400
        assert isinstance(message := json.loads(text), str) and message and "\n" not in message
    assert await footprint(db) == before


async def test_every_bad_member_is_named_at_once(client: Client) -> None:
    status, message = await client.outcome(
        "createUser", {"email": "x", "isActive": "no", "profile": {"phones": [1]}, "nickname": 1}
    )
    assert status == 400
    assert message == (
        "email: must have at least 3 characters; isActive: must be true or false; "
        "profile.phones.0: must be a string; nickname: is not a member of this call"
    )


async def test_messages_never_quote_what_was_sent(client: Client) -> None:
    _, message = await client.outcome("createUser", {"email": "<script>@x", "password": ["hunter2"]})
    assert "script" not in message and "hunter2" not in message


WRONG_TYPE = (415, "unsupported_media_type", "send the body as Content-Type: application/json")


@pytest.mark.parametrize(
    ("headers", "status", "code", "message"),
    [
        ({"Content-Type": "text/plain"}, *WRONG_TYPE),
        ({"Content-Type": "application/x-www-form-urlencoded"}, *WRONG_TYPE),
        ({"Content-Type": "application/json; charset=latin-1"}, *WRONG_TYPE),
        ({"Content-Encoding": "gzip"}, 400, "malformed_json", "the body cannot be read as its headers say"),
    ],
)
async def test_bad_headers(
    headers: dict[str, str], status: int, code: str, message: str, client: Client
) -> None:
    async with await client.post({"method": "getUserByEmail"}, headers=headers) as response:
        assert (response.status, await response.json()) == (status, message)
        assert response.headers["X-Error-Code"] == code


async def test_large_bodies(client: Client) -> None:
    """413 for more than 1 MiB, declared, chunked or inflated."""
    large = b'{"method": "' + b"x" * (1024 * 1024) + b'"}'
    async with await client.post(io.BytesIO(large)) as response:
        assert (response.status, response.headers["X-Error-Code"]) == (413, "too_large")

    async def chunks() -> Any:
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    headers = {"x-api-key": client.key, "Content-Type": "application/json"}
    async with client.http.post(client.url + "/rpc", data=chunks(), headers=headers) as response:
        assert (response.status, response.headers["X-Error-Code"]) == (413, "too_large")
    bomb = gzip.compress(b" " * (50 * 1024 * 1024))
    async with await client.post(bomb, headers={"Content-Encoding": "gzip"}) as response:
        assert (response.status, response.headers["X-Error-Code"]) == (413, "too_large")


async def test_compressed_bodies_are_read(client: Client) -> None:
    body = orjson.dumps({"method": "getUserByEmail", "params": {"email": ADMIN}})
    for encoding, packed in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body))):
        async with await client.post(packed, headers={"Content-Encoding": encoding}) as response:
            assert response.status == 200


async def test_other_verbs_and_addresses(client: Client) -> None:
    for verb in ("PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"):
        async with await client.post({"method": "getUserByEmail"}, verb=verb) as response:
            assert response.status == 405
            assert response.headers["Allow"] == "GET, POST"
    async with client.http.get(client.url + "/rpc/x") as response:
        assert (response.status, await response.json()) == (404, "no such address")


async def test_a_slash_at_the_end_makes_no_difference(client: Client) -> None:
    """Frameworks of clients add one; a redirect would lose the body of a POST."""
    call = {"method": "getUserByEmail", "params": {"email": ADMIN}}
    for verb in ("GET", "POST"):
        headers = {"x-api-key": client.key}
        async with client.http.request(verb, client.url + "/rpc/", json=call, headers=headers) as response:
            assert (response.status, (await response.json())["email"]) == (200, ADMIN)
    async with client.http.post(client.url + "/rpc/", json=call) as response:
        assert (response.status, await response.json()) == (401, "not-allowed")


async def test_headers_of_every_answer(client: Client) -> None:
    async with (
        await client.post({"method": "getUserByEmail", "params": {"email": ADMIN}}) as good,
        await client.post(b"") as bad,
        client.http.get(client.url + "/nowhere") as lost,
        client.http.get(client.url + "/livez") as alive,
    ):
        for response in (good, bad, lost, alive):
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["X-Request-Id"]
            assert "Server" not in response.headers
        assert "X-Error-Code" not in good.headers
    async with await client.post(b"", headers={"X-Request-Id": "order-4711"}) as response:
        assert response.headers["X-Request-Id"] == "order-4711"
    async with await client.post(b"", headers={"X-Request-Id": "<script>" * 20}) as response:
        assert "script" not in response.headers["X-Request-Id"]


# --- the parser alone, against the standard library's ---------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(JSON, st.booleans())
def test_parse_json_takes_what_json_is(value: Any, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(
    "text",
    ['{"a:b": ":", "c": "\\"{[:"}', "[1234567890123456789, -9223372036854775808, 1e300, 0.1234567890123456789]",
     '"\\\\u0000"', "[" * 32 + "]" * 32, '{"\\\\": {"\\"": 1}}'],
)  # fmt: skip
def test_parse_json_is_not_fooled(text: str) -> None:
    assert parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "\\u0061": 2}', '[{"a": {"b": 1, "b": 1}}]', "[-9223372036854775809]", "[" * 33 + "]" * 33,
     '{"a\\u0000": 1}', "[00]", "[1e999]"],
)  # fmt: skip
def test_parse_json_refuses(text: str) -> None:
    with pytest.raises(Malformed):
        parse_json(text.encode())


# --- anything at all ------------------------------------------------------------------------------------


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
@given(data=st.data())
async def test_arbitrary_json_never_breaks_the_server(client: Client, data: st.DataObject) -> None:
    """Any JSON, and any JSON in the place of any known method's params, is answered below 500."""
    name = data.draw(st.sampled_from(sorted(METHODS)))
    fields = sorted(METHODS[name].params.model_fields)
    params = data.draw(JSON | st.dictionaries(st.sampled_from(fields), JSON, max_size=4) if fields else JSON)
    body = data.draw(
        st.sampled_from([{"method": name, "params": params}, {"jsonrpc": "2.0", "method": name, "params": params, "id": 1}, params])
    )  # fmt: skip
    async with await client.post(orjson.dumps(body)) as response:
        answered = orjson.loads(await response.read() or b"null")
        assert response.status < 500, answered
        items = answered if isinstance(answered, list) else [answered]
        errors = [
            item["error"]
            for item in items
            if isinstance(item, dict) and "jsonrpc" in item and "error" in item
        ]
        assert -32603 not in [error["code"] for error in errors], answered


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
@given(body=st.binary(max_size=200))
async def test_arbitrary_bytes_never_break_the_server(client: Client, body: bytes) -> None:
    async with await client.post(body) as response:
        await response.read()
        assert response.status < 500


# --- cursors that no page gave ------------------------------------------------------------------------


def cursor(text: str | bytes) -> str:
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


UUID = "00000000-0000-4000-8000-000000000002"
MOMENT = st.datetimes(timezones=st.sampled_from([timezone(timedelta(hours=h)) for h in (-14, 0, 14)])).map(
    datetime.isoformat
)
MOMENTS = (
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-14:00", "0000-01-01T00:00:00+00:00",
    "10000-01-01T00:00:00+00:00", "-0001-01-01T00:00:00Z", "2026-02-30T00:00:00+00:00", "infinity", "epoch", "now",
    "2026-01-01T00:00:00", "2026-01-01T00:00:00+24:00", "2026-01-01T25:00:00+00:00", "",
)  # fmt: skip
NUMBERS = ("", "-1", "+", "x", "1e3", "1,5", "\u0661x", "9" * 20, "9" * 60, str(2**64), str(2**63) + "0" * 10)
STRUCTURED = {
    "listAuditEvents": ("after", {}),
    "listDeliveries": ("after", {"id": 1}),
    "listChanges": ("cursor", {}),
    "listAuthSessions": ("after", {}),
}
"""Methods whose cursors hold times and numbers, and not texts alone, of which all may be looked for."""
WEBHOOK = """
    INSERT INTO webhooks (instance_id, id, url, description, types, secret)
    VALUES (1, 1, 'https://a.example', '', '{}', 'x') ON CONFLICT DO NOTHING
"""
FORGED = [
    *(f"{moment} 1 1" for moment in MOMENTS), *(f"{moment} {UUID}" for moment in MOMENTS),
    *(f"2026-01-01T00:00:00+00:00 {number} 1" for number in NUMBERS),
    *(f"2026-01-01T00:00:00+00:00 1 {number}" for number in (*NUMBERS, str(2**31))),
    *(f"2026-01-01T00:00:00+00:00 {number}" for number in NUMBERS),
    *(f"{number}.1" for number in NUMBERS), *(f"1.{number}" for number in (*NUMBERS, str(2**31))),
    *(number for number in NUMBERS if number), " ", "1 1", "1 1 1 1", "\0", "1\0", "\ud800", b"\xff\xfe",
]  # fmt: skip


@pytest.mark.parametrize("method", STRUCTURED)
@pytest.mark.damages
async def test_forged_cursors(method: str, client: Client, db: asyncpg.Connection) -> None:
    member, params = STRUCTURED[method]
    await db.execute(WEBHOOK)
    for forged in [*map(cursor, FORGED), "=", "====", "a", "\u00e4", "-_-_", "%", "AAAA" * 5]:
        if method == "listAuthSessions" and len(forged) > 100:
            continue
        status, message = await client.outcome(method, params | {member: forged})
        assert status == 400 and message.startswith(f"{member}: "), (forged, status, message)


async def test_a_number_with_a_zero_before_it_is_decimal(client: Client, db: asyncpg.Connection) -> None:
    """Postgres takes 010 for 8, and 09 for no number."""
    for number in ("010", "09"):
        await client.call("listChanges", {"cursor": cursor(f"{number}.0")})
        await client.call("listAuditEvents", {"after": cursor(f"2026-01-01T00:00:00+00:00 {number} 0")})
    for xid in (9, 11):
        await db.execute(
            "INSERT INTO events (instance_id, xid, place, type, method, key_id, key_name, request_id)"
            " VALUES (1, $1::text::xid8, 1, 'user.created', 'x', 1, 'x', $1::text)",
            str(xid),
        )
    page = await client.call("listChanges", {"cursor": cursor("010.0"), "limit": 1})
    assert page["cursor"] == cursor("11.1")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.text("ABCDEFabcdef0189-_=", max_size=100),
        st.binary(max_size=60).map(cursor),
        st.text("0123456789-+:.TZ ", max_size=60).map(cursor),
        st.builds("{} {} {}".format, MOMENT, st.integers(), st.integers()).map(cursor),
        st.builds(f"{{}} {UUID}".format, MOMENT).map(cursor),
    )
)
@pytest.mark.damages
async def test_no_cursor_breaks_anything(
    client: Client, operator: Client, db: asyncpg.Connection, given: str
) -> None:
    """The answer is a page, or 400 that names the cursor: never another member, another status, or a bare text."""
    await db.execute(WEBHOOK)
    lists = {name: ("after", {}) for name in ("listUsers", "listGroups", "listInstances")}
    for method, (member, params) in (STRUCTURED | lists).items():
        caller = operator if method == "listInstances" else client
        status, answered = await caller.outcome(method, params | {member: given})
        if status == 200:
            assert isinstance(answered, dict) and any(isinstance(page, list) for page in answered.values())
        else:
            assert (status, answered.partition(": ")[0]) == (400, member), (method, given, answered)
