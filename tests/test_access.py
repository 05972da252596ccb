"""Who may change whom: administrators need users:admin in every method, and a key cannot create stronger keys."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import asyncpg
import pytest
from conftest import ADMIN, Client, contents, insert_key
from pydantic import BaseModel
from test_avatars import encoded, photo, sent

from server.base.error_codes import ERROR_CODES
from server.methods.codes import EXAMPLE_CODES
from server.methods.registry import METHODS
from server.methods.sessions import EXAMPLE_TOKEN
from server.tenants import access
from server.tenants.principals import SCOPES, TENANT_SCOPES

WITHOUT_ADMIN = tuple(scope for scope in TENANT_SCOPES if scope != "users:admin")
BOSS = {"email": "boss@example.com"}
"""The administrator whom the calls are about. Its id is BOSS_ID."""
BOSS_ID = 2
ID = {"id": BOSS_ID}
STORE = {"externalId": "shop-boss", "onlySeesReadable": False}
PICTURE = {"data": "", "baseName": "x", "extension": "png"}

SCIM_ID = {"id": str(BOSS_ID)}
RESOURCE = {"schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"], "userName": BOSS["email"]}

LIVING: list[tuple[str, dict[str, Any]]] = [
    ("updateUserByEmail", BOSS | {"displayName": "Mallory"}),
    ("updateUserByEmail", BOSS | {"profile": {"title": "Mallory"}}),
    ("updateUserByEmail", BOSS | {"values": {"timezone": "Europe/Berlin"}}),
    ("updateUserByEmail", BOSS | {"settings": [1]}),
    ("updateUserByEmail", BOSS | {"apps": [1]}),
    ("updateUserByEmail", BOSS | {"avatar": "https://example.com/x"}),
    ("updateUserByEmail", BOSS | {"externalId": "mallory"}),
    ("updateUserByEmail", BOSS | {"externalId": None}),
    ("updateUserByEmail", BOSS | {"sessionsLimit": 1}),
    ("updateUserByEmail", BOSS | {"isPlanAdmin": True}),
    ("updateUserByEmail", BOSS | {"onlySeesReadable": True}),
    ("updateUserByEmail", BOSS | {"quotas": {"mail": 1}}),
    ("updateUserByEmail", BOSS | {"groups": []}),
    ("updateUserByEmail", BOSS | {"groups": ["Admins", "Staff"]}),
    ("updateUsers", {"users": [BOSS | {"sessionsLimit": 1}]}),
    ("updateUsers", {"users": [BOSS | {"groups": ["Admins", "Staff"]}]}),
    ("resetPasswordByEmail", BOSS | {"password": "mallory12"}),
    ("setPassword", ID | {"newPassword": "mallory12"}),
    ("renameUserByEmail", BOSS | {"newEmail": "mallory@example.com"}),
    ("renameUserByEmail", BOSS | {"newEmail": "Boss@example.com"}),
    ("replaceUserByEmail", BOSS | {"newEmail": "Boss@example.com"}),
    ("replaceUserByEmail", BOSS | {"firstName": "Mallory"}),
    ("replaceUserByEmail", BOSS | {"isAdmin": False}),
    ("replaceUserByEmail", BOSS | {"isAdmin": True, "password": "mallory12"}),
    ("ensureUser", BOSS | {"externalId": "shop-boss", "sessionsLimit": 1}),
    ("ensureUser", {"email": "Boss@example.com", "externalId": "shop-boss", "displayName": "Mallory"}),
    ("ensureUsers", {"users": [BOSS | {"displayName": "Mallory"}]}),
    ("deleteUserByEmail", BOSS),
    ("deleteUserById", ID),
    ("deleteUsers", {"users": [BOSS]}),
    ("updateStoreUser", ID | BOSS | STORE | {"sessionsLimit": 1}),
    ("updateStoreUser", ID | BOSS | STORE | {"externalId": "mallory"}),
    ("updateStoreUser", ID | STORE | {"email": "Boss@example.com"}),
    ("changeLanguage", ID | {"language": "ru"}),
    ("updateProfile", ID | {"profile": {"firstname": "Mallory"}}),
    ("updateProfile", ID | {"profile": {"avatar": None}}),
    ("setAvatarByEmail", BOSS | {"avatar": PICTURE}),
    ("removeAvatarByEmail", BOSS),
    ("removeAvatar", ID),
    ("addToGroup", BOSS | {"name": "Staff"}),
    ("removeFromGroup", BOSS | {"name": "Board"}),
    ("removeFromGroup", BOSS | {"name": "Admins"}),
    ("assignPlan", {"userId": BOSS_ID, "planId": 1, "planValidTo": "2999-12-31"}),
    ("changePlan", {"userId": BOSS_ID, "planId": 1, "planValidTo": "2999-12-31"}),
    ("unassignPlan", {"userId": BOSS_ID, "planId": 1}),
    ("createInOffice365", BOSS),
    ("forceLogoutByEmail", BOSS),
    ("forceLogoutById", ID),
    ("forceLogoutById", {"externalId": "shop-boss"}),
    ("endSession", {"id": 1}),
    ("replaceScimUser", SCIM_ID | {"user": RESOURCE | {"nickName": "Mallory"}}),
    ("replaceScimUser", SCIM_ID | {"user": RESOURCE | {"password": "mallory12"}}),
    ("patchScimUser", SCIM_ID | {"operations": [{"op": "add", "path": "nickName", "value": "Mallory"}]}),
    ("patchScimUser", SCIM_ID | {"operations": [{"op": "replace", "value": {"password": "mallory12"}}]}),
    ("deleteScimUser", SCIM_ID),
]
ACTIVE: list[tuple[str, dict[str, Any]]] = [
    ("updateUserByEmail", BOSS | {"isActive": False}),
    ("updateUsers", {"users": [BOSS | {"isActive": False}]}),
    ("ensureUser", BOSS | {"isActive": False}),
    ("deactivateUserById", ID),
    ("patchScimUser", SCIM_ID | {"operations": [{"op": "Replace", "path": "active", "value": "False"}]}),
]
"""What can be done to a user who is not suspended."""
SUSPENDED: list[tuple[str, dict[str, Any]]] = [
    ("updateUserByEmail", BOSS | {"isActive": True}),
    ("updateUsers", {"users": [BOSS | {"isActive": True}]}),
    ("ensureUser", BOSS | {"isActive": True}),
    ("reactivateUserById", ID),
    ("patchScimUser", SCIM_ID | {"operations": [{"op": "Replace", "path": "active", "value": "True"}]}),
]
UNCONFIRMED: list[tuple[str, dict[str, Any]]] = [("forceConfirmEmail", BOSS)]
DELETED: list[tuple[str, dict[str, Any]]] = [
    ("restoreUserByEmail", BOSS),
    ("purgeUserByEmail", BOSS),
]
"""What can be done to a deleted user."""

EXCEPTIONS = {
    "login": "the user's own password is asked for",
    "logout": "the user's own token is asked for",
    "confirmEmail": "the code that the user was mailed is asked for",
    "resetPasswordWithCode": "the code that the user was mailed is asked for",
    "requestPasswordReset": "mails the user a code, and answers the same whoever it is",
    "createUser": "a new user; isAdmin needs users:admin, and so has test_users.py",
    "createUsers": "new users, likewise",
    "createStoreUser": "a new user, likewise",
    "createMember": "a new user, which is never an administrator",
    "createScimGroup": "names users as members, and asks as addToGroup does: test_scim_groups.py",
    "patchScimGroup": "likewise",
    "replaceScimGroup": "likewise",
    "createScimUser": "a new user, which is never an administrator",
}
"""Methods that name a user and ask for something else than users:admin."""
NAMES = {"email", "login", "userId", "user", "users", "externalId", "token", "code", "operations", "group"}


def named(model: type[BaseModel]) -> bool:
    """Whether params name a user: by a member of these names, or by an id that is a user's."""
    from server.directory.users import UserId
    from server.methods.scim_users import DeleteScimUser
    from server.methods.sessions import SessionId

    named = (UserId, SessionId, DeleteScimUser)
    return bool(NAMES & model.model_fields.keys()) or issubclass(model, named)


