"""The Workspace 365 document (seeds/002): every message as bytes over a socket."""

import asyncio
import io
import json
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import asyncpg
import pytest
from conftest import ADMIN, Client, Log, Serve, footprint, insert_key

from server.base.tokens import digest

KEY = "C7656554-85A2-4AFD-BAB7-18C71593C4D2"
USERONE = "userone@example.com"
NEW_USER = "\r\n".join(
    (
        "{",
        '  "EmailAddress": "userone@example.com",',
        '  "Password": "qwerty",',
        '  "FirstName": "User",',
        '  "LastName": "One",',
        '  "IsAdministrator": false,',
        '  "CreateInOffice365": false',
        "}",
    )
)
CHANGED_USER = "\r\n".join(
    (
        "{",
        '  "EmailAddress": "userone@example.com",',
        '  "Password": "qwert",',
        '  "FirstName": "User",',
        '  "LastName": "Once",',
        '  "IsAdministrator": false',
        "}",
    )
)


def message(request_line: str, body: str = "", length: int | None = None) -> bytes:
    """A message with the document's header lines, in its order.

    The document leaves out the blank before HTTP/1.1 where a path ends with an address, and the last part of
    the path in the example of validating a change: here both are there.
    """
    lines = [request_line, "Accept: application/json"]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    if body:
        lines.append("Content-Type: application/json")
    lines += ["Host: portal.workspace365.net", f"ProvisioningKey: {KEY}", "X-Requested-With: XMLHttpRequest"]
    return "\r\n".join([*lines, "", body]).encode()


BASE = "https://portal.workspace365.net/Provisioning/example/User/"
CREATE = message(f"POST {BASE} HTTP/1.1", NEW_USER, 176)
VALIDATE_NEW = message(f"POST {BASE}Validate/ HTTP/1.1", NEW_USER, 176)
UPDATE = message(f"PUT {BASE}userone@example.com/ HTTP/1.1", CHANGED_USER, 145)
VALIDATE_CHANGE = message(f"PUT {BASE}userone@example.com/Validate/ HTTP/1.1", CHANGED_USER, 145)
ACTIVATE = message(f"PUT {BASE}userone@example.com/Activate/ HTTP/1.1", length=0)
DEACTIVATE = message(f"PUT {BASE}userone@example.com/Deactivate/ HTTP/1.1", length=0)
DELETE = message(f"DELETE {BASE}userone@example.com/ HTTP/1.1")
DOCUMENTED = {
    "POST": CREATE, "POST Validate": VALIDATE_NEW, "PUT": UPDATE, "PUT Validate": VALIDATE_CHANGE,
    "PUT Activate": ACTIVATE, "PUT Deactivate": DEACTIVATE, "DELETE": DELETE,
}  # fmt: skip


class Answer(NamedTuple):
    """What came back over the socket."""

    status: int
    headers: dict[str, str]
    body: bytes


