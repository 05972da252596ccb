"""Login sessions: tokens that are shown once, stored as hashes, and expire."""

import re

import asyncpg
import pytest
from conftest import Client, Serve

from server.base.tokens import digest

LOGIN = {"email": "jane@example.com", "password": "demo1234"}
WRONG = (400, "Login or password is incorrect")


@pytest.fixture(autouse=True)
async def _jane(jane: dict[str, object]) -> None:
    """Every test here starts with jane@example.com, whose password is demo1234."""


async def test_login_answers_the_user_with_a_token(client: Client, db: asyncpg.Connection) -> None:
    logged_in = await client.call("login", LOGIN)
    looked_up = await client.call("getUserByEmail", {"email": "jane@example.com"})
    assert list(logged_in) == list(looked_up)
    assert logged_in | {"token": "", "tokenExpiresAt": 0} == looked_up
    assert re.fullmatch(r"[0-9A-Za-z]{40}", logged_in["token"])
    row = await db.fetchrow(
        "SELECT *, floor(extract(epoch FROM expires_at))::bigint AS expires FROM sessions ORDER BY id DESC LIMIT 1"
    )
    assert row["token_digest"] == digest(logged_in["token"])
    assert row["expires"] == logged_in["tokenExpiresAt"]
    assert logged_in["token"] not in str(dict(row))
    assert await client.call("loginWithToken", {"token": logged_in["token"]}) == logged_in


async def test_the_audit_tells_how_many_sessions_remain(client: Client) -> None:
    """Of a user who has one too many by logging in once more."""
    for _ in range(3):
        await client.call("login", LOGIN)
    await client.call("updateUserByEmail", {"email": LOGIN["email"], "sessionsLimit": 2})
    await client.call("login", LOGIN)
    events = (await client.call("listAuditEvents", {"type": "session.revoked"}))["events"]
    assert [(event["before"], event["after"]) for event in events] == [({"sessions": 5}, {"sessions": 2})]
    assert len(await client.call("listSessions", {"email": LOGIN["email"]})) == 2


async def test_wrong_logins_are_all_alike(client: Client, db: asyncpg.Connection) -> None:
    """A wrong password, an unknown, a suspended, a deleted and a password-less user, a damaged hash."""
    await client.call("createUser", {"email": "bare@example.com"})
    for state in ("suspended", "deleted", "damaged"):
        await client.call("createUser", {"email": f"{state}@example.com", "password": "demo1234"})
    await client.call("updateUserByEmail", {"email": "suspended@example.com", "isActive": False})
    await client.call("deleteUserByEmail", {"email": "deleted@example.com"})
    await db.execute(
        "UPDATE credentials SET password_hash = 'damaged' FROM users"
        " WHERE users.id = user_id AND email_key = 'damaged@example.com'"
    )
    assert await client.outcome("login", LOGIN | {"password": "demo1235"}) == WRONG
    for name in ("nobody", "bare", "suspended", "deleted", "damaged"):
        assert await client.outcome("login", LOGIN | {"email": f"{name}@example.com"}) == WRONG


async def test_one_password_in_two_unicode_spellings(client: Client) -> None:
    """NFKC: composed or decomposed, a password is the same (NIST SP 800-63B)."""
    await client.call("resetPasswordByEmail", LOGIN | {"password": "pässwörd"})
    await client.call("login", LOGIN | {"password": "pa\u0308sswo\u0308rd"})


async def test_a_long_password_is_not_cut(client: Client) -> None:
    long = "x" * 1024
    await client.call("resetPasswordByEmail", LOGIN | {"password": long})
    await client.call("login", LOGIN | {"password": long})
    assert await client.outcome("login", LOGIN | {"password": long[:-1]}) == WRONG


async def test_logout_ends_one_session(client: Client) -> None:
    first, second = await client.call("login", LOGIN), await client.call("login", LOGIN)
    assert await client.call("logout", {"token": first["token"]}) is True
    assert await client.outcome("logout", {"token": first["token"]}) == (400, "not found")
    assert await client.outcome("loginWithToken", {"token": first["token"]}) == WRONG
    await client.call("loginWithToken", {"token": second["token"]})


async def test_listed_sessions_show_no_token(client: Client) -> None:
    token = (await client.call("login", LOGIN))["token"]
    sessions = await client.call("listSessions", {"email": "jane@example.com"})
    assert [session["id"] for session in sessions] == [1, 2]
    assert token not in str(sessions)
    page = await client.call("listSessions", {"email": "jane@example.com", "after": 1, "limit": 1})
    assert [session["id"] for session in page] == [2]


async def test_a_session_expires_by_the_database_clock(client: Client, db: asyncpg.Connection) -> None:
    token = (await client.call("login", LOGIN))["token"]
    await db.execute("UPDATE sessions SET expires_at = now() - interval '1 second'")
    assert await client.outcome("loginWithToken", {"token": token}) == WRONG
    assert await client.call("listSessions", {"email": "jane@example.com"}) == []


async def test_another_tenant_cannot_use_a_token(client: Client, other: Client) -> None:
    token = (await client.call("login", LOGIN))["token"]
    assert await other.outcome("loginWithToken", {"token": token}) == WRONG
    assert await other.outcome("logout", {"token": token}) == (400, "not found")
    await client.call("loginWithToken", {"token": token})


async def test_hashes_are_renewed_when_the_parameters_change(serve: Serve, db: asyncpg.Connection) -> None:
    stored = "SELECT password_hash FROM credentials WHERE user_id = 2"
    before = await db.fetchval(stored)
    stronger = await serve(argon2_memory=128)
    await stronger.call("login", LOGIN)
    after = await db.fetchval(stored)
    assert "m=64," in before and "m=128," in after
    await stronger.call("login", LOGIN)
    assert await db.fetchval(stored) == after


@pytest.mark.damages
@pytest.mark.parametrize(
    "gone", ["is_active = false, suspended_at = now()", "deleted_at = now()", "confirmed_at = NULL"]
)
async def test_a_session_that_is_there_all_the_same_lets_nobody_in(
    gone: str, client: Client, db: asyncpg.Connection
) -> None:
    """As of a user who was suspended by hand: whoever may not log in has no use of a token."""
    token = (await client.call("login", LOGIN))["token"]
    await db.execute(f"UPDATE users SET {gone} WHERE id = 2")
    assert await client.outcome("loginWithToken", {"token": token}) == WRONG
