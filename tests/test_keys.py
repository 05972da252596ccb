"""API keys: authentication, instances, scopes and expiry."""

import asyncio
import re

import asyncpg
import pytest
from conftest import ADMIN, Client, Serve, footprint, insert_key, until

from server.base.errors import Unauthenticated
from server.base.tokens import digest
from server.tenants.keys import KeyCache, checksum, looks_like_key, new_key
from server.tenants.principals import SCOPES

LOOK_UP = {"email": ADMIN}
DENIED, FORBIDDEN = (401, "not-allowed"), (403, "not-allowed")


def test_the_form_of_a_key() -> None:
    """A prefix that scanners find, 32 random characters (190 bits), a checksum that typos fail."""
    key = new_key()
    assert re.fullmatch(r"orpc_[0-9A-Za-z]{38}", key)
    assert key.endswith(checksum(key[:-6])) and looks_like_key(key)
    assert not looks_like_key(key[:-1] + ("0" if key[-1] != "0" else "1"))
    assert looks_like_key("one-that-an-operator-chose")
    assert len({new_key() for _ in range(1000)}) == 1000


async def test_who_is_not_let_in(client: Client, db: asyncpg.Connection) -> None:
    """Missing, mistyped, unknown, revoked and expired keys are answered alike."""
    revoked, expired = await insert_key(db), await insert_key(db)
    await db.execute("UPDATE api_keys SET revoked_at = now() WHERE digest = $1", digest(revoked))
    await db.execute("UPDATE api_keys SET expires_at = now() WHERE digest = $1", digest(expired))
    for key in ("", "nonsense", client.key[:-1], new_key(), revoked, expired):
        assert await client.using(key).outcome("getUserByEmail", LOOK_UP) == DENIED
    async with client.http.post(client.url + "/rpc", json={"method": "getUserByEmail"}) as response:
        assert (response.status, await response.json()) == DENIED


async def test_clear_keys_are_stored_nowhere(
    client: Client, operator: Client, db: asyncpg.Connection
) -> None:
    created = await client.call("createApiKey", {"name": "shop", "scopes": ["users:read"]})
    rows = await db.fetch("SELECT * FROM api_keys")
    assert created["key"] not in str([dict(row) for row in rows])
    assert created["key"] not in str(await operator.call("listApiKeys"))
    assert digest(created["key"]) in [row["digest"] for row in rows]


async def test_a_new_key_works_within_its_scopes(client: Client) -> None:
    created = await client.call("createApiKey", {"name": "shop", "scopes": ["users:read"]})
    assert created["instances"] == ["MYINSTANCE"]
    reader = client.using(created["key"])
    assert (await reader.call("getUserByEmail", LOOK_UP))["id"] == 1
    assert await reader.outcome("createUser", {"email": "x@example.com"}) == FORBIDDEN
    assert await reader.outcome("listApiKeys") == FORBIDDEN
    assert await reader.outcome("rpc.discover") == FORBIDDEN


@pytest.mark.parametrize(
    "params",
    [{"scopes": ["instances:write"]}, {"isOperator": True}, {"instances": ["MYINSTANCE"]},
     {"instances": ["OTHER"]}, {"instance": "OTHER"}],
)  # fmt: skip
async def test_nobody_makes_a_key_that_holds_more(
    params: dict[str, object], client: Client, other: Client
) -> None:
    given = {"name": "more", "scopes": ["users:read"]} | params
    assert await client.outcome("createApiKey", given) == FORBIDDEN


async def test_a_key_for_several_instances(operator: Client, other: Client) -> None:
    created = await operator.call(
        "createApiKey", {"name": "reseller", "scopes": ["users:read"], "instances": ["OTHER", "MYINSTANCE"]}
    )
    reseller = operator.using(created["key"])
    assert (await reseller.call("getUserByEmail", {"email": "boss@other.example"}))["instance"] == "OTHER"
    found = await reseller.call("getUserByEmail", LOOK_UP | {"instance": "MYINSTANCE"})
    assert found["instance"] == "MYINSTANCE"
    assert await reseller.outcome("getUserByEmail", LOOK_UP | {"instance": "NOWHERE"}) == FORBIDDEN
    assert await operator.outcome(
        "createApiKey", {"name": "x", "scopes": ["users:read"], "instances": ["MYINSTANCE", "NOWHERE"]}
    ) == (400, "instances.1: there is no such instance")


