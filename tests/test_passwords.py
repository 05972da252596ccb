"""Argon2id in a bounded pool."""

import asyncio
import threading

import argon2
import pytest
from conftest import FAST_HASHES, Client, Serve

from server.errors import Unavailable
from server.passwords import PasswordHasher, hash_problem
from server.settings import Settings

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
    assert not hasher.outdated(stored)
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
    "stored", ["", "x", "$argon2id$", "$argon2id$v=19$m=8,t=1,p=1$!$!", "$2b$12$" + "A" * 53]
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
    ],
)
def test_which_hashes_are_taken(stored: str, problem: str | None) -> None:
    found = hash_problem(stored)
    assert found == problem if problem is None else found is not None and found.startswith(problem)


async def test_an_imported_hash_logs_in(client: Client) -> None:
    imported = argon2.PasswordHasher(memory_cost=1024, time_cost=1, parallelism=2).hash("demo1234")
    user = {"email": "moved@example.com"}
    await client.call("createUser", user | {"passwordHash": imported})
    await client.call("login", user | {"password": "demo1234"})


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
