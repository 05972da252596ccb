"""Limits: calls of a key, seats of an instance, quotas, failed logins and common passwords."""

import asyncio
import io
from typing import Any

import asyncpg
import orjson
import pytest
from conftest import ADMIN, Client, Serve, footprint, insert_key

from server.base.errors import TooMany
from server.base.passwords import is_common
from server.base.settings import Settings
from server.base.tokens import digest
from server.directory import throttle
from server.directory.upkeep import purge_expired
from server.tenants.limits import RateLimiter

LOOK_UP = {"email": ADMIN}
MINE = {"instance": "MYINSTANCE"}


# --- windows of calls, by a clock of the test's own -----------------------------------------------------


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_window_begins_with_the_first_call() -> None:
    clock = Clock()
    limiter = RateLimiter(2, window=60, keys=10, clock=clock)

    def spend(key: int) -> tuple[bool, int, int]:
        allowance = limiter.spend(key)
        assert allowance is not None and allowance.limit == 2
        return allowance.granted, allowance.remaining, allowance.resets_in

    assert spend(1) == (True, 1, 60)
    clock.now += 20.5
    assert spend(1) == (True, 0, 40)
    assert spend(1) == (False, 0, 40)
    assert spend(2) == (True, 1, 60)
    clock.now += 39.5
    assert spend(1) == (True, 1, 60)
    assert spend(2) == (True, 0, 21)


def test_memory_is_bounded() -> None:
    limiter = RateLimiter(1, keys=3, clock=Clock())
    for key in range(100):
        allowance = limiter.spend(key)
        assert allowance is not None and allowance.granted
    assert len(limiter._counts) == 3
    assert not limiter.spend(99).granted  # type: ignore[union-attr]


def test_no_limit() -> None:
    assert RateLimiter(0, keys=1).spend(1) is None
    assert RateLimiter(5, keys=1).spend(1, 0) is None


def test_a_limit_of_its_own() -> None:
    limiter = RateLimiter(5, keys=9, clock=Clock())
    for own, granted, left in ((2, True, 1), (2, True, 0), (2, False, 0), (3, True, 0), (1, False, 0)):
        allowance = limiter.spend(1, own)
        assert allowance is not None
        assert (allowance.granted, allowance.limit, allowance.remaining) == (granted, own, left)


# --- rates of keys on every wire ------------------------------------------------------------------------

CALLS: dict[str, tuple[str, str, str, Any]] = {
    # Wire -> verb, address, header of the key, body.
    "plain": ("POST", "/rpc", "x-api-key", {"method": "getUserByEmail", "params": LOOK_UP}),
    "2.0": (
        "POST", "/rpc", "x-api-key",
        {"jsonrpc": "2.0", "method": "getUserByEmail", "params": LOOK_UP, "id": "a"},
    ),
    "online-office": ("GET", f"/online-office/user/exists?login={ADMIN}", "Token", None),
    "workspace365": (
        "PUT", f"/Provisioning/MYINSTANCE/User/{ADMIN}/Validate/", "ProvisioningKey", {"FirstName": "A"},
    ),
    "publica": ("GET", "/integration-api/v1/dashboard/users", "X-User-Token", None),
}  # fmt: skip
MESSAGE = "too many calls, try again later"
REFUSALS: dict[str, Any] = {
    "plain": MESSAGE,
    "online-office": {
        "errorCode": 429, "errorMessage": MESSAGE,
        "primary": {"success": False, "message": MESSAGE, "payload": {}, "errors": []},
        "secondary": [], "locale": "en_US",
    },
    "workspace365": None,
    "publica": {"message": "Too Many Attempts."},
}  # fmt: skip


@pytest.mark.parametrize("wire", CALLS)
async def test_rates_on_every_wire(wire: str, serve: Serve, db: asyncpg.Connection) -> None:
    """Two calls a minute; the third is a 429 in the wire's own form. A key with another rate goes by that."""
    client = await serve(key_rate_limit=2)
    verb, address, header, body = CALLS[wire]

    async def call(key: str) -> tuple[int, dict[str, str], Any]:
        async with client.http.request(
            verb, client.url + address, headers={header: key}, json=body
        ) as response:
            text = await response.read()
            return response.status, dict(response.headers), orjson.loads(text) if text else None

    for left in (1, 0):
        status, headers, _ = await call(client.key)
        assert status == 200
        assert headers["RateLimit-Policy"].startswith('"key";q=2;w=60')
        assert headers["RateLimit"].startswith(f'"key";r={left};t=')
        assert ('"publica";q=100;w=60' in headers["RateLimit-Policy"]) == (wire == "publica")
    status, headers, answered = await call(client.key)
    assert (status, headers["X-Error-Code"]) == (429, "too_many_calls")
    assert 0 < int(headers["Retry-After"]) <= 60
    assert headers["RateLimit"] == f'"key";r=0;t={headers["Retry-After"]}'
    if wire == "2.0":
        assert answered["id"] == "a" and answered["error"]["code"] == -32029
        assert answered["error"]["data"]["retryable"] is True
        assert answered["error"]["data"]["retryAfter"] == int(headers["Retry-After"])
    else:
        assert answered == REFUSALS[wire]
    unlimited = await insert_key(db)
    await db.execute("UPDATE api_keys SET rate_per_minute = 0 WHERE digest = $1", digest(unlimited))
    for _ in range(4):
        status, headers, _ = await call(unlimited)
        assert status == 200 and "key" not in headers.get("RateLimit", "")


