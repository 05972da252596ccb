"""Tenants: with another tenant's key, every method answers of our data exactly as of what does not exist.

A new method belongs into one of the three tables here.
"""

from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from conftest import Client, Serve, insert_key

from server.methods.avatars import EXAMPLE_DOT
from server.methods.codes import EXAMPLE_CODES
from server.methods.registry import METHODS
from server.methods.sessions import EXAMPLE_TOKEN
from server.methods.webhooks import EXAMPLE_EVENT

MARK = "Zanzibar"
"""Stands in all of our data, and in nothing that another tenant is told."""


@dataclass(frozen=True)
class Ref:
    """Something of ours that a call names, and the same of nobody's."""

    ours: Any
    nobodys: Any


EMAIL = Ref("jane@example.com", "nobody@example.com")
GONE = Ref("gone@example.com", "nobody@example.com")
USER, ACCOUNT, POSITION = Ref(2, 999), Ref(2, 999), Ref(2, 999)
SESSION, PLAN, WEBHOOK = Ref(1, 999), Ref(1, 999), Ref(1, 999)
TOKEN = Ref(EXAMPLE_TOKEN, "N" * 40)
CONFIRMATION, RESET = Ref(EXAMPLE_CODES["confirm"], "N" * 24), Ref(EXAMPLE_CODES["reset"], "N" * 24)
EXTERNAL_ID = Ref("shop-1", "shop-2")
GROUP, FIELD = Ref("Sales", "Nobodies"), Ref("shoe_size", "hat_size")
SCIM_USER, SCIM_GROUP = Ref("2", "999"), Ref("1", "999")
DOCUMENT = Ref("00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000009")
INSTANCE = Ref("MYINSTANCE", "NOWHERE")
KEY = Ref(None, 99999)  # ours is looked up

THEIR_OWN = "boss@other.example"
PICTURE = {"data": EXAMPLE_DOT, "baseName": "dot", "extension": "png"}
NAMES = {"firstname": "X", "lastname": "Y"}
STORED = {"email": "x@other.example", "externalId": "x", "onlySeesReadable": True}

CORE = "urn:ietf:params:scim:schemas:core:2.0:User"
ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
RESOURCE = {"schemas": [CORE], "userName": "x@other.example"}
GROUP_RESOURCE = {"schemas": ["urn:ietf:params:scim:schemas:core:2.0:Group"], "displayName": "x"}
SUSPENSION = [{"op": "replace", "path": "active", "value": False}]

