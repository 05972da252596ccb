"""The check after each test (tests/invariants.py) finds each kind of damage."""

from typing import Any

import asyncpg
from conftest import Client
from invariants import INVARIANTS, violated

DAMAGE: dict[str, tuple[str, ...]] = {
    "every instance has its counters": ("INSERT INTO instances (name, title) VALUES ('LOST', '')",),
    "living_users is the number of users that are not deleted": (
        "UPDATE instance_counters SET living_users = living_users + 1",
        "UPDATE instance_counters SET living_users = living_users - 1",
    ),
    "is_suspended is the opposite of the instance's is_active": (
        "UPDATE instance_counters SET is_suspended = true",
    ),
    "a suspended instance has no sessions": (
        "UPDATE instances SET is_active = false; UPDATE instance_counters SET is_suspended = true",
    ),
    "suspended_at is set while is_active is false": (
        "UPDATE users SET is_active = false WHERE id = 1",
        "UPDATE users SET suspended_at = now() WHERE id = 1",
    ),
    "every user has six mailboxes, a calendar and two folders": (
        "DELETE FROM mailboxes WHERE id = 9",
        "DELETE FROM calendars WHERE id = 2",
        "DELETE FROM file_folders WHERE id = 3",
    ),
    "suspended and deleted users have no sessions": (
        "UPDATE users SET is_active = false, suspended_at = now() WHERE id = 2",
        "UPDATE users SET deleted_at = now() WHERE id = 2;"
        "UPDATE instance_counters SET living_users = living_users - 1;"
        "INSERT INTO events (instance_id, place, type, user_id, method, key_id, key_name, request_id)"
        " VALUES (1, 99, 'user.deleted', 2, '', 0, '', '')",
    ),
    "a login of a user is in logins": (
        "UPDATE users SET login = 'jane' WHERE id = 2",
        "INSERT INTO logins (instance_id, login_key, user_id) VALUES (1, 'jane', 2)",
    ),
    "no login is another user's e-mail": (
        "UPDATE users SET login = email WHERE id = 2;"
        "INSERT INTO logins (instance_id, login_key, user_id) VALUES (1, 'admin@example.com', 2)",
    ),
    "a picture is the avatar of its user": ("UPDATE users SET avatar = '' WHERE id = 1",),
    "a position is below that of its parent": (
        "UPDATE positions SET path = subpath(path, 0, -1) WHERE nlevel(path) > 3",
        "UPDATE positions SET parent_id = id WHERE nlevel(path) > 3",
    ),
    "a key's default instance is one of its instances": ("DELETE FROM api_key_instances",),
    "an event names a user that exists or was purged": (
        "INSERT INTO events (instance_id, place, type, user_id, method, key_id, key_name, request_id)"
        " VALUES (1, 99, 'user.updated', 4711, '', 0, '', '')",
    ),
    "a purged user does not exist": (
        "INSERT INTO events (instance_id, place, type, user_id, method, key_id, key_name, request_id)"
        " VALUES (1, 99, 'user.purged', 2, '', 0, '', '')",
    ),
    "users are deleted if their events say so": (
        "UPDATE users SET deleted_at = NULL WHERE email = 'gone@example.com';"
        "UPDATE instance_counters SET living_users = living_users + 1",
        "INSERT INTO events (instance_id, place, type, user_id, method, key_id, key_name, request_id)"
        " VALUES (1, 99, 'user.restored', 2, '', 0, '', '')",
    ),
}


async def test_every_damage_is_noticed(client: Client, examples: None, db: asyncpg.Connection) -> None:
    """Alone: each statement breaks the invariant that it stands at, and no other one."""
    assert await violated(db) == {}
    counted = {name: await count_down(db, name) for name in INVARIANTS if name.startswith("ids of ")}
    damage: dict[str, tuple[str, ...]] = DAMAGE | counted
    assert damage.keys() == INVARIANTS.keys(), "each invariant has its damage here"
    for name, statements in damage.items():
        for statement in statements:
            transaction: Any = db.transaction()
            await transaction.start()
            await db.execute(statement)
            assert list(await violated(db)) == [name], statement
            await transaction.rollback()


async def count_down(db: asyncpg.Connection, invariant: str) -> tuple[str, ...]:
    """A counter that forgot the last id of a table; each has rows here."""
    table = invariant.removeprefix("ids of ").removesuffix(" are counted")
    assert await db.fetchval(f"SELECT count(*) FROM {table}"), table
    return (f"UPDATE instance_counters SET {table} = (SELECT max(id) - 1 FROM {table})",)
