"""Deliveries of webhooks: sent again until the receiver accepts them.

Another worker takes over the deliveries of a worker that died. None is lost; some are sent twice, with the
same webhook-id.
"""

import asyncio
from typing import Any

from server.base.metrics import Metrics
from server.events.changes import Change
from server.events.emit import emit, system_actor
from server.jobs.windows import Lane, Limits, Windows
from server.jobs.worker import GivenUp, Hopeless, Tried, Worker, jittered
from server.outside.outbound import AT_ONCE, Outcome, Sender, headers_of
from server.postgres.db import Connection, Database, Row

PAUSES = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds between two tries: three days in all."""
JITTER = 0.1
"""The part by which a pause is longer or shorter."""
PER_INSTANCE = 8
"""Parallel deliveries of one instance at first, of AT_ONCE in all; see windows."""
EACH = 4
"""Parallel deliveries to one webhook at first."""


class NotTaken(Exception):
    """the receiver did not accept the delivery"""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        super().__init__()


class Gone(NotTaken, Hopeless):
    """the receiver answered 410 Gone"""


def _outcome(one: Tried) -> Outcome:
    """The answer to a try, or why there was none."""
    match one.result:
        case Outcome():
            return one.result
        case NotTaken():
            return one.result.outcome
        case GivenUp():
            return Outcome(None, "given_up", 0.0)
        case asyncio.CancelledError():
            return Outcome(None, None, 0.0)
    return Outcome(None, "internal_error", 0.0)


def _webhook(one: Tried) -> Lane:
    return one.row["instance_id"], one.row["webhook_id"]


def _disabling(one: Tried) -> tuple[str, float] | None:
    """The reason to disable the webhook, if it accepted nothing for this number of seconds; or None."""
    if isinstance(one.result, Gone):
        return "410 Gone", 0.0
    if one.outcome == "parked" and one.tries == len(PAUSES) + 1:
        return "nothing was taken for three days", sum(PAUSES) * (1 - JITTER)
    return None


async def settle(database: Database, tried: list[Tried]) -> None:
    """Store the outcomes of tries in one transaction.

    Args:
        tried: in the order in which they ended.
    """
    # Webhook -> whether it accepted any, and whether the last one failed.
    told: dict[Lane, tuple[bool, bool]] = {}
    for one in tried:
        if one.outcome != "stopped":
            taken, _ = told.get(_webhook(one), (False, False))
            told[_webhook(one)] = taken or one.outcome == "done", one.outcome != "done"
    async with database.transaction() as db:
        # The webhooks before their deliveries: redeliverWebhook locks them in this order.
        await db.run(
            "note_outcomes",
            instance_ids=[instance_id for instance_id, _ in told],
            webhook_ids=[webhook_id for _, webhook_id in told],
            taken=[taken for taken, _ in told.values()],
            failed=[failed for _, failed in told.values()],
        )
        for one in tried:
            if (disabling := _disabling(one)) is not None:
                await _disable(db, one, *disabling)
        outcomes = [_outcome(one) for one in tried]
        await db.run(
            "settle_deliveries",
            instance_ids=[one.row["instance_id"] for one in tried],
            webhook_ids=[one.row["webhook_id"] for one in tried],
            event_ids=[one.row["event_id"] for one in tried],
            attempts=[one.row["attempts"] for one in tried],
            states=[{"done": "delivered", "parked": "failed"}.get(one.outcome, "pending") for one in tried],
            due_ins=[one.pause for one in tried],
            statuses=[outcome.status for outcome in outcomes],
            errors=[outcome.error for outcome in outcomes],
        )


async def _disable(db: Connection, one: Tried, because: str, failing_for: float) -> None:
    instance_id, webhook_id = _webhook(one)
    webhook = {"instance_id": instance_id, "webhook_id": webhook_id}
    if await db.value("disable_webhook", **webhook, because=because, failing_for=failing_for):
        before = {"id": webhook_id, "isActive": True}
        after = {"id": webhook_id, "isActive": False, "disabledBecause": because}
        actor = system_actor("disableWebhook", str(one.row["event_id"]))
        await emit(db, instance_id, actor, [Change("", None, before, after)])


class Deliveries(Worker):
    """Sends due deliveries, as one worker."""

    away = "deliveries_wait_for_database"
    unsettled = "delivery_not_noted"
    find, claim = "find_due_webhooks", "claim_deliveries"
    lane = "webhook_id"
    start = (0, 0)

    def __init__(self, database: Database, metrics: Metrics, most: int, sender: Sender) -> None:
        """
        Args:
            most: most parallel deliveries to one webhook.
            sender: stays open while this runs.
        """
        per_instance = Limits(PER_INSTANCE, PER_INSTANCE, max(PER_INSTANCE, 2 * most))
        each = Limits(1, min(EACH, most), most)
        super().__init__(database, metrics, Windows(AT_ONCE, per_instance, each))
        self._sender = sender

    async def do(self, row: Row) -> Outcome:
        headers = headers_of(
            str(row["event_id"]), row["body"], row["secret"], row["old_secret"], row["moment"]
        )
        outcome = await self._sender.send(row["instance_id"], row["url"], row["body"], headers)
        if outcome.error is not None:
            raise Gone(outcome) if outcome.status == 410 else NotTaken(outcome)
        return outcome

    def pause(self, tries: int) -> float | None:
        return jittered(PAUSES[tries - 1], JITTER) if tries <= len(PAUSES) else None

    def cause(self, result: Any) -> str | None:
        return result.outcome.error if isinstance(result, NotTaken) else super().cause(result)

    async def settle(self, tried: list[Tried]) -> None:
        await settle(self.database, tried)

    def waited(self, seconds: float) -> None:
        self.metrics.webhooks_due(seconds)