# Methods that name something of an instance -> params with every such name.
NAMING: dict[str, list[dict[str, Any]]] = {
    "addToGroup": [
        {"name": GROUP, "email": THEIR_OWN}, {"name": "Admins", "email": EMAIL}, {"name": GROUP, "email": EMAIL},
    ],
    "addToTree": [
        {"accountId": ACCOUNT, "treeId": 7}, {"accountId": 1, "sponsorPositionId": POSITION, "treeId": 7},
    ],
    "assignPlan": [{"userId": USER, "planId": PLAN}, {"userId": 1, "planId": PLAN}],
    "changePlan": [{"userId": USER, "planId": PLAN}, {"userId": 1, "planId": PLAN}],
    "changeLanguage": [{"id": USER, "language": "ru"}],
    "checkAuth": [{"login": EMAIL, "password": "demo1234"}],
    "confirmEmail": [{"code": CONFIRMATION}],
    "createApiKey": [{"name": "x", "scopes": ["users:read"], "instances": [INSTANCE]}],
    "createInOffice365": [{"email": EMAIL}],
    "createMember": [{"login": "m@other.example", "sponsorId": ACCOUNT, "profile": NAMES}],
    "createScimGroup": [{"group": GROUP_RESOURCE | {"members": [{"value": SCIM_USER}]}}],
    "createScimUser": [{"user": RESOURCE | {ENTERPRISE: {"manager": {"value": SCIM_USER}}}}],
    "createStoreUser": [STORED | {"planId": PLAN}],
    "createUser": [{"email": "x@other.example", "planId": PLAN}],
    "deactivateUserById": [{"id": USER}],
    "deleteGroup": [{"name": GROUP}],
    "deleteScimGroup": [{"id": SCIM_GROUP}],
    "deleteScimUser": [{"id": SCIM_USER}],
    "deleteUserByEmail": [{"email": EMAIL}],
    "deleteUsers": [{"users": [{"email": EMAIL}], "mode": "each"}, {"users": [{"email": EMAIL}]}],
    "deleteWebhook": [{"id": WEBHOOK}],
    "deleteUserById": [{"id": USER}, {"id": USER, "withAccount": True}],
    "endSession": [{"id": SESSION}],
    "forceConfirmEmail": [{"email": EMAIL}],
    "forceLogoutByEmail": [{"email": EMAIL}],
    "forceLogoutById": [{"id": USER}, {"email": EMAIL}, {"externalId": EXTERNAL_ID}],
    "getBranch": [{"accountId": ACCOUNT}],
    "getDocument": [{"id": DOCUMENT}],
    "getOffice365State": [{"email": EMAIL}],
    "getPlan": [{"id": PLAN}],
    "getQuotasByEmail": [{"email": EMAIL}],
    "getScimGroup": [{"id": SCIM_GROUP}],
    "getScimUser": [{"id": SCIM_USER}],
    "getStoreUser": [{"id": USER}, {"email": EMAIL}, {"externalId": EXTERNAL_ID}],
    "getUser": [{"id": USER}, {"email": EMAIL}, {"email": GONE}, {"externalId": EXTERNAL_ID}],
    "getUserByEmail": [{"email": EMAIL}, {"email": GONE}],
    "getUserById": [{"id": USER}],
    "getWebhook": [{"id": WEBHOOK}],
    "listAuditEvents": [{"email": EMAIL}, {"userId": USER}],
    "listAuthSessions": [{"userId": USER}, {"externalId": EXTERNAL_ID}],
    "listDeliveries": [{"id": WEBHOOK}],
    "listGroupMembers": [{"name": GROUP}],
    "listSessions": [{"email": EMAIL}],
    "listStoreUsers": [{"query": EMAIL}],
    "login": [{"email": EMAIL, "password": "demo1234"}],
    "loginWithToken": [{"token": TOKEN}],
    "logout": [{"token": TOKEN}],
    "movePosition": [
        {"positionId": POSITION, "sponsorPositionId": 1}, {"positionId": 1, "sponsorPositionId": POSITION},
    ],
    "patchScimGroup": [
        {"id": SCIM_GROUP, "operations": [{"op": "remove", "path": "members"}]},
        {"id": "0", "operations": [{"op": "add", "path": "members", "value": [{"value": SCIM_USER}]}]},
    ],
    "patchScimUser": [
        {"id": SCIM_USER, "operations": SUSPENSION},
        {"id": "1", "operations": [{"op": "add", "path": f"{ENTERPRISE}:manager", "value": SCIM_USER}]},
    ],
    "purgeUserByEmail": [{"email": GONE}, {"email": EMAIL}],
    "reactivateUserById": [{"id": USER}],
    "redeliverWebhook": [{"id": WEBHOOK, "eventId": EXAMPLE_EVENT}],
    "removeAvatar": [{"id": USER}],
    "removeAvatarByEmail": [{"email": EMAIL}],
    "removeFromGroup": [{"name": GROUP, "email": THEIR_OWN}, {"name": "Admins", "email": EMAIL}],
    "removeProfileField": [{"alias": FIELD}],
    "renameUserByEmail": [{"email": EMAIL, "newEmail": "x@other.example"}],
    "replaceScimGroup": [
        {"id": SCIM_GROUP, "group": GROUP_RESOURCE},
        {"id": "0", "group": GROUP_RESOURCE | {"displayName": "Admins", "members": [{"value": SCIM_USER}]}},
    ],
    "replaceScimUser": [{"id": SCIM_USER, "user": RESOURCE}],
    "replaceUserByEmail": [{"email": EMAIL, "firstName": "X", "isAdmin": True, "password": "new"}],
    "requestPasswordReset": [{"email": EMAIL, "confirmationUrl": "https://example.com/?{{code}}"}],
    "resetPasswordByEmail": [{"email": EMAIL, "password": "new"}],
    "resetPasswordWithCode": [{"code": RESET, "newPassword": "new"}],
    "restoreUserByEmail": [{"email": GONE}],
    "revokeApiKey": [{"id": KEY}],
    "rotateApiKey": [{"id": KEY}],
    "rotateWebhookSecret": [{"id": WEBHOOK}],
    "searchUsers": [{"searchText": "a", "accountId": ACCOUNT}, {"searchText": EMAIL}],
    "setAvatarByEmail": [{"email": EMAIL, "avatar": PICTURE}],
    "setPassword": [{"id": USER, "newPassword": "new"}],
    "testWebhook": [{"id": WEBHOOK}],
    "unassignPlan": [{"userId": USER, "planId": PLAN}, {"userId": 1, "planId": PLAN}],
    "updateApiKey": [{"id": KEY, "name": "x"}],
    "updateGroup": [{"name": GROUP, "newName": "x"}],
    "updatePlan": [{"id": PLAN, "name": "x"}],
    "updateProfile": [{"id": USER, "profile": NAMES}, {"id": 1, "profile": {FIELD: "44"}}],
    "updateStoreUser": [STORED | {"id": USER}, STORED | {"id": 1, "planId": PLAN}],
    "updateUserByEmail": [{"email": EMAIL, "isActive": False}, {"email": THEIR_OWN, "groups": [GROUP]}],
    "updateUsers": [{"users": [{"email": EMAIL, "isActive": False}], "mode": "each"}],
    "updateWebhook": [{"id": WEBHOOK, "isActive": False}],
    "userExists": [{"login": EMAIL}, {"login": GONE}],
    "validateReplacement": [{"email": EMAIL}, {"email": THEIR_OWN, "newEmail": EMAIL}],
    "validateUser": [{"email": EMAIL}, {"email": GONE, "externalId": EXTERNAL_ID, "planId": PLAN}],
}  # fmt: skip