@pytest.mark.parametrize("wire", CALLS)
async def test_rates_of_an_instance(wire: str, serve: Serve, db: asyncpg.Connection) -> None:
    """All its keys share them, on every wire; another instance's keys and operators' have nothing of it."""
    client = await serve(key_rate_limit=50, instance_rate_limit=3)
    operator = client.using(await insert_key(db, operator=True))
    await operator.call("createInstance", {"name": "OTHER", "admin": {"email": ADMIN}})
    verb, address, header, body = CALLS[wire]

    async def call(key: str) -> tuple[int, dict[str, str], Any]:
        async with client.http.request(
            verb, client.url + address, headers={header: key}, json=body
        ) as response:
            text = await response.read()
            return response.status, dict(response.headers), orjson.loads(text) if text else None

    for key, left in ((client.key, 2), (await insert_key(db), 1), (client.key, 0)):
        status, headers, _ = await call(key)
        assert status == 200
        assert headers["RateLimit-Policy"].startswith('"key";q=50;w=60, "instance";q=3;w=60')
        assert f', "instance";r={left};t=' in headers["RateLimit"]
    status, headers, answered = await call(await insert_key(db))
    assert (status, headers["X-Error-Code"]) == (429, "too_many_calls")
    assert headers["RateLimit"].endswith(f', "instance";r=0;t={headers["Retry-After"]}')
    assert answered == REFUSALS[wire] if wire != "2.0" else answered["error"]["code"] == -32029
    others = client.using(await insert_key(db, instances=("OTHER",)))
    for _ in range(3):
        await others.call("getUserByEmail", LOOK_UP)
    for _ in range(5):
        await operator.call("getUserByEmail", LOOK_UP | MINE)


async def test_an_instance_with_a_rate_of_its_own(client: Client, operator: Client) -> None:
    """By default there is one that is out of most callers' way. An operator sets another, or none."""
    look_up = {"method": "getUserByEmail", "params": LOOK_UP}
    for rate, policy in (
        (None, '"instance";q=30000;w=60'), (2, '"instance";q=2;w=60'), (0, None), (60, '"instance";q=60;w=60'),
    ):  # fmt: skip
        await operator.call("updateInstance", MINE | {"settings": {"ratePerMinute": rate}})
        assert (await operator.call("getInstance", MINE))["settings"]["ratePerMinute"] == rate
        async with await client.post(look_up) as response:
            assert response.headers.get("RateLimit-Policy") == policy
    bad = (-1, 2**31, "5", 1.5, True)
    for rate in bad:
        change = MINE | {"settings": {"ratePerMinute": rate}}
        assert (await operator.outcome("updateInstance", change))[0] == 400


async def test_each_item_of_a_batch_counts_for_the_instance(serve: Serve) -> None:
    client = await serve(instance_rate_limit=3)
    look_up = {"jsonrpc": "2.0", "method": "getUserByEmail", "params": LOOK_UP}
    async with await client.post([look_up | {"id": number} for number in range(5)]) as response:
        answers = await response.json()
    assert ["error" in answer for answer in answers] == [False] * 3 + [True] * 2


async def test_wires_share_the_rate(serve: Serve) -> None:
    client = await serve(key_rate_limit=2)
    await client.call("getUserByEmail", LOOK_UP)
    async with client.http.get(
        f"{client.url}/main-app/user/exists?login={ADMIN}", headers={"Token": client.key}
    ) as response:
        assert response.status == 200
    before_bad_json = await client.post(b"{")
    assert before_bad_json.status == 429  # broken JSON counts too