async def test_a_key_makes_none_that_outlives_it(client: Client) -> None:
    """Nor one that works from elsewhere."""
    bound = await client.call(
        "createApiKey",
        {
            "name": "bound",
            "scopes": ["users:read", "keys:write"],
            "expiresIn": 3600,
            "networks": ["127.0.0.0/8"],
        },
    )
    child = await client.using(bound["key"]).call("createApiKey", {"name": "child", "scopes": ["users:read"]})
    assert child["expiresAt"] <= bound["expiresAt"] and child["networks"] == ["127.0.0.0/8"]
    given = {"name": "child", "scopes": ["users:read"], "networks": ["10.0.0.0/8"]}
    assert await client.using(bound["key"]).outcome("createApiKey", given) == FORBIDDEN


async def test_an_operators_key(operator: Client, other: Client) -> None:
    """It holds every instance, names one in each call on users, and manages all keys."""
    assert await operator.outcome("getUserByEmail", LOOK_UP) == (
        400,
        "instance: is required: this key has no default",
    )
    assert (await operator.call("getUserByEmail", LOOK_UP | {"instance": "MYINSTANCE"}))["id"] == 1
    assert await operator.outcome("getUserByEmail", LOOK_UP | {"instance": "NOWHERE"}) == FORBIDDEN
    created = await operator.call(
        "createApiKey", {"name": "ops", "scopes": ["users:read"], "isOperator": True}
    )
    assert created["isOperator"] and created["instances"] == []
    assert {key["id"] for key in await operator.call("listApiKeys")} >= {created["id"]}
    theirs = await operator.call("listApiKeys", {"instance": "OTHER"})
    assert [key["instances"] for key in theirs] == [["OTHER"]]


async def test_tenants_see_and_manage_their_own_keys_alone(
    client: Client, other: Client, operator: Client, db: asyncpg.Connection
) -> None:
    shared = await operator.call(
        "createApiKey", {"name": "shared", "scopes": ["users:read"], "instances": ["MYINSTANCE", "OTHER"]}
    )
    mine = await client.call("createApiKey", {"name": "mine", "scopes": ["users:read"]})
    seen = await client.call("listApiKeys")
    assert mine["id"] in [key["id"] for key in seen]
    assert all(key["instances"] == ["MYINSTANCE"] and not key["isOperator"] for key in seen)
    assert shared["id"] not in [key["id"] for key in seen]
    for key_id in (mine["id"], shared["id"], 999):
        for method in ("revokeApiKey", "rotateApiKey"):
            assert await other.outcome(method, {"id": key_id}) == (400, "not found")
    assert await client.outcome("revokeApiKey", {"id": shared["id"]}) == (400, "not found")


async def test_revocation_bites_on_the_next_request(client: Client) -> None:
    created = await client.call("createApiKey", {"name": "shop", "scopes": ["users:read"]})
    shop = client.using(created["key"])
    await shop.call("getUserByEmail", LOOK_UP)
    assert await client.call("revokeApiKey", {"id": created["id"]}) is True
    assert await shop.outcome("getUserByEmail", LOOK_UP) == DENIED
    assert await client.outcome("revokeApiKey", {"id": created["id"]}) == (400, "not found")


async def test_revocation_by_another_worker(serve: Serve) -> None:
    """The other worker hears of it over the database and forgets what it remembered."""
    here, there = await serve(), await serve()
    created = await here.call("createApiKey", {"name": "shop", "scopes": ["users:read"]})
    shop_there = there.using(created["key"])
    await shop_there.call("getUserByEmail", LOOK_UP)
    await here.call("revokeApiKey", {"id": created["id"]})
    async with asyncio.timeout(10):
        while await shop_there.outcome("getUserByEmail", LOOK_UP) != DENIED:
            await asyncio.sleep(0.01)


