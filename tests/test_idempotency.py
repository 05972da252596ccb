"""Idempotency keys: a retry is not a new call, on every wire, in parallel, and after the server was killed."""

import asyncio
import base64
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import asyncpg
import psutil
import pytest
from conftest import ADMIN, Client, Serve, contents, insert_key
from processes import DroppingProxy, Officerpc, eventually, exchange, kill, running
from processes import request as raw_request

from server.methods.registry import METHODS
from server.rpc.openrpc import document

JANE = {"email": "jane@example.com", "displayName": "Jane", "password": "demo1234"}
CREATE = {"method": "createUser", "params": JANE}


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: bytes
    headers: Any

    @property
    def replayed(self) -> bool:
        return "Idempotency-Replayed" in self.headers

    @property
    def code(self) -> str | None:
        return self.headers.get("X-Error-Code")


async def send(client: Client, body: Any, key: str | None = "order-17", **headers: str) -> Answer:
    """One request to /rpc."""
    given = headers if key is None else {"Idempotency-Key": key} | headers
    async with await client.post(body, headers=given) as response:
        return Answer(response.status, await response.read(), response.headers)


async def at(client: Client, verb: str, path: str, body: Any, key: str = "order-17") -> Answer:
    """One request to another wire."""
    async with client.http.request(
        verb, client.url + path, json=body, headers={"x-api-key": client.key, "Idempotency-Key": key}
    ) as response:
        return Answer(response.status, await response.read(), response.headers)


async def users(db: asyncpg.Connection) -> int:
    """How many there are beside the administrator."""
    return await db.fetchval("SELECT count(*) - 1 FROM users WHERE instance_id = 1")


# --- the same call twice ------------------------------------------------------------------------------


async def test_the_same_answer_byte_for_byte(client: Client, db: asyncpg.Connection) -> None:
    first = await send(client, CREATE)
    before = await contents(db)
    again = await send(client, CREATE)
    assert (first.status, again.status) == (200, 200)
    assert again.body == first.body
    assert (first.replayed, again.replayed) == (False, True)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert await contents(db) == before
    assert list(json.loads(again.body))[:4] == ["email", "displayName", "profile", "isAdmin"]


async def test_the_order_of_members_says_nothing(client: Client) -> None:
    first = await send(client, CREATE)
    turned = {"method": "createUser", "params": dict(reversed(JANE.items()))}
    assert (await send(client, turned)).body == first.body


async def test_the_key_in_the_envelope(client: Client) -> None:
    """Beside method, in both envelopes; it means the same as the header."""
    first = await send(client, CREATE | {"idempotencyKey": "order-17"}, key=None)
    again = await send(client, CREATE | {"idempotencyKey": "order-17"})
    assert again.replayed and again.body == first.body
    assert (await send(client, CREATE)).body == first.body
    item = {"jsonrpc": "2.0", "id": 7, **CREATE}
    in_object = await send(client, item | {"idempotencyKey": "order-17"}, key=None)
    assert in_object.replayed
    assert in_object.body == b'{"jsonrpc":"2.0","result":' + first.body + b',"id":7}'
    unlike = await send(client, CREATE | {"idempotencyKey": "order-18"})
    assert (unlike.status, unlike.code) == (400, "bad_idempotency_key")
    assert (await send(client, CREATE | {"idempotencyKey": None}, key=None)).code == "duplicate_email"


async def test_another_request_under_the_same_key(client: Client, db: asyncpg.Connection) -> None:
    await send(client, CREATE)
    other = {"method": "createUser", "params": JANE | {"email": "june@example.com"}}
    for body in (other, {"method": "deleteUserByEmail", "params": {"email": "jane@example.com"}}):
        refused = await send(client, body)
        assert (refused.status, refused.code) == (422, "idempotency_conflict")
        assert json.loads(refused.body) == "this idempotency key was used for another request"
        assert not refused.replayed
    failed = json.loads((await send(client, {"jsonrpc": "2.0", "id": 1, **other})).body)["error"]
    assert (failed["code"], failed["data"]["code"]) == (-32022, "idempotency_conflict")
    assert failed["data"]["fields"][0]["field"] == "Idempotency-Key"
    assert await users(db) == 1
    assert (await send(client, other, "order-18")).status == 200


async def test_an_operators_key_is_one_key_for_all_instances(operator: Client, other: Client) -> None:
    for instance, status in (("MYINSTANCE", 200), ("OTHER", 422), ("MYINSTANCE", 200)):
        body = {"method": "createUser", "params": JANE | {"instance": instance}}
        assert (await send(operator, body)).status == status


