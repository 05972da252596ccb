"""officerpc webhooks."""

from typing import Annotated, Any

import typer

from server.cli.options import AsJson, InstanceName
from server.cli.session import call, call_pages
from server.cli.terminal import format_time, show, show_list

app = typer.Typer(no_args_is_help=True, help="Webhooks of an instance and their deliveries.")

WebhookId = Annotated[int, typer.Argument(help="Its id; see webhooks list.")]


@app.command("list")
def list_webhooks(instance: InstanceName, as_json: AsJson = False) -> None:
    """List the webhooks of an instance."""
    show_list(
        call("listWebhooks", {"instance": instance}), as_json,
        {"id": "id", "address": "url", "state": _state,
         "types": lambda webhook: ", ".join(webhook["types"]) or "all"},
    )  # fmt: skip


def _state(webhook: Any) -> str:
    return "on" if webhook["isActive"] else f"off: {webhook['disabledBecause'] or 'by its owner'}"


@app.command("deliveries")
def list_deliveries(
    webhook_id: WebhookId,
    instance: InstanceName,
    state: Annotated[
        str | None,
        typer.Option(help="pending (to be sent or retried), delivered or failed (given up)."),
    ] = None,
    failing: Annotated[
        bool, typer.Option("--failing", help="Only those whose last attempt failed, pending or given up.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of deliveries.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List the deliveries of a webhook, newest first."""
    params: dict[str, Any] = {"instance": instance, "id": webhook_id, "hasFailed": failing}
    if state:
        params["state"] = state
    show_list(
        call_pages("listDeliveries", "deliveries", params, limit), as_json,
        {"event": "eventId", "type": "type", "state": "state", "tries": "attempts", "last answer": "answer",
         "next try (UTC)": lambda delivery: format_time(delivery["dueAt"])},
        unbroken=True,
    )  # fmt: skip


@app.command("test")
def test_webhook(webhook_id: WebhookId, instance: InstanceName, as_json: AsJson = False) -> None:
    """Send a test event to a webhook and show its answer."""
    params = {"instance": instance, "id": webhook_id}
    show(call("testWebhook", params), as_json)


@app.command("enable")
def enable_webhook(webhook_id: WebhookId, instance: InstanceName, as_json: AsJson = False) -> None:
    """Switch a webhook on again."""
    params = {"instance": instance, "id": webhook_id, "isActive": True}
    call("updateWebhook", params)
    show({"enabled": webhook_id}, as_json)


@app.command("redeliver")
def redeliver(webhook_id: WebhookId, event_id: str, instance: InstanceName, as_json: AsJson = False) -> None:
    """Send an event to a webhook again."""
    params = {"instance": instance, "id": webhook_id, "eventId": event_id}
    call("redeliverWebhook", params)
    show({"redelivered": event_id}, as_json)
