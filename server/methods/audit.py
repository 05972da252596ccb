"""The audit: who changed what, when, from where, and for which request."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from server.base.models import Id, Params, Result
from server.base.pages import After, Limit, Next
from server.directory.users import Email, email_key
from server.events import audit
from server.methods.registry import Example, method
from server.tenants.call import Call

NO_INSTANCE = 0
"""Instance id of events that belong to no instance."""

UnixSeconds = Annotated[int, Field(ge=0, lt=253_402_300_800)]


class ListAuditEvents(Params):
    """Filters and page. All given filters apply."""

    instance: str | int | None = Field(
        None, description="Left out: the key's default; for an operator's key, events of no instance."
    )
    userId: Id | None = Field(None, description="Events about this user.")
    email: Email | None = Field(
        None, description="Events about the user with this e-mail or login; of a purged user, the last one."
    )
    method: Annotated[str, Field(max_length=64)] | None = Field(None, description="Events of this method.")
    type: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="An event type, such as user.created, or the name of a method."
    )
    from_: UnixSeconds | None = Field(None, alias="from", description="Unix seconds, inclusive.")
    until: UnixSeconds | None = Field(None, description="Unix seconds, exclusive.")
    after: After = None
    limit: Limit = 100


class AuditActor(Result):
    """Who made a change."""

    kind: Literal["key", "person", "system"] = Field(
        description="An API key, a person who signed in, or the server (also its command line)."
    )
    id: int = Field(description="Id of the key or the person; 0: the system.")
    name: str


class AuditEvent(Result):
    """One change."""

    id: str
    type: str
    userId: int | None = Field(description="The user that was changed.")
    before: dict[str, Any] | None = Field(description="Old values, without secrets; long ones are cut.")
    after: dict[str, Any] | None = Field(description="New values, without secrets; long ones are cut.")
    method: str
    keyId: int = Field(description="Id of the API key; 0: a person, or the server (also its command line).")
    keyName: str
    requestId: str
    address: str | None
    origin: str | None = Field(description="The X-Origin of the call.")
    createdAt: str = Field(description="ISO 8601, UTC.")
    actor: AuditActor


class AuditPage(Result):
    """A page of events, the newest first."""

    events: list[AuditEvent]
    next: Next


async def _instance_id(call: Call, params: ListAuditEvents) -> int:
    return await call.find_instance_or_all(params.instance) or NO_INSTANCE


@method(
    "listAuditEvents",
    result=AuditPage,
    scope="audit:read",
    writes=False,
    prepare=_instance_id,
    examples=(
        Example(
            "Changes of a user",
            {"email": "jane@example.com", "type": "user.created", "limit": 1},
            {"events": [{"id": "0d4a9a5e-6f0e-4a35-9a46-0c6f5ab3d1d6", "type": "user.created", "userId": 2,
                         "before": None, "after": {"email": "jane@example.com", "displayName": "Jane Doe"},
                         "method": "createUser", "keyId": 1, "keyName": "shop", "requestId": "order-17",
                         "address": "192.0.2.7", "origin": None,
                         "createdAt": "2023-05-07T14:54:22.123456Z",
                         "actor": {"kind": "key", "id": 1, "name": "shop"}}],
             "next": None},
        ),
    ),
)  # fmt: skip
async def list_audit_events(call: Call, params: ListAuditEvents, instance_id: int) -> Any:
    """List changes, the newest first. Each was recorded in the transaction that made it.

    Events are kept for 365 days, are never altered and hold no secrets. A page may have fewer events than its
    limit and still have a next page. Texts of more than 1,000 characters are cut, and "..." replaces objects
    and lists of more than 8 KiB; listChanges shows them whole.
    """
    until = datetime.max.replace(tzinfo=UTC)
    if params.until is not None:
        until = datetime.fromtimestamp(params.until, UTC)
    user_ids = None if params.userId is None else {params.userId}
    if params.email is not None:
        key = email_key(params.email)
        rows = await call.db.all("find_event_users", instance_id=instance_id, key=key)
        named = {row["user_id"] for row in rows}
        user_ids = named if user_ids is None else user_ids & named
    events, after = await audit.read(
        call.db,
        instance_id,
        since=datetime.fromtimestamp(params.from_ or 0, UTC),
        until=until,
        before=audit.Position(until) if params.after is None else audit.Position.read(params.after),
        type=params.type,
        method=params.method,
        user_ids=None if user_ids is None else sorted(user_ids),
        limit=params.limit,
    )
    return {"events": events, "next": after}