async def test_rotation_overlaps(client: Client, db: asyncpg.Connection) -> None:
    old = await client.call(
        "createApiKey",
        {"name": "shop", "scopes": ["users:read"], "expiresIn": 86400, "networks": ["127.0.0.0/8"]},
    )
    new = await client.call("rotateApiKey", {"id": old["id"], "overlap": 60})
    assert new["key"] != old["key"]
    assert {name: new[name] for name in ("name", "scopes", "instances", "networks", "isOperator")} == {
        name: old[name] for name in ("name", "scopes", "instances", "networks", "isOperator")
    }
    assert abs(new["expiresAt"] - old["expiresAt"]) <= 1
    for key in (old["key"], new["key"]):
        await client.using(key).call("getUserByEmail", LOOK_UP)
    again = await client.call("rotateApiKey", {"id": new["id"], "overlap": 0})
    assert await client.using(new["key"]).outcome("getUserByEmail", LOOK_UP) == DENIED
    await client.using(again["key"]).call("getUserByEmail", LOOK_UP)


async def test_nobody_gets_more_by_rotating(client: Client, db: asyncpg.Connection, operator: Client) -> None:
    """A leaked key that is bound, brief and slow does not get the secret of one that is not."""
    scopes = {"scopes": ["users:read", "keys:write"]}
    bounds = {"networks": ["127.0.0.0/8"], "expiresIn": 3600, "ratePerMinute": 20}
    free = await client.call("createApiKey", {"name": "free"} | scopes)
    for bound, value in bounds.items():
        leaked = client.using(
            (await client.call("createApiKey", {"name": "leaked", bound: value} | scopes))["key"]
        )
        before = await footprint(db)
        assert await leaked.outcome("rotateApiKey", {"id": free["id"]}) == FORBIDDEN
        assert await footprint(db) == before
        wider = {"networks": ["126.0.0.0/7"], "expiresIn": 4000, "ratePerMinute": 21}[bound]
        wide = await client.call("createApiKey", {"name": "wide", bound: wider} | scopes)
        assert await leaked.outcome("rotateApiKey", {"id": wide["id"]}) == FORBIDDEN
        narrower = {"networks": ["127.0.0.0/9"], "expiresIn": 3000, "ratePerMinute": 19}[bound]
        narrow = await client.call("createApiKey", {"name": "narrow", bound: narrower} | scopes)
        await leaked.call("rotateApiKey", {"id": narrow["id"]})
        own = await leaked.call("createApiKey", {"name": "child"} | scopes)
        await leaked.call("rotateApiKey", {"id": own["id"]})
    bound_operator = await operator.call(
        "createApiKey",
        {"name": "ops", "isOperator": True, "networks": ["127.0.0.0/8"], "expiresIn": 3600} | scopes,
    )
    rotated = await client.using(bound_operator["key"]).call("rotateApiKey", {"id": free["id"]})
    assert rotated["expiresAt"] is None  # an operator's own end is not the tenant's


async def test_a_key_rotates_itself(client: Client) -> None:
    """The new one does not end with the overlap."""
    brief = {"name": "brief", "scopes": ["users:read", "keys:write"], "expiresIn": 86400}
    old = await client.call("createApiKey", brief)
    new = await client.using(old["key"]).call("rotateApiKey", {"id": old["id"], "overlap": 60})
    assert abs(new["expiresAt"] - old["expiresAt"]) <= 1
    await client.using(new["key"]).call("getUserByEmail", LOOK_UP)


