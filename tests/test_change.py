"""Changing users: the same function and two statements, besides events, for one user and for many."""

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from conftest import Client

from server.directory.users import UserChanges
from server.postgres.db import load_queries

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from _statements import recorded

ONE, MANY = {"email": "one@example.com"}, {"email": "many@example.com"}
CHANGES: dict[str, Any] = {
    "displayName": "Somebody Else",
    "isActive": False,
    "isAdmin": True,
    "profile": {"title": "Dr.", "phones": ["+973 3600 0000"]},
    "values": {"timezone": "Asia/Bahrain", "editorTemplates": {"b": 1, "a": [None, True]}},
    "settings": [1, 2],
    "apps": [],
    "avatar": "https://example.com/picture.png",
    "externalId": "shop-",
    "sessionsLimit": 2,
    "isPlanAdmin": True,
    "onlySeesReadable": True,
    "quotas": {"mail": 5},
    "groups": ["Sales"],
}
"""Another value than the default for each member."""
OF_EACH = {"id", "uuid", "created_at", "updated_at", "suspended_at", "confirmed_at"}
"""Columns that differ between two users who were changed in the same way."""


def test_every_member_has_a_change() -> None:
    assert set(CHANGES) == set(UserChanges.model_fields) - {"email"}


@pytest.mark.parametrize("member", CHANGES)
async def test_one_is_changed_as_many_are(member: str, client: Client, db: asyncpg.Connection) -> None:
    """The same row, events and answer from updateUserByEmail and from updateUsers with one user."""
    await client.call("createGroup", {"name": "Sales"})
    for user in (ONE, MANY):
        await client.call("createUser", user | {"password": "demo1234"})
        await client.call("login", user | {"password": "demo1234"})
    before = await rows(db)
    one, many = CHANGES[member], CHANGES[member]
    if member == "externalId":
        one, many = one + "one", many + "many"
    assert await client.call("updateUserByEmail", ONE | {member: one}) is True
    answer = await client.call("updateUsers", {"users": [MANY | {member: many}]})
    assert answer["results"] == [{"index": 0, "result": True, "error": None}]
    after = await rows(db)
    assert after[0] != before[0] and after[0] == after[1]
    told = [await events_of(db, user) for user in (ONE, MANY)]
    assert told[0] and told[0] == told[1]


async def rows(db: asyncpg.Connection) -> list[dict[str, Any]]:
    """The two users with their groups and the number of their sessions."""
    found = await db.fetch(
        "SELECT u.*, array(SELECT group_id FROM group_members WHERE user_id = u.id) AS groups,"
        " (SELECT count(*) FROM sessions WHERE user_id = u.id) AS sessions"
        " FROM users AS u WHERE email_key = any($1::text[]) ORDER BY id",
        [ONE["email"], MANY["email"]],
    )
    return [{name: same(value) for name, value in row.items() if name not in OF_EACH} for row in found]


def same(value: Any) -> Any:
    """A text without the name of either user."""
    return re.sub(r"\b(one|many)\b", "somebody", value) if isinstance(value, str) else value


async def events_of(db: asyncpg.Connection, user: dict[str, str]) -> list[tuple[Any, ...]]:
    found = await db.fetch(
        "SELECT e.type, e.before, e.after FROM events AS e JOIN users AS u ON u.id = e.user_id"
        " WHERE u.email_key = $1 AND e.method LIKE 'updateUser%' ORDER BY e.xid, e.place",
        user["email"],
    )
    return [tuple(map(same, row)) for row in found]


async def test_json_is_stored_and_told_where_it_is_equal_in_python_alone(
    client: Client, db: asyncpg.Connection
) -> None:
    """1 == True and 0 == False in Python, but not in JSON."""
    await client.call("createUser", ONE | {"values": {"editorTemplates": {"on": 1}}})
    await client.call("updateUserByEmail", ONE | {"values": {"editorTemplates": {"on": True}}})
    stored = "SELECT app_values #>> '{editorTemplates,on}' FROM users WHERE email_key = $1"
    assert await db.fetchval(stored, ONE["email"]) == "true"
    told = "SELECT after #>> '{values,editorTemplates,on}' FROM events WHERE type = 'user.updated'"
    assert await db.fetchval(told) == "true"