class Portal:
    """A client of one environment, over a socket of its own for each message."""

    def __init__(self, client: Client, db: asyncpg.Connection) -> None:
        self.client, self.db = client, db

    async def send(self, sent: bytes) -> Answer:
        parts = urlsplit(self.client.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(sent)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
        headers.pop("ratelimit", None)  # counts down from answer to answer
        body = await reader.readexactly(int(headers["content-length"]))
        writer.close()
        await writer.wait_closed()
        return Answer(int(head[0].split()[1]), headers, body)

    async def request(
        self, verb: str, path: str, body: Any = None, *, key: str | None = KEY, headers: Any = None
    ) -> Answer:
        """A request as a modern client sends it; a body that is bytes goes as it is."""
        given = {"ProvisioningKey": key} if key is not None else {}
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        if data is not None:
            given["Content-Type"] = "application/json"
        stream = None if data is None else io.BytesIO(data)
        async with self.client.http.request(
            verb, self.client.url + "/Provisioning" + path, data=stream, headers=given | (headers or {})
        ) as response:
            found = {name.lower(): value for name, value in response.headers.items()}
            found.pop("ratelimit", None)
            return Answer(response.status, found, await response.read())

    async def failures(
        self, verb: str, path: str, body: Any = None, *, status: int = 400, **options: Any
    ) -> list[tuple[list[str], str]]:
        """The validation results of a request that must be refused; their form is checked."""
        answered = await self.request(verb, path, body, **options)
        assert (answered.status, answered.headers["content-type"]) == (status, "application/json")
        results = json.loads(answered.body)
        assert results and all(set(result) == {"MemberNames", "ErrorMessage"} for result in results)
        return [(result["MemberNames"], result["ErrorMessage"]) for result in results]


def nothing(answered: Answer, status: int) -> bool:
    """Whether an answer has this status, no body and the headers that every answer has."""
    assert answered.headers["cache-control"] == "no-store" and "x-request-id" in answered.headers
    assert "server" not in answered.headers
    expected = (status, b"", "0", False)
    return expected == (
        answered.status, answered.body, answered.headers["content-length"], "content-type" in answered.headers,
    )  # fmt: skip


async def key_like(db: asyncpg.Connection, text: str, *instances: str, **options: Any) -> None:
    """A key that its owner chose."""
    made = await insert_key(db, instances=instances or ("example",), **options)
    await db.execute("UPDATE api_keys SET digest = $2 WHERE digest = $1", digest(made), digest(text))


@pytest.fixture
async def portal(client: Client, operator: Client, db: asyncpg.Connection) -> Portal:
    """The document's key holds the document's environment, whose administrator is user 1."""
    await operator.call("createInstance", {"name": "example", "admin": {"email": "admin@example.com"}})
    await key_like(db, KEY)
    return Portal(client, db)


@pytest.fixture
async def userone(portal: Portal) -> Client:
    """The document's user is there; a client of /rpc with the same key."""
    assert (await portal.send(CREATE)).body == b"2"
    return portal.client.using(KEY)


async def test_create(portal: Portal) -> None:
    answered = await portal.send(CREATE)
    assert (answered.status, answered.body) == (200, b"2")
    assert answered.headers["content-type"] == "application/json"
    rpc = portal.client.using(KEY)
    user = await rpc.call("login", {"email": USERONE, "password": "qwerty"})
    assert (user["id"], user["displayName"], user["isAdmin"], user["inbox"]) == (2, "User One", False, 7)
    profile = {"firstname": "User", "lastname": "One", "email": USERONE}
    assert (await rpc.call("getUserById", {"id": 2}))["profile"] == profile
    found = await rpc.call("searchUsers", {"searchText": "user one"})
    assert [user["email"] for user in found["list"]] == [USERONE]


async def test_validating_creates_nothing(portal: Portal) -> None:
    before = await footprint(portal.db)
    answered = await portal.send(VALIDATE_NEW)
    assert (answered.status, answered.body, answered.headers["content-type"]) == (
        200,
        b"0",
        "application/json",
    )
    assert await footprint(portal.db) == before
    assert (await portal.send(CREATE)).status == 200  # what validates is accepted
    for taken in (VALIDATE_NEW, CREATE):
        answered = await portal.send(taken)
        assert answered.status == 400
        assert json.loads(answered.body) == [
            {"MemberNames": ["EmailAddress"], "ErrorMessage": "EmailAddress is taken by another user"}
        ]


async def test_update(portal: Portal, userone: Client) -> None:
    session = await userone.call("login", {"email": USERONE, "password": "qwerty"})
    assert nothing(await portal.send(UPDATE), 200)
    member = await userone.call("getUserById", {"id": 2})
    assert (member["fullname"], member["profile"]["lastname"]) == ("User Once", "Once")
    assert (await userone.call("getUserByEmail", {"email": USERONE}))["displayName"] == "User Once"
    assert (await userone.outcome("login", {"email": USERONE, "password": "qwerty"}))[0] == 400
    assert (await userone.outcome("loginWithToken", {"token": session["token"]}))[0] == 400
    assert (await userone.call("login", {"email": USERONE, "password": "qwert"}))["id"] == 2


async def test_validating_a_change_changes_nothing(portal: Portal, userone: Client) -> None:
    before = await userone.call("getUserById", {"id": 2})
    assert nothing(await portal.send(VALIDATE_CHANGE), 200)
    assert await userone.call("getUserById", {"id": 2}) == before
    await userone.call("login", {"email": USERONE, "password": "qwerty"})


async def test_activate_and_deactivate(portal: Portal, userone: Client) -> None:
    await userone.call("login", {"email": USERONE, "password": "qwerty"})
    for _ in range(2):
        assert nothing(await portal.send(DEACTIVATE), 200)
    assert (await userone.outcome("login", {"email": USERONE, "password": "qwerty"}))[0] == 400
    assert await portal.db.fetchval("SELECT count(*) FROM sessions") == 0
    for _ in range(2):
        assert nothing(await portal.send(ACTIVATE), 200)
    assert (await userone.call("login", {"email": USERONE, "password": "qwerty"}))["isActive"] is True


async def test_delete(portal: Portal, userone: Client) -> None:
    assert nothing(await portal.send(DELETE), 200)
    assert await userone.outcome("getUserByEmail", {"email": USERONE}) == (400, "not found")
    for sent in (DELETE, UPDATE, VALIDATE_CHANGE, ACTIVATE, DEACTIVATE):
        assert nothing(await portal.send(sent), 404)


@pytest.mark.parametrize("name", DOCUMENTED)
async def test_without_the_trailing_slash_and_without_the_tolerated_header(name: str, portal: Portal) -> None:
    if name not in ("POST", "POST Validate"):
        await portal.send(CREATE)
    bare = (
        DOCUMENTED[name]
        .replace(b"/ HTTP/1.1", b" HTTP/1.1")
        .replace(b"X-Requested-With: XMLHttpRequest\r\n", b"")
    )
    assert bare.count(b"\r\n") < DOCUMENTED[name].count(b"\r\n")
    assert (await portal.send(bare)).status == 200


@pytest.mark.parametrize("name", DOCUMENTED)
async def test_keys(name: str, portal: Portal, operator: Client) -> None:
    """No key, an unknown, a revoked and an expired one, one without the scope: 403, and nothing else to see."""
    if name not in ("POST", "POST Validate"):
        await portal.send(CREATE)
    await key_like(portal.db, "a-revoked-key-of-somebody")
    await key_like(portal.db, "an-expired-key-of-somebody")
    await key_like(portal.db, "a-key-without-any-scope", scopes=("docs:read",))
    await portal.db.execute(
        "UPDATE api_keys SET revoked_at = now() WHERE digest = $1", digest("a-revoked-key-of-somebody")
    )
    await portal.db.execute(
        "UPDATE api_keys SET expires_at = now() - interval '1 second' WHERE digest = $1",
        digest("an-expired-key-of-somebody"),
    )
    before, seen = await footprint(portal.db), set()
    for key in ("", "nonsense", "a-revoked-key-of-somebody", "an-expired-key-of-somebody"):
        answered = await portal.send(DOCUMENTED[name].replace(KEY.encode(), key.encode()))
        assert nothing(answered, 403)
        seen.add(
            tuple(
                (header, value)
                for header, value in answered.headers.items()
                if header not in ("x-request-id", "date")
            )
        )
    header = f"ProvisioningKey: {KEY}\r\n".encode()
    assert nothing(await portal.send(DOCUMENTED[name].replace(header, b"")), 403)
    assert len(seen) == 1
    assert nothing(await portal.send(DOCUMENTED[name].replace(KEY.encode(), b"a-key-without-any-scope")), 403)
    assert await footprint(portal.db) == before
    twice = DOCUMENTED[name].replace(header, header + header)
    assert json.loads((await portal.send(twice)).body) == [
        {"MemberNames": [], "ErrorMessage": "send one API key"}
    ]
    as_elsewhere = DOCUMENTED[name].replace(b"ProvisioningKey:", b"x-api-key:")
    assert (await portal.send(as_elsewhere)).status == 200


@pytest.mark.parametrize("name", DOCUMENTED)
async def test_provisioning_can_be_switched_off(name: str, portal: Portal, operator: Client) -> None:
    if name not in ("POST", "POST Validate"):
        await portal.send(CREATE)
    switch = {"instance": "example", "settings": {"provisioningEnabled": False}}
    await operator.call("updateInstance", switch)
    before = await footprint(portal.db)
    assert nothing(await portal.send(DOCUMENTED[name]), 403)
    assert await footprint(portal.db) == before
    switch["settings"] = {"provisioningEnabled": True}
    await operator.call("updateInstance", switch)
    assert (await portal.send(DOCUMENTED[name])).status == 200


@pytest.mark.parametrize("name", DOCUMENTED)
async def test_a_suspended_environment(name: str, portal: Portal, operator: Client) -> None:
    await operator.call("updateInstance", {"instance": "example", "isActive": False})
    assert nothing(await portal.send(DOCUMENTED[name]), 403)


@pytest.mark.parametrize("name", DOCUMENTED)
async def test_isolation(name: str, portal: Portal, operator: Client, other: Client) -> None:
    """For another tenant's key an environment is not there, be there one or not; its own has no such user."""
    await portal.send(CREATE)
    before = await footprint(portal.db)
    foreign = DOCUMENTED[name].replace(KEY.encode(), other.key.encode())
    nowhere = foreign.replace(b"/example/", b"/nowhere/")
    answers = [await portal.send(foreign), await portal.send(nowhere)]
    for answered in answers:
        assert nothing(answered, 404)
        for header in ("x-request-id", "date"):
            del answered.headers[header]
    assert answers[0] == answers[1]
    if name not in ("POST", "POST Validate"):
        assert nothing(await portal.send(foreign.replace(b"/example/", b"/OTHER/")), 404)
    operators = DOCUMENTED[name].replace(KEY.encode(), operator.key.encode())
    assert nothing(await portal.send(operators.replace(b"/example/", b"/nowhere/")), 404)
    assert await footprint(portal.db) == before


@pytest.mark.parametrize("sent", [ACTIVATE, DEACTIVATE], ids=["Activate", "Deactivate"])
async def test_content_length_is_required(sent: bytes, portal: Portal, userone: Client) -> None:
    updated = await portal.db.fetchval("SELECT updated_at FROM users WHERE email = $1", USERONE)
    assert nothing(await portal.send(sent.replace(b"Content-Length: 0\r\n", b"")), 411)
    chunked = sent.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"0\r\n\r\n"
    assert nothing(await portal.send(chunked), 411)
    assert await portal.db.fetchval("SELECT updated_at FROM users WHERE email = $1", USERONE) == updated


NEW = {"EmailAddress": "new@example.com"}
EMAIL, ALL = ["EmailAddress"], "/example/User/"
BAD: dict[str, tuple[str, str, Any, list[tuple[list[str], str]]]] = {
    "an empty object": ("POST", ALL, {}, [(EMAIL, "EmailAddress is required")]),
    "null members": ("POST", ALL, {"EmailAddress": None, "Password": None}, [(EMAIL, "EmailAddress is required")]),
    "no address": ("POST", ALL, {"EmailAddress": "userone"}, [(EMAIL, "EmailAddress is not a valid e-mail address")]),
    "everything at once": (
        "POST", ALL,
        {"EmailAddress": "ADMIN@example.com", "Password": "", "FirstName": 1, "LastName": "x" * 201,
         "IsAdministrator": "no", "CreateInOffice365": True, "isAdmin": True, "email": "x@example.com"},
        [
            (["isAdmin"], "isAdmin is not a member of this operation"),
            (["email"], "email is not a member of this operation"),
            (["Password"], "Password must have at least 1 character"),
            (["IsAdministrator"], "IsAdministrator must be true or false"),
            (["FirstName"], "FirstName must be a string"),
            (["LastName"], "LastName must have at most 200 characters"),
            (["CreateInOffice365"], "CreateInOffice365 is not possible: the instance has no Microsoft Graph credentials (office365)"),
            (EMAIL, "EmailAddress is taken by another user"),
        ],
    ),
    "a control character": ("POST", ALL, NEW | {"FirstName": "a\nb"}, [(["FirstName"], "FirstName holds control characters")]),
    "Office 365 without credentials": ("POST", ALL, NEW | {"CreateInOffice365": True}, [(["CreateInOffice365"], "CreateInOffice365 is not possible: the instance has no Microsoft Graph credentials (office365)")]),
    "a list": ("POST", ALL, [], [([], "the body must be an object")]),
    "no body": ("POST", ALL, b"", [([], "the body is not valid JSON")]),
    "broken JSON": ("POST", ALL, b'{"EmailAddress": ', [([], "the body is not valid JSON")]),
    "a member twice": ("POST", ALL, b'{"EmailAddress": "a@b.cd", "EmailAddress": "a@b.cd"}', [([], "the JSON names a member twice")]),
    "change nothing": ("PUT", ALL + USERONE + "/", {}, [([], "name at least one member to change")]),
    "change to a taken address": ("PUT", ALL + USERONE + "/", {"EmailAddress": "Admin@Example.com"}, [(EMAIL, "EmailAddress is taken by another user")]),
    "change to everything bad": (
        "PUT", ALL + USERONE + "/",
        {"EmailAddress": "@", "Password": 5, "FirstName": [], "LastName": {}, "IsAdministrator": 0, "CreateInOffice365": True},
        [
            (["CreateInOffice365"], "CreateInOffice365 is not a member of this operation"),
            (EMAIL, "EmailAddress must have at least 3 characters"),
            (["FirstName"], "FirstName must be a string"),
            (["LastName"], "LastName must be a string"),
            (["IsAdministrator"], "IsAdministrator must be true or false"),
            (["Password"], "Password must be a string"),
        ],
    ),
    "change with broken JSON": ("PUT", ALL + USERONE + "/", b"{", [([], "the body is not valid JSON")]),
}  # fmt: skip


@pytest.mark.parametrize("path", ["", "Validate/"])
@pytest.mark.parametrize("name", BAD)
async def test_bad_input_is_named_and_nothing_is_written(
    name: str, path: str, portal: Portal, userone: Client
) -> None:
    """By the call and by its validation alike."""
    verb, target, body, expected = BAD[name]
    before = await footprint(portal.db), await userone.call("getUserById", {"id": 2})
    assert await portal.failures(verb, target + path, body) == expected
    assert (await footprint(portal.db), await userone.call("getUserById", {"id": 2})) == before


async def test_bad_bodies(portal: Portal) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert await portal.failures("POST", ALL, b"EmailAddress=x", status=415, headers=form) == [
        ([], "send the body as Content-Type: application/json")
    ]
    large = b'{"EmailAddress": "' + b"x" * (1024 * 1024) + b'"}'
    assert await portal.failures("POST", ALL, large, status=413) == [([], "the body is too large")]


async def test_the_vendors_password_rule(portal: Portal, userone: Client, operator: Client) -> None:
    policy = {"passwordPolicy": {"minLength": 8, "minClasses": 3}}
    await operator.call("updateInstance", {"instance": "example", "settings": policy})
    short = [(["Password"], "Password must have at least 8 characters")]
    for path in ("", "Validate/"):
        assert await portal.failures("POST", ALL + path, NEW | {"Password": "qwerty"}) == short
        assert await portal.failures("PUT", f"{ALL}{USERONE}/{path}", {"Password": "qwert"}) == short
    assert (await portal.request("POST", ALL, NEW | {"Password": "Qwerty12"})).body == b"3"


@pytest.mark.parametrize(
    "path",
    [
        "/example/",
        "/example/User/x/y/",
        "/example/Group/",
        "//User/",
        "/example/User/none@example.com/Delete/",
    ],
)
async def test_addresses_that_are_none(path: str, portal: Portal) -> None:
    assert nothing(await portal.request("PUT", path, {}), 404)


@pytest.mark.parametrize(
    "email",
    ["none@example.com", "none", "x" * 300, "%00", "a%0Ab@example.com", "%E4@example.com", "%FF@example.com", "a%2Fb@example.com", "..%2f..", "'; --"],
)  # fmt: skip
async def test_users_that_are_none(email: str, portal: Portal) -> None:
    for verb, path, body in (
        ("PUT", "", {"FirstName": "x"}), ("PUT", "/Validate", {"FirstName": "x"}), ("DELETE", "", None),
        ("PUT", "/Activate", b""), ("PUT", "/Deactivate", b""),
    ):  # fmt: skip
        answered = await portal.request(verb, ALL + email + path, body)
        assert nothing(answered, 404), (verb, path)


async def test_other_verbs(portal: Portal) -> None:
    answered = await portal.request("GET", ALL)
    assert nothing(answered, 405) and answered.headers["allow"] == "POST"
    answered = await portal.request("PATCH", ALL + USERONE)
    assert nothing(answered, 405) and answered.headers["allow"] == "DELETE, PUT"


@pytest.mark.parametrize(
    ("email", "in_path"),
    [
        ("a+b@example.com", "a+b@example.com"),
        ("a+b@example.com", "a%2Bb%40example.com"),
        ("a+b@example.com", "A+B@EXAMPLE.com"),
        ("a/b@example.com", "a%2Fb@example.com"),
        ("a%b@example.com", "a%25b@example.com"),
        ("jürgen@bücher.example", "j%C3%BCrgen@b%C3%BCcher.example"),
        ("user@xn--bcher-kva.example", "user@b%C3%BCcher.example"),
    ],
)
async def test_addresses_in_paths(email: str, in_path: str, portal: Portal) -> None:
    assert (await portal.request("POST", ALL, {"EmailAddress": email})).body == b"2"
    sent = message(f"PUT /Provisioning/example/User/{in_path}/Deactivate/ HTTP/1.1", length=0)
    assert nothing(await portal.send(sent), 200)
    assert await portal.db.fetchval("SELECT is_active FROM users WHERE instance_id > 1 AND id = 2") is False
    assert nothing(await portal.send(message(f"DELETE /Provisioning/example/User/{in_path}/ HTTP/1.1")), 200)


async def test_what_a_change_leaves_out_stays(portal: Portal, userone: Client) -> None:
    path = ALL + USERONE + "/"
    await userone.call("login", {"email": USERONE, "password": "qwerty"})
    assert nothing(await portal.request("PUT", path, {"LastName": "Two", "Password": None}), 200)
    assert nothing(await portal.request("PUT", path, {"FirstName": ""}), 200)
    member = await userone.call("getUserById", {"id": 2})
    assert (member["fullname"], member["profile"]) == ("Two", {"lastname": "Two", "email": USERONE})
    assert await portal.db.fetchval("SELECT count(*) FROM sessions") == 1
    await userone.call("login", {"email": USERONE, "password": "qwerty"})


async def test_a_change_can_rename(portal: Portal, userone: Client) -> None:
    renamed = {"EmailAddress": "One@Example.com", "FirstName": "Uno"}
    assert nothing(await portal.request("PUT", ALL + USERONE, renamed), 200)
    found = await userone.call("getUserByEmail", {"email": "one@example.com"})
    assert (found["id"], found["email"], found["displayName"]) == (2, "One@example.com", "Uno One")
    assert nothing(await portal.request("PUT", ALL + USERONE, renamed), 404)
    # Another spelling of the same address is no other one.
    assert nothing(
        await portal.request("PUT", ALL + "one@example.com", {"EmailAddress": "ONE@example.com"}), 200
    )


async def test_a_renamed_users_codes_are_void(portal: Portal, userone: Client) -> None:
    for purpose in ("confirm", "reset"):
        await portal.db.execute(
            "INSERT INTO codes (instance_id, user_id, purpose, digest, expires_at)"
            " SELECT id, 2, $1, $2, now() + interval '1 day' FROM instances WHERE name = 'example'",
            purpose, digest(purpose),
        )  # fmt: skip
    kept = "SELECT array_agg(purpose ORDER BY purpose) FROM codes"
    same = {"EmailAddress": USERONE, "FirstName": "x"}
    assert nothing(await portal.request("PUT", ALL + USERONE, same), 200)
    assert await portal.db.fetchval(kept) == ["confirm", "reset"]
    assert nothing(await portal.request("PUT", ALL + USERONE, same | {"Password": "another"}), 200)
    assert await portal.db.fetchval(kept) == ["confirm"]
    assert nothing(await portal.request("PUT", ALL + USERONE, {"EmailAddress": "one@example.com"}), 200)
    assert await portal.db.fetchval(kept) is None


async def test_administrators_need_a_scope_of_their_own(portal: Portal, userone: Client) -> None:
    """But saying what is so already does not."""
    await key_like(portal.db, "a-shop-with-few-rights", scopes=("users:read", "users:write"))
    shop: dict[str, Any] = {"key": "a-shop-with-few-rights"}
    before = await footprint(portal.db)
    admin = {"IsAdministrator": True}
    for path in (ALL, ALL + "Validate"):
        assert await portal.failures("POST", path, NEW | admin, **shop) == [
            (["IsAdministrator"], "IsAdministrator true needs the scope users:admin")
        ]
    taking_over = {"EmailAddress": "mine@example.com", "Password": "another"}
    for end in ("", "/Validate"):
        assert await portal.failures("PUT", ALL + USERONE + end, admin | {"FirstName": "x"}, **shop) == [
            (["IsAdministrator"], "IsAdministrator a change needs the scope users:admin")
        ]
        assert await portal.failures("PUT", ALL + ADMIN + end, taking_over, **shop) == [
            (["Password"], "Password of an administrator needs the scope users:admin"),
            (["EmailAddress"], "EmailAddress of an administrator needs the scope users:admin"),
        ]
    assert nothing(await portal.request("DELETE", ALL + ADMIN, **shop), 403)
    assert await footprint(portal.db) == before
    assert (await userone.call("getUserByEmail", {"email": USERONE}))["displayName"] == "User One"
    assert nothing(await portal.request("PUT", ALL + USERONE, {"IsAdministrator": False}, **shop), 200)
    assert nothing(await portal.request("PUT", ALL + ADMIN, {"IsAdministrator": True}, **shop), 200)
    assert nothing(await portal.request("PUT", ALL + USERONE, admin), 200)
    assert (await userone.call("getUserByEmail", {"email": USERONE}))["isAdmin"] is True


async def test_a_key_that_may_not_look_is_told_of_one_reason(portal: Portal, userone: Client) -> None:
    await key_like(portal.db, "a-shop-that-only-writes", scopes=("users:write",))
    shop: dict[str, Any] = {"key": "a-shop-that-only-writes"}
    taken = [(EMAIL, "EmailAddress is taken by another user")]
    assert await portal.failures("POST", ALL, {"EmailAddress": USERONE}, **shop) == taken
    assert await portal.failures("PUT", ALL + USERONE, {"EmailAddress": ADMIN}, **shop) == taken
    assert nothing(await portal.request("POST", ALL + "Validate", NEW, **shop), 403)
    unknown = [(["Groups"], "Groups is not a member of this operation")]
    assert await portal.failures("POST", ALL, NEW | {"Groups": []}, **shop) == unknown
    assert await portal.failures("PUT", ALL + USERONE, {"Groups": []}, **shop) == unknown
    assert nothing(await portal.request("POST", ALL + "Validate", NEW | {"Groups": []}, **shop), 403)
    # What its key has no right to is told to nobody.
    admin = {"IsAdministrator": True}
    assert nothing(await portal.request("POST", ALL, NEW | admin, **shop), 403)
    await key_like(portal.db, "a-shop-that-only-reads", scopes=("users:read",))
    reader: dict[str, Any] = {"key": "a-shop-that-only-reads"}
    assert nothing(await portal.request("POST", ALL, NEW | admin, **reader), 403)
    assert nothing(await portal.request("POST", ALL, {"EmailAddress": USERONE}, **reader), 403)


async def test_one_of_many_at_once_gets_the_address(portal: Portal) -> None:
    answers = await asyncio.gather(*(portal.request("POST", ALL, NEW) for _ in range(10)))
    assert sorted(answered.status for answered in answers) == [200] + [400] * 9


async def test_nothing_of_the_body_is_logged(portal: Portal, logged: Log) -> None:
    await portal.send(CREATE)
    await portal.failures("POST", ALL, {"EmailAddress": "x", "Password": "qwerty-too"})
    assert b"qwerty" not in logged.text and KEY.encode() not in logged.text and b"userone" not in logged.text


async def test_a_database_that_is_away(serve: Serve, db: asyncpg.Connection) -> None:
    nobody = "postgresql://postgres@127.0.0.1:1/none"
    portal = Portal(await serve(url=nobody, run_jobs=False), db)
    answered = await portal.send(CREATE)
    assert nothing(answered, 503) and int(answered.headers["retry-after"]) > 0


# --- environments ---------------------------------------------------------------------------------------

ENVIRONMENT = {
    "EnvironmentName": "Café  One!", "EmailAddress": "admin@one.example", "Password": "qwerty",
    "FirstName": "Admin", "LastName": "-",
}  # fmt: skip


class Operator(Portal):
    """A client with an operator's key."""

    async def request(self, verb: str, path: str, body: Any = None, **options: Any) -> Answer:
        return await super().request(verb, path, body, **{"key": self.client.key} | options)


@pytest.fixture
async def ops(operator: Client, db: asyncpg.Connection) -> Operator:
    return Operator(operator, db)


async def test_create_an_environment(ops: Operator) -> None:
    before = await footprint(ops.db)
    for slash in ("", "/"):
        answered = await ops.request("POST", "/Environment/Validate" + slash, ENVIRONMENT)
        assert (answered.status, answered.body) == (200, b'"cafe-one"')
    assert await footprint(ops.db) == before
    answered = await ops.request("POST", "/Environment/", ENVIRONMENT)
    assert (answered.status, answered.body) == (200, b'"cafe-one"')
    assert answered.headers["content-type"] == "application/json"
    login = {"instance": "cafe-one", "email": "admin@one.example", "password": "qwerty"}
    admin = await ops.client.call("login", login)
    assert (admin["isAdmin"], admin["displayName"]) == (True, "Admin -")
    for path in ("/Environment/", "/Environment/Validate/"):
        assert await ops.failures("POST", path, ENVIRONMENT | {"EnvironmentName": "CAFE one"}) == [
            (["EnvironmentName"], "EnvironmentName is taken by another environment")
        ]
    assert (await ops.request("POST", "/cafe-one/User/", NEW)).body == b"2"


@pytest.mark.parametrize("path", ["/Environment/", "/Environment/Validate/"])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, [(["EnvironmentName"], "EnvironmentName is required"), (EMAIL, "EmailAddress is required")]),
        (
            {"EnvironmentName": " MyInstance ", "EmailAddress": "x", "Password": "", "FirstName": 1, "Title": "x"},
            [
                (["Title"], "Title is not a member of this operation"),
                (EMAIL, "EmailAddress must have at least 3 characters"),
                (["Password"], "Password must have at least 1 character"),
                (["FirstName"], "FirstName must be a string"),
            ],
        ),
        ({"EnvironmentName": "!?", "EmailAddress": ADMIN}, [(["EnvironmentName"], "EnvironmentName must match pattern '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'")]),
        ({"EnvironmentName": 5, "EmailAddress": ADMIN}, [(["EnvironmentName"], "EnvironmentName must be a string")]),
        ({"EnvironmentName": "Environment", "EmailAddress": ADMIN}, [(["EnvironmentName"], "EnvironmentName is reserved")]),
        (b"[", [([], "the body is not valid JSON")]),
    ],
)  # fmt: skip
async def test_bad_environments(path: str, body: Any, expected: Any, ops: Operator) -> None:
    before = await footprint(ops.db)
    assert await ops.failures("POST", path, body) == expected
    assert await footprint(ops.db) == before


