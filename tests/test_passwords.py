"""Argon2id in a bounded thread pool."""

import asyncio
import threading

import argon2
import asyncpg
import bcrypt
import pytest
from conftest import FAST_HASHES, Client, Serve

from server.base.errors import Unavailable
from server.base.passwords import PasswordHasher, hash_problem
from server.base.settings import Settings

TAIL = "$" + "A" * 22 + "$" + "A" * 43


def test_the_defaults_are_those_of_owasp() -> None:
    """Argon2id with 19 MiB, two passes and one lane, or more (OWASP cheat sheet, RFC 9106)."""
    settings = Settings()
    assert (settings.argon2_memory, settings.argon2_time, settings.argon2_parallelism) == (19456, 2, 1)


async def test_hash_and_verify() -> None:
    hasher = PasswordHasher(Settings())
    stored = await hasher.hash("demo1234")
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await hasher.verify(stored, "demo1234")
    assert not await hasher.verify(stored, "demo1235")
    assert not hasher.outdated(stored, "demo1234")
    hasher.close()


async def test_no_hash_costs_one_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    hasher = PasswordHasher(Settings(**FAST_HASHES))
    verified: list[str] = []
    real = argon2.PasswordHasher.verify

    def counting(self: argon2.PasswordHasher, stored: str, password: str) -> bool:
        verified.append(stored)
        return real(self, stored, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", counting)
    assert not await hasher.verify(None, "demo1234")
    assert not await hasher.verify(None, "demo1234")
    assert len(verified) == 2 and verified[0] == verified[1]
    assert "m=64," in verified[0]
    hasher.close()


@pytest.mark.parametrize(
    "stored", ["", "x", "$argon2id$", "$argon2id$v=19$m=8,t=1,p=1$!$!", "$2b$12$" + "A" * 53, "$2$"]
)
async def test_a_damaged_hash_is_a_wrong_password(stored: str) -> None:
    hasher = PasswordHasher(Settings(**FAST_HASHES))
    assert not await hasher.verify(stored, "demo1234")
    hasher.close()


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        ("$argon2id$v=19$m=19456,t=2,p=1" + TAIL, None),
        ("$argon2id$v=19$m=65536,t=6,p=8" + TAIL, None),
        ("$argon2id$v=19$m=4194304,t=1,p=1" + TAIL, "costs too much"),
        ("$argon2id$v=19$m=19456,t=7,p=1" + TAIL, "costs too much"),
        ("$argon2id$v=19$m=19456,t=0,p=1" + TAIL, "costs too much"),
        ("$argon2id$v=19$m=19456,t=2,p=9" + TAIL, "costs too much"),
        ("$argon2id$v=19$m=8,t=2,p=4" + TAIL, "is not a valid argon2id hash"),
        ("$argon2i$v=19$m=19456,t=2,p=1" + TAIL, "must be an argon2id hash"),
        ("$argon2id$v=16$m=19456,t=2,p=1" + TAIL, "must be an argon2id hash"),
        ("5f4dcc3b5aa765d61d8327deb882cf99", "must be an argon2id hash"),
        ("$2b$12$" + "A" * 21 + "." + "A" * 30 + ".", None),
        ("$2a$04$" + "A" * 21 + "O" + "A" * 30 + "C", None),
        ("$2y$12$" + "A" * 21 + "e" + "A" * 30 + "6", None),
        ("$2b$13$" + "A" * 21 + "." + "A" * 30 + ".", "costs too much"),
        ("$2b$03$" + "A" * 21 + "." + "A" * 30 + ".", "is not a valid bcrypt hash"),
        ("$2x$12$" + "A" * 21 + "." + "A" * 30 + ".", "is not a valid bcrypt hash"),
        ("$2b$12$" + "A" * 53, "is not a valid bcrypt hash"),
        ("$2b$12$" + "A" * 21 + "." + "A" * 30, "is not a valid bcrypt hash"),
    ],
)
def test_which_hashes_are_taken(stored: str, problem: str | None) -> None:
    found = hash_problem(stored, 12)
    assert found == problem if problem is None else found is not None and found.startswith(problem)


async def test_an_imported_hash_logs_in(client: Client) -> None:
    imported = argon2.PasswordHasher(memory_cost=1024, time_cost=1, parallelism=2).hash("demo1234")
    user = {"email": "moved@example.com"}
    await client.call("createUser", user | {"passwordHash": imported})
    await client.call("login", user | {"password": "demo1234"})


