"""Deliveries of webhooks: past and pending, with their outcome."""

import uuid
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Literal, TypeAlias, get_args

from pydantic import Field, model_validator

from server.base.errors import NotFound
from server.base.models import Result
from server.base.pages import After, Limit, Next, moment, page, parts_of
from server.directory.users import found
from server.methods.registry import Example, method
from server.methods.webhooks import EXAMPLE_EVENT, WebhookRef
from server.outside.outbound import TIME_LIMIT
from server.tenants.call import Call

State: TypeAlias = Literal["pending", "delivered", "failed"]


class ListDeliveries(WebhookRef):
    """A webhook, filters and page."""

    state: State | None = Field(
        None, description="pending: to be tried or retried; failed: given up; null: any."
    )
    hasFailed: bool = Field(False, description="True: the last try failed, to be retried or given up.")
    after: After = None
    limit: Limit = 100

    @model_validator(mode="after")
    def _one_filter(self) -> "ListDeliveries":
        if self.hasFailed and self.state is not None:
            raise ValueError("give state or hasFailed, not both")
        return self


class Delivery(Result):
    """One event for one webhook."""

    eventId: str = Field(description="The webhook-id.")
    type: str
    state: State
    attempts: int = Field(description="Tries since it was created or last redelivered.")
    status: int | None = Field(description="HTTP status of the last answer; null: no answer.")
    error: str | None = Field(description="Error code of the last try; null: no error.")
    answer: str | None = Field(description="The last answer, or why there is none.")
    createdAt: int = Field(description="Unix seconds.")
    dueAt: int | None = Field(description="Unix seconds; the next try.")
    doneAt: int | None = Field(description="Unix seconds.")


class DeliveryPage(Result):
    """A page of deliveries, the newest first."""

    deliveries: list[Delivery]
    next: Next


_WITHOUT_ANSWER = {
    "timeout": f"no answer within {TIME_LIMIT:g} seconds",
    "forbidden_address": "this address is not allowed for webhooks",
    "no_connection": "no connection",
    "unknown_host": "unknown host name",
    "bad_certificate": "the certificate is not valid",
    "no_tls": "no TLS connection",
    "given_up": "given up: the tries did not finish",
}
"""Error codes -> texts. Any other code is a broken connection."""


def _in_words(status: int | None, error: str | None) -> str | None:
    """The last answer of a receiver, or why there is none."""
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
            "A failed one", {"id": 1, "hasFailed": True},
            {"deliveries": [{"eventId": EXAMPLE_EVENT, "type": "user.created", "state": "failed",
                             "attempts": 10, "status": 500, "error": "http_500",
                             "answer": "500 Internal Server Error", "createdAt": 1683471262,
                             "dueAt": None, "doneAt": 1683730462}],
             "next": None},
        ),
    ),
)  # fmt: skip
async def list_deliveries(call: Call, params: ListDeliveries) -> Any:
    """List the deliveries of a webhook, past and pending, without tests. Kept for thirty days."""
    before = [datetime.max.replace(tzinfo=UTC), uuid.UUID(int=2**128 - 1)]
    if params.after is not None:
        before = parts_of(params.after, moment, uuid.UUID)
    ref = {"instance_id": call.instance.id, "webhook_id": params.id}
    found(await call.db.one("list_webhooks", **ref))
    states = [params.state] if params.state else list(get_args(State))
    rows = await call.db.all(
        "list_deliveries",
        **ref,
        states=["has failed"] if params.hasFailed else states,
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
