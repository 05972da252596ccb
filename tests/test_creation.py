"""Creating users: rows, events, answers and errors are the same in every method."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from conftest import ADMIN, Client, insert_key

HASH = "$argon2id$v=19$m=19456,t=2,p=1$" + "A" * 22 + "$" + "A" * 43
EVERYTHING = {
    "email": "Ann@example.com", "displayName": "Ann Lee", "passwordHash": HASH, "isActive": False, "isAdmin": True,
    "profile": {"title": "Dr.", "phones": ["+973 1700 0000"]},
    "values": {"timezone": "Asia/Bahrain", "editorTemplates": {"letter": [None, 1]}},
    "settings": [1, -2], "apps": [], "avatar": "https://example.com/a.png", "firstName": "Ann", "lastName": "Lee",
    "externalId": "shop-1", "sessionsLimit": 3, "isPlanAdmin": True, "onlySeesReadable": True,
    "planId": 1, "planValidTo": "2099-12-31", "quotas": {"mail": 5, "files": None},
}  # fmt: skip
Creates = Callable[[Client, str, dict[str, Any]], Awaitable[Any]]
DIFFERENT = {"instance_id", "xid", "method", "request_id", "path"}
"""Columns that tell one instance or call from another."""


async def alone(client: Client, instance: str, user: dict[str, Any]) -> Any:
    """createUser: one statement without a transaction around it, unless the user gets a plan."""
    return await client.call("createUser", user | {"instance": instance})


async def repeatable(client: Client, instance: str, user: dict[str, Any]) -> Any:
    """createUser in a transaction, beside the row of its idempotency key."""
    headers = {"Idempotency-Key": "one"}
    return await client.call("createUser", user | {"instance": instance}, headers=headers)


async def among_many(client: Client, instance: str, user: dict[str, Any]) -> Any:
    """createUsers of one."""
    answer = await client.call("createUsers", {"users": [user], "instance": instance})
    return answer["results"][0]["result"]


async def ensured(client: Client, instance: str, user: dict[str, Any]) -> Any:
    """ensureUser, which answers the user as it is looked up."""
    return await client.call("ensureUser", user | {"instance": instance})


async def rows_of(db: asyncpg.Connection, instance: str) -> dict[str, list[dict[str, Any]]]:
    """Every row that an instance has in any table but the one of idempotency keys; moments and random ids are
    only told from null."""
    instance_id = await db.fetchval("SELECT id FROM instances WHERE name = $1", instance)
    tables = await db.fetch(
        "SELECT t.tablename FROM pg_tables AS t JOIN information_schema.columns AS c ON c.table_name = t.tablename"
        " WHERE t.schemaname = 'public' AND c.column_name = 'instance_id' AND t.tablename <> 'idempotency_keys'"
    )
    rows: dict[str, list[dict[str, Any]]] = {}
    for (table,) in tables:
        found = await db.fetch(
            f"SELECT * FROM {table} AS t WHERE instance_id = $1 ORDER BY t::text", instance_id
        )
        rows[table] = [
            {
                name: type(value).__name__ if isinstance(value, (datetime, UUID)) else value
                for name, value in row.items()
                if name not in DIFFERENT
            }
            for row in found
        ]
    # Not what createInstance and createPlan tell, which has the instance's name and the time in seconds.
    rows["events"] = [row for row in rows["events"] if row["user_id"] is not None]
    rows["events"].sort(key=lambda row: (row["type"], str(row["after"])))
    return rows


@pytest.mark.parametrize(
    "user",
    [{"email": "ann@example.com"}, EVERYTHING | {"planId": None, "planValidTo": None}, EVERYTHING],
    ids=["an e-mail alone", "every member but a plan, in one statement", "every member"],
)
async def test_every_way_writes_the_same(
    user: dict[str, Any], operator: Client, db: asyncpg.Connection
) -> None:
    written, answers = [], []
    for number, creates in enumerate((alone, repeatable, among_many, ensured)):
        instance = f"TWIN{number}"
        await operator.call("createInstance", {"name": instance, "admin": {"email": ADMIN}})
        plan = {"instance": instance, "type": "recurring", "name": "Gold"}
        await operator.call("createPlan", plan)
        answers.append(await creates(operator, instance, user))
        written.append(await rows_of(db, instance))
    assert len(written[0]["users"]) == 2
    assert {len(written[0][table]) for table in ("mailboxes", "calendars", "file_folders")} == {12, 2, 4}
    (created,) = [
        event for event in written[0]["events"] if event["type"] == "user.created" and event["user_id"] == 2
    ]
    assert '"email": "' + user["email"] in created["after"]
    for rows in written[1:]:
        assert rows == written[0]
    one, repeated, many, _ = (dict(answer) | {"createdAt": 0} for answer in answers)
    assert list(one.items()) == list(repeated.items()) == list(many.items())


NOBODY = {"email": "new@example.com"}
REFUSED = {
    "a taken e-mail": {"email": ADMIN.upper()},
    "the login of another user": {"email": "login@example.com"},
    "the e-mail of a deleted user": {"email": "gone@example.com"},
    "a taken external id": NOBODY | {"externalId": "shop-1"},
    "a weak password": NOBODY | {"password": "short"},
    "Office 365 without credentials": NOBODY | {"createInOffice365": True},
    "no such plan": NOBODY | {"planId": 99},
    "a plan that ended": NOBODY | {"planId": 1, "planValidTo": "2001-01-01"},
    "a bad member": NOBODY | {"settings": ["a"]},
}


@pytest.mark.parametrize("user", REFUSED.values(), ids=REFUSED)
async def test_every_way_refuses_the_same(user: dict[str, Any], client: Client, operator: Client) -> None:
    await client.call("createPlan", {"type": "recurring", "name": "Gold"})
    await client.call("createUser", {"email": "shop@example.com", "externalId": "shop-1"})
    names = {"firstname": "A", "lastname": "L", "email": "mail@example.com"}
    await client.call("createMember", {"login": "login@example.com", "sponsorId": 1, "profile": names})
    await client.call("createUser", {"email": "gone@example.com"})
    await client.call("deleteUserByEmail", {"email": "gone@example.com"})
    policy = {"settings": {"passwordPolicy": {"minLength": 8}}}
    await operator.call("updateInstance", policy | {"instance": "MYINSTANCE"})
    await same_errors(client, user)


async def same_errors(client: Client, user: dict[str, Any]) -> None:
    """createUser and createUsers of one say the same of a user whom they refuse, and nobody is created."""
    async with await client.post(
        {"jsonrpc": "2.0", "id": 1, "method": "createUser", "params": user}
    ) as response:
        error = (await response.json())["error"]
    many = await client.call("createUsers", {"users": [user], "mode": "each"})
    assert (many["succeeded"], many["failed"]) == (0, 1)
    assert many["results"][0]["error"] == {
        "code": error["data"]["code"], "message": error["message"], "fields": error["data"].get("fields", []),
    }  # fmt: skip


async def test_no_seat_is_refused_the_same(client: Client, operator: Client) -> None:
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "settings": {"maxUsers": 1}})
    await same_errors(client, NOBODY)


async def test_an_administrator_is_refused_the_same(client: Client, db: asyncpg.Connection) -> None:
    weak = client.using(await insert_key(db, scopes=("users:write",)))
    await same_errors(weak, NOBODY | {"isAdmin": True})
