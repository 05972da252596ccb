"""Webhooks: who is told of what changes, and what came of telling; and the same events as a feed."""

import uuid
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from server.base.errors import Conflict, FieldError, Invalid, NotFound, TooMany
from server.base.models import Result, TenantParams
from server.base.pages import Limit, number_below, page, parts_of, to_cursor
from server.directory.users import ABSENT, Line, found
from server.events import feed
from server.events.changes import EVENTS
from server.events.pages import is_full
from server.methods.registry import Example, method
from server.outside import outbound
from server.tenants.call import Call

MOST = 50
"""Webhooks of one instance."""
TESTS = 2
"""Tests of webhooks that a worker sends for one instance at the same time."""


def _type(name: str) -> str:
    if name not in EVENTS:
        raise ValueError(f"must be one of {', '.join(EVENTS)}")
    return name


EventType = Annotated[str, Field(max_length=40), AfterValidator(_type)]
EventTypes = Annotated[list[EventType], Field(max_length=len(EVENTS))]
Url = Annotated[str, Field(min_length=1, max_length=2000)]
Origin = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]
EventId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


class CreateWebhook(TenantParams):
    """Where to, and for what."""

    url: Url = Field(
        description="An https address, by default of the ports 443 and 8443, that answers a POST with 200 "
        "to 299 within 15 seconds."
    )
    types: EventTypes = Field(default_factory=list, description=f"Of {', '.join(EVENTS)}; empty: all.")
    skipOrigin: Origin | None = Field(
        None, description="Nothing is sent of calls with this X-Origin: the receiver's own."
    )
    description: Line = ""


class Webhook(Result):
    """A webhook without its secret."""

    id: int
    url: str
    description: str
    types: list[str] = Field(description="Empty: all.")
    skipOrigin: str | None
    isActive: bool
    disabledBecause: str | None = Field(description="Why it was switched off by itself.")
    createdAt: int = Field(description="Unix seconds.")


class CreatedWebhook(Webhook):
    """A new webhook."""

    secret: str = Field(description="What its deliveries are signed with; shown here alone.")


_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="  # noqa: S105
_WEBHOOK = {
    "id": 1, "url": "https://hooks.example.com/officerpc", "description": "", "types": [], "skipOrigin": None,
    "isActive": True, "disabledBecause": None, "createdAt": 1683471262,
}  # fmt: skip
EXAMPLE_EVENT = "00000000-0000-4000-8000-000000000002"
"""An event of the examples' world, which tests put there."""


def _checked_url(call: Call, url: str) -> str:
    if problem := outbound.url_problem(call.settings, url):
        raise Invalid.of([FieldError("url", problem)])
    return url


@method(
    "createWebhook",
    result=CreatedWebhook,
    scope="webhooks:write",
    writes=True,
    errors=("too_many_webhooks",),
    examples=(
        Example(
            "For new users, but not one's own",
            {"url": "https://hooks.example.com/officerpc", "types": ["user.created"], "skipOrigin": "shop"},
            _WEBHOOK | {"id": 2, "types": ["user.created"], "skipOrigin": "shop", "secret": _SECRET},
        ),
    ),
)
async def create_webhook(call: Call, params: CreateWebhook) -> Any:
    """Have an address told of what changes from now on.

    Each event is a POST of {type, timestamp, data} with the headers webhook-id, webhook-timestamp and
    webhook-signature of Standard Webhooks. It is tried ten times within three days until the answer is 200
    to 299; 410 switches the webhook off, and so does an event that is given up while nothing else was taken
    either. Redirects are not followed, and names that lead to private addresses are refused. An event may
    come twice, and one that failed comes after later ones: its webhook-id stays.
    """
    secret = outbound.new_secret()
    # Held before they are counted, so that of two who come at once the second sees the first.
    await call.db.one("hold_counters", instance_id=call.instance.id)
    row = await call.db.one(
        "create_webhook",
        instance_id=call.instance.id,
        url=_checked_url(call, params.url),
        description=params.description,
        types=params.types,
        skip_origin=params.skipOrigin,
        secret=secret,
        horizon=await call.db.value("find_feed_end"),
        most=MOST,
    )
    if row is None:
        raise Conflict(f"the instance has {MOST} webhooks already", code="too_many_webhooks")
    call.audit_only(after=dict(row))
    return dict(row) | {"secret": secret}


@method(
    "listWebhooks",
    result=list[Webhook],
    scope="webhooks:read",
    writes=False,
    examples=(Example("All of them", {}, [_WEBHOOK]),),
)
async def list_webhooks(call: Call, params: TenantParams) -> Any:
    """List the webhooks of an instance, at most fifty, without their secrets."""
    rows = await call.db.all("list_webhooks", instance_id=call.instance.id, webhook_id=None)
    return [dict(row) for row in rows]


class WebhookRef(TenantParams):
    """A webhook by its id."""

    id: Annotated[int, Field(ge=1, lt=2**63)]