# Methods that make or show what is the caller's own: what ours is called is free there, and shows nothing of it.
OWN: dict[str, list[dict[str, Any]]] = {
    "createApiKey": [{"name": "shop", "scopes": ["users:read"]}],
    "createGroup": [{"name": "Sales"}],
    "createPlan": [{"type": "recurring", "name": "A year"}],
    "createScimGroup": [{"group": GROUP_RESOURCE | {"displayName": "Sales too"}}],
    "createScimUser": [{"user": RESOURCE | {"userName": "six@example.com"}}],
    "createStoreUser": [{"email": "one@example.com", "externalId": "shop-1"}],
    "createUser": [{"email": "jane@example.com"}, {"email": "gone@example.com"}],
    "createUsers": [{"users": [{"email": "five@example.com"}, {"email": "two@example.com"}]}],
    "createWebhook": [{"url": "https://hooks.example.com/x"}],
    "ensureUser": [{"email": "three@example.com", "externalId": "shop-3"}],
    "ensureUsers": [{"users": [{"email": "two@example.com"}, {"email": "four@example.com"}]}],
    "describeScim": [{"document": "ServiceProviderConfig"}, {"document": "Schemas"}],
    "defineProfileField": [{"alias": "shoe_size", "title": "Size", "type": "number"}],
    "getInstance": [{}],
    "listApiKeys": [{}],
    "listAuditEvents": [{}],
    "listAuthSessions": [{}],
    "listChanges": [{}],
    "listGroups": [{}],
    "listGroupMembers": [{"name": "Admins"}],
    "listPlans": [{}, {"query": MARK}],
    "listProfileFields": [{}],
    "listStoreUsers": [{}, {"query": "admins"}, {"query": "deactivated"}],
    "listWebhooks": [{}],
    "listUsers": [{}, {"status": "deleted"}, {"emailStartsWith": "jane"}],
    "searchScimGroups": [{}, {"filter": 'displayName eq "Sales"'}],
    "searchScimUsers": [
        {},
        {"filter": 'userName eq "jane@example.com"'},
        {"filter": f'name.familyName co "{MARK}"'},
    ],
    "searchUsers": [{"searchText": MARK}, {"searchText": "jane"}],
}