async def test_keys_of_different_api_keys_are_independent(
    client: Client, other: Client, db: asyncpg.Connection
) -> None:
    mine = await send(client, CREATE)
    theirs = await send(other, {"method": "createUser", "params": JANE | {"displayName": "June"}})
    assert (mine.status, theirs.status, theirs.replayed) == (200, 200, False)
    colleague = client.using(await insert_key(db))
    assert (await send(colleague, CREATE)).code == "duplicate_email"


async def test_what_was_refused_may_be_tried_again(client: Client, db: asyncpg.Connection) -> None:
    """Only work that was committed is stored."""
    refused = await send(client, {"method": "createUser", "params": {"email": ADMIN}})
    assert refused.status == 400
    assert await db.fetchval("SELECT count(*) FROM idempotency_keys") == 0
    assert (await send(client, {"method": "createUser", "params": {"email": "x"}})).status == 400
    mended = await send(client, CREATE)
    assert (mended.status, mended.replayed) == (200, False)
    assert (await send(client, CREATE)).replayed


async def test_reads_take_no_notice(client: Client, db: asyncpg.Connection) -> None:
    for email in (ADMIN, "nobody@example.com"):
        answer = await send(client, {"method": "getUserByEmail", "params": {"email": email}})
        assert answer.status == (200 if email == ADMIN else 400) and not answer.replayed
    assert await db.fetchval("SELECT count(*) FROM idempotency_keys") == 0


async def test_a_replay_does_not_hash(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    await send(client, CREATE)

    async def hash_nothing(password: str) -> str:
        raise AssertionError("hashed")

    monkeypatch.setattr(client.dispatcher._hasher, "hash", hash_nothing)
    assert (await send(client, CREATE)).replayed


async def test_calls_without_a_key_cost_what_they_did(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    bind = client.dispatcher._database.connection().__class__._bind

    def noting(self: Any, name: str, values: Any) -> Any:
        ran.append(name)
        return bind(self, name, values)

    monkeypatch.setattr("server.postgres.db.Connection._bind", noting)
    await client.call("createUser", {"email": "plain@example.com"})
    plain, ran[:] = list(ran), []
    await send(client, CREATE)
    keyed = ["find_answer", "claim_idempotency_key", "keep_answer"]
    assert [name for name in plain if name in keyed] == []
    assert [name for name in ran if name in keyed] == keyed


async def test_answers_are_kept_for_a_day(client: Client, db: asyncpg.Connection) -> None:
    await send(client, CREATE)
    await db.execute("UPDATE idempotency_keys SET created_at = now() - interval '23 hours 59 minutes'")
    assert (await send(client, CREATE)).replayed
    await db.execute("UPDATE idempotency_keys SET created_at = now() - interval '24 hours'")
    assert (await send(client, CREATE)).code == "duplicate_email"
    other = {"method": "createUser", "params": {"email": "june@example.com"}}
    assert [(await send(client, other)).replayed for _ in range(2)] == [False, True]
    assert await db.fetchval("SELECT count(*) FROM idempotency_keys") == 1


@pytest.mark.parametrize(
    ("bare", "quoted"),
    [
        ("k", '"k"'),
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", '"8e03978e-40d5-43dd-bc93-6894a57f9324"'),
        ('say "hi"', r'"say \"hi\""'),
        ("back\\slash", r'"back\\slash"'),
        ("x" * 255, '"' + "x" * 255 + '"'),
    ],
)
async def test_a_quoted_key_is_the_key_without_quotes(bare: str, quoted: str, client: Client) -> None:
    """A string of RFC 8941, as the IETF's draft has the header, and the bare text that most clients send."""
    first = await send(client, CREATE, quoted)
    assert (first.status, first.replayed) == (200, False)
    for body, key in ((CREATE, bare), (CREATE, quoted), (CREATE | {"idempotencyKey": bare}, quoted)):
        again = await send(client, body, key)
        assert (again.status, again.replayed, again.body) == (200, True, first.body)


@pytest.mark.parametrize("key", ['"k', 'k"', '"a"b"', r'"a\b"', '"k";x', "'k'"])
async def test_what_is_no_quoted_string_is_a_key_as_it_stands(key: str, client: Client) -> None:
    assert not (await send(client, CREATE, key)).replayed
    assert (await send(client, CREATE, "k")).code == "duplicate_email"
    assert (await send(client, CREATE, key)).replayed


@pytest.mark.parametrize(
    "key", ["", " ", '""', "x" * 256, "a\tb"], ids=["empty", "blank", "empty string", "long", "control"]
)
async def test_bad_keys(key: str, client: Client, db: asyncpg.Connection) -> None:
    """Blanks around a header's value are not part of it (RFC 9110, 5.5)."""
    before = await contents(db)
    plain = await send(client, CREATE, key)
    assert (plain.status, plain.code) == (400, "bad_idempotency_key")
    assert json.loads(plain.body).startswith("the idempotency key ")
    item = {"jsonrpc": "2.0", "id": 1, **CREATE}
    failed = json.loads((await send(client, item, key)).body)["error"]
    assert (failed["code"], failed["data"]["code"]) == (-32602, "bad_idempotency_key")
    office = await at(client, "POST", "/online-office/user/create", MEMBER, key)
    assert json.loads(office.body)["errorCode"] == 400
    assert json.loads(office.body)["errorMessage"] == json.loads(plain.body)
    portal = await at(client, "POST", "/Provisioning/MYINSTANCE/User/", PORTAL_USER, key)
    assert (portal.status, json.loads(portal.body)) == (
        400, [{"MemberNames": [], "ErrorMessage": json.loads(plain.body)}],
    )  # fmt: skip
    store = await at(client, "POST", "/integration-api/v1/dashboard/users", STORE_USER, key)
    assert (store.status, json.loads(store.body)) == (400, {"message": json.loads(plain.body)})
    assert await contents(db) == before


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "a\u0085b", 5, True, [], {}])
async def test_bad_keys_in_the_envelope(key: Any, client: Client, db: asyncpg.Connection) -> None:
    before = await contents(db)
    plain = await send(client, CREATE | {"idempotencyKey": key}, None)
    assert (plain.status, plain.code) == (400, "bad_idempotency_key")
    item = {"jsonrpc": "2.0", "id": 1, **CREATE, "idempotencyKey": key}
    failed = json.loads((await send(client, [item], None)).body)[0]["error"]
    assert (failed["code"], failed["data"]["code"]) == (-32602, "bad_idempotency_key")
    assert await contents(db) == before