async def test_a_tenants_audit_has_what_operators_do_to_its_keys(client: Client, operator: Client) -> None:
    """Named by no instance: the key's only one; what was, and what is."""
    made = await operator.call(
        "createApiKey", {"name": "shop", "scopes": ["users:read"], "instances": ["MYINSTANCE"]}
    )
    await operator.call("updateApiKey", {"id": made["id"], "name": "store", "ratePerMinute": 7})
    new = await operator.call("rotateApiKey", {"id": made["id"]})
    await operator.call("revokeApiKey", {"id": new["id"]})
    page = await client.call("listAuditEvents", {"limit": 4})
    told = {event["method"]: event for event in page["events"]}
    assert list(told) == ["revokeApiKey", "rotateApiKey", "updateApiKey", "createApiKey"]
    assert told["updateApiKey"]["before"] == {"id": made["id"], "name": "shop", "ratePerMinute": None}
    assert told["updateApiKey"]["after"] == {"name": "store", "ratePerMinute": 7}
    assert told["rotateApiKey"]["before"]["id"] == made["id"]
    assert told["rotateApiKey"]["after"]["id"] == told["revokeApiKey"]["before"]["id"] == new["id"]
    assert new["key"] not in str(page)


async def test_keys_of_several_instances_are_in_no_tenants_audit(
    client: Client, operator: Client, other: Client
) -> None:
    shared = await operator.call(
        "createApiKey", {"name": "shared", "scopes": ["users:read"], "instances": ["MYINSTANCE", "OTHER"]}
    )
    await operator.call("revokeApiKey", {"id": shared["id"]})
    for tenant in (client, other):
        assert "shared" not in str(await tenant.call("listAuditEvents"))


# --- scopes that a key lacks ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "params", "scope"),
    [
        ("createUser", {"email": "x@example.com"}, "users:write"),
        ("createInstance", {"name": "X", "admin": {"email": "x@x.example"}}, "instances:write"),
    ],
)
async def test_a_missing_scope_is_named(
    method: str, params: dict[str, object], scope: str, client: Client, db: asyncpg.Connection
) -> None:
    """In a header, and in what JSON-RPC 2.0 has for it; the body of the plain envelope is as it was."""
    reader = client.using(await insert_key(db, scopes=("users:read",)))
    async with await reader.post({"method": method, "params": params}) as response:
        assert (response.status, await response.json()) == FORBIDDEN
        assert response.headers["X-Required-Scope"] == scope
    item = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    named = [{"field": "scope", "message": f"needs {scope}"}]
    async with await reader.post(item) as response:
        error = (await response.json())["error"]
        assert (error["message"], error["data"]["fields"]) == ("not-allowed", named)
        assert response.headers["X-Required-Scope"] == scope
    async with await reader.post([item, item | {"method": "rpc.discover", "params": {}}]) as response:
        answers = await response.json()
        assert answers[0]["error"]["data"]["fields"] == named
        assert response.headers["X-Required-Scope"] == ", ".join(sorted((scope, "docs:read")))


async def test_a_missing_scope_of_a_member_is_named(client: Client, db: asyncpg.Connection) -> None:
    """Whether a member asks for it or the user that is changed."""
    writer = client.using(await insert_key(db, scopes=("users:read", "users:write")))
    for method, params, scope in (
        ("createUser", {"email": "x@example.com", "isAdmin": True}, "users:admin"),
        ("resetPasswordByEmail", LOOK_UP | {"password": "x"}, "users:admin"),
        ("updateUserByEmail", LOOK_UP | {"groups": ["A"]}, "groups:write"),
    ):
        async with await writer.post({"method": method, "params": params}) as response:
            assert (response.status, await response.json()) == FORBIDDEN, method
            assert response.headers["X-Required-Scope"] == scope


async def test_a_missing_scope_of_an_item_is_named(client: Client, db: asyncpg.Connection) -> None:
    writer = client.using(await insert_key(db, scopes=("users:read", "users:write")))
    items = [{"email": "x@example.com", "groups": ["A"]}, {"email": ADMIN, "isActive": False}]
    done = await writer.call("updateUsers", {"mode": "each", "users": items})
    assert [one["error"]["fields"] for one in done["results"]] == [
        [{"field": "scope", "message": f"needs {scope}"}] for scope in ("groups:write", "users:admin")
    ]


