"""From an API key to its Caller: who calls, for which tenants, and what it may do."""

import ipaddress
import time
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import structlog
from pydantic import Field

from server.base.errors import (
    FieldError,
    InstanceSuspended,
    Invalid,
    NotHeld,
    Unauthenticated,
)  # fmt: skip
from server.base.models import Host
from server.base.shares import FILES, KEY_LOOKUPS, SERVER, taking_from
from server.base.strict import Strict
from server.base.tokens import BASE62, digest, keyed, new_secret
from server.outside.graph import Office365
from server.postgres.db import Database
from server.postgres.listening import listen

log = structlog.get_logger()

KEY_PREFIX = "orpc_"
CHANNEL = "officerpc_keys"
# NOTIFY is a hint (on a sharded cluster it reaches one node), so a remembered key is read again after this.
TRUSTED_SECONDS = 5.0

SCOPES: dict[str, str] = {
    "users:read": "look users up",
    "users:write": "create, change, suspend, delete and restore users",
    "users:admin": "make, unmake and change administrators, suspend, log out, delete, restore and purge them",
    "users:purge": "remove deleted users for good",
    "users:confirm": "confirm a registration without its code",
    "accounts:read": "look at accounts and trees",
    "accounts:write": "place accounts in trees",
    "fields:write": "define profile fields",
    "plans:read": "look at plans",
    "plans:write": "create and change plans",
    "groups:read": "look at groups and their members",
    "groups:write": "create and change groups and who is in them",
    "files:read": "read files by their names, which nobody can guess",
    "sessions:read": "list login sessions",
    "sessions:write": "log users in and out",
    "keys:read": "list API keys",
    "keys:write": "create, change, rotate and revoke API keys that hold no more scopes",
    "instances:read": "look at instances",
    "instances:write": "create and change instances (operator keys)",
    "jobs:read": "look at the queue (operator keys)",
    "jobs:write": "try again what the queue gave up (operator keys)",
    "audit:read": "read who changed what",
    "webhooks:read": "look at webhooks and their deliveries, and read the feed of changes",
    "webhooks:write": "create and change webhooks",
    "docs:read": "read the description of the service",
}
_OPERATORS_SCOPES = {"instances:write", "jobs:read", "jobs:write"}
TENANT_SCOPES = tuple(scope for scope in SCOPES if scope not in _OPERATORS_SCOPES)


class PasswordPolicy(Strict):
    """What an instance asks of passwords, beyond 1 to 1,024 characters."""

    minLength: int = Field(1, ge=1, le=128, description="Fewest characters.")
    minClasses: int = Field(
        1, ge=1, le=4, description="How many of lower case, upper case, digits and others must occur."
    )
    refuseCommon: bool = Field(
        False, description="True refuses the 10,000 most common passwords, in any case."
    )


Mebibytes = Annotated[int, Field(ge=0, lt=2**31)]


class GeneratedPasswords(Strict):
    """How passwords are made for users who are given none."""

    length: int = Field(12, ge=8, le=128, description="Characters.")
    specialSymbols: bool = Field(False, description="Whether there is one of !#$%&*+-=?@ in each.")
    mixedCase: bool = Field(True, description="Whether there are small and capital letters in each.")


class DefaultQuotas(Strict):
    """What users may store who have no quota of their own."""

    mail: Mebibytes | None = Field(None, description="MiB of mail; null: any.")
    files: Mebibytes | None = Field(None, description="MiB of files; null: any.")


class InstanceSettings(Strict):
    """What can be set for each instance."""

    passwordPolicy: PasswordPolicy = Field(default_factory=PasswordPolicy)
    retentionDays: int | None = Field(
        None, ge=0, le=3650, description="Days a deleted user is kept; null: the server's setting."
    )
    generatedPasswords: GeneratedPasswords = Field(default_factory=GeneratedPasswords)
    confirmationHosts: list[Host] = Field(
        default_factory=list, max_length=100, description="Hosts that links in mails may lead to."
    )
    httpConfirmationHosts: list[Host] = Field(
        default_factory=list,
        max_length=100,
        description="Hosts that links in mails may lead to by http, too. Codes in such links can be read "
        "on their way.",
    )
    positionsByHand: bool = Field(
        False, description="True: a new account gets no place in tree 0 until addToTree gives it one."
    )
    provisioningEnabled: bool = Field(
        True, description="False refuses every request about its users in Workspace 365's format."
    )
    office365: Office365 | None = Field(None, description="For createInOffice365; null: not possible.")
    maxUsers: int | None = Field(
        None, ge=1, lt=2**53, description="Seats: users that are not deleted, suspended ones too; null: any."
    )
    defaultQuotas: DefaultQuotas = Field(default_factory=DefaultQuotas)
    ratePerMinute: int | None = Field(
        None,
        ge=0,
        lt=2**31,
        description="Calls a minute of all its keys together, in each worker; 0: any, null: the server's "
        "setting.",
    )


