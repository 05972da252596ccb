"""The audit: who changed what, when, from where, and for which request."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field

from server.base.models import Params, Result
from server.base.pages import After, Limit, Next, moment, number_below, page, parts_of, to_cursor
from server.directory.users import Email, email_key
from server.events.emit import PAGE_BYTES, is_full, shortened
from server.methods.accounts import Id
from server.methods.registry import Example, method
from server.tenants.call import Call

LOOKS = 10_000
"""Events that one call looks at: a page may be short where few of them are what is asked for."""
NOBODY = 0
"""The instance of what belongs to none."""

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
    keyId: int = Field(description="Whose call it was; 0: the command line or the server itself.")
    keyName: str
    requestId: str
    address: str | None
    origin: str | None = Field(description="The X-Origin of the call.")
    createdAt: str = Field(description="ISO 8601, UTC.")


class AuditPage(Result):
    """A page of events, the newest first."""

    events: list[AuditEvent]
    next: Next


def _key(row: Any) -> str:
    return f"{row['created_at'].isoformat()} {row['xid']} {row['place']}"


async def _instance_id(call: Call, params: ListAuditEvents) -> int:
    if params.instance is None and call.caller.is_operator and call.caller.default_instance is None:
        return NOBODY
    call.instance = await call.find_instance(params.instance)
    return call.instance.id


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
                         "createdAt": "2023-05-07T14:54:22.123456Z"}],
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
    before = [until, 2**64 - 1, 2**31 - 1]
    if params.after is not None:
        before = parts_of(params.after, moment, number_below(2**64), number_below(2**31))
    which = {
        "instance_id": instance_id,
        "since": _moment(params.from_ or 0),
        "until": until,
        "before_time": before[0],
        "before_xid": str(before[1]),
        "before_place": before[2],
    }
    asked = {
        "type": params.type, "method": params.method, "row_limit": params.limit + 1, "byte_limit": PAGE_BYTES,
    }  # fmt: skip
    of_all = params.userId is None and params.email is None
    if of_all:
        rows = await call.db.all("list_events", **which, **asked, look=LOOKS)
    else:
        user_ids = {params.userId} if params.userId is not None else None
        if params.email is not None:
            key = email_key(params.email)
            named = await call.db.all("find_event_users", instance_id=instance_id, key=key)
            those = {row["user_id"] for row in named}
            user_ids = those if user_ids is None else user_ids & those
        rows = await call.db.all("list_user_events", **which, **asked, user_ids=sorted(user_ids or ()))
    shown, after = page(rows, params.limit, _key, is_cut=is_full(rows, params.limit + 1))
    if after is None and of_all and (params.type is not None or params.method is not None):
        last = await call.db.one("skip_events", **which, look=LOOKS)
        after = None if last is None else to_cursor(_key(last))
    events = [
        {name: row[name] for name in AuditEvent.model_fields}
        | {name: shortened(row[name]) for name in ("before", "after")}
        for row in shown
    ]
    return {"events": events, "next": after}


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
