"""Idempotency keys: a call that is sent twice is done once, and answered twice from what was kept."""

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
    send it without. Both forms of one text are one key. Anything else is the key as it stands.

    Raises:
        Invalid: no text, empty, longer than 255 characters, or with control characters.
    """
    if isinstance(key, str) and len(key) <= 2 * MAX_KEY + 2 and (quoted := _STRING.fullmatch(key)):
        key = _ESCAPED.sub(r"\1", quoted[1])
    if not isinstance(key, str):
        problem = "must be a string"
    elif not 1 <= len(key) <= MAX_KEY:
        problem = f"must have 1 to {MAX_KEY} characters"
    elif any(unicodedata.category(char) in ("Cc", "Cs") for char in key):  # Cs: bytes that are no UTF-8
        problem = "holds control characters"
    else:
        return key
    raise Invalid(f"the idempotency key {problem}", code="bad_idempotency_key")


class IdempotentCall:
    """A call under an idempotency key.

    What is stored reveals nothing to a reader of the database. Name and request are digests keyed with a
    secret that is derived from the API key, since a password in a request could be guessed from a plain
    digest. The answer, which may hold a token or a new key, is encrypted with another such secret
    (AES-256-GCM, bound to its request).
    """

    __slots__ = ("_cipher", "_ref", "_request")

    def __init__(self, caller: Principal, key: str, method: str, params: object) -> None:
        """
        Args:
            caller: whose API key it came with. What another one sends under the same idempotency key is
                another call. It is kept with the caller's default instance, 0 for an operator's.
            key: the idempotency key.
            method, params: what is asked. The order of the members says nothing.
        """
        assert caller.secret, "only callers with an API key can repeat calls"
        asked = orjson.dumps([method, params or {}], option=orjson.OPT_SORT_KEYS)
        instance_id = caller.default_instance.id if caller.default_instance else 0
        name = keyed(caller.secret, b"name", key.encode())
        self._ref: dict[str, Any] = {"instance_id": instance_id, "key_id": caller.id, "name": name}
        self._request = keyed(caller.secret, b"request", asked)
        self._cipher = AESGCM(keyed(caller.secret, b"answer", key.encode()))

    @classmethod
    def of(
        cls, method: Method, caller: Principal, key: str | None, params: object
    ) -> "IdempotentCall | None":
        """A call under its key; None without one, or where the method keeps no answers."""
        if key is None or not method.writes or not method.keeps_answer:
            return None
        return cls(caller, key, method.name, params)

    async def find(self, database: Database) -> Row | None:
        """The answer that is kept, sealed; None where there is none."""
        return await database.look_up("find_answer", **self._ref)

    async def claim(self, db: Connection) -> Row | None:
        """Take the key for a transaction; the answer that is kept, sealed, if another call was faster.

        Raises:
            StillRunning: the same call is being done at this moment.
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
        if kept is None:  # it expired in between
            raise StillRunning(retry_after=1)
        return kept

    def opened(self, kept: Row) -> Any:
        """An answer that was kept.

        Raises:
            IdempotencyConflict: it was given to another request.
        """
        if not hmac.compare_digest(kept["request"], self._request):
            text = "was used for another request"
            raise IdempotencyConflict(fields=[FieldError("Idempotency-Key", text)])
        sealed = kept["answer"]
        return orjson.loads(self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], self._request))

    async def keep(self, db: Connection, result: Any) -> Any:
        """Store an answer. It is given from the stored bytes, as it will be the next time."""
        answer = orjson.dumps(result)
        nonce = os.urandom(_NONCE)
        sealed = nonce + self._cipher.encrypt(nonce, answer, self._request)
        await db.run("keep_answer", **self._ref, answer=sealed)
        return orjson.loads(answer)

    def _lock_id(self) -> int:
        """The advisory lock of those who do it at this moment."""
        of = b"%d %d %b" % (self._ref["instance_id"], self._ref["key_id"], self._ref["name"])
        return int.from_bytes(hashlib.sha256(of).digest()[:8], signed=True)