async def test_what_is_so_already_is_not_written_again(client: Client, db: asyncpg.Connection) -> None:
    """The row is left alone, and the audit tells of the call."""
    await client.call("createUser", ONE | {"displayName": "One"})
    row = "SELECT ctid::text, updated_at FROM users WHERE email_key = $1"
    before = await db.fetchrow(row, ONE["email"])
    await client.call("updateUserByEmail", ONE | {"displayName": "One", "profile": {"phones": []}})
    assert await db.fetchrow(row, ONE["email"]) == before
    last = await db.fetchrow("SELECT type, user_id, before FROM events ORDER BY xid DESC, place DESC LIMIT 1")
    user_id = await db.fetchval("SELECT id FROM users WHERE email_key = $1", ONE["email"])
    assert last is not None and tuple(last) == ("updateUserByEmail", user_id, None)


NAMES = ["hold_counters", "find_taken"]
"""Looked at where an e-mail changes."""
USERS, EFFECTS, GROUPS = "write_users", "write_effects", "replace_groups"


@pytest.mark.parametrize(
    ("method", "params", "statements"),
    [
        ("updateUserByEmail", ONE | {"displayName": "x"}, [USERS]),
        ("updateUserByEmail", ONE | {"isActive": False}, [USERS, EFFECTS]),
        ("updateUserByEmail", ONE | {"externalId": "shop-1"}, [USERS]),
        (
            "updateUsers",
            {"users": [ONE | {"isActive": False}, MANY | {"displayName": "x"}]},
            [USERS, EFFECTS],
        ),
        ("resetPasswordByEmail", ONE | {"password": "onemoretime"}, [EFFECTS]),
        ("renameUserByEmail", ONE | {"newEmail": "another@example.com"}, [*NAMES, USERS, EFFECTS]),
        (
            "replaceUserByEmail",
            ONE | {"newEmail": "another@example.com", "password": "onemoretime"},
            [*NAMES, USERS, EFFECTS],
        ),
        ("changeLanguage", {"id": 2, "language": "ru"}, [USERS]),
        ("deactivateUserById", {"id": 2}, [USERS, EFFECTS]),
        ("forceLogoutByEmail", ONE, [EFFECTS]),
        ("removeAvatarByEmail", ONE, [USERS, EFFECTS]),
        ("deleteUserByEmail", ONE, [USERS, EFFECTS, GROUPS]),
        ("deleteUsers", {"users": [ONE, MANY]}, [USERS, EFFECTS, GROUPS]),
    ],
)
async def test_statements_of_a_change(
    method: str, params: dict[str, Any], statements: list[str], client: Client, database_url: str
) -> None:
    """One locks the users, one writes their columns, and one all effects on other tables, where there are any.

    Another one writes the groups that show one user more or less.
    """
    for user in (ONE, MANY):
        await client.call("createUser", user | {"avatar": "https://example.com/1.png"})
    made = await asyncio.to_thread(recorded, database_url, method, params | {"instance": "MYINSTANCE"})
    assert [statement.query.name for statement in made] == ["hold_users", *statements, "insert_events"]


def test_few_statements_write_users() -> None:
    """One changes, deletes and restores; a user is purged by a call, or when its retention is over."""
    writing = {
        verb: sorted(
            name for name, query in load_queries().items() if re.search(rf"{verb} users\b", query.sql)
        )
        for verb in ("INSERT INTO", "UPDATE", "DELETE FROM")
    }
    assert set(writing.pop("INSERT INTO")) <= {"create_user", "create_users"}
    assert writing == {"UPDATE": ["write_users"], "DELETE FROM": ["purge_users"]}