async def test_long_and_foreign_keys_work(client: Client) -> None:
    for number, key in enumerate(("x" * 255, "заказ 17", '"8e03978e-40d5-43dd-bc93-6894a57f9324"')):
        body = {"method": "createUser", "params": {"email": f"user{number}@example.com"}}
        in_body = body | {"idempotencyKey": key}
        assert [(await send(client, in_body, None)).replayed for _ in range(2)] == [False, True]
        assert (await send(client, body, key)).replayed


async def test_two_headers(client: Client) -> None:
    head = b"x-api-key: " + client.key.encode()
    sent = raw_request(json.dumps(CREATE).encode(), head, b"Idempotency-Key: a", b"Idempotency-Key: b")
    answer = await exchange(client.url, sent)
    assert (answer.status, answer.header("X-Error-Code")) == (400, "bad_idempotency_key")


async def test_another_method_with_the_same_params_under_the_same_key(client: Client) -> None:
    user = {"email": "jane@example.com"}
    await send(client, CREATE, key=None)
    assert (await send(client, {"method": "deleteUserByEmail", "params": user})).status == 200
    refused = await send(client, {"method": "restoreUserByEmail", "params": user})
    assert (refused.status, refused.code) == (422, "idempotency_conflict")


# --- in parallel, and when something dies -------------------------------------------------------------


async def test_fifty_parallel_calls_do_the_work_once(serve: Serve, db: asyncpg.Connection) -> None:
    client = await serve(hash_queue=100)
    answers = await asyncio.gather(*(send(client, CREATE) for _ in range(50)))
    for answer in answers:
        assert answer.status in (200, 409)
        if answer.status == 409:
            assert (answer.code, answer.headers["Retry-After"]) == ("still_running", "1")
    done = [answer for answer in answers if answer.status == 200]
    assert len([answer for answer in done if not answer.replayed]) == 1
    retried = await asyncio.gather(*(send(client, CREATE) for answer in answers if answer.status == 409))
    assert {answer.body for answer in (*done, *retried)} == {done[0].body}
    assert all(answer.replayed for answer in retried)
    assert await users(db) == 1
    assert await db.fetchval("SELECT count(*) FROM events WHERE method = 'createUser'") == 1


