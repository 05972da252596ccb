"""Random secrets, and what is stored or derived of them."""

import hashlib
import hmac
import secrets

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def new_secret(length: int) -> str:
    """Random base62 characters from the system's generator; 30 of them are 178 bits."""
    return "".join(secrets.choice(BASE62) for _ in range(length))


def digest(secret: str) -> bytes:
    """What is stored of a key or token. Its own entropy is the salt: SHA-256 is enough."""
    return hashlib.sha256(secret.encode()).digest()


def keyed(secret: bytes, purpose: bytes, text: bytes) -> bytes:
    """A key or digest that follows from a secret and says nothing about it."""
    return hmac.digest(secret, purpose + b"\0" + text, "sha256")