async def test_no_rate_and_no_headers_without_limits(serve: Serve) -> None:
    client = await serve(instance_rate_limit=0)
    for _ in range(3):
        async with await client.post({"method": "getUserByEmail", "params": LOOK_UP}) as response:
            assert response.status == 200 and "RateLimit" not in response.headers


async def test_what_is_refused_does_nothing(serve: Serve, db: asyncpg.Connection) -> None:
    client = await serve(key_rate_limit=1)
    await client.call("getUserByEmail", LOOK_UP)
    before = await footprint(db)
    assert await client.outcome("createUser", {"email": "x@example.com"}) == (429, MESSAGE)
    assert await footprint(db) == before


async def test_each_item_of_a_batch_is_a_call(serve: Serve, db: asyncpg.Connection) -> None:
    """Those beyond the rate are refused; with nothing left, the whole batch is."""
    client = await serve(key_rate_limit=3)
    look_up = {"jsonrpc": "2.0", "method": "getUserByEmail", "params": LOOK_UP}
    create = {"jsonrpc": "2.0", "method": "createUser", "params": {"email": "x@example.com"}, "id": 4}
    batch = [look_up | {"id": 1}, look_up, look_up | {"id": 3}, create, create | {"id": 5}, look_up, 7]
    async with await client.post(batch) as response:
        assert response.status == 200
        answers = await response.json()
        assert response.headers["RateLimit"].startswith('"key";r=0;')
    assert [(answer["id"], "error" in answer) for answer in answers] == [
        (1, False), (3, False), (4, True), (5, True), (None, True),
    ]  # fmt: skip
    assert {answer["error"]["code"] for answer in answers[2:]} == {-32029}
    async with await client.post(batch) as response:
        assert (response.status, response.headers["X-Error-Code"]) == (429, "too_many_calls")
        assert (await response.json())["id"] is None
    assert await db.fetchval("SELECT count(*) FROM users") == 1


@pytest.mark.parametrize(
    "body",
    [b'"text"', b"1", b"null", b"[]", b"[" + b"1," * 100 + b"1]", b"{", b"x" * 2**21,
     b'{"method": "setAvatarByEmail", "pad": "' + b"x" * 2**20 + b'"'],
    ids=["string", "number", "null", "empty", "long", "broken", "large", "large and broken"],
)  # fmt: skip
async def test_what_is_no_call_counts_as_one(body: bytes, serve: Serve) -> None:
    client = await serve(key_rate_limit=1)
    async with await client.post(io.BytesIO(body)) as response:
        assert response.status in (200, 400, 413)
        assert response.headers["RateLimit"].startswith('"key";r=0;')
    assert await client.outcome("getUserByEmail", LOOK_UP) == (429, MESSAGE)


async def test_what_is_no_call_is_refused_beyond_the_rate(serve: Serve) -> None:
    client = await serve(key_rate_limit=1)
    await client.call("getUserByEmail", LOOK_UP)
    for body in (b'"text"', b"[]", b"[" + b"1," * 100 + b"1]", b"{"):
        async with await client.post(body) as response:
            assert (response.status, response.headers["X-Error-Code"]) == (429, "too_many_calls")


async def test_a_key_that_an_operator_made_faster_makes_keys(serve: Serve, db: asyncpg.Connection) -> None:
    """As fast as itself or slower, whatever the server's own setting is."""
    client = await serve(key_rate_limit=100)
    operator = client.using(await insert_key(db, operator=True))
    shop = {"name": "shop", "scopes": ["users:read", "keys:write"]}
    fast = await operator.call("createApiKey", shop | MINE | {"ratePerMinute": 500})
    fast_client = client.using(fast["key"])
    assert (await fast_client.call("createApiKey", shop))["ratePerMinute"] == 500
    assert (await fast_client.call("createApiKey", shop | {"ratePerMinute": 400}))["ratePerMinute"] == 400
    for rate in (0, 501):
        assert (await fast_client.outcome("createApiKey", shop | {"ratePerMinute": rate}))[0] == 403
    assert (await client.outcome("rotateApiKey", {"id": fast["id"]})) == (403, "not-allowed")
    slow = await client.call("createApiKey", shop)
    assert (await fast_client.call("rotateApiKey", {"id": slow["id"]}))["ratePerMinute"] is None


