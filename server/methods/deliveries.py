"""What was and will be sent to a webhook, and what came of it."""

import uuid
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Literal

from pydantic import Field, model_validator

from server.base.errors import NotFound
from server.base.models import Result
from server.base.pages import After, Limit, Next, moment, page, parts_of
from server.directory.users import found
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
    after: After = None
    limit: Limit = 100

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
    next: Next


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
    before = [datetime.max.replace(tzinfo=UTC), uuid.UUID(int=2**128 - 1)]
    if params.after is not None:
        before = parts_of(params.after, moment, uuid.UUID)
    ref = {"instance_id": call.instance.id, "webhook_id": params.id}
    found(await call.db.one("list_webhooks", **ref))
    states = [HAS_FAILED] if params.hasFailed else [params.state] if params.state else STATES
    rows = await call.db.all(
        "list_deliveries",
        **ref,
        states=states,
        before_time=before[0],
        before_event=before[1],
        row_limit=params.limit + 1,
    )
    shown, after = page(rows, params.limit, lambda row: f"{row['created_at'].isoformat()} {row['eventId']}")
    deliveries = [
        {name: row[name] for name in Delivery.model_fields if name != "answer"}
        | {"answer": _in_words(row["status"], row["error"])}
        for row in shown
    ]
    return {"deliveries": deliveries, "next": after}