def test_every_method_that_names_a_user_is_tried_below() -> None:
    """A new method belongs into LIVING or DELETED, or with a reason into EXCEPTIONS."""
    writing = {name for name, method in METHODS.items() if method.writes and named(method.params)}
    tried = {name for name, _ in LIVING + ACTIVE + SUSPENDED + UNCONFIRMED + DELETED}
    assert tried | EXCEPTIONS.keys() == writing
    assert not tried & EXCEPTIONS.keys()


def test_every_member_of_a_user_is_tried_below() -> None:
    """So that no member of updateUserByEmail is forgotten."""
    tried = {member for name, params in LIVING + ACTIVE if name == "updateUserByEmail" for member in params}
    assert METHODS["updateUserByEmail"].params.model_fields.keys() - {"instance", "isAdmin"} == tried
    assert get_args(METHODS["updateUserByEmail"].params.model_fields["instance"].annotation)


@pytest.fixture
async def boss(client: Client, operator: Client, db: asyncpg.Connection) -> dict[str, Any]:
    """An administrator with something of everything."""
    created: dict[str, Any] = await client.call(
        "createUser", BOSS | {"isAdmin": True, "externalId": "shop-boss", "password": "demo1234",
                              "avatar": "https://example.com/a"}
    )  # fmt: skip
    assert created["id"] == BOSS_ID
    for name in ("Staff", "Board"):
        await client.call("createGroup", {"name": name})
    await client.call("addToGroup", BOSS | {"name": "Board"})
    await client.call("createPlan", {"type": "recurring", "name": "A plan"})
    await client.call("assignPlan", {"userId": BOSS_ID, "planId": 1})
    await client.call("login", BOSS | {"password": "demo1234"})
    office = {"tenantId": "contoso.example", "clientId": "1", "clientSecret": "secret"}
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "settings": {"office365": office}})
    return created


