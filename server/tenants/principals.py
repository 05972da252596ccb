"""Who acts: an API key, a person who signed in, or the system itself; and the scopes that they can hold."""

from dataclasses import dataclass, field

from server.base.shares import FILES, SERVER
from server.events.emit import ActorKind
from server.tenants.instances import Instance

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
"""What can be granted, and what it allows."""
_OPERATORS_SCOPES = {"instances:write", "jobs:read", "jobs:write"}
TENANT_SCOPES = tuple(scope for scope in SCOPES if scope not in _OPERATORS_SCOPES)


def grantable_scopes(*, operator: bool) -> tuple[str, ...]:
    """The scopes that a key can have."""
    return tuple(SCOPES) if operator else TENANT_SCOPES


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, and what it holds. Operators hold every instance."""

    kind: ActorKind
    # Of the key or the person; see kind. 0 and less: the system itself.
    id: int
    name: str
    scopes: frozenset[str]
    is_operator: bool = False
    # The instance of calls that name none.
    default_instance: Instance | None = None
    # What its key is bound to, and the seconds it had to live when it was looked up; None: no end.
    networks: tuple[str, ...] = ()
    seconds_left: float | None = None
    # Seals the answers that are kept for its retries.
    secret: bytes = field(default=b"", repr=False)
    # Calls a minute; 0: any, None: the server's setting.
    rate_per_minute: int | None = None
    # The share (base/shares.py) of its calls about no instance.
    own_share: int = SERVER

    @property
    def share(self) -> int:
        """The share that its calls take from until their instance is known."""
        return self.default_instance.id if self.default_instance else self.own_share


OPERATOR = Principal("system", 0, "command line", frozenset(SCOPES), is_operator=True)
"""The command line. It needs no key: it has access to the database."""

FILE_READER = Principal("system", -1, "reader of files", frozenset({"files:read"}), own_share=FILES)
"""Readers of /files, who have no key: a file's random name is the right to read it."""
