"""Invalid HTTP requests: our own error answers, without text of the request, also in the log."""

import json

import pytest
from conftest import Client, Log
from processes import exchange
from processes import request as raw_request

SECRET = b"orpc_dontTellAnybody"
BODY = b'{"method": "x"}'
HEADS: dict[str, tuple[bytes, int, str, str]] = {
    "a long address": (
        raw_request(BODY, target=b"/rpc?" + SECRET * 500), 414, "uri_too_long", "the address is longer than 8190 bytes",
    ),
    "a long value of a header": (
        raw_request(BODY, b"x-api-key: " + SECRET * 500), 431, "headers_too_large", "a header is longer than 8192 bytes",
    ),
    "a long name of a header": (
        raw_request(BODY, SECRET * 500 + b": x"), 431, "headers_too_large", "a header is longer than 8192 bytes",
    ),
    "many headers": (
        raw_request(BODY, *(b"x-%d: " % number + SECRET for number in range(200))),
        431, "headers_too_large", "there are more than 128 headers",
    ),
    "a control character in a header": (
        raw_request(BODY, b"x-api-key: \1" + SECRET), 400, "bad_http", "this is not a valid HTTP request",
    ),
    "no HTTP": (SECRET + b"\r\n\r\n", 400, "bad_http", "this is not a valid HTTP request"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADS)
async def test_a_head_that_cannot_be_read(kind: str, client: Client, logged: Log) -> None:
    data, status, code, message = HEADS[kind]
    answer = await exchange(client.url, data)
    assert (answer.status, answer.header("X-Error-Code")) == (status, code)
    assert json.loads(answer.body) == message
    assert answer.header("Content-Type") == "application/json"
    assert answer.header("Cache-Control") == "no-store"
    assert answer.header("Server") is None
    assert SECRET not in answer.body and SECRET not in logged.text
    (entry,) = logged.lines()
    assert (entry["event"], entry["request_id"]) == (code, answer.header("X-Request-Id"))


async def test_the_largest_that_can_be_read(client: Client) -> None:
    """A call with an address and headers of just these sizes."""
    head = (b"x-api-key: " + client.key.encode(), b"x-long: " + b"x" * (8192 - len(b"x-long")))
    answer = await exchange(client.url, raw_request(BODY, *head, target=b"/rpc?".ljust(8190, b"x")))
    assert (answer.status, answer.header("X-Error-Code")) == (400, "unknown_method")