async def refused(
    caller: Client, db: asyncpg.Connection, method: str, params: dict[str, Any]
) -> tuple[int, str | None]:
    """Status and the scope that is missing, of a call that must change nothing."""
    if "avatar" in params and isinstance(params["avatar"], dict):
        params = params | {"avatar": sent(encoded(photo(), "PNG"))}
    before = await contents(db)
    async with await caller.post({"method": method, "params": params}) as response:
        answer = response.status, response.headers.get("X-Required-Scope")
    assert await contents(db) == before, method
    return answer


FORBIDDEN = (403, "users:admin")


@pytest.mark.damages
@pytest.mark.parametrize("state", ["living", "suspended"])
async def test_an_administrator_is_changed_with_users_admin_alone(
    state: str, client: Client, boss: dict[str, Any], db: asyncpg.Connection
) -> None:
    if state == "suspended":
        await db.execute("UPDATE users SET is_active = false, suspended_at = now() WHERE id = $1", BOSS_ID)
    weak = client.using(await insert_key(db, scopes=WITHOUT_ADMIN))
    for method, params in LIVING + (SUSPENDED if state == "suspended" else ACTIVE):
        assert await refused(weak, db, method, params) == FORBIDDEN, (method, params)


async def test_a_deleted_administrator_is_restored_and_purged_with_users_admin_alone(
    client: Client, boss: dict[str, Any], db: asyncpg.Connection
) -> None:
    await client.call("deleteUserByEmail", BOSS)
    weak = client.using(await insert_key(db, scopes=WITHOUT_ADMIN))
    for method, params in DELETED:
        assert await refused(weak, db, method, params) == FORBIDDEN, method
    for method, params in LIVING + ACTIVE + SUSPENDED + UNCONFIRMED:
        status, _ = await refused(weak, db, method, params)
        assert status in (400, 404), (method, params)
    await client.call("restoreUserByEmail", BOSS)
    await client.call("deleteUserByEmail", BOSS)
    await client.call("purgeUserByEmail", BOSS)


@pytest.mark.damages
async def test_an_administrator_is_confirmed_with_users_admin_alone(
    client: Client, boss: dict[str, Any], db: asyncpg.Connection
) -> None:
    await db.execute("UPDATE users SET confirmed_at = NULL WHERE id = $1", BOSS_ID)
    weak = client.using(await insert_key(db, scopes=WITHOUT_ADMIN))
    for method, params in UNCONFIRMED:
        assert await refused(weak, db, method, params) == FORBIDDEN, method
        await client.call(method, params)


async def test_the_same_calls_work_with_users_admin(
    client: Client, boss: dict[str, Any], db: asyncpg.Connection
) -> None:
    """They are refused for the scope, and not because something else is wrong with them."""
    for method, params in LIVING + ACTIVE + UNCONFIRMED:
        if "avatar" in params and isinstance(params["avatar"], dict):
            params = params | {"avatar": sent(encoded(photo(), "PNG"))}
        status, answer = await client.outcome(method, params | {"dryRun": True})
        assert status == 200, (method, params, answer)