async def test_rates_of_keys_are_kept_and_changed(
    serve: Serve, db: asyncpg.Connection, database_url: str
) -> None:
    """A key makes none that may call more often than itself; an operator does, and rotation keeps it."""
    client = await serve(key_rate_limit=100)
    operator = client.using(await insert_key(db, operator=True))
    shop = {"name": "shop", "scopes": ["users:read", "keys:read", "keys:write"]}
    denied = (403, "not-allowed")
    assert (await client.call("createApiKey", shop))["ratePerMinute"] is None
    for rate in (0, 101):
        assert await client.outcome("createApiKey", shop | {"ratePerMinute": rate}) == denied
    made = await client.call("createApiKey", shop | {"ratePerMinute": 50})
    child = await client.using(made["key"]).call("createApiKey", shop)
    assert (made["ratePerMinute"], child["ratePerMinute"]) == (50, 50)
    listed = {key["id"]: key["ratePerMinute"] for key in await client.call("listApiKeys")}
    assert (listed[made["id"]], listed[child["id"]]) == (50, 50)
    change = {"id": made["id"]}
    assert await client.call("updateApiKey", change | {"ratePerMinute": 20, "name": "small shop"}) is True
    for rate in (None, 0, 21):
        assert await client.outcome("updateApiKey", change | {"ratePerMinute": rate}) == denied
    assert await client.outcome("updateApiKey", {"id": 999, "name": "x"}) == (400, "not found")
    assert (await client.outcome("updateApiKey", change))[0] == 400
    rotated = await client.call("rotateApiKey", change)
    assert (rotated["ratePerMinute"], rotated["name"]) == (20, "small shop")
    await operator.call("updateApiKey", {"id": rotated["id"], "ratePerMinute": 500})
    async with await client.using(rotated["key"]).post(
        {"method": "getUserByEmail", "params": LOOK_UP}
    ) as response:
        assert response.headers["RateLimit-Policy"] == '"key";q=500;w=60, "instance";q=30000;w=60'


# --- seats ----------------------------------------------------------------------------------------------

FULL = (400, "the instance has no seat left (maxUsers)")


async def test_seats(client: Client, operator: Client, db: asyncpg.Connection) -> None:
    """Suspended users have one, deleted ones do not; every way of making a user is bound by them."""
    await operator.call("updateInstance", MINE | {"settings": {"maxUsers": 3}})
    for name in ("one", "two"):
        await client.call("createUser", {"email": f"{name}@example.com"})
    await client.call("updateUserByEmail", {"email": "one@example.com", "isActive": False})
    shown = await client.call("getInstance")
    assert (shown["users"], shown["maxUsers"], shown["settings"]["maxUsers"]) == (3, 3, 3)
    member = {"login": "x@example.com", "sponsorId": 1, "profile": {"firstname": "X", "lastname": "Y"}}
    before = await footprint(db)
    assert await client.outcome("createUser", {"email": "x@example.com"}) == FULL
    assert await client.outcome("createMember", member) == FULL
    assert await client.outcome("createStoreUser", {"email": "x@example.com", "externalId": "x"}) == FULL
    assert await client.call("validateUser", {"email": "x@example.com"}) == {
        "valid": False, "failures": [{"field": "params", "message": FULL[1]}],
    }  # fmt: skip
    assert await footprint(db) == before
    await client.call("deleteUserByEmail", {"email": "two@example.com"})
    await client.call("createUser", {"email": "x@example.com"})
    assert await client.outcome("restoreUserByEmail", {"email": "two@example.com"}) == FULL
    lower = await operator.outcome("updateInstance", MINE | {"settings": {"maxUsers": 2}})
    assert lower == (400, "settings.maxUsers: must not be less than the 3 users that there are")
    await operator.call("updateInstance", MINE | {"settings": {"maxUsers": 4}})
    await operator.call("updateInstance", MINE | {"title": "Mine"})
    await client.call("restoreUserByEmail", {"email": "two@example.com"})
    assert await client.outcome("createUser", {"email": "y@example.com"}) == FULL
    await operator.call("updateInstance", MINE | {"settings": {"maxUsers": None}})
    await client.call("createUser", {"email": "y@example.com"})


async def test_seats_on_other_wires(client: Client, operator: Client) -> None:
    await operator.call("updateInstance", MINE | {"settings": {"maxUsers": 1}})
    async with client.http.post(
        client.url + "/Provisioning/MYINSTANCE/User/",
        json={"EmailAddress": "x@example.com", "Password": "x"},
        headers={"ProvisioningKey": client.key},
    ) as response:
        assert response.status == 400
        assert await response.json() == [{"MemberNames": [], "ErrorMessage": FULL[1]}]
    async with client.http.post(
        client.url + "/integration-api/v1/dashboard/users",
        json={"email": "x@example.com", "external_id": "x"},
        headers={"X-User-Token": client.key},
    ) as response:
        assert response.status == 422
        assert (await response.json())["errors"] == {"params": [FULL[1] + "."]}


