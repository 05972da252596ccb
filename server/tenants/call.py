"""One call: its caller, instance, transaction and changes."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from server.base.errors import Conflict, ServiceError
from server.base.passwords import PasswordHasher
from server.base.settings import Settings
from server.events.changes import EVENTS, Change
from server.events.emit import Actor
from server.outside.pictures import Pictures
from server.postgres.db import Connection, Database
from server.tenants.instances import Instance
from server.tenants.keys import KeyCache
from server.tenants.principals import Principal


class RequestContext(NamedTuple):
    """A call's request: ids, address and options."""

    request_id: str
    address: str | None = None
    # Calls with the same key are done once.
    idempotency_key: str | None = None
    # X-Origin: the caller's name for itself, to recognize its own changes.
    origin: str | None = None
    # Check and answer, but write nothing.
    dry_run: bool = False


@dataclass(slots=True)
class Call:
    """One call, passed to its method."""

    caller: Principal
    settings: Settings
    database: Database
    hasher: PasswordHasher
    pictures: Pictures
    keys: KeyCache
    context: RequestContext
    methods: Mapping[str, Any]
    # The name of its method.
    method: str
    # Set by dispatch. instance: for methods with TenantParams.
    # db: within the method; a transaction if the method writes.
    instance: Instance = field(init=False)
    db: Connection = field(init=False)
    # Run after a commit, not after a rollback.
    after_commit: list[Callable[[], None]] = field(default_factory=list)
    # Dispatch stores these in the same transaction.
    changes: list[Change] = field(default_factory=list)
    # The id of the user, for the audit of a call that changed nothing.
    subject: int | None = None
    # The statement of the method writes the event itself; see Method.single.
    single: bool = False
    # Run after a conflict has ended the transaction; returns a more precise error, or None.
    explain: Callable[[Conflict], Awaitable[ServiceError | None]] | None = None

    async def find_instance(self, name: str | int | None) -> Instance:
        """The named instance, or the key's default; see KeyCache.instance for the errors."""
        allowed = self.methods[self.method].while_suspended
        return await self.keys.instance(self.caller, name, while_suspended=allowed)

    async def find_instance_or_all(self, name: str | int | None) -> int | None:
        """The id of find_instance; None, for all instances, if an operator names none."""
        if name is None and self.caller.is_operator:
            return None
        self.instance = await self.find_instance(name)
        return self.instance.id

    def actor(self) -> Actor:
        """The actor of the call's events."""
        caller, context = self.caller, self.context
        return Actor(
            caller.kind, caller.id, caller.name, self.method, context.request_id, context.address,
            context.origin,
        )  # fmt: skip

    def emit(
        self,
        event: str,
        user_id: int | None = None,
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """Emit a change to the audit, the feed and webhooks; dispatch stores it in the same transaction.

        A call without changes is in the audit with its method and params.

        Args:
            event: one of EVENTS.
            user_id: of the changed user.
            before, after: the members that changed, whole and without secrets; dump models with
                context=IN_EVENTS.
        """
        assert event in EVENTS, event
        self.changes.append(Change(event, user_id, dict(before or {}) or None, dict(after or {}) or None))

    def audit_only(
        self,
        user_id: int | None = None,
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """Store a change in the audit only, under the name of the method; see emit."""
        self.changes.append(Change("", user_id, dict(before or {}) or None, dict(after or {}) or None))
