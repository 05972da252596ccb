"""API keys: their format, and the look-up of the principal behind one."""

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
# NOTIFY is a hint (on a sharded cluster it reaches one node), so a remembered key is read again after this.
TRUSTED_SECONDS = 5.0


def checksum(text: str) -> str:
    """CRC32 as six base62 digits: secret scanners find keys by it, and typing errors are noticed."""
    value, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        value, place = divmod(value, 62)
        digits = BASE62[place] + digits
    return digits


def caller_secret(api_key: str) -> bytes:
    """The secret that seals a caller's answers. It cannot be derived from the stored digest of the key."""
    return keyed(api_key.encode(), b"officerpc", b"answers")


def new_key() -> str:
    """A fresh API key: prefix, 32 random base62 characters, checksum."""
    body = KEY_PREFIX + new_secret(32)
    return body + checksum(body)


def looks_like_key(key: str) -> bool:
    """False for a mistyped key of ours. Keys that operators chose carry no checksum and pass."""
    return not key.startswith(KEY_PREFIX) or checksum(key[:-6]) == key[-6:]


class KeyCache:
    """Looks keys up by their digest, and caches them while it is notified of changes.

    A worker listens on Postgres for changes of keys and instances, and drops its whole cache on each. While
    the listening connection is down nothing is cached, and no entry is older than TRUSTED_SECONDS, so that a
    revoked key fails on its next request.
    """

    def __init__(self, database: Database, size: int) -> None:
        """
        Args:
            database: where the keys are.
            size: how many keys, and how many instances, are cached at most.
        """
        self._database = database
        self._size = size
        self._callers: OrderedDict[bytes, tuple[float, Principal, Sequence[Any]]] = OrderedDict()
        self._instances: OrderedDict[tuple[int, str], tuple[float, Instance]] = OrderedDict()
        self._generation = 0
        self._listening = False

    def forget(self) -> None:
        """Drop the cache; look-ups under way are not cached either."""
        self._generation += 1
        self._callers.clear()
        self._instances.clear()

    async def caller(self, key: str, address: str | None) -> Principal:
        """Who a key belongs to.

        Args:
            key: in clear, as it came.
            address: where the call came from.

        Raises:
            Unauthenticated: unknown, revoked, expired, or used from a network it is not meant for.
        """
        if not key.isascii():  # no key is; other bytes of a header come as surrogates, which have no digest
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
        """The instance a call is about.

        Args:
            caller: as caller() gave it.
            name: as the call named it, a number meaning its digits; None for the key's default.
            while_suspended: whether operators may do this with a suspended instance (Method.while_suspended).
                Its own keys may do nothing.

        Raises:
            NotHeld: there is none of this name, or the key does not hold it; or the call names none, and the
                key's default was deleted.
            InstanceSuspended: it is suspended.
            Invalid: the call names none, and the key is an operator's, which has no default.
        """
        default = caller.default_instance
        name = None if name is None else str(name)
        if default is not None and (name is None or name == default.name):
            instance = default
        elif name is None and not caller.is_operator:
            raise access.INSTANCE.refusal()  # every tenant's key has a default; it was deleted
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
        # The database said how long the key has to live; only differences of our clock are used.
        left = TRUSTED_SECONDS if row["seconds_left"] is None else min(TRUSTED_SECONDS, row["seconds_left"])
        known = (now + left, caller, networks)
        self._remember(self._callers, key_digest, known, generation)
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
        self._remember(self._instances, (caller.id, name), known, generation)
        return known

    def _remember(self, memory: OrderedDict[Any, Any], key: Any, value: Any, generation: int) -> None:
        if self._listening and generation == self._generation:
            memory[key] = value
            if len(memory) > self._size:
                memory.popitem(last=False)

    async def listen(self) -> None:
        """Hear of changes until cancelled."""

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