async def test_twenty_parallel_creations_at_the_last_seat(
    client: Client, operator: Client, db: asyncpg.Connection
) -> None:
    await operator.call("updateInstance", MINE | {"settings": {"maxUsers": 2}})
    outcomes = await asyncio.gather(
        *(client.outcome("createUser", {"email": f"u{n}@example.com"}) for n in range(20))
    )
    assert sorted(status for status, _ in outcomes) == [200] + [400] * 19
    assert [outcome for outcome in outcomes if outcome[0] != 200] == [FULL] * 19
    assert await db.fetchval("SELECT count(*) FROM users") == 2
    assert await db.fetchval("SELECT count(*) FROM mailboxes") == 12


async def test_an_instance_is_made_with_seats(operator: Client) -> None:
    made = {"name": "SMALL", "admin": {"email": "boss@small.example"}, "settings": {"maxUsers": 1}}
    await operator.call("createInstance", made)
    assert await operator.outcome("createUser", {"instance": "SMALL", "email": "x@small.example"}) == FULL
    for seats in (0, -1, 2**53, "3", 1.5):
        assert (await operator.outcome("createInstance", made | {"settings": {"maxUsers": seats}}))[0] == 400


# --- quotas ---------------------------------------------------------------------------------------------


def quotas(mail: int | None, files: int | None, *, mail_own: bool, files_own: bool) -> dict[str, Any]:
    return {
        "mail": {"limit": mail, "isDefault": not mail_own}, "files": {"limit": files, "isDefault": not files_own},
    }  # fmt: skip


async def test_quotas(client: Client, operator: Client) -> None:
    """A user's own, or the instance's; one is changed without the other."""
    jane = {"email": "jane@example.com"}
    await client.call("createUser", jane | {"quotas": {"mail": 2048}})
    assert await client.call("getQuotasByEmail", jane) == quotas(2048, None, mail_own=True, files_own=False)
    await operator.call("updateInstance", MINE | {"settings": {"defaultQuotas": {"mail": 1, "files": 500}}})
    assert await client.call("getQuotasByEmail", jane) == quotas(2048, 500, mail_own=True, files_own=False)
    await client.call("updateUserByEmail", jane | {"quotas": {"files": 0}})
    assert await client.call("getQuotasByEmail", jane) == quotas(2048, 0, mail_own=True, files_own=True)
    await client.call("updateUserByEmail", jane | {"quotas": {"mail": None}})
    await operator.call("updateInstance", MINE | {"settings": {"defaultQuotas": {"mail": None}}})
    assert await client.call("getQuotasByEmail", jane) == quotas(None, 0, mail_own=False, files_own=True)
    assert await client.outcome("getQuotasByEmail", {"email": "nobody@example.com"}) == (400, "not found")
    assert "quotas" not in await client.call("getUserByEmail", jane)


@pytest.mark.parametrize("bad", [{"mail": -1}, {"mail": 2**31}, {"files": "1"}, {"disk": 1}, 5])
async def test_bad_quotas(bad: Any, client: Client, db: asyncpg.Connection) -> None:
    before = await footprint(db)
    assert (await client.outcome("createUser", {"email": "x@example.com", "quotas": bad}))[0] == 400
    assert (await client.outcome("updateUserByEmail", LOOK_UP | {"quotas": bad}))[0] == 400
    assert await footprint(db) == before


# --- failed logins --------------------------------------------------------------------------------------

WRONG = (400, "Login or password is incorrect")
DELAYED = (429, "too many failed logins, try again later")


async def wait_over(db: asyncpg.Connection, seconds: int) -> None:
    """As if so many seconds had gone by."""
    await db.execute(
        "UPDATE login_failures SET forgiven_at = forgiven_at - make_interval(secs => $1),"
        " delayed_until = delayed_until - make_interval(secs => $1)",
        seconds,
    )


LONG = 600


async def stretch(db: asyncpg.Connection, seconds: int = LONG) -> None:
    """Make delays longer, so that a slow machine does not outlast them."""
    await db.execute(
        "UPDATE login_failures SET delayed_until = delayed_until + make_interval(secs => $1)", seconds
    )


async def check_delay(
    client: Client, db: asyncpg.Connection, method: str, params: dict[str, Any], seconds: int
) -> None:
    """A login is told to wait for so many seconds, or a few less that have gone by."""
    await stretch(db)
    async with await client.post({"method": method, "params": params}) as response:
        assert (response.status, await response.json()) == DELAYED
        assert response.headers["X-Error-Code"] == "login_delayed"
        assert seconds - 10 < int(response.headers["Retry-After"]) - LONG <= seconds
    await stretch(db, -LONG)