@method(
    "getWebhook",
    result=Webhook,
    scope="webhooks:read",
    writes=False,
    errors=(NotFound,),
    examples=(Example("One", {"id": 1}, _WEBHOOK),),
)
async def get_webhook(call: Call, params: WebhookRef) -> Any:
    """Look at a webhook."""
    ref = {"instance_id": call.instance.id, "webhook_id": params.id}
    return dict(found(await call.db.one("list_webhooks", **ref)))


class UpdateWebhook(WebhookRef):
    """What to change; at least one member beside the id."""

    url: Url = ABSENT
    types: EventTypes = Field(ABSENT, description="Empty: all.")
    skipOrigin: Origin | None = Field(None, description="Null: nothing is skipped.")
    description: Line = ABSENT
    isActive: bool = Field(ABSENT, description="True goes on where it stopped, with all that happened since.")

    @model_validator(mode="after")
    def _something(self) -> "UpdateWebhook":
        if not self.model_fields_set - {"instance", "id"}:
            raise ValueError("name at least one member to change")
        return self


@method(
    "updateWebhook",
    result=Literal[True],
    scope="webhooks:write",
    writes=True,
    errors=(NotFound,),
    examples=(Example("Switch it off", {"id": 1, "isActive": False}, True),),
)
async def update_webhook(call: Call, params: UpdateWebhook) -> Any:
    """Change a webhook, or switch it off or on.

    While it is off nothing is sent to it; switched on, it gets what it missed, but not what had been waiting
    for thirty days. Deliveries that wait go to the new address.
    """
    ref = {"instance_id": call.instance.id, "webhook_id": params.id}
    stored = dict(found(await call.db.one("hold_webhook", **ref)))
    given = params.model_dump(exclude_unset=True, exclude={"instance", "id"})
    if "url" in given:
        _checked_url(call, given["url"])
    changed = stored | given
    await call.db.run(
        "update_webhook",
        **ref,
        url=changed["url"],
        description=changed["description"],
        types=changed["types"],
        skip_origin=changed["skipOrigin"],
        is_active=changed["isActive"],
    )
    webhook = {"id": params.id}
    call.audit_only(before=webhook | {name: stored[name] for name in given}, after=webhook | given)
    return True


@method(
    "deleteWebhook",
    result=Literal[True],
    scope="webhooks:write",
    writes=True,
    errors=(NotFound,),
    examples=(Example("Away with it", {"id": 1}, True),),
)
async def delete_webhook(call: Call, params: WebhookRef) -> Any:
    """Delete a webhook with its secrets and the log of its deliveries; what waits is not sent any more."""
    ref = {"instance_id": call.instance.id, "webhook_id": params.id}
    call.audit_only(before=dict(found(await call.db.one("hold_webhook", **ref))))
    await call.db.run("delete_webhook", **ref)
    return True


class RotateWebhookSecret(WebhookRef):
    """Whose secret, and for how long both are good."""

    overlap: Annotated[int, Field(ge=0, le=7 * 86400)] = Field(
        86400, description="Seconds for which deliveries are signed with the old secret too."
    )


class RotatedSecret(Result):
    """Another secret."""

    id: int
    secret: str = Field(description="Shown here alone.")
    oldSecretUntil: int | None = Field(description="Unix seconds; null: the old one is good no more.")


@method(
    "rotateWebhookSecret",
    result=RotatedSecret,
    scope="webhooks:write",
    writes=True,
    errors=(NotFound,),
    examples=(
        Example(
            "With a day's overlap", {"id": 1}, {"id": 1, "secret": _SECRET, "oldSecretUntil": 1683557662}
        ),
    ),
)  # fmt: skip
async def rotate_webhook_secret(call: Call, params: RotateWebhookSecret) -> Any:
    """Give a webhook another secret; during the overlap webhook-signature holds a signature by each.

    Rotated again before that, only the two newest sign.
    """
    secret = outbound.new_secret()
    row = await call.db.one(
        "rotate_webhook_secret",
        instance_id=call.instance.id,
        webhook_id=params.id,
        secret=secret,
        overlap=params.overlap,
    )
    rotated = dict(found(row))
    call.audit_only(after=rotated)
    return rotated | {"secret": secret}


class TestedWebhook(Result):
    """What came of it."""

    delivered: bool
    status: int | None = Field(description="Of the answer; null: there was none.")
    error: str | None
    milliseconds: int


_testing: Counter[int] = Counter()


async def _send_test(call: Call, params: WebhookRef) -> dict[str, Any]:
    ref = {"instance_id": call.instance.id, "webhook_id": params.id}
    row = found(await call.database.look_up("get_webhook_secrets", **ref))
    event_id = str(uuid.uuid4())
    event = {
        "id": event_id, "type": "webhook.test", "user_id": None, "before": None, "after": None,
        "origin": call.context.origin, "moment": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
    }  # fmt: skip
    body = feed.body_of(event, call.instance.name)
    headers = outbound.headers_of(event_id, body, row["secret"], row["old_secret"], row["moment"])
    if _testing[call.instance.id] >= TESTS:
        raise TooMany("too many tests of webhooks are running, try again later", retry_after=1)
    _testing[call.instance.id] += 1
    try:
        async with outbound.Sender(call.settings) as sender:
            outcome = await sender.send(call.instance.id, row["url"], body, headers)
    finally:
        _testing[call.instance.id] -= 1
        if not _testing[call.instance.id]:
            del _testing[call.instance.id]
    return {
        "delivered": outcome.error is None, "status": outcome.status, "error": outcome.error,
        "milliseconds": round(outcome.seconds * 1000),
    }  # fmt: skip