@dataclass(frozen=True, slots=True)
class Instance:
    """A tenant, as a call sees it."""

    id: int
    name: str
    is_active: bool
    settings: InstanceSettings


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a key and what it holds. Operators hold every instance."""

    key_id: int
    key_name: str
    scopes: frozenset[str]
    is_operator: bool
    default_instance: Instance | None
    # What its key is bound to, and the seconds it had to live when it was looked up; None: no end.
    networks: tuple[str, ...] = ()
    seconds_left: float | None = None
    # Seals the answers that are kept for its retries.
    secret: bytes = field(default=b"", repr=False)
    # Calls a minute; 0: any, None: the server's setting.
    rate_per_minute: int | None = None
    # From which its calls take until their instance is known, where it has no default.
    own_share: int = SERVER

    @property
    def share(self) -> int:
        """From which its calls take until their instance is known."""
        return self.default_instance.id if self.default_instance else self.own_share


OPERATOR = Caller(0, "command line", frozenset(SCOPES), True, None)
"""The caller behind the command line, which needs no key: it holds the database."""

KEYLESS_READER_OF_FILES = Caller(
    -1, "reader of files", frozenset({"files:read"}), False, None, own_share=FILES
)
"""The caller behind /files, where nobody has a key: a file's unguessable name is the right to read it."""


def checksum(text: str) -> str:
    """CRC32 as six base62 digits, by which scanners and typos are told from real keys."""
    value, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        value, place = divmod(value, 62)
        digits = BASE62[place] + digits
    return digits


def caller_secret(api_key: str) -> bytes:
    """What seals a caller's answers. It does not follow from the digest of the key that is stored."""
    return keyed(api_key.encode(), b"officerpc", b"answers")


def new_key() -> str:
    """A fresh API key: prefix, 32 random base62 characters, checksum."""
    body = KEY_PREFIX + new_secret(32)
    return body + checksum(body)


def looks_like_key(key: str) -> bool:
    """False for a mistyped key of ours. Keys that operators chose carry no checksum and pass."""
    return not key.startswith(KEY_PREFIX) or checksum(key[:-6]) == key[-6:]


class KeyCache:
    """Looks keys up by their digest, remembering them only while it hears of every change.

    A worker listens on Postgres for changes of keys and instances and forgets all it remembers on each.
    While the listening connection is down nothing is remembered, and a memory is never older than
    TRUSTED_SECONDS, so that a revoked key fails on its next request.
    """

    def __init__(self, database: Database, size: int) -> None:
        """
        Args:
            database: where the keys are.
            size: how many keys, and how many instances, are remembered at most.
        """
        self._database = database
        self._size = size
        self._callers: OrderedDict[bytes, tuple[float, Caller, Sequence[Any]]] = OrderedDict()
        self._instances: OrderedDict[tuple[int, str], tuple[float, Instance]] = OrderedDict()
        self._generation = 0
        self._listening = False

    def forget(self) -> None:
        """Drop everything remembered; look-ups under way are not remembered either."""
        self._generation += 1
        self._callers.clear()
        self._instances.clear()

    async def caller(self, key: str, address: str | None) -> Caller:
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
        self, caller: Caller, name: str | int | None, *, while_suspended: bool = False
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
            raise NotHeld  # every tenant's key is made with a default, so that it was deleted
        elif name is None:
            raise Invalid.of([FieldError("instance", "is required: this key has no default")])
        else:
            known = self._instances.get((caller.key_id, name))
            if known is None or known[0] < time.monotonic():
                known = await self._look_up_instance(caller, name)
            instance = known[1]
        if not instance.is_active and not (caller.is_operator and while_suspended):
            raise InstanceSuspended
        return instance

    async def _look_up(self, key: str, key_digest: bytes) -> tuple[float, Caller, Sequence[Any]]:
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
        caller = Caller(
            row["id"], row["name"], frozenset(row["scopes"]), row["is_operator"], default,
            tuple(row["networks"]), row["seconds_left"], caller_secret(key), row["rate_per_minute"],
        )  # fmt: skip
        networks = [ipaddress.ip_network(network) for network in row["networks"]]
        # The database said how long the key has to live; only differences of our clock are used.
        left = TRUSTED_SECONDS if row["seconds_left"] is None else min(TRUSTED_SECONDS, row["seconds_left"])
        known = (now + left, caller, networks)
        self._remember(self._callers, key_digest, known, generation)
        return known

    async def _look_up_instance(self, caller: Caller, name: str) -> tuple[float, Instance]:
        generation, now = self._generation, time.monotonic()
        row = await self._database.look_up(
            "find_key_instance", name=name, key_id=caller.key_id, is_operator=caller.is_operator
        )
        if row is None:
            raise NotHeld
        instance = Instance(
            row["id"], row["name"], row["is_active"], InstanceSettings.model_validate(row["settings"])
        )
        known = (now + TRUSTED_SECONDS, instance)
        self._remember(self._instances, (caller.key_id, name), known, generation)
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
