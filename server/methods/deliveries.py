"""What was and will be sent to a webhook, and what came of it."""

import uuid
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from server.base.errors import FieldError, Invalid, NotFound
from server.base.models import Result
from server.directory.users import found, from_cursor, to_cursor
from server.methods.audit import cursor_moment
from server.methods.registry import Example, method
from server.methods.webhooks import EXAMPLE_EVENT, WebhookRef
from server.outside.outbound import TIME_LIMIT
from server.tenants.call import Call

STATES = ["pending", "delivered", "failed"]
HAS_FAILED = "has failed"
"""In place of a state, for the query."""


class ListDeliveries(WebhookRef):
    """Which deliveries, and from where on."""

    state: Literal["pending", "delivered", "failed"] | None = Field(
        None, description="pending: to be tried, or tried again; failed: given up; null: any."
    )
    hasFailed: bool = Field(
        False, description="True: those whose last try failed, whether they are tried again or given up."
    )
    after: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="The next of the page before; null for the first page."
    )
    limit: Annotated[int, Field(ge=1, le=1000)] = 100

    @model_validator(mode="after")
    def _one_filter(self) -> "ListDeliveries":
        if self.hasFailed and self.state is not None:
            raise ValueError("give state or hasFailed, not both")
        return self


class Delivery(Result):
    """One event for one webhook."""

    eventId: str = Field(description="Its webhook-id.")
    type: str
    state: Literal["pending", "delivered", "failed"]
    attempts: int = Field(description="How often it was begun, since it was last asked for.")
    status: int | None = Field(description="Of the last answer; null: there was none.")
    error: str | None = Field(description="What the last try met, as a code; null: nothing went wrong.")
    answer: str | None = Field(description="The last answer, or why there was none, in words.")
    createdAt: int = Field(description="Unix seconds.")
    dueAt: int | None = Field(description="Unix seconds; when it is tried next.")
    doneAt: int | None = Field(description="Unix seconds.")


class DeliveryPage(Result):
    """A page of deliveries, the newest first."""

    deliveries: list[Delivery]
    next: str | None = Field(description="Pass it as after for the next page; null on the last.")


_WITHOUT_ANSWER = {
    "timeout": f"no answer within {TIME_LIMIT:g} seconds",
    "forbidden_address": "the address is not one that webhooks may go to",
    "no_connection": "no connection",
    "unknown_host": "the name of the host is not known",
    "bad_certificate": "the certificate is not valid",
    "no_tls": "no TLS connection",
    "given_up": "given up: its tries did not come to an end",
}
"""Codes of outbound and webhooks -> what they mean; others say that the connection broke off."""


def _in_words(status: int | None, error: str | None) -> str | None:
    """The last answer of a receiver, or why there was none."""
    if status is None:
        return None if error is None else _WITHOUT_ANSWER.get(error, "the connection broke off")
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _bad(member: str) -> Invalid:
    return Invalid.of([FieldError(member, "is not what a page gave as next")])


@method(
    "listDeliveries",
    result=DeliveryPage,
    scope="webhooks:read",
    writes=False,
    errors=(NotFound,),
    examples=(
        Example(
            "One that failed", {"id": 1, "hasFailed": True},
            {"deliveries": [{"eventId": EXAMPLE_EVENT, "type": "user.created", "state": "failed",
                             "attempts": 10, "status": 500, "error": "http_500",
                             "answer": "500 Internal Server Error", "createdAt": 1683471262,
                             "dueAt": None, "doneAt": 1683730462}],
             "next": None},
        ),
    ),
)  # fmt: skip
async def list_deliveries(call: Call, params: ListDeliveries) -> Any:
    """List what was and will be sent to a webhook, without tests; kept for thirty days after it was made."""
    before, event_id = datetime.max.replace(tzinfo=UTC), uuid.UUID(int=2**128 - 1)
    if params.after is not None:
        try:
            moment, _, given_id = from_cursor(params.after).partition(" ")
            before, event_id = cursor_moment(moment), uuid.UUID(given_id)
        except ValueError as error:
            raise _bad("after") from error
    ref = {"instance_id": call.instance.id, "webhook_id": params.id}
    found(await call.db.one("get_webhook", **ref))
    states = [HAS_FAILED] if params.hasFailed else [params.state] if params.state else STATES
    rows = await call.db.all(
        "list_deliveries",
        **ref,
        states=states,
        before_time=before,
        before_event=event_id,
        row_limit=params.limit,
    )
    deliveries = [dict(row) | {"answer": _in_words(row["status"], row["error"])} for row in rows]
    moments = [delivery.pop("created_at") for delivery in deliveries]
    more = len(deliveries) == params.limit
    last = to_cursor(f"{moments[-1].isoformat()} {deliveries[-1]['eventId']}") if more else None
    return {"deliveries": deliveries, "next": last}
