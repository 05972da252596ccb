"""Idempotency keys: a call that is sent again is not run again, but gets its stored answer."""

import hashlib
import hmac
import os
import re
import unicodedata
from typing import Any

import orjson
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from server.base.errors import FieldError, IdempotencyConflict, Invalid, StillRunning
from server.base.tokens import keyed
from server.methods.registry import Method
from server.postgres.db import Connection, Database, Row
from server.tenants.principals import Principal

MAX_KEY = 255
"""Characters of an idempotency key."""
_NONCE = 12
_STRING = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_ESCAPED = re.compile(r'\\(["\\])')


def checked_key(key: object) -> str:
    """A valid idempotency key.

    draft-ietf-httpapi-idempotency-key-header-07 defines it as a string of RFC 8941, in quotes; most clients
    send it without quotes. With and without them it is the same key.

    Raises:
        Invalid: not a text, empty, longer than 255 characters, or with control characters.
    """
    if isinstance(key, str) and len(key) <= 2 * MAX_KEY + 2 and (quoted := _STRING.fullmatch(key)):
        key = _ESCAPED.sub(r"\1", quoted[1])
    if not isinstance(key, str):
        problem = "must be a string"
    elif not 1 <= len(key) <= MAX_KEY:
        problem = f"must have 1 to {MAX_KEY} characters"
    elif any(unicodedata.category(char) in ("Cc", "Cs") for char in key):  # Cs: bytes that are not UTF-8
        problem = "holds control characters"
    else:
        return key
    raise Invalid(f"the idempotency key {problem}", code="bad_idempotency_key")


class IdempotentCall:
    """A call with an idempotency key.

    A reader of the database learns nothing from the stored row. Idempotency key and request are stored as
    digests, keyed with a secret derived from the API key: a password in a request could be guessed from a
    plain digest. The answer may contain a token or a new key: it is encrypted with another such secret
    (AES-256-GCM, bound to its request).
    """

    __slots__ = ("_cipher", "_ref", "_request")

    def __init__(self, caller: Principal, key: str, method: str, params: object) -> None:
        """
        Args:
            caller: has an API key. The same idempotency key with another API key is another call. The row
                belongs to the caller's default instance, 0 for an operator's.
            key: the idempotency key.
            method, params: the request. The order of members does not matter.
        """
        assert caller.secret, "only callers with an API key can repeat calls"
        request = orjson.dumps([method, params or {}], option=orjson.OPT_SORT_KEYS)
        instance_id = caller.default_instance.id if caller.default_instance else 0
        name = keyed(caller.secret, b"name", key.encode())
        self._ref: dict[str, Any] = {"instance_id": instance_id, "key_id": caller.id, "name": name}
        self._request = keyed(caller.secret, b"request", request)
        self._cipher = AESGCM(keyed(caller.secret, b"answer", key.encode()))

    @classmethod
    def of(
        cls, method: Method, caller: Principal, key: str | None, params: object
    ) -> "IdempotentCall | None":
        """The idempotent call; None without a key, or if the method keeps no answers."""
        if key is None or not method.writes or not method.keeps_answer:
            return None
        return cls(caller, key, method.name, params)

    async def find(self, database: Database) -> Row | None:
        """The stored answer, encrypted; None if there is none."""
        return await database.look_up("find_answer", **self._ref)

    async def claim(self, db: Connection) -> Row | None:
        """Claim the key for a transaction. If another call was faster: its stored answer, encrypted.

        Raises:
            StillRunning: the same call is running.
        """
        row = await db.one(
            "claim_idempotency_key", **self._ref, request=self._request, lock_id=self._lock_id()
        )
        assert row is not None
        if not row["is_free"]:
            raise StillRunning(retry_after=1)
        if row["is_claimed"]:
            return None
        kept = await db.one("find_answer", **self._ref)
        if kept is None:  # it has just expired
            raise StillRunning(retry_after=1)
        return kept

    def decrypt(self, kept: Row) -> Any:
        """A stored answer.

        Raises:
            IdempotencyConflict: it is the answer of another request.
        """
        if not hmac.compare_digest(kept["request"], self._request):
            raise IdempotencyConflict(fields=[FieldError("Idempotency-Key", "was used for another request")])
        nonce, encrypted = kept["answer"][:_NONCE], kept["answer"][_NONCE:]
        return orjson.loads(self._cipher.decrypt(nonce, encrypted, self._request))

    async def keep(self, db: Connection, result: Any) -> Any:
        """Store an answer, and return it as decrypt will."""
        answer = orjson.dumps(result)
        nonce = os.urandom(_NONCE)
        encrypted = self._cipher.encrypt(nonce, answer, self._request)
        await db.run("keep_answer", **self._ref, answer=nonce + encrypted)
        return orjson.loads(answer)

    def _lock_id(self) -> int:
        """The id of the advisory lock that a running call holds."""
        text = b"%d %d %b" % (self._ref["instance_id"], self._ref["key_id"], self._ref["name"])
        return int.from_bytes(hashlib.sha256(text).digest()[:8], signed=True)