async def test_still_running(client: Client, db: asyncpg.Connection) -> None:
    """Answered at once, without waiting for the call that has the key; on each wire."""
    locked = db.transaction()
    await locked.start()
    await db.execute("SELECT * FROM instance_counters FOR UPDATE")
    running_calls = [asyncio.create_task(send(client, CREATE))]
    member = at(client, "POST", "/online-office/user/create", MEMBER, "office")
    portal = at(client, "POST", "/Provisioning/MYINSTANCE/User/", PORTAL_USER, "portal")
    store = at(client, "POST", "/integration-api/v1/dashboard/users", STORE_USER, "store")
    running_calls += [asyncio.create_task(call) for call in (member, portal, store)]

    async def all_hold() -> bool:
        held = "SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database"
        held += " WHERE l.locktype = 'advisory' AND d.datname = current_database()"
        return await db.fetchval(held) >= len(running_calls)

    await eventually(all_hold)
    plain = await send(client, CREATE)
    assert (plain.status, plain.code, plain.headers["Retry-After"]) == (409, "still_running", "1")
    item = await send(client, {"jsonrpc": "2.0", "id": 1, **CREATE})
    failed = json.loads(item.body)["error"]
    assert (item.status, item.headers["Retry-After"]) == (200, "1")
    assert (failed["code"], failed["data"]["retryable"]) == (-32010, True)
    office = await at(client, "POST", "/online-office/user/create", MEMBER, "office")
    assert (office.status, json.loads(office.body)["errorCode"]) == (409, 409)
    portal = await at(client, "POST", "/Provisioning/MYINSTANCE/User/", PORTAL_USER, "portal")
    assert portal.status == 409 and json.loads(portal.body)[0]["MemberNames"] == []
    store = await at(client, "POST", "/integration-api/v1/dashboard/users", STORE_USER, "store")
    assert (store.status, list(json.loads(store.body))) == (409, ["message"])
    assert {answer.headers["Retry-After"] for answer in (office, portal, store)} == {"1"}
    await locked.rollback()
    assert [(await call).status for call in running_calls] == [200] * 4


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="officerpc-proxy-") as name:
        yield Path(name)


@pytest.mark.slow
@pytest.mark.parametrize("committed", [True, False])
async def test_a_server_is_killed_around_its_commit(
    committed: bool, folder: Path, database_url: str, db: asyncpg.Connection
) -> None:
    """Nobody got an answer; whoever asks again gets the stored one, or has the work done now."""
    api_key = await insert_key(db)
    headers = {"x-api-key": api_key, "Idempotency-Key": "order-17"}
    proxy = DroppingProxy(database_url, folder, after=committed, hang=True)

    def start(officerpc: Officerpc, url: str) -> Any:
        return officerpc.serve(database_url=url, run_jobs="false")

    async def send_to(url: str) -> Answer:
        async with (
            aiohttp.ClientSession() as http,
            http.post(url + "/rpc", json=CREATE, headers=headers) as response,
        ):
            return Answer(response.status, await response.read(), response.headers)

    with running(database_url) as officerpc:
        async with proxy.running():
            served = await start(officerpc, proxy.url)
            proxy.arm()
            lost = asyncio.create_task(send_to(served.url))
            await eventually(lambda: proxy.commits)
            if committed:

                async def stored() -> bool:
                    return await users(db) == 1

                await eventually(stored)
            kill([psutil.Process(served.process.pid), *served.workers()])
            with pytest.raises(aiohttp.ClientError):
                await lost
        again = await start(officerpc, database_url)

        async def answered() -> Answer | None:
            answer = await send_to(again.url)
            return None if answer.status == 409 else answer  # until Postgres has noticed

        answer = await eventually(answered)
        assert (answer.status, answer.replayed) == (200, committed)
        assert json.loads(answer.body)["id"] == 2
        assert (await send_to(again.url)).body == answer.body
    assert await users(db) == 1


async def test_the_connection_is_lost_at_commit(
    serve: Serve, folder: Path, database_url: str, db: asyncpg.Connection
) -> None:
    """What is answered with outcome_unknown can be asked again under its key."""
    proxy = DroppingProxy(database_url, folder, after=True)
    async with proxy.running():
        client = await serve(url=proxy.url)
        await client.call("getUserByEmail", {"email": ADMIN})
        proxy.arm()
        lost = await send(client, CREATE)
        assert json.loads(lost.body).endswith("send it again under its idempotency key")
        assert (lost.status, lost.code, lost.headers["Retry-After"]) == (503, "outcome_unknown", "1")
        again = await send(client, CREATE)
        assert (again.status, again.replayed, await users(db)) == (200, True, 1)


