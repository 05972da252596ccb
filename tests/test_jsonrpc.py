"""JSON-RPC 2.0 over HTTP: every example of the specification, section 7, and cases that it leaves open."""

import json
from typing import Any

import pytest
from conftest import ADMIN, Client, Log, Serve
from pydantic import Field

from server.base.models import Params
from server.methods.registry import Example, Method, method
from server.tenants.call import Call

# The methods that the specification's examples call.
SPEC_METHODS: dict[str, Method] = {}
spec_method: Any = {
    "scope": "docs:read", "writes": False, "registry": SPEC_METHODS, "examples": (Example("", {}, None),)
}  # fmt: skip


class Subtraction(Params):
    minuend: int
    subtrahend: int


class Numbers(Params):
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0
    e: int = 0


class Text(Params):
    text: str | int = Field("")


class Nothing(Params):
    pass


@method("subtract", result=int, **spec_method)
async def subtract(call: Call, params: Subtraction) -> Any:
    """Subtract."""
    return params.minuend - params.subtrahend


@method("sum", result=int, **spec_method)
async def total(call: Call, params: Numbers) -> Any:
    """Add."""
    return params.a + params.b + params.c + params.d + params.e


@method("update", result=bool, **spec_method)
async def update(call: Call, params: Numbers) -> Any:
    """Take five numbers."""
    return True


@method("notify_hello", result=bool, **spec_method)
async def notify_hello(call: Call, params: Text) -> Any:
    """Take one."""
    return True


@method("get_data", result=list[Any], **spec_method)
async def get_data(call: Call, params: Nothing) -> Any:
    """Answer two things."""
    return ["hello", 5]


@method("bug", result=Any, **spec_method)
async def bug(call: Call, params: Nothing) -> Any:
    """Fail."""
    raise RuntimeError("secret detail")


@method("unserializable", result=Any, **spec_method)
async def unserializable(call: Call, params: Nothing) -> Any:
    """Answer what is no JSON."""
    return object()


def error(code: int, message: str, identifier: Any = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "error": {"code": code, "message": message}, "id": identifier}


EXAMPLES = {
    "positional parameters": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}',
        {"jsonrpc": "2.0", "result": 19, "id": 1},
    ),
    "positional parameters, the other way round": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}',
        {"jsonrpc": "2.0", "result": -19, "id": 2},
    ),
    "named parameters": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}',
        {"jsonrpc": "2.0", "result": 19, "id": 3},
    ),
    "named parameters, the other way round": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
        {"jsonrpc": "2.0", "result": 19, "id": 4},
    ),
    "a notification": ('{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}', None),
    "a notification of an unknown method": ('{"jsonrpc": "2.0", "method": "foobar"}', None),
    "an unknown method": (
        '{"jsonrpc": "2.0", "method": "foobar", "id": "1"}',
        error(-32601, "Method not found", "1"),
    ),
    "invalid JSON": (
        '{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]',
        error(-32700, "Parse error"),
    ),
    "an invalid request object": (
        '{"jsonrpc": "2.0", "method": 1, "params": "bar"}',
        error(-32600, "Invalid Request"),
    ),
    "a batch of invalid JSON": (
        '[{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"}, {"jsonrpc": "2.0", "method" ]',
        error(-32700, "Parse error"),
    ),
    "an empty array": ("[]", error(-32600, "Invalid Request")),
    "an invalid batch that is not empty": ("[1]", [error(-32600, "Invalid Request")]),
    "an invalid batch": ("[1,2,3]", [error(-32600, "Invalid Request")] * 3),
    "a batch": (
        """[
        {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
        {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
        {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},
        {"foo": "boo"},
        {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
        {"jsonrpc": "2.0", "method": "get_data", "id": "9"}
        ]""",
        [
            {"jsonrpc": "2.0", "result": 7, "id": "1"},
            {"jsonrpc": "2.0", "result": 19, "id": "2"},
            error(-32600, "Invalid Request"),
            error(-32601, "Method not found", "5"),
            {"jsonrpc": "2.0", "result": ["hello", 5], "id": "9"},
        ],
    ),
    "a batch of notifications": (
        '[{"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]},'
        ' {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]}]',
        None,
    ),
}


def without_data(answer: Any) -> Any:
    """An answer without error.data, which the specification leaves to the server."""
    if isinstance(answer, list):
        return [without_data(item) for item in answer]
    if "error" in answer:
        answer["error"].pop("data")
    return answer


@pytest.fixture
async def spec(serve: Serve) -> Client:
    return await serve(methods=SPEC_METHODS)


@pytest.mark.parametrize("name", EXAMPLES)
async def test_examples_of_the_specification(name: str, spec: Client) -> None:
    request, expected = EXAMPLES[name]
    async with await spec.post(request) as response:
        if expected is None:
            assert (response.status, await response.read()) == (204, b"")
        else:
            assert response.status == 200
            assert without_data(await response.json()) == expected


