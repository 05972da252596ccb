"""Every change is written down in its transaction, for good: the audit."""

import asyncpg
import pytest
from conftest import Client

from server.db import load_queries


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


async def test_a_restored_dump_goes_on_behind_its_last_event(
    client: Client, database_url: str, db: asyncpg.Connection
) -> None:
    """A cluster of its own numbers its transactions anew; the next start of a server mends that."""
    await db.execute(
        "INSERT INTO events (instance_id, xid, place, type, method, key_id, key_name, request_id)"
        " SELECT 1, (event_xid()::text::bigint + 5000 + n)::text::xid8, 1, 'user.created', 'x', 1, 'x', 'x'"
        " FROM generate_series(1, 50) AS n"
    )
    last = await db.fetchval("SELECT max(xid::text::bigint) FROM events")
    mend = load_queries()["mend_event_clock"].sql
    assert await db.fetchval(mend) > 5000
    assert await db.fetchval(mend) is None
    await client.call("createUser", {"email": "jane@example.com"})
    assert await db.fetchval("SELECT max(xid::text::bigint) FROM events") > last
    seen = (await client.call("listChanges", {"limit": 100}))["events"]
    assert len(seen) >= 51 and seen[-1]["data"]["after"]["email"] == "jane@example.com"