# --- JSON-RPC 2.0 -------------------------------------------------------------------------------------


def creation(number: int, **more: Any) -> dict[str, Any]:
    """A request object."""
    params = {"email": f"user{number}@example.com"}
    return {"jsonrpc": "2.0", "id": number, "method": "createUser", "params": params} | more


async def test_a_batch_with_keys_of_its_items(client: Client, db: asyncpg.Connection) -> None:
    batch = [creation(number, idempotencyKey=f"order-{number}") for number in range(3)]
    first = await send(client, batch, None)
    again = await send(client, batch, None)
    assert again.body == first.body and (first.replayed, again.replayed) == (False, True)
    mixed = await send(client, [*batch, creation(3)], None)
    assert mixed.body.startswith(first.body[:-1]) and not mixed.replayed
    assert (await send(client, batch[::-1], None)).replayed
    assert await users(db) == 4


async def test_a_batch_under_a_header(client: Client, db: asyncpg.Connection) -> None:
    """Each item is told from the others by its place; one with a key of its own goes by that."""
    batch = [creation(0), creation(1), creation(2, idempotencyKey="mine")]
    first = await send(client, batch)
    again = await send(client, batch)
    assert again.replayed and again.body == first.body and await users(db) == 3
    turned = json.loads((await send(client, batch[::-1])).body)
    codes = [item["error"]["data"]["code"] if "error" in item else None for item in turned]
    assert codes == [None, None, "duplicate_email"]
    assert (await send(client, creation(3))).status == 200  # the header alone is another key
    assert await users(db) == 4


async def test_a_notification_and_another_id(client: Client, db: asyncpg.Connection) -> None:
    notification = {name: value for name, value in creation(0, idempotencyKey="k").items() if name != "id"}
    for _ in range(2):
        assert (await send(client, notification, None)).status == 204
    answer = await send(client, creation(0, idempotencyKey="k", id="other"), None)
    assert answer.replayed and json.loads(answer.body)["id"] == "other"
    assert await users(db) == 1


# --- the other wires ----------------------------------------------------------------------------------

PROFILE = {"firstname": "Ann", "lastname": "Lee"}
MEMBER = {"login": "ann@example.com", "sponsorId": 1, "profile": PROFILE}
PORTAL_USER = {"EmailAddress": "userone@example.com", "Password": "qwerty", "FirstName": "User"}
STORE_USER = {"email": "reader@example.com", "external_id": "shop-1", "new_password": "Abcd1234"}
CHANGED = {"email": "two@example.com", "external_id": "shop-2", "only_sees_readable": False}

REQUESTS = {
    "the member platform": [
        ("POST", "/online-office/user/create", MEMBER),
        ("POST", "/online-office/user/profile-update", {"userId": 2, "profile": {"phone": "+97336000000"}}),
        ("POST", "/online-office/user/delete", {"authId": 2}),
    ],
    "Workspace 365": [
        ("POST", "/Provisioning/MYINSTANCE/User/", PORTAL_USER),
        ("PUT", "/Provisioning/MYINSTANCE/User/userone@example.com/", {"EmailAddress": "two@example.com"}),
        ("DELETE", "/Provisioning/MYINSTANCE/User/two@example.com/", None),
    ],
    "publica.la": [
        ("POST", "/integration-api/v1/dashboard/users/", STORE_USER),
        ("PUT", "/integration-api/v1/dashboard/users/2", CHANGED),
        ("POST", "/integration-api/v1/dashboard/plans", {"type": "prepaid", "name": "Year", "duration": 12}),
        ("DELETE", "/integration-api/v1/dashboard/users/2", None),
    ],
}  # fmt: skip


@pytest.mark.parametrize("wire", REQUESTS)
async def test_replays_on_the_other_wires(wire: str, serve: Serve, db: asyncpg.Connection) -> None:
    client = await serve(run_jobs=False)
    for number, (verb, path, body) in enumerate(REQUESTS[wire]):
        first = await at(client, verb, path, body, f"order-{number}")
        before = await contents(db)
        again = await at(client, verb, path, body, f"order-{number}")
        assert first.status in (200, 201, 204) and not first.replayed, first
        assert (again.status, again.body) == (first.status, first.body)
        assert again.replayed and await contents(db) == before


