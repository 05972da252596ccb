"""Webhooks, and the feed of the same events."""

import uuid
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from server.base.errors import Conflict, FieldError, Invalid, NotFound, TooMany
from server.base.models import Id, Result, TenantParams, Uuid, something_besides
from server.base.pages import Limit, number_below, page, parts_of, to_cursor
from server.directory.many import hold_counters
from server.directory.users import ABSENT, Line, found
from server.events import feed
from server.events.changes import EVENTS
from server.methods.registry import Example, method
from server.outside import outbound
from server.tenants.call import Call

MOST = 50
"""Webhooks of one instance."""
TESTS = 2
"""Concurrent tests of an instance's webhooks in one worker."""


def _type(name: str) -> str:
    if name not in EVENTS:
        raise ValueError(f"must be one of {', '.join(EVENTS)}")
    return name


EventType = Annotated[str, Field(max_length=40), AfterValidator(_type)]
EventTypes = Annotated[list[EventType], Field(max_length=len(EVENTS))]
Url = Annotated[str, Field(min_length=1, max_length=2000)]
Origin = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]


class CreateWebhook(TenantParams):
    """A URL and filters of events."""

    url: Url = Field(
        description="An https URL, by default on port 443 or 8443, that answers a POST with 200 to 299 "
        "within 15 seconds."
    )
    types: EventTypes = Field(default_factory=list, description=f"Any of {', '.join(EVENTS)}; empty: all.")
    skipOrigin: Origin | None = Field(
        None, description="Events of calls with this X-Origin, the receiver's own, are not sent."
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
    disabledBecause: str | None = Field(description="Why the server disabled it.")
    createdAt: int = Field(description="Unix seconds.")


class CreatedWebhook(Webhook):
    """A new webhook."""

    secret: str = Field(description="Key of the signatures; shown only here.")


_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="  # noqa: S105
_WEBHOOK = {
    "id": 1, "url": "https://hooks.example.com/officerpc", "description": "", "types": [], "skipOrigin": None,
    "isActive": True, "disabledBecause": None, "createdAt": 1683471262,
}  # fmt: skip
EXAMPLE_EVENT = "00000000-0000-4000-8000-000000000002"
"""Id of an event in the examples; tests insert it."""


def _checked_url(call: Call, url: str) -> str:
    if problem := outbound.url_problem(call.settings, url):
        raise Invalid.of([FieldError("url", problem)])
    return url


@method(
    "createWebhook",
    result=CreatedWebhook,
    scope="webhooks:write",
    errors=("too_many_webhooks",),
    examples=(
        Example(
            "New users, without own calls",
            {"url": "https://hooks.example.com/officerpc", "types": ["user.created"], "skipOrigin": "shop"},
            _WEBHOOK | {"id": 2, "types": ["user.created"], "skipOrigin": "shop", "secret": _SECRET},
        ),
    ),
)
async def create_webhook(call: Call, params: CreateWebhook) -> Any:
    """Send events from now on to a URL.

    Each event is a POST of {type, timestamp, data} with the headers webhook-id, webhook-timestamp and
    webhook-signature of Standard Webhooks. A delivery is tried ten times within three days, until the answer
    is 200 to 299. 410 disables the webhook; it is also disabled when every attempt at an event failed and
    nothing else was delivered. Redirects are not followed; private addresses are refused. An event may arrive
    twice, with the same webhook-id, and after newer ones.
    """
    secret = outbound.new_secret()
    # Locked before the count, so that concurrent calls do not exceed MOST.
    await hold_counters(call)
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
    examples=(Example("All", {}, [_WEBHOOK]),),
)
async def list_webhooks(call: Call, params: TenantParams) -> Any:
    """List the webhooks of an instance, at most 50, without their secrets."""
    rows = await call.db.all("list_webhooks", instance_id=call.instance.id, webhook_id=None)
    return [dict(row) for row in rows]


class WebhookRef(TenantParams):
    """A webhook by its id."""

    id: Id


@method(
    "getWebhook",
    result=Webhook,
    scope="webhooks:read",
    errors=(NotFound,),
    examples=(Example("One", {"id": 1}, _WEBHOOK),),
)
async def get_webhook(call: Call, params: WebhookRef) -> Any:
    """Look up a webhook."""
    ref = {"instance_id": call.instance.id, "webhook_id": params.id}
    return dict(found(await call.db.one("list_webhooks", **ref)))


class UpdateWebhook(WebhookRef):
    """Changes of a webhook: at least one member besides the id."""

    url: Url = ABSENT
    types: EventTypes = Field(ABSENT, description="Empty: all.")
    skipOrigin: Origin | None = Field(None, description="Null: none.")
    description: Line = ABSENT
    isActive: bool = Field(ABSENT, description="True: events since it was disabled are sent too.")

    _something = something_besides("instance", "id")


