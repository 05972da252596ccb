"""The member platform's document (seeds/001): every request as a client sends it."""

import asyncio
import base64
import io
from typing import Any

import asyncpg
import pytest
from conftest import ADMIN, Client, Log, footprint, insert_key
from PIL import Image

PROFILE = {"firstname": "Ann", "lastname": "Lee"}


class Office:
    """A client of one gateway."""

    def __init__(self, client: Client, gateway: str = "/online-office") -> None:
        self.client, self.base = client, client.url + gateway

    async def send(
        self, verb: str, path: str, params: Any = None, *, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and envelope of a request: GET with a query, everything else with a JSON body."""
        keyed = {"x-api-key": self.client.key} | (headers or {})
        options = {"params": params or {}} if verb == "GET" else {"json": params}
        async with self.client.http.request(
            verb, f"{self.base}/{path}", headers=keyed, **options
        ) as response:
            return response.status, await response.json()

    async def payload(self, verb: str, path: str, params: Any = None) -> Any:
        """The payload of a request that must succeed; the whole envelope is checked."""
        status, envelope = await self.send(verb, path, params)
        payload = envelope["primary"]["payload"]
        assert (status, envelope) == (
            200,
            {
                "errorCode": 0, "errorMessage": "",
                "primary": {"success": True, "message": "", "payload": payload, "errors": []},
                "secondary": [], "locale": "en_US",
            },
        )  # fmt: skip
        return payload

    async def failure(
        self, verb: str, path: str, params: Any = None, **options: Any
    ) -> tuple[int, str, list[Any]]:
        """errorCode, message and errors of a request that must fail; the whole envelope is checked."""
        status, envelope = await self.send(verb, path, params, **options)
        code, message = envelope["errorCode"], envelope["errorMessage"]
        errors = envelope["primary"]["errors"]
        assert envelope == {
            "errorCode": code, "errorMessage": message,
            "primary": {"success": False, "message": message, "payload": {}, "errors": errors},
            "secondary": [], "locale": envelope["locale"],
        }  # fmt: skip
        assert code != 0 and message and status == (code if code in (401, 413, 415, 503) else 200)
        return code, message, errors


@pytest.fixture(params=["/online-office", "/main-app", "/api2/online-office", "/api2/main-app"])
async def office(request: pytest.FixtureRequest, client: Client) -> Office:
    return Office(client, request.param)


@pytest.fixture
async def ann(client: Client) -> dict[str, Any]:
    """Ann Lee, user 2, account 2 under the administrator's, whose password is demo1234."""
    created: dict[str, Any] = await Office(client).payload(
        "POST", "user/create",
        {"login": "ann@example.com", "password": "demo1234", "sponsorId": 1, "profile": PROFILE},
    )  # fmt: skip
    return created


AUTH = {
    "id": 2, "login": "ann@example.com", "type": "member", "language": "en", "isActive": True,
    "isConfirmed": True,
    "user": {
        "id": 2,
        "profile": [
            {"field": {"alias": "email"}, "value": "ann@example.com"},
            {"field": {"alias": "lastname"}, "value": "Lee"}, {"field": {"alias": "firstname"}, "value": "Ann"},
        ],
        "account": {"id": 2, "title": "Ann Lee"},
    },
}  # fmt: skip
MEMBER = {"type": "member"}


async def test_create(office: Office) -> None:
    given = {"login": "ann@example.com", "password": "demo1234", "sponsorId": 1, "profile": PROFILE} | MEMBER
    assert await office.payload("POST", "user/create", given) == {"auth": AUTH}


@pytest.mark.parametrize("password", [{}, {"password": ""}, {"password": None}])
async def test_create_makes_a_password_by_the_settings(
    password: dict[str, Any], client: Client, operator: Client
) -> None:
    rules = {"length": 20, "specialSymbols": True, "mixedCase": True}
    await operator.call(
        "updateInstance", {"instance": "MYINSTANCE", "settings": {"generatedPasswords": rules}}
    )
    office = Office(client)
    given = {"login": "ann@example.com", "sponsorId": 1, "profile": PROFILE} | password
    made = (await office.payload("POST", "user/create", given))["password"]
    assert len(made) == 20
    assert any(char.islower() for char in made) and any(char.isupper() for char in made)
    assert any(char.isdigit() for char in made) and any(char in "!#$%&*+-=?@" for char in made)
    assert "auth" in await office.payload(
        "GET", "user/check-auth", {"login": "ann@example.com", "password": made}
    )


async def test_check_auth(office: Office, ann: Any) -> None:
    given = {"login": "ANN@example.com", "password": "demo1234"} | MEMBER
    assert await office.payload("GET", "user/check-auth", given) == {"auth": AUTH}


async def test_check_auth_with_a_body(client: Client, ann: Any) -> None:
    """So that the password need not stand in an address."""
    async with client.http.get(
        client.url + "/online-office/user/check-auth",
        json={"login": "ann@example.com", "password": "demo1234"},
        headers={"Token": client.key},
    ) as response:
        assert (await response.json())["primary"]["payload"] == {"auth": AUTH}


@pytest.mark.parametrize(
    ("locale", "message"),
    [("en_US", "Login or password is incorrect"), ("ru_RU", "Неверный логин или пароль"), ("xx", "Login or password is incorrect")],
)  # fmt: skip
@pytest.mark.parametrize("login", ["ann@example.com", "nobody@example.com"])
async def test_check_auth_fails_alike(
    login: str, locale: str, message: str, client: Client, ann: Any
) -> None:
    given = {"login": login, "password": "wrong"}
    code, told, _ = await Office(client).failure("GET", "user/check-auth", given, headers={"Locale": locale})
    assert (code, told) == (400, message)


async def test_query_strings_are_logged_nowhere(client: Client, ann: Any, logged: Log) -> None:
    await Office(client).send(
        "GET", "user/check-auth", {"login": "ann@example.com", "password": "s3cret-query"}
    )
    await Office(client).send("GET", "user/nothing", {"password": "s3cret-query"})
    assert b"s3cret-query" not in logged.text and b"ann@example.com" not in logged.text


async def test_the_gateway_says_the_type(client: Client, ann: Any) -> None:
    """main-app needs it, online-office fills it in; there is but one."""
    given = {"login": "ann@example.com"}
    assert await Office(client, "/main-app").failure("GET", "user/exists", given) == (
        400, "type: is required", [{"field": "type", "message": "is required"}],
    )  # fmt: skip
    for gateway in ("/main-app", "/online-office"):
        assert (await Office(client, gateway).failure("GET", "user/exists", given | {"type": "staff"}))[
            1
        ] == ("type: must be member")
    assert await Office(client).payload("GET", "user/exists", given) == {"exist": True, "auth": AUTH}


async def test_exists(office: Office, ann: Any) -> None:
    assert await office.payload("GET", "user/exists", {"login": "ann@example.com"} | MEMBER) == {
        "exist": True, "auth": AUTH,
    }  # fmt: skip
    assert await office.payload("GET", "user/exists", {"login": "no@example.com"} | MEMBER) == {
        "exist": False
    }


async def test_get(office: Office, ann: Any) -> None:
    assert await office.payload("GET", "user/get", {"id": 2}) == {"auth": AUTH}
    assert await office.failure("GET", "user/get", {"id": 99}) == (404, "not found", [])


async def test_change_language(office: Office, ann: Any) -> None:
    assert await office.payload("POST", "user/change-language", {"authId": 2, "language": "ru"}) == {}
    assert (await office.payload("GET", "user/get", {"id": 2}))["auth"]["language"] == "ru"


@pytest.mark.parametrize("with_account", [None, 0, 1])
@pytest.mark.parametrize("verb", ["POST", "DELETE"])
async def test_delete(
    verb: str, with_account: int | None, client: Client, ann: Any, db: asyncpg.Connection
) -> None:
    office = Office(client)
    given = {"authId": 2} | ({} if with_account is None else {"withAccount": with_account})
    assert await office.payload(verb, "user/delete", given) == {}
    assert (await office.failure("GET", "user/get", {"id": 2}))[0] == 404
    assert await db.fetchval("SELECT deleted_at IS NOT NULL FROM accounts WHERE id = 2") is (
        with_account == 1
    )


@pytest.mark.parametrize("form", [{"id": 2}, {"userId": 2, "type": "member"}, {"id": 2, "type": "member"}])
async def test_set_password(form: dict[str, Any], office: Office, ann: Any) -> None:
    assert await office.payload("POST", "user/set-password", form | {"newPassword": "onemoretime"}) == {}
    given = {"login": "ann@example.com", "password": "onemoretime"} | MEMBER
    assert await office.payload("GET", "user/check-auth", given) == {"auth": AUTH}


async def test_profile_update_goes_through_the_queue(client: Client, ann: Any) -> None:
    office = Office(client)
    queued = await office.payload(
        "POST",
        "user/profile-update",
        {"authId": 2, "profile": {"lastname": "Kim", "phone": "+973 3600 1234"}},
    )
    assert queued["queueRequest"] is True
    document = await finished(office, queued["documentId"])
    auth = await office.payload("GET", "user/get", {"id": 2})
    assert document == {
        "id": queued["documentId"],
        "context": {"entity": "user", "action": "profile-update"},
        "result": {
            "errorCode": 0, "errorMessage": "",
            "primary": {"success": True, "message": "", "payload": auth, "errors": []},
            "secondary": [], "locale": "en_US",
        },
    }  # fmt: skip
    values = {entry["field"]["alias"]: entry["value"] for entry in auth["auth"]["user"]["profile"]}
    assert values == {
        "email": "ann@example.com", "firstname": "Ann", "lastname": "Kim", "phone": "+973 3600 1234", "phone_e164": "+97336001234"
    }  # fmt: skip


async def test_profile_updates_of_a_user_keep_their_order(client: Client, ann: Any) -> None:
    """However the queue hands them out, the last one that was asked for wins."""
    office = Office(client)
    documents = []
    for number in range(12):
        change = {"authId": 2, "profile": {"city": f"City {number}"}}
        documents.append((await office.payload("POST", "user/profile-update", change))["documentId"])
    for document in documents:
        await finished(office, document)
    auth = (await office.payload("GET", "user/get", {"id": 2}))["auth"]
    cities = [entry["value"] for entry in auth["user"]["profile"] if entry["field"]["alias"] == "city"]
    assert cities == ["City 11"]


async def finished(office: Office, document_id: str) -> Any:
    """A document once the queue is done with it."""
    async with asyncio.timeout(30):
        while True:
            document = (await office.payload("GET", "document/get", {"id": document_id}))["document"]
            if document["result"]:
                return document
            await asyncio.sleep(0.05)


def picture() -> dict[str, str]:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(stream, "PNG")
    return {"data": base64.b64encode(stream.getvalue()).decode(), "baseName": "me", "extension": "png"}


async def test_avatar(client: Client, ann: Any, db: asyncpg.Connection) -> None:
    office = Office(client)
    queued = await office.payload(
        "POST", "user/profile-update", {"authId": 2, "profile": {"avatar": picture()}}
    )
    await finished(office, queued["documentId"])
    found = await office.payload("GET", "user/exists", {"login": "ann@example.com"})
    (url,) = [
        entry["value"] for entry in found["auth"]["user"]["profile"] if entry["field"]["alias"] == "avatar"
    ]
    path = "/" + url.split("/", 3)[3]
    async with client.http.get(client.url + path) as response:
        assert response.status == 200 and response.content_type.startswith("image/")
        Image.open(io.BytesIO(await response.read())).verify()
    assert await office.payload("DELETE", "user/remove-avatar", {"id": 2}) == {}
    assert await db.fetchval("SELECT count(*) FROM pictures") == 0
    async with client.http.get(client.url + path) as response:
        assert response.status == 404


async def test_search(office: Office, ann: Any) -> None:
    found = {"id": 2, "user": 2, "email": "ann@example.com", "fullname": "Ann Lee"}
    assert await office.payload("GET", "user/search", {"searchText": "nn le"}) == {
        "list": [found | {"positionId": None}], "total": 1, "totalIsExact": True, "perPage": 50, "pageNumber": 1,
    }  # fmt: skip
    beneath = {
        "searchText": "2",
        "accountId": 1,
        "treeId": 0,
        "sortBy": "-id,fullname",
        "perPage": 1,
        "pageNumber": 1,
    }
    assert await office.payload("GET", "user/search", beneath) == {
        "list": [found | {"positionId": 2}], "total": 1, "totalIsExact": True, "perPage": 1, "pageNumber": 1,
    }  # fmt: skip
    assert await office.failure("GET", "user/search", {"searchText": "x", "accountId": 1, "treeId": 1}) == (
        404, "the account has no position in this tree", [],
    )  # fmt: skip


async def test_trees(office: Office, ann: Any) -> None:
    placed = await office.payload(
        "POST", "account/add-to-tree", {"accountID": 2, "sponsorPositionId": None, "treeId": 1}
    )
    assert placed == {"positionId": 3}
    assert await office.payload("GET", "account/get-branch", {"accountId": 1}) == {
        "list": [
            {
                "positionId": 2,
                "parentPositionId": 1,
                "accountId": 2,
                "title": "Ann Lee",
                "userId": 2,
                "level": 1,
            }
        ]
    }


async def test_profile_fields(office: Office) -> None:
    await office.client.call(
        "defineProfileField", {"alias": "tier", "title": "Tier", "type": "choice", "choices": ["gold"]}
    )
    fields = {
        field["alias"]: field for field in (await office.payload("GET", "profile-field/get-list"))["list"]
    }
    assert {alias for alias, field in fields.items() if field["mandatory"]} == {"firstname", "lastname"}
    assert set(fields) >= {"phone", "skype", "gender", "birth_date"}
    assert fields["tier"] == {
        "alias": "tier", "title": "Tier", "type": "choice", "mandatory": False, "choices": ["gold"],
        "system": False,
    }  # fmt: skip


BAD: dict[str, tuple[str, str, Any, str]] = {
    "create without anything": ("POST", "user/create", {}, "login: is required; sponsorId: is required; profile: is required"),
    "create with a bad login": ("POST", "user/create", {"login": "ann@lee", "sponsorId": 1, "profile": PROFILE}, "login: is not a valid e-mail address: the domain has no dot"),
    "create with a taken login": ("POST", "user/create", {"login": ADMIN, "sponsorId": 1, "profile": PROFILE}, 'duplicate key value violates unique constraint "users_email"'),
    "create under nobody": ("POST", "user/create", {"login": "x@example.com", "sponsorId": 9, "profile": PROFILE}, "sponsorId: is no account with a place in tree 0"),
    "create without a name": ("POST", "user/create", {"login": "x@example.com", "sponsorId": 1, "profile": {"firstname": "", "shoe": 1}}, "profile.shoe: is not a field of this instance; profile.firstname: is required; profile.lastname: is required"),
    "create with bad values": ("POST", "user/create", {"login": "x@example.com", "sponsorId": 1, "profile": PROFILE | {"phone": "12", "birth_date": "1984-02-30", "gender": "x", "skype": 5}}, "profile.phone: must be a phone number with its country code; profile.birth_date: must be a date such as 1984-02-29; profile.gender: must be one of male, female; profile.skype: must be a string"),
    "create with a foreign link": ("POST", "user/create", {"login": "x@example.com", "sponsorId": 1, "profile": PROFILE, "confirmationUrl": "https://evil.example/?c={{code}}"}, "confirmationUrl: leads to a host that is not on the instance's list (confirmationHosts)"),
    "create with an unknown member": ("POST", "user/create", {"login": "x@example.com", "sponsorId": 1, "profile": PROFILE, "isAdmin": 1}, "isAdmin: is not a member of this call"),
    "check-auth without a password": ("GET", "user/check-auth", {"login": "ann@example.com"}, "password: is required"),
    "exists without a login": ("GET", "user/exists", {}, "login: is required"),
    "get with no number": ("GET", "user/get", {"id": "two"}, "id: must be an integer"),
    "delete with a bad flag": ("POST", "user/delete", {"authId": 2, "withAccount": 2}, "withAccount: must be 0 or 1"),
    "delete of nobody": ("POST", "user/delete", {"authId": 99}, "not found"),
    "delete without an id": ("POST", "user/delete", {}, "authId: is required"),
    "language of three letters": ("POST", "user/change-language", {"authId": 2, "language": "rus"}, "language: must be a two-letter code of ISO 639-1, such as en"),
    "language that is none": ("POST", "user/change-language", {"authId": 2, "language": "xx"}, "language: must be a two-letter code of ISO 639-1, such as en"),
    "mail-confirm with a wrong code": ("POST", "user/mail-confirm", {"code": "ce67814b8c7b"}, "the code is not valid or has expired"),
    "mail-confirm without anything": ("POST", "user/mail-confirm", {}, "code: is required"),
    "mail-confirm with a flag that is none": ("POST", "user/mail-confirm", {"code": "x", "force": "yes"}, "force: must be 0 or 1"),
    "set-password with a type that is no text": ("POST", "user/set-password", {"id": 2, "newPassword": "x", "type": True}, "type: must be member"),
    "set-password with a type that is no integer": ("POST", "user/set-password", {"id": 2, "newPassword": "x", "type": 1.5}, "type: must be member"),
    "set-password with an unknown member that is null": ("POST", "user/set-password", {"id": 2, "newPassword": "x", "shoe": None}, "shoe: is not a member of this call"),
    "set-password with an id that is null": ("POST", "user/set-password", {"id": None, "newPassword": "x"}, "id: is required"),
    "delete of nobody with a flag that is null": ("POST", "user/delete", {"authId": 99, "withAccount": None}, "not found"),
    "mail-confirm with a code that is null": ("POST", "user/mail-confirm", {"code": None}, "code: is required"),
    "mail-confirm with a wrong code and a flag that is null": ("POST", "user/mail-confirm", {"code": "x", "force": None}, "the code is not valid or has expired"),
    "get with an integer beyond all": ("GET", "user/get", {"id": 2**63}, "id: must be less than 9223372036854775808"),
    "get with the last of integers": ("GET", "user/get", {"id": 2**63 - 1}, "not found"),
    "profile-update with a picture that is none": ("POST", "user/profile-update", {"authId": 2, "profile": {"avatar": 7}}, "profile.avatar: must be an object with data, baseName and extension"),
    "profile-update without a profile": ("POST", "user/profile-update", {"authId": 2}, "profile: is required"),
    "profile-update with both ids": ("POST", "user/profile-update", {"authId": 2, "userId": 2, "profile": PROFILE}, "userId: stands for the same as authId"),
    "profile-update of nobody": ("POST", "user/profile-update", {"authId": 99, "profile": PROFILE}, "not found"),
    "profile-update to no name": ("POST", "user/profile-update", {"authId": 2, "profile": {"firstname": None}}, "profile.firstname: is required"),
    "remove-avatar of nobody": ("DELETE", "user/remove-avatar", {"id": 99}, "not found"),
    "reset-password without a link": ("POST", "user/reset-password", {"email": "ann@example.com"}, "confirmationUrl: is required"),
    "search for nothing": ("GET", "user/search", {}, "searchText: is required"),
    "search for too much": ("GET", "user/search", {"searchText": "x", "perPage": 101}, "perPage: must be less than or equal to 100"),
    "set-password without a password": ("POST", "user/set-password", {"id": 2}, "newPassword: is required"),
    "set-password of nobody": ("POST", "user/set-password", {"id": 99, "newPassword": "x"}, "not found"),
    "document that is none": ("GET", "document/get", {"id": "00000000-0000-4000-8000-000000000009"}, "not found"),
    "add-to-tree of nobody": ("POST", "account/add-to-tree", {"accountID": 99, "treeId": 1}, "no such account or position in this tree, or it has a root already"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_is_named_and_nothing_is_written(
    name: str, client: Client, ann: Any, db: asyncpg.Connection
) -> None:
    verb, path, params, message = BAD[name]
    before = await footprint(db)
    _, told, errors = await Office(client).failure(verb, path, params)
    assert told == message
    assert all(set(error) == {"field", "message"} for error in errors)
    assert await footprint(db) == before


async def test_set_password_by_userid_needs_the_type_on_main_app(client: Client, ann: Any) -> None:
    for given in ({"userId": 2, "newPassword": "x"}, {"userId": 2, "newPassword": "x", "type": None}):
        assert (await Office(client, "/main-app").failure("POST", "user/set-password", given))[
            1
        ] == "type: is required"


@pytest.mark.parametrize(
    "form",
    [
        {"id": 2, "code": None},
        {"id": 2, "userId": None},
        {"id": None, "userId": 2, "type": "member"},
        {"id": 2, "type": None},
    ],
)
async def test_null_chooses_no_method_and_clashes_with_nothing(
    form: dict[str, Any], client: Client, ann: Any
) -> None:
    office = Office(client, "/main-app")
    assert await office.payload("POST", "user/set-password", form | {"newPassword": "onemoretime"}) == {}
    given = {"login": "ann@example.com", "password": "onemoretime"} | MEMBER
    assert await office.payload("GET", "user/check-auth", given) == {"auth": AUTH}


async def test_keys(client: Client, ann: Any, db: asyncpg.Connection) -> None:
    """In x-api-key or Token, one of them; a bad one is a 401 in the same envelope."""
    office = Office(client)
    for key in ("", "nonsense"):
        code, message, _ = await Office(client.using(key)).failure("GET", "user/get", {"id": 2})
        assert (code, message) == (401, "not-allowed")
    assert (await office.failure("GET", "user/get", {"id": 2}, headers={"Token": client.key}))[
        1
    ] == "send one API key"
    reader = client.using(await insert_key(db, scopes=("users:read",)))
    assert await Office(reader).failure("POST", "user/change-language", {"authId": 2, "language": "ru"}) == (
        403, "not-allowed", [],
    )  # fmt: skip
    forced = {"force": 1, "email": "ann@example.com"}
    shop = client.using(await insert_key(db, scopes=("users:read", "users:write")))
    assert (await Office(shop).failure("POST", "user/mail-confirm", forced))[0] == 403


async def test_addresses_verbs_and_bodies_that_are_none(client: Client) -> None:
    office = Office(client)
    status, envelope = await office.send("GET", "user/nothing")
    assert (status, envelope["errorCode"]) == (404, 404)
    status, envelope = await office.send("POST", "user/get", {"id": 1})
    assert (status, envelope["errorCode"]) == (405, 405)
    async with client.http.post(
        client.url + "/main-app/user/create",
        data=b"{",
        headers={"x-api-key": client.key, "Content-Type": "application/json"},
    ) as response:
        envelope = await response.json()
        assert (response.status, envelope["errorCode"]) == (200, 400)
        assert envelope["errorMessage"] == "the body is not valid JSON"
    async with client.http.post(
        client.url + "/main-app/user/create", data=b"login=x", headers={"x-api-key": client.key}
    ) as response:
        assert response.status == 415


async def test_isolation(client: Client, other: Client, ann: Any) -> None:
    """Another tenant's key finds nobody, in every function that names a user."""
    theirs = Office(other)
    for verb, path, given in (
        ("GET", "user/get", {"id": 2}), ("POST", "user/delete", {"authId": 2}),
        ("POST", "user/change-language", {"authId": 2, "language": "ru"}),
        ("POST", "user/set-password", {"id": 2, "newPassword": "x"}),
        ("POST", "user/profile-update", {"authId": 2, "profile": PROFILE}),
        ("DELETE", "user/remove-avatar", {"id": 2}),
    ):  # fmt: skip
        assert await theirs.failure(verb, path, given) == (404, "not found", [])
    assert await theirs.payload("GET", "user/exists", {"login": "ann@example.com"}) == {"exist": False}
    assert (await theirs.payload("GET", "user/search", {"searchText": "ann"}))["total"] == 0
