"""Random secrets and their digests."""

import hashlib
import hmac
import secrets

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def new_secret(length: int) -> str:
    """Random base62 characters from the system's generator; 30 have 178 bits."""
    return "".join(secrets.choice(BASE62) for _ in range(length))


def digest(secret: str) -> bytes:
    """The stored form of a key or token, whose entropy needs no salt: SHA-256."""
    return hashlib.sha256(secret.encode()).digest()


def keyed(secret: bytes, purpose: bytes, text: bytes) -> bytes:
    """A key or digest derived from a secret (HMAC), which does not reveal it."""
    return hmac.digest(secret, purpose + b"\0" + text, "sha256")
