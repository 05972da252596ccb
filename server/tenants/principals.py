"""Principals: an API key, a signed-in person, or the system; and their scopes."""

from dataclasses import dataclass, field

from server.base.shares import FILES, SERVER
from server.events.emit import ActorKind
from server.tenants.instances import Instance

SCOPES: dict[str, str] = {
    "users:read": "look users up",
    "users:write": "create, change, suspend, delete and restore users",
    "users:admin": "create, change, suspend, log out, delete, restore and purge administrators",
    "users:purge": "remove deleted users permanently",
    "users:confirm": "confirm a registration without its code",
    "accounts:read": "look at accounts and trees",
    "accounts:write": "place accounts in trees",
    "fields:write": "define profile fields",
    "plans:read": "look at plans",
    "plans:write": "create and change plans",
    "groups:read": "look at groups and their members",
    "groups:write": "create and change groups and their members",
    "files:read": "read files by their random names",
    "sessions:read": "list login sessions",
    "sessions:write": "log users in and out",
    "keys:read": "list API keys",
    "keys:write": "create, change, rotate and revoke API keys without scopes that this key lacks",
    "instances:read": "look at instances",
    "instances:write": "create and change instances (operator keys)",
    "jobs:read": "look at the queue (operator keys)",
    "jobs:write": "retry parked jobs (operator keys)",
    "audit:read": "read the audit",
    "webhooks:read": "look at webhooks and their deliveries, and read the feed of changes",
    "webhooks:write": "create and change webhooks",
    "docs:read": "read the description of the service",
}
"""Scope -> what it allows."""
_OPERATORS_SCOPES = {"instances:write", "jobs:read", "jobs:write"}
TENANT_SCOPES = tuple(scope for scope in SCOPES if scope not in _OPERATORS_SCOPES)


def grantable_scopes(*, operator: bool) -> tuple[str, ...]:
    """The scopes that a key can hold."""
    return tuple(SCOPES) if operator else TENANT_SCOPES


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller and its rights. Operators have access to every instance."""

    kind: ActorKind
    # Of the key or person; 0 and less: the system.
    id: int
    name: str
    scopes: frozenset[str]
    is_operator: bool = False
    # The instance of calls without one.
    default_instance: Instance | None = None
    # The networks of its key, and the seconds until it expires, at the look-up; None: never.
    networks: tuple[str, ...] = ()
    seconds_left: float | None = None
    # Encrypts the answers that are stored for its retries.
    secret: bytes = field(default=b"", repr=False)
    # Calls a minute; 0: unlimited, None: the server's setting.
    rate_per_minute: int | None = None
    # The share (base/shares.py) of its calls without an instance.
    own_share: int = SERVER

    @property
    def share(self) -> int:
        """The share of its calls until their instance is known."""
        return self.default_instance.id if self.default_instance else self.own_share


OPERATOR = Principal("system", 0, "command line", frozenset(SCOPES), is_operator=True)
"""The command line, which has access to the database and needs no key."""

FILE_READER = Principal("system", -1, "reader of files", frozenset({"files:read"}), own_share=FILES)
"""Readers of /files, without a key: the random name of a file gives access to it."""
