"""One call: who makes it, for which instance, in which transaction, and what it changed."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from server.base.errors import Conflict, ServiceError
from server.base.passwords import PasswordHasher
from server.base.settings import Settings
from server.events.changes import EVENTS, Change, user_changes
from server.events.emit import Actor
from server.outside.pictures import Pictures
from server.postgres.db import Connection, Database
from server.tenants.instances import Instance
from server.tenants.keys import KeyCache
from server.tenants.principals import Principal


class RequestContext(NamedTuple):
    """What is known of a call beside who calls and what for."""

    request_id: str
    address: str | None = None
    # Makes a call that is sent twice one call.
    idempotency_key: str | None = None
    # What the caller calls itself, to know its own changes again.
    origin: str | None = None
    # Check everything and answer, and write nothing.
    dry_run: bool = False


@dataclass(slots=True)
class Call:
    """One call on its way through its method."""

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
    # Set by dispatch as the call proceeds. instance: for methods with TenantParams.
    # db: within the method alone, a transaction where the method writes.
    instance: Instance = field(init=False)
    db: Connection = field(init=False)
    # Run after a commit, never after a rollback.
    after_commit: list[Callable[[], None]] = field(default_factory=list)
    # What was changed, which dispatch writes down in the same transaction.
    changes: list[Change] = field(default_factory=list)
    # Whom the call is about, for the audit of one that changed nothing.
    subject: int | None = None
    # The handler's one statement writes its event itself; see Method.single.
    single: bool = False
    # Looks at what is stored once a conflict has ended the transaction; a more telling error, or None.
    explain: Callable[[Conflict], Awaitable[ServiceError | None]] | None = None

    async def find_instance(self, name: str | int | None) -> Instance:
        """The instance that the call names, or the key's default; see KeyCache.instance for the errors."""
        allowed = self.methods[self.method].while_suspended
        return await self.keys.instance(self.caller, name, while_suspended=allowed)

    async def find_instance_or_all(self, name: str | int | None) -> int | None:
        """The id of the instance that the call is about; None, all of them, where an operator names none."""
        if name is None and self.caller.is_operator:
            return None
        self.instance = await self.find_instance(name)
        return self.instance.id

    def actor(self) -> Actor:
        """Who makes the call's changes, for its events."""
        caller, context = self.caller, self.context
        return Actor(
            caller.kind,
            caller.id,
            caller.name,
            self.method,
            context.request_id,
            context.address,
            context.origin,
        )

    def emit(
        self,
        event: str,
        user_id: int | None = None,
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """Tell a change to the audit, the feed and webhooks; dispatch stores it in the same transaction.

        A call that tells no change is in the audit by its method's name and params.

        Args:
            event: one of EVENTS.
            user_id: whom it is about.
            before, after: the members that changed, whole and without secrets; models are dumped with
                context=IN_EVENTS.
        """
        assert event in EVENTS, event
        self.changes.append(Change(event, user_id, dict(before or {}) or None, dict(after or {}) or None))

    def emit_user_changes(self, user_id: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Tell what differs between two states of a user, as directory/rows.state gives them."""
        self.subject = user_id
        self.changes += user_changes(user_id, before, after)

    def audit_only(
        self,
        user_id: int | None = None,
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """Tell a change to the audit alone, by the name of the method; see emit."""
        self.changes.append(Change("", user_id, dict(before or {}) or None, dict(after or {}) or None))