async def test_look_at_environments(ops: Operator) -> None:
    mine = {"EnvironmentName": "MYINSTANCE", "IsActive": True}
    answered = await ops.request("GET", "/Environment/MYINSTANCE/")
    assert (answered.status, json.loads(answered.body)) == (200, mine)
    answered = await ops.request("GET", "/Environment/")
    assert (answered.status, json.loads(answered.body)) == (200, [mine])
    assert "link" not in answered.headers
    assert nothing(await ops.request("GET", "/Environment/nowhere"), 404)
    assert await ops.failures("GET", "/Environment/?after=$") == [
        (["after"], "after is not what a page gave as next")
    ]


@pytest.mark.damages
async def test_many_environments_come_in_pages(ops: Operator) -> None:
    await ops.db.execute(
        "INSERT INTO instances (name, title) SELECT 'e' || to_char(n, 'FM0000'), '' FROM generate_series(1, 1500) AS n"
    )
    first = await ops.request("GET", "/Environment/")
    address, _, rel = first.headers["link"].partition("; ")
    assert rel == 'rel="next"'
    second = await ops.request("GET", address.strip("<>").removeprefix("/Provisioning"))
    names = [found["EnvironmentName"] for page in (first, second) for found in json.loads(page.body)]
    assert names == ["MYINSTANCE", *(f"e{number:04}" for number in range(1, 1501))]
    assert "link" not in second.headers


