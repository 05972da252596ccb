"""Every change is written down in its transaction, for good: the audit."""

import asyncpg
import pytest
from conftest import Client


async def test_a_change_is_written_down(client: Client, db: asyncpg.Connection) -> None:
    """Who, what, when, from where, for which request: and without the password."""
    async with await client.post(
        {"method": "createUser", "params": {"email": "jane@example.com", "password": "Sesame-4711"}},
        headers={"X-Request-Id": "order-17"},
    ) as response:
        assert response.status == 200
    row = await db.fetchrow("SELECT * FROM events ORDER BY xid DESC, place LIMIT 1")
    assert (row["type"], row["user_id"], row["method"]) == ("user.created", 2, "createUser")
    assert (row["instance_id"], row["request_id"], row["address"]) == (1, "order-17", "127.0.0.1")
    assert row["key_name"] and row["key_id"] > 0
    assert "Sesame" not in str(dict(row))


async def test_nothing_is_written_down_for_what_was_refused(client: Client, db: asyncpg.Connection) -> None:
    before = await db.fetchval("SELECT count(*) FROM events")
    await client.outcome("createUser", {"email": "admin@example.com"})
    await client.outcome("updateUserByEmail", {"email": "nobody@example.com", "isActive": False})
    await client.call("getUserByEmail", {"email": "admin@example.com"})
    assert await db.fetchval("SELECT count(*) FROM events") == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET key_name = 'somebody else'",
        "DELETE FROM events",
        "TRUNCATE events",
        "UPDATE events SET created_at = now() - interval '2 years'",
    ],
)
async def test_what_happened_cannot_be_altered(
    statement: str, client: Client, db: asyncpg.Connection
) -> None:
    """Security 30: not even by the role that owns the tables."""
    await client.call("createUser", {"email": "jane@example.com"})
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="events are not altered"):
        await db.execute(statement)