async def test_other_refusals_name_no_scope(client: Client, other: Client) -> None:
    for method, params in (
        ("getUserByEmail", LOOK_UP | {"instance": "OTHER"}),
        ("getUserByEmail", LOOK_UP | {"instance": "NOWHERE"}),
        ("createApiKey", {"name": "x", "scopes": ["users:read"], "isOperator": True}),
    ):
        async with await client.post({"method": method, "params": params}) as response:
            assert (response.status, await response.json()) == FORBIDDEN
            assert "X-Required-Scope" not in response.headers


@pytest.mark.parametrize(
    ("verb", "path", "body", "status"),
    [
        ("POST", "/online-office/user/change-language", {"authId": 1, "language": "ru"}, 200),
        ("DELETE", f"/Provisioning/MYINSTANCE/User/{ADMIN}/", None, 403),
        ("DELETE", "/integration-api/v1/dashboard/users/1", None, 403),
    ],
)
async def test_a_missing_scope_is_named_on_other_wires(
    verb: str, path: str, body: object, status: int, client: Client, db: asyncpg.Connection
) -> None:
    key = await insert_key(db, scopes=("users:read",))
    async with client.http.request(
        verb, client.url + path, json=body, headers={"x-api-key": key}
    ) as response:
        assert response.status == status
        assert response.headers["X-Required-Scope"] == "users:write"
        assert b"users:write" not in await response.read()


async def test_a_key_expires(client: Client, db: asyncpg.Connection) -> None:
    created = await client.call(
        "createApiKey", {"name": "brief", "scopes": ["users:read"], "expiresIn": 3600}
    )
    brief = client.using(created["key"])
    await brief.call("getUserByEmail", LOOK_UP)
    await db.execute("UPDATE api_keys SET expires_at = now() WHERE id = $1", created["id"])
    await db.execute("NOTIFY officerpc_keys")
    async with asyncio.timeout(10):
        while await brief.outcome("getUserByEmail", LOOK_UP) != DENIED:
            await asyncio.sleep(0.01)


async def test_source_networks(serve: Serve, db: asyncpg.Connection) -> None:
    """A key used from elsewhere is as good as unknown; X-Forwarded-For counts from our own proxies alone."""
    client = await serve()
    near = await insert_key(db, networks=("127.0.0.0/8",))
    far = await insert_key(db, networks=("192.0.2.0/24",))
    await client.using(near).call("getUserByEmail", LOOK_UP)
    forged = {"X-Forwarded-For": "192.0.2.7"}
    assert await client.using(far).outcome("getUserByEmail", LOOK_UP, headers=forged) == DENIED
    proxied = await serve(trusted_proxies=["127.0.0.0/8"])
    await proxied.using(far).call("getUserByEmail", LOOK_UP, headers=forged)
    lies = {"X-Forwarded-For": "192.0.2.7, 198.51.100.1"}
    assert await proxied.using(far).outcome("getUserByEmail", LOOK_UP, headers=lies) == DENIED
    assert (
        await proxied.using(far).outcome("getUserByEmail", LOOK_UP, headers={"X-Forwarded-For": "x"})
        == DENIED
    )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"scopes": []}, "scopes: must have at least 1 item after validation, not 0"),
        ({"scopes": ["everything"]}, f"scopes.0: must be one of {', '.join(SCOPES)}"),
        ({"networks": ["example.com"]}, "networks.0: is not a network such as 192.0.2.0/24"),
        ({"networks": ["192.0.2.1/24"]}, "networks.0: is not a network such as 192.0.2.0/24"),
        ({"expiresIn": 0}, "expiresIn: must be greater than or equal to 1"),
        (
            {"isOperator": True, "instance": "MYINSTANCE"},
            "params: give one of instance, instances and isOperator",
        ),
    ],
)
async def test_bad_keys(params: dict[str, object], message: str, client: Client) -> None:
    given = {"name": "bad", "scopes": ["users:read"]} | params
    assert await client.outcome("createApiKey", given) == (400, message)


