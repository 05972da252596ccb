"""API keys: their format, and the look-up of their principals."""

import ipaddress
import time
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import structlog

from server.base.errors import FieldError, Invalid, Unauthenticated
from server.base.shares import KEY_LOOKUPS, taking_from
from server.base.tokens import BASE62, digest, keyed, new_secret
from server.postgres.db import Database
from server.postgres.listening import listen
from server.tenants import access
from server.tenants.instances import Instance, InstanceSettings
from server.tenants.principals import Principal

log = structlog.get_logger()

KEY_PREFIX = "orpc_"
CHANNEL = "officerpc_keys"
TRUSTED_SECONDS = 5.0
"""After this a cached key is read again: NOTIFY can get lost (on a sharded cluster it reaches one node)."""


def checksum(text: str) -> str:
    """CRC32 as six base62 digits, for secret scanners and against typing errors."""
    value, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        value, place = divmod(value, 62)
        digits = BASE62[place] + digits
    return digits


def caller_secret(api_key: str) -> bytes:
    """The secret that encrypts a caller's stored answers. The stored digest of the key does not reveal it."""
    return keyed(api_key.encode(), b"officerpc", b"answers")


def new_key() -> str:
    """A new API key: prefix, 32 random base62 characters, checksum."""
    body = KEY_PREFIX + new_secret(32)
    return body + checksum(body)


def looks_like_key(key: str) -> bool:
    """False for a mistyped key. Keys chosen by operators have no checksum and pass."""
    return not key.startswith(KEY_PREFIX) or checksum(key[:-6]) == key[-6:]


class KeyCache:
    """Looks keys up by their digest, and caches them.

    A worker listens on Postgres for changes of keys and instances, and drops its whole cache on each, so that
    a revoked key fails on its next request. Nothing is cached while the listening connection is down, and no
    entry is older than TRUSTED_SECONDS.
    """

    def __init__(self, database: Database, size: int) -> None:
        """
        Args:
            database: with the keys.
            size: most keys, and most instances, in the cache.
        """
        self._database = database
        self._size = size
        self._callers: OrderedDict[bytes, tuple[float, Principal, Sequence[Any]]] = OrderedDict()
        self._instances: OrderedDict[tuple[int, str], tuple[float, Instance]] = OrderedDict()
        self._generation = 0
        self._listening = False

    def forget(self) -> None:
        """Drop the cache. Running look-ups are not cached either."""
        self._generation += 1
        self._callers.clear()
        self._instances.clear()

    async def caller(self, key: str, address: str | None) -> Principal:
        """The principal of a key.

        Args:
            key: in clear.
            address: of the client.

        Raises:
            Unauthenticated: unknown, revoked, expired, or used from a network that it does not allow.
        """
        if not key.isascii():  # all keys are ASCII; other bytes of a header are surrogates, without a digest
            raise Unauthenticated
        key_digest = digest(key)
        known = self._callers.get(key_digest)
        if known is None or known[0] < time.monotonic():
            if not looks_like_key(key):
                raise Unauthenticated
            known = await self._look_up(key, key_digest)
        _, caller, networks = known
        if networks and not _within(address, networks):
            raise Unauthenticated
        return caller

    async def instance(
        self, caller: Principal, name: str | int | None, *, while_suspended: bool = False
    ) -> Instance:
        """The instance of a call.

        Args:
            caller: see caller().
            name: from the call; a number means its digits; None: the key's default.
            while_suspended: whether operators may call the method about a suspended instance
                (Method.while_suspended).

        Raises:
            NotHeld: the instance does not exist, or the key has no access to it, or the key's default was
                deleted.
            InstanceSuspended: it is suspended.
            Invalid: no name, and an operator's key, which has no default.
        """
        default = caller.default_instance
        name = None if name is None else str(name)
        if default is not None and (name is None or name == default.name):
            instance = default
        elif name is None and not caller.is_operator:
            raise access.INSTANCE.refusal()  # the default was deleted: every tenant's key has one
        elif name is None:
            raise Invalid.of([FieldError("instance", "is required: this key has no default")])
        else:
            known = self._instances.get((caller.id, name))
            if known is None or known[0] < time.monotonic():
                known = await self._look_up_instance(caller, name)
            instance = known[1]
        access.require_active(caller, instance, while_suspended=while_suspended)
        return instance

    async def _look_up(self, key: str, key_digest: bytes) -> tuple[float, Principal, Sequence[Any]]:
        generation, now = self._generation, time.monotonic()
        with taking_from(KEY_LOOKUPS):
            row = await self._database.look_up("find_key", digest=key_digest)
        if row is None:
            raise Unauthenticated
        default = row["instance_id"] and Instance(
            row["instance_id"],
            row["instance_name"],
            row["instance_is_active"],
            InstanceSettings.model_validate(row["instance_settings"]),
        )
        caller = Principal(
            "key", row["id"], row["name"], frozenset(row["scopes"]), row["is_operator"], default,
            tuple(row["networks"]), row["seconds_left"], caller_secret(key), row["rate_per_minute"],
        )  # fmt: skip
        networks = [ipaddress.ip_network(network) for network in row["networks"]]
        # Relative to the database's clock; of this clock only differences are used.
        left = TRUSTED_SECONDS if row["seconds_left"] is None else min(TRUSTED_SECONDS, row["seconds_left"])
        known = (now + left, caller, networks)
        self._cache(self._callers, key_digest, known, generation)
        return known

    async def _look_up_instance(self, caller: Principal, name: str) -> tuple[float, Instance]:
        generation, now = self._generation, time.monotonic()
        row = await self._database.look_up(
            "find_key_instance", name=name, key_id=caller.id, is_operator=caller.is_operator
        )
        if row is None:
            raise access.INSTANCE.refusal()
        instance = Instance(
            row["id"], row["name"], row["is_active"], InstanceSettings.model_validate(row["settings"])
        )
        known = (now + TRUSTED_SECONDS, instance)
        self._cache(self._instances, (caller.id, name), known, generation)
        return known

    def _cache(self, memory: OrderedDict[Any, Any], key: Any, value: Any, generation: int) -> None:
        if self._listening and generation == self._generation:
            memory[key] = value
            if len(memory) > self._size:
                memory.popitem(last=False)

    async def listen(self) -> None:
        """Listen for changes until cancelled."""

        def begun() -> None:
            self.forget()
            self._listening = True

        def lost(error: Exception | None) -> None:
            self._listening = False
            self.forget()
            if error is not None:
                log.warning("not_listening", error=type(error).__name__)

        await listen(self._database, CHANNEL, lambda _: self.forget(), begun, lost)


def _within(address: str | None, networks: Sequence[Any]) -> bool:
    if address is None:
        return False
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return any((mapped or ip) in network for network in networks)