@pytest.mark.parametrize(
    "item",
    [
        {"jsonrpc": "1.0", "method": "sum", "id": 1},
        {"jsonrpc": 2.0, "method": "sum", "id": 1},
        {"jsonrpc": "2.0", "id": 1},
        {"jsonrpc": "2.0", "method": "sum", "params": None, "id": 1},
        {"jsonrpc": "2.0", "method": "sum", "params": 1, "id": 1},
        {"jsonrpc": "2.0", "method": "sum", "id": [1]},
        {"jsonrpc": "2.0", "method": "sum", "id": True},
        {"jsonrpc": "2.0", "method": "sum", "id": {}},
    ],
)
async def test_what_is_no_request_object(item: Any, spec: Client) -> None:
    async with await spec.post(item) as response:
        assert without_data(await response.json()) == error(-32600, "Invalid Request")


@pytest.mark.parametrize("identifier", [0, "", "x", 1.5, None, -(2**63)])
async def test_ids_come_back_as_they_are(identifier: Any, spec: Client) -> None:
    """An id of null is an id, and so is answered."""
    async with await spec.post({"jsonrpc": "2.0", "method": "sum", "id": identifier}) as response:
        assert await response.json() == {"jsonrpc": "2.0", "result": 0, "id": identifier}


async def test_a_batch_has_at_most_100_items(spec: Client) -> None:
    item = {"jsonrpc": "2.0", "method": "sum", "id": 1}
    async with await spec.post([item] * 100) as response:
        assert len(await response.json()) == 100
    async with await spec.post([item] * 101) as response:
        assert without_data(await response.json()) == error(-32600, "Invalid Request")


async def test_batch_items_run_in_order_each_in_its_own_transaction(client: Client) -> None:
    def creation(email: str) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "method": "createUser", "params": {"email": email}, "id": email}

    items = [creation("a@example.com"), creation("a@example.com"), creation("b@example.com")]
    look_up = {"jsonrpc": "2.0", "method": "getUserByEmail", "params": {"email": "b@example.com"}, "id": 1}
    async with await client.post([*items, look_up]) as response:
        first, second, third, found = await response.json()
    assert (first["result"]["id"], third["result"]["id"], found["result"]["id"]) == (2, 3, 3)
    assert second["error"]["data"]["code"] == "duplicate_email"


async def test_error_data_tells_what_to_mend(client: Client) -> None:
    """The stable code, the request's id, whether to retry, and every bad member."""
    params = {"email": "no address", "isAdmin": 1, "nickname": "x"}
    body = {"jsonrpc": "2.0", "method": "createUser", "params": params, "id": 1}
    async with await client.post(body, headers={"X-Request-Id": "mine-1"}) as response:
        assert response.headers["X-Error-Code"] == "invalid_params"
        failed = (await response.json())["error"]
    assert failed["code"] == -32602
    assert failed["data"] == {
        "code": "invalid_params",
        "requestId": "mine-1",
        "retryable": False,
        "fields": [
            {"field": "email", "message": "is not a valid e-mail address"},
            {"field": "isAdmin", "message": "must be true or false"},
            {"field": "nickname", "message": "is not a member of this call"},
        ],
    }


async def test_not_found_and_duplicate_have_codes_of_their_own(client: Client) -> None:
    async def code(method: str, email: str) -> int:
        body = {"jsonrpc": "2.0", "method": method, "params": {"email": email}, "id": 1}
        async with await client.post(body) as response:
            return int((await response.json())["error"]["code"])

    assert await code("getUserByEmail", "nobody@example.com") == -32004
    assert await code("createUser", ADMIN) == -32009


@pytest.mark.parametrize("name", ["bug", "unserializable"])
async def test_a_bug_tells_the_caller_nothing(name: str, spec: Client, logged: Log) -> None:
    async with await spec.post({"jsonrpc": "2.0", "method": name, "id": 1}) as response:
        text = await response.text()
    assert "secret" not in text and "Traceback" not in text
    failed = json.loads(text)["error"]
    assert (failed["code"], failed["message"]) == (-32603, "internal error")
    (entry,) = [entry for entry in logged.lines() if entry["event"] == "bug"]
    assert entry["request_id"] == failed["data"]["requestId"]
    assert any("test_jsonrpc.py" in line or "rpc.py" in line for line in entry["traceback"])


async def test_params_of_other_kinds(spec: Client) -> None:
    """Too many by position, and an object where numbers belong."""
    async with await spec.post(
        {"jsonrpc": "2.0", "method": "subtract", "params": [1, 2, 3], "id": 1}
    ) as response:
        assert (await response.json())["error"]["code"] == -32602
    async with await spec.post(
        {"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": {}, "self": 1}, "id": 1}
    ) as response:
        failed = (await response.json())["error"]
    assert {field["field"] for field in failed["data"]["fields"]} == {"minuend", "subtrahend", "self"}
