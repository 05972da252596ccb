"""officerpc webhooks."""

from typing import Annotated, Any

import typer

from server.cli.options import AsJson, InstanceName
from server.cli.session import Session, pages, run
from server.cli.terminal import moment, show, show_list

app = typer.Typer(no_args_is_help=True, help="Webhooks of an instance and their deliveries.")

WebhookId = Annotated[int, typer.Argument(help="The webhook, as webhooks list shows it.")]


@app.command("list")
def list_webhooks(instance: InstanceName, as_json: AsJson = False) -> None:
    """List the webhooks of an instance."""
    show_list(
        run(lambda session: session.call("listWebhooks", {"instance": instance})), as_json,
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
        typer.Option(help="pending (to be tried, or tried again), delivered or failed (given up)."),
    ] = None,
    failing: Annotated[
        bool, typer.Option("--failing", help="Those whose last try failed, given up or not.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Deliveries at most.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List what was sent to a webhook and what came of it, the newest first."""
    params = {"instance": instance, "id": webhook_id, "hasFailed": failing} | (
        {"state": state} if state else {}
    )

    async def work(session: Session) -> list[Any]:
        return [found async for found in pages(session, "listDeliveries", "deliveries", params, limit=limit)]

    show_list(
        run(work), as_json,
        {"event": "eventId", "type": "type", "state": "state", "tries": "attempts", "last answer": "answer",
         "next try (UTC)": lambda delivery: moment(delivery["dueAt"])},
        unbroken=True,
    )  # fmt: skip


@app.command("test")
def test_webhook(webhook_id: WebhookId, instance: InstanceName, as_json: AsJson = False) -> None:
    """Send a test event to a webhook now and show its answer."""
    params = {"instance": instance, "id": webhook_id}
    show(run(lambda session: session.call("testWebhook", params)), as_json)


@app.command("enable")
def enable_webhook(webhook_id: WebhookId, instance: InstanceName, as_json: AsJson = False) -> None:
    """Switch a webhook on again."""
    params = {"instance": instance, "id": webhook_id, "isActive": True}
    run(lambda session: session.call("updateWebhook", params))
    show({"enabled": webhook_id}, as_json)


@app.command("redeliver")
def redeliver(webhook_id: WebhookId, event_id: str, instance: InstanceName, as_json: AsJson = False) -> None:
    """Send an event to a webhook again."""
    params = {"instance": instance, "id": webhook_id, "eventId": event_id}
    run(lambda session: session.call("redeliverWebhook", params))
    show({"redelivered": event_id}, as_json)