@pytest.mark.parametrize("prefix", ["2a", "2b", "2y"])
async def test_a_bcrypt_hash_logs_in_and_becomes_argon2id(
    prefix: str, client: Client, db: asyncpg.Connection
) -> None:
    """At the first login, as a hash with other parameters does; a wrong password changes nothing."""
    imported = bcrypt.hashpw("dêmo1234".encode(), bcrypt.gensalt(4)).decode().replace("$2b$", f"${prefix}$")
    user = {"email": "moved@example.com"}
    await client.call("createUser", user | {"passwordHash": imported})
    stored = "SELECT password_hash FROM credentials WHERE user_id = 2"
    assert (await client.outcome("login", user | {"password": "demo1234"}))[0] == 400
    assert await db.fetchval(stored) == imported
    await client.call("login", user | {"password": "dêmo1234"})
    assert (await db.fetchval(stored)).startswith("$argon2id$")
    await client.call("login", user | {"password": "dêmo1234"})


async def test_the_ceiling_of_bcrypt_is_a_setting(serve: Serve, db: asyncpg.Connection) -> None:
    """Of what is taken from now on, by every method that takes a hash. What is stored still logs in."""
    client = await serve()
    costly = bcrypt.hashpw(b"demo1234", bcrypt.gensalt(13)).decode()
    user, problem = {"email": "moved@example.com"}, "passwordHash: costs too much: at most cost 12"
    given = user | {"passwordHash": costly}
    assert await client.outcome("createUser", given) == (400, problem)
    assert await client.outcome("ensureUser", given) == (400, problem)
    for method in ("createUsers", "ensureUsers"):
        assert await client.outcome(method, {"users": [given]}) == (400, f"users.0.{problem}")
    failures = (await client.call("validateUser", given))["failures"]
    assert failures == [{"field": "passwordHash", "message": "costs too much: at most cost 12"}]
    generous = await serve(bcrypt_max_cost=13)
    await generous.call("createUser", given)
    await client.call("login", user | {"password": "demo1234"})
    stored = await db.fetchval("SELECT password_hash FROM credentials WHERE user_id = 2")
    assert stored.startswith("$argon2id$")


async def test_bcrypt_sees_72_bytes(client: Client, db: asyncpg.Connection) -> None:
    """What is longer logs in by its beginning, as it did where the hash comes from, and stays as it is: an
    end that nobody checked must not become part of the password."""
    user, long = {"email": "moved@example.com"}, "ä" * 36 + "the end"
    imported = bcrypt.hashpw(long.encode()[:72], bcrypt.gensalt(4)).decode()
    await client.call("createUser", user | {"passwordHash": imported})
    stored = "SELECT password_hash FROM credentials WHERE user_id = 2"
    for password in (long, "ä" * 36 + "another end"):
        await client.call("login", user | {"password": password})
        assert await db.fetchval(stored) == imported
    assert (await client.outcome("login", user | {"password": "ä" * 35 + "the end"}))[0] == 400
    await client.call("login", user | {"password": "ä" * 36})
    assert (await db.fetchval(stored)).startswith("$argon2id$")


async def test_bcrypt_of_what_is_not_normal_yet() -> None:
    """The other system hashed the bytes that were typed; ours are those of the normal form (NFKC)."""
    hasher = PasswordHasher(Settings(**FAST_HASHES))
    for typed in ("e\N{COMBINING ACUTE ACCENT}", "é"):
        stored = bcrypt.hashpw(typed.encode(), bcrypt.gensalt(4)).decode()
        assert await hasher.verify(stored, typed)
        assert not await hasher.verify(stored, "e")
    assert await hasher.verify(
        bcrypt.hashpw("é".encode(), bcrypt.gensalt(4)).decode(), "e\N{COMBINING ACUTE ACCENT}"
    )
    hasher.close()


async def test_the_queue_is_bounded() -> None:
    """Beyond threads and queue a hash is refused at once, and taken again when there is room."""
    hasher = PasswordHasher(Settings(**FAST_HASHES, hash_threads=1, hash_queue=2))
    gate = threading.Event()
    waiting = [asyncio.create_task(hasher._pool.run(gate.wait)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable) as refused:
        await hasher.hash("demo1234")
    assert (refused.value.code, refused.value.retry_after) == ("busy", 1)
    gate.set()
    assert await asyncio.gather(*waiting) == [True] * 3
    await hasher.hash("demo1234")
    hasher.close()


async def test_overflow_is_503_with_retry_after(serve: Serve) -> None:
    client = await serve(hash_threads=1, hash_queue=1, argon2_memory=19456, argon2_time=4)

    async def create(number: int) -> tuple[int, str | None]:
        params = {"email": f"u{number}@example.com", "password": "demo1234"}
        async with await client.post({"method": "createUser", "params": params}) as response:
            return response.status, response.headers.get("Retry-After")

    outcomes = await asyncio.gather(*(create(number) for number in range(12)))
    assert set(outcomes) == {(200, None), (503, "1")}