# Methods that belong to no instance: a picture's name, which nobody can guess, is the right to see it.
NO_INSTANCE = {"getPicture", "rpc.discover"}


def resolved(params: Any, side: str) -> Any:
    """Params with ours, or nobody's, in the place of each Ref."""
    match params:
        case Ref():
            return getattr(params, side)
        case dict():
            return {resolved(name, side): resolved(value, side) for name, value in params.items()}
        case list():
            return [resolved(item, side) for item in params]
    return params


@pytest.fixture
async def ours(serve: Serve) -> Client:
    """The key of the tenant that nobody may see. Nothing works the queue, so that only calls change data."""
    return await serve(run_jobs=False)


@pytest.fixture
async def theirs(ours: Client, db: asyncpg.Connection) -> Client:
    """Another tenant's key, with every scope; it has a user, an account and a position, each 1."""
    operator = ours.using(await insert_key(db, operator=True))
    settings = {"confirmationHosts": ["example.com"]}
    await operator.call(
        "createInstance", {"name": "OTHER", "admin": {"email": THEIR_OWN}, "settings": settings}
    )
    return ours.using(await insert_key(db, instances=("OTHER",)))


@pytest.fixture
async def key_id(ours: Client, db: asyncpg.Connection) -> int:
    """Our data: one at least of everything that can be named. The id of a key of ours."""
    from server.base.tokens import digest

    jane = {"email": "jane@example.com", "password": "demo1234"}
    for alias in (MARK.lower(), "shoe_size"):
        await ours.call("defineProfileField", {"alias": alias, "title": MARK, "type": "number"})
    await ours.call("createPlan", {"type": "prepaid", "name": MARK, "duration": 12})
    await ours.call("createGroup", {"name": "Sales", "description": MARK})
    profile = {"firstname": "Jane", "lastname": MARK}
    await ours.call(
        "createMember",
        {"login": jane["email"], "password": jane["password"], "sponsorId": 1, "profile": profile},
    )
    await ours.call("createUser", {"email": "gone@example.com", "displayName": MARK})
    await ours.call("deleteUserByEmail", {"email": "gone@example.com"})
    await ours.call("assignPlan", {"userId": 2, "planId": 1, "planName": MARK})
    await ours.call(
        "updateUserByEmail",
        {"email": jane["email"], "externalId": "shop-1", "groups": ["Sales"], "quotas": {"mail": 5}},
    )
    await ours.call("setAvatarByEmail", {"email": jane["email"], "avatar": PICTURE})
    await ours.call("login", jane)
    await db.execute("UPDATE sessions SET token_digest = $1", digest(EXAMPLE_TOKEN))
    for purpose, code in EXAMPLE_CODES.items():
        await db.execute(
            "INSERT INTO codes (instance_id, user_id, purpose, digest, expires_at)"
            " VALUES (1, 2, $1, $2, now() + interval '1 day')",
            purpose,
            digest(code),
        )
    await db.execute(
        "INSERT INTO documents (instance_id, id, entity, action, user_id) VALUES (1, $1, 'user', $2, 2)",
        DOCUMENT.ours,
        MARK,
    )
    await db.execute(
        "INSERT INTO office365_accounts (instance_id, user_id, state, error) VALUES (1, 2, 'failed', $1)",
        MARK,
    )
    await ours.call("createWebhook", {"url": "https://hooks.example.com/", "description": MARK})
    await db.execute(
        "INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body, state, attempts, done_at)"
        f" VALUES (1, 1, '{EXAMPLE_EVENT}', 'user.created', '', 'failed', 10, now())"
    )
    made = await ours.call("createApiKey", {"name": MARK, "scopes": ["users:read"]})
    return int(made["id"])


