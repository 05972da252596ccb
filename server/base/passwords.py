"""Password hashing in a pool of threads with a limited queue."""

import asyncio
import contextlib
import functools
import re
import secrets
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import argon2
import bcrypt
from argon2.exceptions import VerificationError

from server.base.errors import Unavailable
from server.base.settings import Settings
from server.base.shares import Shares
from server.base.threads import BoundedPool

MAX_PASSWORD = 1024
"""Characters of a password; longer ones are refused, not cut (OWASP, NIST SP 800-63B)."""

# A stored hash has its own cost. These limits keep a hostile import from exhausting the server: 64 MiB and a
# few passes are several times what RFC 9106 recommends with little memory. The limit of bcrypt is a setting.
MAX_MEMORY_KIB, MAX_TIME, MAX_PARALLELISM = 65536, 6, 8
_PHC = re.compile(
    r"\$argon2id\$v=19\$m=(\d{1,10}),t=(\d{1,10}),p=(\d{1,10})\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{16,172}"
)
# Not 2x, of a faulty implementation. The unused bits in the last characters of salt and hash are zero.
_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{30}[.CGKOSWaeimquy26]")
BCRYPT_BYTES = 72
"""The bytes of a password that bcrypt uses; it ignores the rest."""


def normalized(password: str) -> str:
    """The form that is hashed: NFKC, so that the keyboard makes no difference (SP 800-63B)."""
    return unicodedata.normalize("NFKC", password)


@functools.cache
def _common_passwords() -> frozenset[str]:
    # Takes a millisecond, at the first password.
    path = Path(__file__).parent / "data" / "common-passwords.txt"
    return frozenset(path.read_text(encoding="utf-8").splitlines())


def is_common(password: str) -> bool:
    """Whether a password is one of the 10,000 most common, in any case (SP 800-63B, 3.1.1.2)."""
    return normalized(password).lower() in _common_passwords()


def hash_problem(password_hash: str, max_bcrypt_cost: int) -> str | None:
    """What is wrong with an imported hash, or None.

    Args:
        password_hash: argon2id as a PHC string, or bcrypt ($2a$, $2b$, $2y$).
        max_bcrypt_cost: the limit of bcrypt's cost.
    """
    if password_hash.startswith("$2"):
        found = _BCRYPT.fullmatch(password_hash)
        cost = int(found[1]) if found else 0
        if cost > max_bcrypt_cost:
            return f"costs too much: at most cost {max_bcrypt_cost}"
        return None if cost >= 4 else "is not a valid bcrypt hash ($2a$, $2b$ or $2y$)"
    found = _PHC.fullmatch(password_hash)
    if not found:
        return "must be an argon2id hash in PHC form, or a bcrypt hash"
    memory, time, lanes = (int(part) for part in found.groups())
    if memory > MAX_MEMORY_KIB or not 1 <= time <= MAX_TIME or not 1 <= lanes <= MAX_PARALLELISM:
        return f"costs too much: at most m={MAX_MEMORY_KIB}, t={MAX_TIME}, p={MAX_PARALLELISM}"
    if memory < 8 * lanes:
        return "is not a valid argon2id hash"
    return None


class PasswordHasher:
    """Argon2id with the parameters of the settings, and limits for running and waiting hashes."""

    def __init__(self, settings: Settings) -> None:
        self._argon2 = argon2.PasswordHasher(
            time_cost=settings.argon2_time,
            memory_cost=settings.argon2_memory,
            parallelism=settings.argon2_parallelism,
        )
        threads = settings.threads_for_hashing()
        # One thread more than one instance can use, so that its expensive hashes never block another's login.
        slots = Shares(
            size=threads + 1,
            of_one=threads,
            waiting=settings.hash_queue,
            refusal="too many passwords are being hashed, try again",
        )
        self._pool = BoundedPool("argon2", slots)
        self._dummy: str | None = None

    def close(self) -> None:
        """Cancel waiting hashes and end the threads."""
        self._pool.close()

    async def hash(self, password: str) -> str:
        """The PHC string of a password.

        Raises:
            Unavailable: too many hashes are waiting; try again after a second.
        """
        return await self._pool.run(self._argon2.hash, normalized(password))

    async def hash_all(self, passwords: Sequence[str]) -> list[str]:
        """The PHC strings of many passwords, in their order.

        Only as many are queued as can run at once, so that other calls of the instance do not wait for all of
        them. If the queue is full, these wait.
        """
        hashes = [""] * len(passwords)
        waiting = iter(enumerate(passwords))

        async def work() -> None:
            for place, password in waiting:
                while not hashes[place]:
                    try:
                        hashes[place] = await self.hash(password)
                    except Unavailable:
                        await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._pool.of_one, len(passwords))):
                group.create_task(work())
        return hashes

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether the password is right. Without a hash it takes as long, and the answer is False.

        Raises:
            Unavailable: too many hashes are waiting; try again after a second.
        """
        if password_hash is not None and password_hash.startswith("$2"):
            return await self._pool.run(_verify_bcrypt, password_hash, password)
        right = await self._pool.run(self._verify, password_hash, normalized(password))
        return right and password_hash is not None

    def outdated(self, password_hash: str, password: str) -> bool:
        """Whether a right password should be hashed again: the hash is bcrypt, or has other parameters.

        But not if the password is longer than bcrypt reads: its end was not verified.
        """
        if password_hash.startswith("$2"):
            return len(password.encode()) <= BCRYPT_BYTES
        return self._argon2.check_needs_rehash(password_hash)

    def _verify(self, password_hash: str | None, password: str) -> bool:
        if password_hash is None:
            if self._dummy is None:
                self._dummy = self._argon2.hash(secrets.token_hex())
            password_hash = self._dummy
        # A damaged hash is a failed login; InvalidHashError is a ValueError.
        with contextlib.suppress(VerificationError, ValueError):
            return self._argon2.verify(password_hash, password)
        return False


def _verify_bcrypt(password_hash: str, password: str) -> bool:
    # Another system hashed the password, probably as it was typed; the normalized form is tried too.
    for form in dict.fromkeys((password, normalized(password))):
        with contextlib.suppress(ValueError):  # a damaged hash is a failed login
            if bcrypt.checkpw(form.encode()[:BCRYPT_BYTES], password_hash.encode()):
                return True
    return False


class DryHasher(PasswordHasher):
    """The hasher of dry runs: it verifies passwords, but does not hash new ones."""

    def __init__(self, hasher: PasswordHasher) -> None:
        """
        Args:
            hasher: its pool is used.
        """
        vars(self).update(vars(hasher))

    async def hash(self, password: str) -> str:
        """A placeholder."""
        return "not hashed"
