"""The audit: who changed what, when, from where, and for which request."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from server.base.models import Params, Result
from server.base.pages import After, Limit, Next
from server.directory.users import Email, email_key
from server.events import audit
from server.methods.accounts import Id
from server.methods.registry import Example, method
from server.tenants.call import Call

NO_INSTANCE = 0
"""The instance of events that belong to none."""

UnixSeconds = Annotated[int, Field(ge=0, lt=253_402_300_800)]


class ListAuditEvents(Params):
    """Which events, and from where on. All that is given must hold."""

    instance: str | int | None = Field(
        None, description="Left out: the key's default; for an operator's key what belongs to no instance."
    )
    userId: Id | None = Field(None, description="About this user.")
    email: Email | None = Field(
        None, description="About the user who has this e-mail or login, or had it when it was purged."
    )
    method: Annotated[str, Field(max_length=64)] | None = Field(None, description="By this method.")
    type: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Of this type: user.created and its like, or else the method's name."
    )
    from_: UnixSeconds | None = Field(None, alias="from", description="Unix seconds; not earlier.")
    until: UnixSeconds | None = Field(None, description="Unix seconds; earlier.")
    after: After = None
    limit: Limit = 100


class AuditActor(Result):
    """Who made a change."""

    kind: Literal["key", "person", "system"] = Field(
        description="An API key, a person who signed in, or the server itself with its command line."
    )
    id: int = Field(description="Of the key or the person; 0: the system.")
    name: str


class AuditEvent(Result):
    """One change."""

    id: str
    type: str
    userId: int | None = Field(description="Whom it is about.")
    before: dict[str, Any] | None = Field(
        description="The members that changed, without secrets; long ones are cut."
    )
    after: dict[str, Any] | None = Field(
        description="The members that changed, without secrets; long ones are cut."
    )
    method: str
    keyId: int = Field(
        description="Of the API key that called; 0: a person, the command line or the server itself."
    )
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
            "What was done to a user",
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
    """List what was changed, the newest first: each change was written in the transaction that made it.

    Kept for 365 days and never altered, without secrets. A page may be shorter than its limit and still have
    a next one. Texts of more than 1,000 characters are cut here, and "..." stands for objects and lists of
    more than 8 KiB; listChanges has them whole.
    """
    until = datetime.max.replace(tzinfo=UTC) if params.until is None else _moment(params.until)
    user_ids = None if params.userId is None else {params.userId}
    if params.email is not None:
        key = email_key(params.email)
        rows = await call.db.all("find_event_users", instance_id=instance_id, key=key)
        named = {row["user_id"] for row in rows}
        user_ids = named if user_ids is None else user_ids & named
    events, after = await audit.read(
        call.db,
        instance_id,
        since=_moment(params.from_ or 0),
        until=until,
        before=audit.Position(until) if params.after is None else audit.Position.read(params.after),
        type=params.type,
        method=params.method,
        user_ids=None if user_ids is None else sorted(user_ids),
        limit=params.limit,
    )
    return {"events": events, "next": after}


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
