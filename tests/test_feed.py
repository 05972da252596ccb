"""Events in the feed and in webhooks: the complete values, and no secrets."""

import json
from typing import Any, get_args

import asyncpg
import pytest
from conftest import ADMIN, Client
from pydantic import BaseModel

from server.base.models import HIDDEN, IN_EVENTS
from server.base.settings import Settings
from server.events import webhooks
from server.events.feed import PAGE_BYTES
from server.methods.codes import EXAMPLE_CODES
from server.methods.registry import METHODS
from server.methods.sessions import EXAMPLE_TOKEN
from server.postgres.db import Database

JANE = {"email": "jane@example.com"}
NAMED_LIKE_SECRETS = {
    "data": "hello",
    "key": "k",
    "password": "p",
    "token": "t",
    "code": "c",
    "secret": ["s"],
}
BCRYPT = "$2b$12$3ihxoshxRO9Q8DOvZy1BV.YkIwxFJ67qcxEEW560Sny99vkAT8xoq"


@pytest.fixture
async def database(database_url: str) -> Any:
    database = Database(Settings(), database_url)
    await database.open()
    yield database
    await database.close()


async def feed(client: Client, **asked: Any) -> list[dict[str, Any]]:
    """All that listChanges tells, page by page."""
    events: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = await client.call("listChanges", {"cursor": cursor, "limit": 1000} | asked)
        events += page["events"]
        cursor = page["cursor"]
        if not page["more"]:
            return events


async def delivered(database: Database, db: asyncpg.Connection) -> list[dict[str, Any]]:
    """The bodies of all that is to be delivered, in the order of the events."""
    more = True
    while more:
        async with database.connection() as looking:
            waiting = await looking.all("find_waiting_webhooks")
        _, more = await webhooks.relay(database, waiting)
    rows = await db.fetch("SELECT body FROM deliveries")
    return [json.loads(row["body"]) for row in rows]


async def audit(client: Client, **asked: Any) -> list[dict[str, Any]]:
    """All that listAuditEvents tells, the oldest first."""
    events: list[dict[str, Any]] = []
    after = None
    while True:
        page = await client.call("listAuditEvents", {"after": after, "limit": 1000} | asked)
        events += page["events"]
        after = page["next"]
        if after is None:
            return events[::-1]


async def test_what_tenants_write_is_told_whole(
    client: Client, db: asyncpg.Connection, database: Database
) -> None:
    """Whatever its members are called and however long it is; the audit alone shows less of what is long."""
    await client.call("createWebhook", {"url": "https://hooks.example.com/"})
    values = {"editorTemplates": NAMED_LIKE_SECRETS | {"long": "y" * 30_000}, "timezone": "Asia/Bahrain"}
    await client.call("createUser", JANE | {"values": values})
    changed = {"editorTemplates": {"data": "bye", "key": None, "list": [{"key": 1}] * 5_000}}
    await client.call(
        "updateUserByEmail", JANE | {"values": changed, "avatar": "https://a.example/" + "z" * 2000}
    )
    _, created, updated = await feed(client, types=["user.created", "user.updated"])
    assert created["data"]["after"]["values"] == values
    before, after = updated["data"]["before"], updated["data"]["after"]
    # Of values the members that differ, each of them whole.
    assert before["values"] == {"editorTemplates": values["editorTemplates"]}
    assert after["values"] == changed
    assert after["avatar"] == "https://a.example/" + "z" * 2000
    sent = sorted(await delivered(database, db), key=lambda body: body["timestamp"])
    assert [body["data"] for body in sent][-2:] == [created["data"], updated["data"]]

    shown = await audit(client, email=JANE["email"])
    templates = shown[0]["after"]["values"]["editorTemplates"]
    assert templates == NAMED_LIKE_SECRETS | {"long": "y" * 1000 + "..."}
    assert shown[1]["after"]["values"]["editorTemplates"]["list"] == "..."
    assert shown[1]["after"]["avatar"] == "https://a.example/" + "z" * 982 + "..."


