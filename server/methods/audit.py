"""The audit: who changed what, when, from where, and for which request."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field

from server.base.errors import FieldError, Invalid
from server.base.models import Params, Result
from server.directory.users import Email, email_key, from_cursor, to_cursor
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
    after: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="The next of the page before; null for the first page."
    )
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


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
    next: str | None = Field(description="Pass it as after for the next page; null on the last.")


def cursor_moment(text: str) -> datetime:
    """A moment that stands in a cursor, in UTC.

    Raises:
        ValueError: it is none, has no time zone, or is in none of the years that can be sent to the database.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError from error


def _place(cursor: str) -> tuple[datetime, str, int]:
    try:
        moment, xid, place = from_cursor(cursor).split(" ")
        when, number = cursor_moment(moment), int(place)
        if not (xid.isascii() and xid.isdigit()) or int(xid) >= 2**64 or not 0 <= number < 2**31:
            raise ValueError
    except ValueError as error:
        raise Invalid.of([FieldError("after", "is not what a page gave as next")]) from error
    return when, str(int(xid)), number  # with a zero before it, Postgres would take it for an octal number


def _cursor(row: Any) -> str:
    return to_cursor(f"{row['created_at'].isoformat()} {row['xid']} {row['place']}")


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
    before = _place(params.after) if params.after is not None else (until, str(2**64 - 1), 2**31 - 1)
    which = {
        "instance_id": instance_id,
        "since": _moment(params.from_ or 0),
        "until": until,
        "before_time": before[0],
        "before_xid": before[1],
        "before_place": before[2],
    }
    asked = {
        "type": params.type, "method": params.method, "row_limit": params.limit, "byte_limit": PAGE_BYTES,
    }  # fmt: skip
    if params.userId is None and params.email is None:
        rows = await call.db.all("list_events", **which, **asked, look=LOOKS)
        last = rows[-1] if is_full(rows, params.limit) else None
        if last is None and (params.type is not None or params.method is not None):
            last = await call.db.one("skip_events", **which, look=LOOKS)
    else:
        user_ids = {params.userId} if params.userId is not None else None
        if params.email is not None:
            key = email_key(params.email)
            named = await call.db.all("find_event_users", instance_id=instance_id, key=key)
            those = {row["user_id"] for row in named}
            user_ids = those if user_ids is None else user_ids & those
        rows = await call.db.all("list_user_events", **which, **asked, user_ids=sorted(user_ids or ()))
        last = rows[-1] if is_full(rows, params.limit) else None
    events = [
        {name: row[name] for name in AuditEvent.model_fields}
        | {name: shortened(row[name]) for name in ("before", "after")}
        for row in rows
    ]
    return {"events": events, "next": None if last is None else _cursor(last)}


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