async def told(client: Client, method: str, params: dict[str, Any]) -> tuple[int, str | None, bytes]:
    """All that an answer tells: status, code of the error, and body."""
    async with await client.post({"method": method, "params": params}) as response:
        return response.status, response.headers.get("X-Error-Code"), await response.read()


async def everything_of_ours(db: asyncpg.Connection) -> dict[str, list[str]]:
    """Every row that belongs to instance 1, in every table."""
    tables = await db.fetch(
        "SELECT table_name FROM information_schema.columns"
        " WHERE column_name = 'instance_id' AND table_schema = 'public' ORDER BY 1"
    )
    rows = {
        table: [
            row[0]
            for row in await db.fetch(
                f"SELECT to_jsonb(t)::text FROM {table} AS t WHERE instance_id = 1 ORDER BY 1"
            )
        ]
        for (table,) in tables
    }
    keys = await db.fetch(
        "SELECT to_jsonb(k)::text FROM api_keys AS k WHERE default_instance_id = 1 ORDER BY 1"
    )
    instances = await db.fetch("SELECT to_jsonb(i)::text FROM instances AS i WHERE id = 1")
    return rows | {"api_keys": [row[0] for row in keys], "instances": [row[0] for row in instances]}


def test_every_method_is_in_a_table() -> None:
    """Whoever adds a method says here what of an instance it names."""
    covered = NAMING.keys() | OWN.keys() | NO_INSTANCE
    covered |= {name for name, method in METHODS.items() if method.operator}
    assert METHODS.keys() - covered == set()
    assert covered - METHODS.keys() == set()


async def test_ours_is_answered_like_nobodys(
    ours: Client, theirs: Client, key_id: int, db: asyncpg.Connection
) -> None:
    """Byte for byte, and nothing of ours changes; for ourselves the same call is another matter."""
    before = await everything_of_ours(db)
    assert all(before[table] for table in ("users", "groups", "group_members", "plans", "sessions", "codes"))
    for method, cases in NAMING.items():
        for case in cases:
            named = {
                name: Ref(key_id, KEY.nobodys) if value is KEY else value for name, value in case.items()
            }
            nobodys = await told(theirs, method, resolved(named, "nobodys"))
            answered = await told(theirs, method, resolved(named, "ours"))
            # An unknown field is told by the name that the caller gave it.
            body = answered[2].replace(FIELD.ours.encode(), FIELD.nobodys.encode())
            assert (*answered[:2], body) == nobodys, method
            assert MARK.encode() not in answered[2], method
            assert await everything_of_ours(db) == before, method
    # What was named is there: the same names are another matter with our own key.
    for method in ("getUserByEmail", "getUserById", "getPlan", "getBranch", "getStoreUser", "loginWithToken",
                   "listGroupMembers", "getDocument", "getOffice365State", "listSessions"):  # fmt: skip
        status, _, _ = await told(ours, method, resolved(NAMING[method][0], "ours"))
        assert status == 200, method


async def test_what_is_ones_own_shows_nothing_of_others(
    theirs: Client, key_id: int, db: asyncpg.Connection
) -> None:
    """Names that are taken here are free there."""
    before = await everything_of_ours(db)
    for method, cases in OWN.items():
        for case in cases:
            status, _, body = await told(theirs, method, case)
            assert status == 200, (method, body)
            assert MARK.encode() not in body and b"MYINSTANCE" not in body, method
            assert await everything_of_ours(db) == before, method


async def test_nobody_names_an_instance_that_the_key_does_not_hold(
    theirs: Client, key_id: int, db: asyncpg.Connection
) -> None:
    """Whether there is one of that name or not; the methods of operators are refused in any case."""
    before = await everything_of_ours(db)
    for name, method in METHODS.items():
        params = method.examples[0].params
        if "instance" in method.params.model_fields:
            answers = [
                await told(theirs, name, params | {"instance": instance})
                for instance in ("MYINSTANCE", "NOWHERE")
            ]
            assert answers[0] == answers[1], name
            assert answers[0][0] == 403, name
        elif method.operator:
            assert (await told(theirs, name, params))[0] == 403, name
    assert await everything_of_ours(db) == before