async def test_a_user_becomes_an_administrator_with_users_admin_alone(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    weak = client.using(await insert_key(db, scopes=WITHOUT_ADMIN))
    jane_is = {"email": "jane@example.com"}
    for method, params in (
        ("updateUserByEmail", jane_is | {"isAdmin": True}),
        ("updateUserByEmail", jane_is | {"groups": ["Admins"]}),
        ("updateUsers", {"users": [jane_is | {"groups": ["Admins"]}]}),
        ("replaceUserByEmail", jane_is | {"isAdmin": True}),
        ("ensureUser", jane_is | {"isAdmin": True}),
        ("updateStoreUser", jane_is | {"id": jane["id"], "isAdmin": True} | STORE),
        ("addToGroup", jane_is | {"name": "Admins"}),
    ):
        assert await refused(weak, db, method, params) == FORBIDDEN, method


async def test_what_is_so_already_needs_no_scope(
    client: Client, boss: dict[str, Any], db: asyncpg.Connection
) -> None:
    """A shop that sends whole users, to keep them in step, may go on for as long as nothing changes."""
    weak = client.using(await insert_key(db, scopes=WITHOUT_ADMIN))
    until = {"userId": BOSS_ID, "planId": 1, "planValidTo": "2999-12-31"}
    await client.call("assignPlan", until)
    await client.call("forceLogoutById", ID)
    state = """
        SELECT user_state(u), array(SELECT row_to_json(p)::text FROM user_plans AS p WHERE p.user_id = u.id)
        FROM users AS u WHERE id = $1
    """
    before = await db.fetchrow(state, BOSS_ID)
    for method, params in (
        ("ensureUser", BOSS | {"externalId": "shop-boss", "isAdmin": True}),
        ("updateUserByEmail", BOSS | {"isActive": True, "displayName": "boss"}),
        ("updateUserByEmail", BOSS | {"groups": ["Admins", "Board"]}),
        ("updateUsers", {"users": [BOSS | {"isActive": True}]}),
        ("replaceUserByEmail", BOSS | {"isAdmin": True, "newEmail": "boss@example.com"}),
        ("updateStoreUser", ID | BOSS | STORE | {"isAdmin": True}),
        ("reactivateUserById", ID),
        ("addToGroup", BOSS | {"name": "Board"}),
        ("addToGroup", BOSS | {"name": "Admins"}),
        ("removeFromGroup", BOSS | {"name": "Staff"}),
        ("forceConfirmEmail", BOSS),
        ("forceLogoutByEmail", BOSS),
        ("forceLogoutById", ID),
        ("assignPlan", until),
        ("changePlan", until),
        ("unassignPlan", {"userId": BOSS_ID, "planId": 1, "lastDay": until["planValidTo"]}),
    ):
        await weak.call(method, params)
        assert await db.fetchrow(state, BOSS_ID) == before, method
        assert (await client.call("getUserByEmail", BOSS))["groups"] == ["Admins", "Board"]


async def test_users_prove_themselves_without_users_admin(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    """By password, token and code, administrators too."""
    await db.execute("UPDATE users SET is_admin = true WHERE id = $1", jane["id"])
    weak = client.using(await insert_key(db, scopes=WITHOUT_ADMIN))
    await weak.call("login", {"email": "jane@example.com", "password": "demo1234"})
    await weak.call("logout", {"token": EXAMPLE_TOKEN})
    await weak.call("confirmEmail", {"code": EXAMPLE_CODES["confirm"]})
    await weak.call("resetPasswordWithCode", {"code": EXAMPLE_CODES["reset"], "newPassword": "onemoretime"})
    url = "https://example.com/reset?code={{code}}"
    await weak.call("requestPasswordReset", {"email": "jane@example.com", "confirmationUrl": url})


async def test_a_validation_says_so_too(client: Client, boss: dict[str, Any], db: asyncpg.Connection) -> None:
    weak = client.using(await insert_key(db, scopes=WITHOUT_ADMIN))
    changes = {"firstName": "Mallory", "lastName": "", "isAdmin": False, "newEmail": "Boss@example.com"}
    told = await weak.call("validateReplacement", BOSS | changes | {"password": "mallory12"})
    assert {failure["field"] for failure in told["failures"]} == {
        "firstName", "isAdmin", "newEmail", "password",
    }  # fmt: skip
    same = {"isAdmin": True, "newEmail": "boss@example.com"}
    assert (await weak.call("validateReplacement", BOSS | same))["valid"]
    assert (await client.call("validateReplacement", BOSS | {"firstName": "Ann"}))["valid"]
    assert BOSS["email"] != ADMIN


# --- one place for all rules ----------------------------------------------------------------------------


SERVER = Path(__file__).parents[1] / "server"
APART = {"tenants/access.py", "tenants/principals.py"}
"""The rules, and the list of the scopes."""


def _nodes(path: Path) -> Iterator[ast.AST]:
    """The syntax of a module without its @method(...)."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        yield node
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Call(func=ast.Name("method")):
                    pass
                case _:
                    yield from walk(child)

    yield from walk(ast.parse(path.read_text()))


def test_scopes_are_named_by_the_rules_and_the_methods_alone() -> None:
    for path in sorted(SERVER.rglob("*.py")):
        if path.relative_to(SERVER).as_posix() not in APART:
            for node in _nodes(path):
                named = node.value if isinstance(node, ast.Constant) else None
                assert named not in SCOPES, f"{path.name}:{getattr(node, 'lineno', 0)} names {named}"


def test_refusals_are_made_by_the_rules_alone() -> None:
    kinds = {"MemberForbidden", "MissingScope", "OperatorsOnly", "InstanceSuspended", "NotHeld"}
    for path in sorted(SERVER.rglob("*.py")):
        if path.relative_to(SERVER).as_posix() not in APART:
            for node in _nodes(path):
                match node:
                    case ast.Raise(exc=ast.Name(kind)) | ast.Call(func=ast.Name(kind)):
                        assert kind not in kinds, f"{path.name}:{node.lineno} makes a {kind}"


def test_every_refusal_of_a_key_has_a_rule() -> None:
    """All that is forbidden, but for a wire that is switched off."""
    told = {rule.error.code for rule in access.RULES}
    known = {code for code, entry in ERROR_CODES.items() if entry.status == 403}
    assert known - told == {"provisioning_disabled"} and told <= known
    assert all(
        scope == access.MEMBER_SCOPES[member]
        for method in METHODS.values()
        for member, scope in method.member_scopes.items()
    )


def test_the_reference_has_the_rules() -> None:
    rows = ["| what is asked | what it needs | code without it |", "| --- | --- | --- |"]
    rows += [f"| {rule.asked} | {rule.needs} | `{rule.error.code}` |" for rule in access.RULES]
    text = (SERVER / "methods" / "README.md").read_text()
    found = text.partition("\n## Who may do what\n")[2].partition("\n## ")[0]
    table = "\n".join(line for line in found.splitlines() if line.startswith("|"))
    assert table == "\n".join(rows), "put this table there:\n" + "\n".join(rows)


# --- API keys -------------------------------------------------------------------------------------------


async def key_id(db: asyncpg.Connection, key: str) -> int:
    from server.base.tokens import digest

    return int(await db.fetchval("SELECT id FROM api_keys WHERE digest = $1", digest(key)))


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("revokeApiKey", {}),
    ("rotateApiKey", {}),
    ("rotateApiKey", {"overlap": 0}),
    ("updateApiKey", {"ratePerMinute": 1}),
    ("updateApiKey", {"name": "mine"}),
]


async def test_a_key_changes_no_stronger_one(client: Client, db: asyncpg.Connection) -> None:
    """One that has a scope which the caller lacks is neither ended nor replaced, slowed down or renamed."""
    weak = client.using(await insert_key(db, scopes=("keys:read", "keys:write")))
    stronger = await key_id(db, client.key)
    for method, params in CHANGES:
        before = await contents(db)
        async with await weak.post({"method": method, "params": {"id": stronger} | params}) as response:
            assert (response.status, response.headers["X-Error-Code"]) == (403, "scope_not_held"), method
        assert await contents(db) == before
    assert (await client.outcome("getUserByEmail", {"email": ADMIN}))[0] == 200


async def test_a_key_changes_none_of_another_instance_and_no_operators(
    client: Client, other: Client, operator: Client, db: asyncpg.Connection
) -> None:
    both = await insert_key(db, instances=("MYINSTANCE", "OTHER"), scopes=("users:read",))
    operators = await insert_key(db, operator=True, scopes=("users:read",))
    for key in (both, operators, other.key):
        for method, params in CHANGES:
            answer = await client.outcome(method, {"id": await key_id(db, key)} | params)
            assert answer == (400, "not found"), method
    assert await db.fetchval("SELECT count(*) FROM api_keys WHERE revoked_at IS NOT NULL") == 0


async def test_an_operators_key_changes_no_stronger_one(operator: Client, db: asyncpg.Connection) -> None:
    weak = operator.using(await insert_key(db, operator=True, scopes=("keys:write",)))
    for method, params in CHANGES:
        status, _ = await weak.outcome(method, {"id": await key_id(db, operator.key)} | params)
        assert status == 403, method


async def test_keys_of_the_same_or_less_are_changed(client: Client, db: asyncpg.Connection) -> None:
    for scopes in (("users:read",), TENANT_SCOPES):
        weaker = await key_id(db, await insert_key(db, scopes=scopes))
        await client.call("updateApiKey", {"id": weaker, "ratePerMinute": 60})
        await client.call("rotateApiKey", {"id": weaker})
        await client.call("revokeApiKey", {"id": weaker})