@method(
    "testWebhook",
    result=TestedWebhook,
    scope="webhooks:write",
    writes=False,
    prepare=_send_test,
    errors=(NotFound,),
    examples=(
        Example(
            "It answers", {"id": 1}, {"delivered": True, "status": 204, "error": None, "milliseconds": 12}
        ),
    ),
)  # fmt: skip
async def test_webhook(call: Call, params: WebhookRef, outcome: dict[str, Any]) -> Any:
    """Send a webhook an event of the type webhook.test, signed as all are, and say what came of it.

    It is sent once, whether or not the webhook is switched on, and listDeliveries does not show it. Of an
    instance two are sent at a time, and more of them refused.
    """
    return outcome


class DeliveryRef(WebhookRef):
    """One event for one webhook."""

    eventId: EventId = Field(description="The delivery's webhook-id.")


@method(
    "redeliverWebhook",
    result=Literal[True],
    scope="webhooks:write",
    writes=True,
    errors=(NotFound, "webhook_off"),
    examples=(Example("Once more", {"id": 1, "eventId": EXAMPLE_EVENT}, True),),
)
async def redeliver_webhook(call: Call, params: DeliveryRef) -> Any:
    """Send an event to a webhook again, whatever came of it before, with the same webhook-id.

    Any event of the instance can be sent, of whatever type, for as long as events are kept. It is sent even
    while a try of it runs, which then does not count. To a webhook that is switched off nothing can be sent.
    """
    ref = {"instance_id": call.instance.id, "webhook_id": params.id}
    event_id = uuid.UUID(params.eventId)
    webhook = found(await call.db.one("hold_webhook", **ref))
    if not webhook["isActive"]:
        raise Conflict("the webhook is switched off", code="webhook_off")
    if not await call.db.value("redeliver", **ref, event_id=event_id):
        event = found(await call.db.one("get_event", instance_id=call.instance.id, event_id=event_id))
        if event["type"] not in EVENTS:
            raise NotFound
        body = feed.body_of(event, call.instance.name)
        await call.db.run(
            "insert_deliveries", **ref, event_ids=[event_id], types=[event["type"]], bodies=[body]
        )
    call.audit_only(after={"id": params.id, "eventId": params.eventId})
    return True


class ListChanges(TenantParams):
    """From where on."""

    cursor: Annotated[str, Field(max_length=100)] | None = Field(
        None, description="The cursor of the answer before; null to begin."
    )
    begin: Literal["oldest", "now"] = Field(
        "oldest", description="Without a cursor: with what is still kept, or with what is to come."
    )
    types: EventTypes = Field(default_factory=list, description="Empty: all.")
    limit: Limit = 100


class EventData(Result):
    """What changed."""

    id: str = Field(description="The event's, which is also its webhook-id.")
    instance: str
    userId: int | None
    before: dict[str, Any] | None = Field(description="The members that changed, as they were.")
    after: dict[str, Any] | None = Field(description="The members that changed, as they are.")
    origin: str | None = Field(description="The X-Origin of the call.")


class Event(Result):
    """What webhooks are sent, too."""

    type: str
    timestamp: str = Field(description="ISO 8601, UTC.")
    data: EventData


class ChangePage(Result):
    """What changed after the cursor that was given."""

    events: list[Event]
    cursor: str = Field(description="Pass it the next time.")
    more: bool = Field(description="Whether to ask again at once.")


@method(
    "listChanges",
    result=ChangePage,
    scope="webhooks:read",
    writes=False,
    examples=(
        Example(
            "What is to come", {"begin": "now"},
            {"events": [], "cursor": to_cursor("1000.0"), "more": False},
        ),
    ),
)  # fmt: skip
async def list_changes(call: Call, params: ListChanges) -> Any:
    """Read what webhooks tell, in the order in which it can be read without skipping any: for those who ask.

    An event shows once every transaction that began to write before its own has ended, most often at once.
    A page may hold fewer events than the limit, or none, and still have more behind it: it ends where its
    events have more than a megabyte.
    """
    horizon = await call.db.value("find_feed_end")
    if params.cursor is not None:
        kinds = number_below(2**64), number_below(2**31)
        xid, seq = parts_of(params.cursor, *kinds, separator=".", member="cursor")
    else:
        xid, seq = int(horizon) if params.begin == "now" else 0, 0
    most = params.limit + 1
    rows = await feed.read(call.db, call.instance.id, str(xid), seq, most, horizon=horizon)
    shown, after = page(rows, params.limit, feed.place, is_cut=is_full(rows, most))
    last = feed.place(shown[-1]) if shown else f"{xid}.{seq}"
    events = [feed.payload(row, call.instance.name) for row in shown if feed.wants(params.types, None, row)]
    return {"events": events, "cursor": to_cursor(last), "more": after is not None}