async def test_every_scope_is_needed_by_something(client: Client) -> None:
    from server.methods.registry import METHODS

    needed = {method.scope for method in METHODS.values()}
    needed |= {scope for method in METHODS.values() for scope in method.member_scopes.values()}
    assert needed == set(SCOPES)


async def test_scopes_are_given_by_whoever_has_them(client: Client, db: asyncpg.Connection) -> None:
    """And never by a key that is bound to a network, or ends earlier, to one that is not."""
    weak = await client.call("createApiKey", {"name": "weak", "scopes": ["users:read"]})
    change = {"id": weak["id"], "scopes": ["users:read", "users:write"]}
    for made in (
        {"scopes": ["keys:write", "users:read"]},
        {"scopes": ["keys:write", "users:read", "users:write"], "networks": ["127.0.0.0/8"]},
        {"scopes": ["keys:write", "users:read", "users:write"], "expiresIn": 3600},
    ):
        key = await client.call("createApiKey", {"name": "middle"} | made)
        assert (await client.using(key["key"]).outcome("updateApiKey", change))[0] == 403
    assert await client.call("updateApiKey", change) is True
    stored = await db.fetchval("SELECT scopes FROM api_keys WHERE id = $1", weak["id"])
    assert stored == ["users:read", "users:write"]
    middle = await client.call(
        "createApiKey", {"name": "middle", "scopes": ["keys:write", "users:read", "users:write"]}
    )
    assert (
        await client.using(middle["key"]).call("updateApiKey", {"id": weak["id"], "scopes": ["users:read"]})
        is True
    )
    (event, *_) = (await client.call("listAuditEvents", {"method": "updateApiKey"}))["events"]
    assert (event["before"]["scopes"], event["after"]["scopes"]) == (
        ["users:read", "users:write"],
        ["users:read"],
    )


async def test_a_rotation_lets_the_old_key_live_no_longer(client: Client) -> None:
    """Its own end comes before that of the overlap."""
    made = await client.call("createApiKey", {"name": "shop", "scopes": ["users:read"], "expiresIn": 60})
    rotated = await client.call("rotateApiKey", {"id": made["id"], "overlap": 3600})
    ends = {key["id"]: key["expiresAt"] for key in await client.call("listApiKeys")}
    assert ends[made["id"]] == made["expiresAt"]
    assert ends[rotated["id"]] == rotated["expiresAt"] <= made["expiresAt"] + 1


async def test_keys_come_in_pages(client: Client) -> None:
    """Each page begins behind the last key of the page before."""
    for name in ("a", "b", "c"):
        await client.call("createApiKey", {"name": name, "scopes": ["users:read"]})
    ids = [key["id"] for key in await client.call("listApiKeys")]
    assert len(ids) == 4
    for limit in (1, 3, 4, 5):
        seen: list[int] = []
        while page := await client.call("listApiKeys", {"after": seen[-1] if seen else 0, "limit": limit}):
            assert len(page) <= limit
            seen += [key["id"] for key in page]
        assert seen == ids


async def test_nothing_is_remembered_without_hearing_of_changes(
    client: Client, db: asyncpg.Connection
) -> None:
    """While the line to the database is down, each call looks its key up."""
    keys = KeyCache(client.dispatcher._database, 10)
    key = await insert_key(db)
    assert (await keys.caller(key, None)).name == "test"
    await db.execute("UPDATE api_keys SET revoked_at = now() WHERE digest = $1", digest(key))
    with pytest.raises(Unauthenticated):
        await keys.caller(key, None)


async def test_a_key_is_not_remembered_past_its_end(client: Client, db: asyncpg.Connection) -> None:
    key = await insert_key(db)
    await db.execute(
        "UPDATE api_keys SET expires_at = now() + interval '2 seconds' WHERE digest = $1", digest(key)
    )
    assert (await client.using(key).outcome("getUserByEmail", {"email": ADMIN}))[0] == 200
    await until(lambda: db.fetchval("SELECT expires_at < now() FROM api_keys WHERE digest = $1", digest(key)))
    assert (await client.using(key).outcome("getUserByEmail", {"email": ADMIN}))[0] == 401