async def test_activate_and_deactivate_an_environment(ops: Operator, portal: Portal) -> None:
    assert nothing(await ops.request("PUT", "/Environment/example/Deactivate/", b""), 200)
    assert nothing(await portal.send(CREATE), 403)
    assert json.loads((await ops.request("GET", "/Environment/example/")).body)["IsActive"] is False
    assert nothing(await ops.request("PUT", "/Environment/example/Activate/", b""), 200)
    assert (await portal.send(CREATE)).status == 200
    without = message("PUT /Provisioning/Environment/example/Deactivate/ HTTP/1.1")
    assert nothing(await portal.send(without.replace(KEY.encode(), ops.client.key.encode())), 411)
    for action in ("Activate", "Deactivate"):
        assert nothing(await ops.request("PUT", f"/Environment/nowhere/{action}/", b""), 404)


async def test_delete_an_environment(ops: Operator, portal: Portal, userone: Client) -> None:
    """Nothing gets there any more, its name can be taken, and its neighbours notice nothing."""
    both = portal.client.using(await insert_key(portal.db, instances=("MYINSTANCE", "example")))
    users = "SELECT count(*) FROM users"
    before = await portal.db.fetchval(users)
    assert nothing(await ops.request("DELETE", "/Environment/example/"), 200)
    for sent in (CREATE, UPDATE, DELETE):
        assert nothing(await portal.send(sent), 404)
    assert (await userone.outcome("getUserByEmail", {"email": USERONE}))[0] == 403
    assert (await both.outcome("getUserByEmail", {"email": USERONE, "instance": "example"}))[0] == 403
    await both.call("getUserByEmail", {"email": ADMIN})
    assert nothing(await ops.request("GET", "/Environment/example/"), 404)
    assert nothing(await ops.request("DELETE", "/Environment/example/"), 404)
    names = [found["name"] for found in (await ops.client.call("listInstances"))["instances"]]
    assert names == ["MYINSTANCE"]
    hidden = await portal.db.fetchval("SELECT name FROM instances WHERE deleted_at IS NOT NULL")
    assert (await ops.client.outcome("getInstance", {"instance": hidden}))[0] == 403
    assert await portal.db.fetchval(users) == before
    again = ENVIRONMENT | {"EnvironmentName": "example"}
    assert (await ops.request("POST", "/Environment/", again)).body == b'"example"'
    # The old key is not one of the new environment's.
    assert nothing(await portal.send(CREATE), 404)


async def test_environments_are_for_operators(portal: Portal) -> None:
    before = await footprint(portal.db)
    for verb, path, body in (
        ("POST", "", ENVIRONMENT), ("POST", "Validate/", ENVIRONMENT), ("GET", "", None), ("DELETE", "example/", None),
        ("PUT", "example/Activate/", b""), ("PUT", "example/Deactivate/", b""), ("DELETE", "nowhere/", None),
    ):  # fmt: skip
        assert nothing(await portal.request(verb, "/Environment/" + path, body), 403), (verb, path)
        assert nothing(await portal.request(verb, "/Environment/" + path, body, key="nonsense"), 403)
    assert (await portal.request("GET", "/Environment/example/")).status == 200
    assert nothing(await portal.request("GET", "/Environment/MYINSTANCE/"), 404)
    assert nothing(await portal.request("GET", "/Environment/nowhere/"), 404)
    assert await footprint(portal.db) == before