@pytest.mark.parametrize("wire", REQUESTS)
async def test_another_request_on_the_other_wires(wire: str, client: Client, db: asyncpg.Connection) -> None:
    verb, path, body = REQUESTS[wire][0]
    assert (await at(client, verb, path, body)).status == 200
    name = next(iter(body))
    refused = await at(client, verb, path, body | {name: "another@example.com"})
    assert (refused.status, refused.code) == (422, "idempotency_conflict")
    told = json.loads(refused.body)
    if wire == "the member platform":
        assert told["errorCode"] == 422 and told["primary"]["success"] is False
    elif wire == "Workspace 365":
        text = "Idempotency-Key was used for another request"
        assert told == [{"MemberNames": ["Idempotency-Key"], "ErrorMessage": text}]
    else:
        assert list(told["errors"]) == ["Idempotency-Key"]
    assert await users(db) == 1


async def test_the_same_call_on_another_wire(client: Client, db: asyncpg.Connection) -> None:
    """The answer is that of the method; each wire says it in its own words."""
    created = await send(client, {"method": "createMember", "params": MEMBER})
    office = await at(client, "POST", "/online-office/user/create", MEMBER)
    assert office.replayed
    payload = json.loads(office.body)["primary"]["payload"]
    assert payload["password"] == json.loads(created.body)["password"]


async def test_an_instance_that_has_been_deleted(operator: Client) -> None:
    """The retry is answered, although nothing is there any more that it could be about."""
    await operator.call("createInstance", {"name": "gone", "admin": {"email": "boss@gone.example"}})
    first = await at(operator, "DELETE", "/Provisioning/Environment/gone/", None)
    again = await at(operator, "DELETE", "/Provisioning/Environment/gone/", None)
    assert (first.status, again.status, again.replayed) == (200, 200, True)
    assert (await at(operator, "DELETE", "/Provisioning/Environment/gone/", None, "new")).status == 404


# --- secrets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "secret"),
    [
        ("createApiKey", {"name": "shop", "scopes": ["users:read"]}, "key"),
        ("createMember", MEMBER, "password"),
    ],
)
async def test_secrets_are_replayed_and_not_legible(
    name: str, params: Any, secret: str, client: Client, db: asyncpg.Connection
) -> None:
    await client.call("createUser", JANE)
    body = {"method": name, "params": params}
    first, again = await send(client, body, "guessable-key"), await send(client, body, "guessable-key")
    assert again.replayed and again.body == first.body
    value = json.loads(first.body)[secret]
    assert len(value) >= 12
    row = await db.fetchrow("SELECT * FROM idempotency_keys")
    for column in row.values():
        stored = column if isinstance(column, bytes) else str(column).encode()
        assert value.encode() not in stored and base64.b64encode(value.encode()) not in stored
        assert b"guessable" not in stored and b"demo1234" not in stored
    if secret == "key":
        assert (await client.using(value).outcome("getUserByEmail", {"email": ADMIN}))[0] == 200


async def test_rows_cannot_be_exchanged(client: Client, other: Client, db: asyncpg.Connection) -> None:
    """Who can write to the database and puts another's answer into a row makes nothing of it legible."""
    await send(client, CREATE)
    await send(other, CREATE)
    await db.execute(
        "UPDATE idempotency_keys SET answer = (SELECT answer FROM idempotency_keys WHERE instance_id = 1)"
    )
    assert (await send(client, CREATE)).replayed
    refused = await send(other, CREATE)
    assert (refused.status, refused.code) == (500, "internal")


async def test_a_key_that_may_no_more(client: Client, operator: Client) -> None:
    """A stored answer is not given to who would not be let in."""
    body = {"method": "createApiKey", "params": {"name": "shop", "scopes": ["users:read"]}}
    assert [(await send(client, sent, sent["method"])).status for sent in (CREATE, body)] == [200, 200]
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "isActive": False})
    for sent in (CREATE, body):
        refused = await send(client, sent, sent["method"])
        assert (refused.status, refused.replayed) == (403, False)


def test_every_method_that_writes_says_so() -> None:
    for entry in document(tuple(METHODS.values()))["methods"]:
        method = METHODS[entry["name"]]
        writes = method.writes
        codes = {error["code"] for error in entry["errors"]}
        assert ({-32010, -32022} <= codes) == (writes and method.keeps_answer)
        assert ("dryRun" in [param["name"] for param in entry["params"]]) == writes