HERE, THERE = {"clientAddress": "198.51.100.1"}, {"clientAddress": "192.0.2.7"}
UP_TO_FOUR = (1, 2, 4, 4, 4)
UP_TO_A_QUARTER = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900)


@pytest.mark.parametrize(("where", "delays"), [({}, UP_TO_FOUR), (HERE, UP_TO_A_QUARTER)])
@pytest.mark.parametrize("login", ["jane@example.com", "nobody@example.com"])
async def test_delays_grow_for_an_account(
    login: str,
    where: dict[str, str],
    delays: tuple[int, ...],
    client: Client,
    jane: dict[str, Any],
    db: asyncpg.Connection,
) -> None:
    """From the fifth failure on, the same for an account that is none; checkAuth counts with login."""
    for _ in range(4):
        assert await client.outcome("login", {"email": login, "password": "wrong"} | where) == WRONG
    wrong = {"login": login.upper(), "password": "wrong"} | where
    assert await client.outcome("checkAuth", wrong) == WRONG
    for seconds in delays:
        right = {"login": login, "password": "demo1234"} | where
        await check_delay(client, db, "checkAuth", right, seconds)
        await wait_over(db, seconds)
        await db.execute(
            "UPDATE login_failures SET forgiven_at = forgiven_at + make_interval(secs => $1)", seconds
        )
        # What the address is delayed by for all accounts has a test of its own.
        await db.execute("UPDATE login_failures SET delayed_until = now() WHERE subject = $1", CLIENT_HERE)
        assert await client.outcome("login", {"email": login, "password": "wrong"} | where) == WRONG
    assert login.encode() not in b"".join(await db.fetchval("SELECT array_agg(subject) FROM login_failures"))


CLIENT_HERE = digest("client 198.51.100.1/32")


