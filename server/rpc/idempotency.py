"""What makes a call that is sent twice one call: idempotency keys, and the answers kept under them."""

import hashlib
import hmac
import os
import re
import unicodedata
from typing import Any

import orjson
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from server.base.errors import FieldError, IdempotencyConflict, Invalid
from server.base.tokens import keyed

MAX_KEY = 255
"""Characters of an idempotency key."""
_NONCE = 12
_STRING = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_ESCAPED = re.compile(r'\\(["\\])')


def checked_key(key: object) -> str:
    """An idempotency key, if it can be one. What it means is the caller's affair.

    The draft of the IETF (draft-ietf-httpapi-idempotency-key-header-07) has it as a string of RFC 8941, in
    quotes; most clients send it bare. Both forms of one text are one key. What is no such string is the key
    as it stands.

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

    Whoever reads the database learns nothing from what is kept: name and request are digests under a secret
    that follows from the API key, since a password in a request could be guessed from a plain one; and the
    answer, which may hold a token or a new key, is sealed with another (AES-256-GCM, bound to its request).
    """

    __slots__ = ("_cipher", "instance_id", "key_id", "name", "request")

    def __init__(
        self, secret: bytes, instance_id: int, key_id: int, key: str, method: str, params: object
    ) -> None:
        """
        Args:
            secret: the caller's, as Caller has it.
            instance_id: where it is kept: with the instance of the API key, 0 for an operator's.
            key_id: of the API key. What another one sends under the same idempotency key is another call.
            key: the idempotency key.
            method, params: what is asked. The order of the members says nothing.
        """
        assert secret, "only callers with an API key can repeat calls"
        asked = orjson.dumps([method, params or {}], option=orjson.OPT_SORT_KEYS)
        self.instance_id, self.key_id = instance_id, key_id
        self.name = keyed(secret, b"name", key.encode())
        self.request = keyed(secret, b"request", asked)
        self._cipher = AESGCM(keyed(secret, b"answer", key.encode()))

    def lock_id(self) -> int:
        """The advisory lock of those who do it at this moment."""
        digest = hashlib.sha256(b"%d %d %b" % (self.instance_id, self.key_id, self.name)).digest()
        return int.from_bytes(digest[:8], signed=True)

    def sealed(self, answer: bytes) -> bytes:
        """An answer as it is stored."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, answer, self.request)

    def opened(self, request: bytes, sealed: bytes) -> Any:
        """The answer that is stored for a request.

        Raises:
            IdempotencyConflict: it was another request.
        """
        if not hmac.compare_digest(request, self.request):
            text = "was used for another request"
            raise IdempotencyConflict(fields=[FieldError("Idempotency-Key", text)])
        return orjson.loads(self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], self.request))