async def test_profile_fields_are_told_whole(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    for alias in ("code", "secret"):
        await client.call("defineProfileField", {"alias": alias, "title": "x", "type": "text"})
    await client.call("createMember", {"login": "ann@example.com", "sponsorId": 1, "profile": {
        "firstname": "Ann", "lastname": "Lee", "code": "x" * 4000, "secret": "s"}})  # fmt: skip
    (event,) = [one for one in await feed(client, types=["user.created"]) if one["data"]["userId"] == 3]
    fields = event["data"]["after"]["fields"]
    assert (fields["code"], fields["secret"]) == ("x" * 4000, "s")


async def test_old_events_stay_as_they_were_written(client: Client, db: asyncpg.Connection) -> None:
    await db.execute(
        "INSERT INTO events (instance_id, place, type, user_id, after, method, key_id, key_name, request_id)"
        """ VALUES (1, 1, 'user.updated', 1, '{"values": {"key": "***"}}', 'x', 1, 'x', 'x')"""
    )
    assert (await feed(client))[-1]["data"]["after"] == {"values": {"key": "***"}}


async def test_no_event_holds_a_secret(
    client: Client, operator: Client, jane: dict[str, Any], db: asyncpg.Connection, database: Database
) -> None:
    """Neither those that are sent in nor those that are answered."""
    mine = {"instance": "MYINSTANCE"}
    hook = await client.call("createWebhook", {"url": "https://hooks.example.com/"})
    secrets = [hook["secret"], EXAMPLE_TOKEN, *EXAMPLE_CODES.values(), BCRYPT, BCRYPT[7:]]
    secrets.append((await client.call("rotateWebhookSecret", {"id": hook["id"]}))["secret"])

    def fresh() -> str:
        secrets.append(f"Sesame-{len(secrets)}-Secret")
        return secrets[-1]

    office = {"tenantId": "contoso.example", "clientId": "1"}
    settings = {"office365": office | {"clientSecret": fresh()}}
    admin = {"email": "boss@acme.example", "password": fresh()}
    await operator.call("createInstance", {"name": "ACME", "admin": admin, "settings": settings})
    for _ in range(2):
        settings = {"office365": office | {"clientSecret": fresh()}}
        await operator.call("updateInstance", mine | {"settings": settings})
    ann = {"email": "ann@example.com"}
    await client.call("createUser", ann | {"password": fresh()})
    await client.call("createUser", {"email": "b@example.com", "passwordHash": BCRYPT})
    bulk = [
        {"email": "c@example.com", "password": fresh()},
        {"email": "d@example.com", "passwordHash": BCRYPT},
    ]
    await client.call("createUsers", {"users": bulk})
    await client.call("ensureUser", {"email": "e@example.com", "password": fresh()})
    await client.call("ensureUsers", {"users": [{"email": "f@example.com", "password": fresh()}]})
    store = {"externalId": "1", "newPassword": fresh()}
    made = await client.call("createStoreUser", {"email": "g@example.com"} | store)
    store = {"externalId": "1", "newPassword": fresh(), "onlySeesReadable": True}
    await client.call("updateStoreUser", {"id": made["id"], "email": "g@example.com"} | store)
    await client.call("resetPasswordByEmail", ann | {"password": fresh()})
    await client.call("replaceUserByEmail", ann | {"password": fresh()})
    await client.call("setPassword", {"id": jane["id"], "newPassword": fresh()})
    session = await client.call("login", JANE | {"password": secrets[-1]})
    secrets.append(session["token"])
    await client.call("logout", {"token": session["token"]})
    # A user who is confirmed already: nothing changes, so that the event has the params.
    await client.call("confirmEmail", {"code": EXAMPLE_CODES["confirm"]})
    code = EXAMPLE_CODES["reset"]
    await db.execute("INSERT INTO codes SELECT 1, sha256($1::bytea), 2, 'reset', now(), now() + interval '1 day'",
                     code.encode())  # fmt: skip
    await client.call("resetPasswordWithCode", {"code": code, "newPassword": fresh()})
    profile = {"firstname": "H", "lastname": "I"}
    member = await client.call("createMember", {"login": "h@example.com", "sponsorId": 1, "profile": profile})
    secrets.append(member["password"])
    key = await client.call("createApiKey", {"name": "x", "scopes": ["users:read"]})
    rotated = await client.call("rotateApiKey", {"id": key["id"]})
    secrets += [key["key"], rotated["key"], client.key, operator.key]

    await delivered(database, db)
    written = await db.fetch("SELECT e::text FROM events AS e") + await db.fetch(
        "SELECT convert_from(body, 'UTF8') FROM deliveries"
    )
    assert len(written) > 40
    for (text,) in written:
        assert not [secret for secret in secrets if secret in text], text
    events = {event["type"]: event for event in await audit(operator, **mine)}
    assert events["updateInstance"]["after"]["settings"]["office365"]["clientSecret"] == HIDDEN
    assert events["createApiKey"]["after"]["key"] == HIDDEN
    assert events["confirmEmail"]["after"] == {"code": HIDDEN}
    assert events["user.password_changed"]["after"] == {"password": HIDDEN}


SECRETS = {"password", "newPassword", "passwordHash", "token", "code", "secret", "clientSecret"}


def members(annotation: Any, seen: tuple[Any, ...] = ()) -> list[tuple[type[BaseModel], str]]:
    """Every member of a model and of those within it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation in seen:
            return []
        inner = [
            one
            for field in annotation.model_fields.values()
            for one in members(field.annotation, (*seen, annotation))
        ]
        return [(annotation, name) for name in annotation.model_fields] + inner
    return [one for part in get_args(annotation) for one in members(part, seen)]


def test_every_secret_of_the_params_is_marked() -> None:
    """By its type: a new method that takes one uses a type that is SECRET."""
    found = {
        (model, name)
        for method in METHODS.values()
        for model, name in members(method.params)
        if name in SECRETS
    }
    assert {name for _, name in found} == SECRETS - {"secret"}
    for model, name in found:
        given = "Sesame"
        if name == "clientSecret":
            from pydantic import SecretStr

            given = SecretStr("Sesame")  # type: ignore[assignment]
        made = model.model_construct(**{name: given})
        dumped = made.model_dump(include={name}, context=IN_EVENTS)
        assert dumped == {name: HIDDEN}, (model, name)


# --- pages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["y", "é"])
async def test_pages_are_bounded_in_bytes(
    text: str, client: Client, db: asyncpg.Connection, database: Database
) -> None:
    """However many events are asked for, and however well they could be compressed. None is skipped or told twice."""
    await client.call("createWebhook", {"url": "https://hooks.example.com/"})
    values = {"editorTemplates": text * (60_000 // len(text.encode()))}
    users = [f"{number:02}@example.com" for number in range(45)]
    for start in range(0, 45, 5):
        items = [{"email": email, "values": values} for email in users[start : start + 5]]
        await client.call("createUsers", {"users": items})
    page = await client.call("listChanges", {"limit": 1000})
    assert page["more"]
    size = len(json.dumps(page["events"], ensure_ascii=False).encode())
    assert PAGE_BYTES * 0.9 < size < PAGE_BYTES + 130_000
    shown = await client.call("listAuditEvents", {"limit": 1000, "type": "user.created"})
    assert 15 <= len(shown["events"]) < 20 and shown["next"]
    everything = [event["data"]["after"]["email"] for event in await feed(client, types=["user.created"])]
    assert everything == [ADMIN, *users]
    told = await audit(client, type="user.created")
    assert [event["after"]["email"] for event in told] == [ADMIN, *users]
    sent = [body["data"]["after"]["email"] for body in await delivered(database, db)]
    assert sorted(sent) == users
    by_user = await audit(client, email=users[3])
    assert [event["type"] for event in by_user] == ["user.created"]


async def test_an_event_larger_than_a_page_is_told_by_itself(client: Client, db: asyncpg.Connection) -> None:
    await db.execute(
        "INSERT INTO events (instance_id, place, type, user_id, after, method, key_id, key_name, request_id)"
        " SELECT 1, n, 'user.updated', 1, jsonb_build_object('n', n, 'text', repeat('y', 2000000)), 'x', 1, 'x', 'x'"
        " FROM generate_series(1, 3) AS n"
    )
    cursor, seen = None, []
    for _ in range(6):
        page = await client.call("listChanges", {"cursor": cursor, "types": ["user.updated"]})
        cursor = page["cursor"]
        assert len(page["events"]) <= 1
        seen += [event["data"]["after"]["n"] for event in page["events"]]
        if not page["more"]:
            break
    assert seen == [1, 2, 3]