async def test_whoever_guesses_on_and_on_keeps_nobody_else_out(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    """At each end of its delay another guess: the owner waits no longer than four seconds, and gets in."""
    wrong = {"email": "jane@example.com", "password": "wrong"} | HERE
    right = {"email": "jane@example.com", "password": "demo1234"}
    for _ in range(40):
        status, _ = outcome = await client.outcome("login", wrong)
        assert outcome == (WRONG if status == 400 else DELAYED)
        await db.execute("UPDATE login_failures SET delayed_until = least(delayed_until, now())")
    assert await client.outcome("login", wrong) == WRONG
    await db.execute("UPDATE login_failures SET delayed_until = now() + interval '4 seconds'"
                     " WHERE delayed_until BETWEEN now() AND now() + interval '4 seconds'")  # fmt: skip
    await wait_over(db, 4)
    for owner in (THERE, {}):
        await client.call("login", right | owner)
        await client.call("checkAuth", {"login": right["email"], "password": "demo1234"} | owner)
    assert await client.outcome("login", wrong) == DELAYED
    await client.call("login", right | THERE)


async def test_a_right_password_is_refused_meanwhile_and_forgiving_afterwards(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    right = {"email": "jane@example.com", "password": "demo1234"}
    for _ in range(5):
        await client.outcome("login", right | {"password": "wrong"})
    sessions = await db.fetchval("SELECT count(*) FROM sessions")
    await check_delay(client, db, "login", right, 1)
    assert await db.fetchval("SELECT count(*) FROM sessions") == sessions
    await wait_over(db, 1)
    await client.call("login", right)
    for _ in range(4):
        assert await client.outcome("login", right | {"password": "wrong"}) == WRONG
    await client.call("login", right)


async def test_failures_are_forgiven_with_time(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    """One every quarter of an hour; nobody is locked out for good."""
    wrong = {"email": "jane@example.com", "password": "wrong"}
    for _ in range(4):
        await client.outcome("login", wrong)
    await wait_over(db, 2 * 900)
    for _ in range(2):
        assert await client.outcome("login", wrong) == WRONG
    assert await client.outcome("login", wrong) == WRONG
    await check_delay(client, db, "login", wrong, 1)
    await wait_over(db, 6 * 900)
    for _ in range(4):
        assert await client.outcome("login", wrong) == WRONG
    await client.call("login", wrong | {"password": "demo1234"})


async def test_guesses_sent_at_once_count_like_one_after_the_other(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    """Of forty, one is told that it is wrong; the right one is not told either, once a delay has begun."""
    wrong = {"email": "jane@example.com", "password": "wrong"}
    await client.outcome("login", wrong)
    await db.execute("UPDATE login_failures SET forgiven_at = now() + interval '3 hours'")
    outcomes = await asyncio.gather(*(client.outcome("login", wrong) for _ in range(40)))
    assert sorted(status for status, _ in outcomes) == [400] + [429] * 39
    assert await client.outcome("login", wrong | {"password": "demo1234"}) == DELAYED


async def test_right_logins_at_once_are_no_failures(client: Client, jane: dict[str, Any]) -> None:
    right = {"email": "jane@example.com", "password": "demo1234"}
    outcomes = await asyncio.gather(*(client.outcome("login", right) for _ in range(20)))
    assert {status for status, _ in outcomes} == {200}


async def test_failures_from_an_address(client: Client, jane: dict[str, Any], db: asyncpg.Connection) -> None:
    """Of any account; IPv6 by its /64. A right password of one account forgives nothing of the address."""
    right = {"login": "jane@example.com", "password": "demo1234"}
    for n in range(20):
        there = {"clientAddress": f"2001:db8:0:1::{n:x}"}
        guess = {"login": f"u{n}@example.com", "password": "x"} | there
        assert await client.outcome("checkAuth", guess) == WRONG
        if n == 10:
            await client.call("checkAuth", right | there)
    await check_delay(client, db, "checkAuth", right | {"clientAddress": "2001:db8:0:1:ffff::"}, 1)
    await stretch(db)
    token = {"token": "x" * 40, "clientAddress": "2001:db8:0:1::1"}
    assert await client.outcome("loginWithToken", token) == DELAYED
    for elsewhere in ({"clientAddress": "2001:db8:0:2::"}, {"clientAddress": "192.0.2.7"}, {}):
        await client.call("checkAuth", right | elsewhere)
    await wait_over(db, LONG + 1)
    await client.call("checkAuth", right | {"clientAddress": "2001:db8:0:1::"})


async def test_guessed_tokens_count_for_their_address(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    guess = {"token": "x" * 40, "clientAddress": "192.0.2.7"}
    right = {"email": "jane@example.com", "password": "demo1234"}
    token = (await client.call("login", right))["token"]
    for _ in range(20):
        assert await client.outcome("loginWithToken", guess) == WRONG
    mapped = {"clientAddress": "::ffff:192.0.2.7"}
    await check_delay(client, db, "loginWithToken", mapped | {"token": token}, 1)
    await stretch(db)
    assert await client.outcome("login", right | mapped) == DELAYED
    await client.call("loginWithToken", {"token": token})


async def test_the_callers_own_address_does_not_count(client: Client, jane: dict[str, Any]) -> None:
    """Behind it are all the users of a server: what one of them does keeps none of the others out."""
    for n in range(110):
        guess = {"login": f"u{n}@example.com", "password": "x"}
        assert await client.outcome("checkAuth", guess) == WRONG
        assert await client.outcome("loginWithToken", {"token": f"{n:040}"}) == WRONG
    await client.call("login", {"email": "jane@example.com", "password": "demo1234"})


async def test_another_tenant_has_failures_of_its_own(
    client: Client, other: Client, jane: dict[str, Any]
) -> None:
    for _ in range(6):
        await other.outcome("login", {"email": "jane@example.com", "password": "wrong"})
    await client.call("login", {"email": "jane@example.com", "password": "demo1234"})


async def test_a_delay_in_json_rpc(client: Client, db: asyncpg.Connection) -> None:
    params = {"email": ADMIN, "password": "wrong"}
    for _ in range(5):
        await client.outcome("login", params)
    await stretch(db)
    request = {"jsonrpc": "2.0", "method": "login", "params": params, "id": 1}
    async with await client.post(request) as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"], error["data"]["code"]) == (200, -32029, "login_delayed")
        assert error["data"]["retryable"] and error["data"]["retryAfter"] > LONG - 10


@pytest.mark.parametrize("bad", ["here", "", "192.0.2.7/24", "fe80::1%eth0", 5, "1" * 60])
async def test_bad_addresses(bad: Any, client: Client, db: asyncpg.Connection) -> None:
    login = {"email": ADMIN, "password": "x", "clientAddress": bad}
    assert (await client.outcome("login", login))[0] == 400
    assert await db.fetchval("SELECT count(*) FROM login_failures") == 0


async def test_a_delay_on_the_member_platforms_wire(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    guess = {"login": "jane@example.com", "password": "wrong"}
    for _ in range(6):
        await stretch(db)
        async with client.http.get(
            client.url + "/online-office/user/check-auth", params=guess,
            headers={"Token": client.key, "Locale": "ru_RU"},
        ) as response:  # fmt: skip
            status, answered = response.status, await response.json()
            retry = response.headers.get("Retry-After")
    assert (status, answered["errorCode"]) == (429, 429) and retry is not None
    assert answered["errorMessage"] == "Слишком много неудачных попыток входа, попробуйте позже"


async def test_client_addresses_on_the_member_platforms_wire(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    async def check(password: str, address: str) -> int:
        given = {"login": "jane@example.com", "password": password, "clientAddress": address}
        async with client.http.get(
            client.url + "/online-office/user/check-auth", params=given, headers={"Token": client.key}
        ) as response:
            return int((await response.json())["errorCode"])

    for _ in range(5):
        assert await check("wrong", "198.51.100.1") == 400
    await stretch(db)
    await db.execute("UPDATE login_failures SET delayed_until = now() WHERE subject = $1",
                     digest("account jane@example.com"))  # fmt: skip
    assert await check("demo1234", "198.51.100.1") == 429
    assert await check("demo1234", "192.0.2.7") == 0
    assert await check("demo1234", "here") == 400


async def test_failures_are_purged(client: Client, db: asyncpg.Connection, database_url: str) -> None:
    for _ in range(6):
        await client.outcome("login", {"email": ADMIN, "password": "x"} | HERE)
    database = client.dispatcher._database
    assert (await purge_expired(database, Settings()))["login_failures"] == 0
    await wait_over(db, 7 * 900)
    assert (await purge_expired(database, Settings()))["login_failures"] == 3


# --- common passwords -----------------------------------------------------------------------------------


def test_the_most_common_passwords() -> None:
    """Ten thousand, in any case and any spelling that NFKC makes one."""
    for common in ("123456", "password", "PassWord", "qwerty", "iloveyou", "\uff51werty"):
        assert is_common(common), common
    for rare in ("", "demo1234", "correct horse battery staple", "password "):
        assert not is_common(rare), rare


async def test_common_passwords_are_refused_where_the_policy_says_so(
    client: Client, operator: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    """By every method that sets one."""
    await client.call("resetPasswordByEmail", {"email": "jane@example.com", "password": "qwerty"})
    policy = {"settings": {"passwordPolicy": {"refuseCommon": True}}}
    await operator.call("updateInstance", MINE | policy)
    before, stored = await footprint(db), await db.fetch("SELECT * FROM credentials")
    profile = {"firstname": "X", "lastname": "Y"}
    created = {"name": "SAFE", "admin": {"email": "boss@safe.example", "password": "Password1"}}
    for who, method, params, member in (
        (client, "createUser", {"email": "x@example.com", "password": "Qwerty"}, "password"),
        (client, "resetPasswordByEmail", {"email": "jane@example.com", "password": "QWERTY"}, "password"),
        (client, "replaceUserByEmail", {"email": "jane@example.com", "password": "qwerty"}, "password"),
        (client, "setPassword", {"id": 2, "newPassword": "qwerty"}, "newPassword"),
        (client, "resetPasswordWithCode", {"code": "x", "newPassword": "qwerty"}, "newPassword"),
        (client, "createMember",
         {"login": "x@example.com", "sponsorId": 1, "profile": profile, "password": "qwerty"}, "password"),
        (client, "createStoreUser",
         {"email": "x@example.com", "externalId": "x", "newPassword": "password1"}, "newPassword"),
        (client, "updateStoreUser",
         {"id": 2, "email": "jane@example.com", "externalId": "x", "onlySeesReadable": True,
          "newPassword": "password1"}, "newPassword"),
        (operator, "createInstance", created | policy, "admin.password"),
    ):  # fmt: skip
        told = f"{member}: is one of the 10,000 most common passwords"
        assert await who.outcome(method, params) == (400, told), method
    assert await footprint(db) == before
    assert await db.fetch("SELECT * FROM credentials") == stored
    await client.call("createUser", {"email": "x@example.com", "password": "quite a rare one"})


async def test_a_right_password_forgives_nothing_during_a_delay(
    client: Client, db: asyncpg.Connection
) -> None:
    """Of many guesses that are sent at once the right one tells nothing, and what the others counted stays."""
    subjects = throttle.of_account("jane@example.com", "192.0.2.1")
    async with client.dispatcher._database.connection() as connection:
        for _ in range(5):
            await throttle.note_failure(connection.one, 1, subjects)
        counted = await db.fetch("SELECT * FROM login_failures ORDER BY subject")
        with pytest.raises(TooMany):
            await throttle.note_success(connection.one, 1, subjects, subjects)
    assert len(counted) == 2 and await db.fetch("SELECT * FROM login_failures ORDER BY subject") == counted