@method(
    "updateWebhook",
    scope="webhooks:write",
    errors=(NotFound,),
    examples=(Example("Disable", {"id": 1, "isActive": False}, True),),
)
async def update_webhook(call: Call, params: UpdateWebhook) -> Literal[True]:
    """Change, disable or enable a webhook.

    Nothing is sent while it is disabled. When it is enabled, the missed events are sent, except those that
    waited for thirty days. Waiting deliveries go to the new URL.
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
    scope="webhooks:write",
    errors=(NotFound,),
    examples=(Example("Delete", {"id": 1}, True),),
)
async def delete_webhook(call: Call, params: WebhookRef) -> Literal[True]:
    """Delete a webhook, its secrets and its log of deliveries. Waiting deliveries are not sent."""
    ref = {"instance_id": call.instance.id, "webhook_id": params.id}
    call.audit_only(before=dict(found(await call.db.one("hold_webhook", **ref))))
    await call.db.run("delete_webhook", **ref)
    return True


class RotateWebhookSecret(WebhookRef):
    """A webhook, and how long both secrets are used."""

    overlap: Annotated[int, Field(ge=0, le=7 * 86400)] = Field(
        86400, description="Seconds during which the old secret signs too."
    )


class RotatedSecret(Result):
    """A new secret."""

    id: int
    secret: str = Field(description="Shown only here.")
    oldSecretUntil: int | None = Field(description="Unix seconds; null: not used any more.")


@method(
    "rotateWebhookSecret",
    result=RotatedSecret,
    scope="webhooks:write",
    errors=(NotFound,),
    examples=(
        Example(
            "With a day's overlap", {"id": 1}, {"id": 1, "secret": _SECRET, "oldSecretUntil": 1683557662}
        ),
    ),
)  # fmt: skip
async def rotate_webhook_secret(call: Call, params: RotateWebhookSecret) -> Any:
    """Replace the secret of a webhook. During the overlap webhook-signature holds a signature of each.

    If it is rotated again during the overlap, only the two newest secrets sign.
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
    """The result of a test."""

    delivered: bool
    status: int | None = Field(description="Status of the answer; null: no answer.")
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
            "Success", {"id": 1}, {"delivered": True, "status": 204, "error": None, "milliseconds": 12}
        ),
    ),
)  # fmt: skip
async def test_webhook(call: Call, params: WebhookRef, outcome: dict[str, Any]) -> Any:
    """Send a signed event of the type webhook.test to a webhook, and return the outcome.

    It is sent once, also to a disabled webhook. listDeliveries does not show it. An instance can run two
    tests at a time.
    """
    return outcome


class DeliveryRef(WebhookRef):
    """An event and a webhook."""

    eventId: Uuid = Field(description="webhook-id of the delivery.")


@method(
    "redeliverWebhook",
    scope="webhooks:write",
    errors=(NotFound, "webhook_off"),
    examples=(Example("Repeat", {"id": 1, "eventId": EXAMPLE_EVENT}, True),),
)
async def redeliver_webhook(call: Call, params: DeliveryRef) -> Literal[True]:
    """Send an event to a webhook again, with the same webhook-id, whatever its state.

    Works for every stored event of the instance, of any type of event. If an attempt is running, it does not
    count. A disabled webhook is an error.
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
    """A cursor and filters."""

    cursor: Annotated[str, Field(max_length=100)] | None = Field(
        None, description="cursor of the previous answer; null: the first call."
    )
    begin: Literal["oldest", "now"] = Field(
        "oldest", description="Without cursor: start at the oldest stored event, or with future events."
    )
    types: EventTypes = Field(default_factory=list, description="Empty: all.")
    limit: Limit = 100


class EventData(Result):
    """The content of an event."""

    id: str = Field(description="Id of the event, also its webhook-id.")
    instance: str
    userId: int | None
    before: dict[str, Any] | None = Field(description="Members that changed, before the change.")
    after: dict[str, Any] | None = Field(description="Members that changed, after the change.")
    origin: str | None = Field(description="X-Origin of the call.")


class Event(Result):
    """An event, as webhooks get it."""

    type: str
    timestamp: str = Field(description="ISO 8601, UTC.")
    data: EventData


class ChangePage(Result):
    """Events after the given cursor."""

    events: list[Event]
    cursor: str = Field(description="For the next call.")
    more: bool = Field(description="True: more events follow.")


@method(
    "listChanges",
    result=ChangePage,
    scope="webhooks:read",
    examples=(
        Example(
            "Future events", {"begin": "now"},
            {"events": [], "cursor": to_cursor("1000.0"), "more": False},
        ),
    ),
)  # fmt: skip
async def list_changes(call: Call, params: ListChanges) -> Any:
    """Read the events of webhooks, for polling, in an order without gaps.

    An event appears when every transaction that began to write before its own has ended, usually at once. A
    page can hold fewer events than the limit, or none, and have more after it: it ends at a megabyte.
    """
    horizon = await call.db.value("find_feed_end")
    if params.cursor is not None:
        kinds = number_below(2**64), number_below(2**31)
        xid, seq = parts_of(params.cursor, *kinds, separator=".", member="cursor")
    else:
        xid, seq = int(horizon) if params.begin == "now" else 0, 0
    most = params.limit + 1
    rows = await feed.read(call.db, call.instance.id, str(xid), seq, most, horizon=horizon)
    shown, after = page(rows, params.limit, feed.place, is_cut=feed.is_full(rows, most))
    last = feed.place(shown[-1]) if shown else f"{xid}.{seq}"
    events = [feed.payload(row, call.instance.name) for row in shown if feed.wants(params.types, None, row)]
    return {"events": events, "cursor": to_cursor(last), "more": after is not None}
