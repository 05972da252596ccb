"""Deliveries of webhooks: sent until somebody has taken them.

A delivery that its worker died with is taken by another one: none is lost, and some come twice, with the same
webhook-id.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from server.base.metrics import JobFact, Metrics
from server.events.emit import by_itself
from server.jobs.windows import Lane, Limits, Windows
from server.jobs.worker import LEASE, Worker, jittered
from server.outside.outbound import AT_ONCE, Outcome, Sender, headers_of
from server.postgres.db import Connection, Database, Row

PAUSES = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds between two tries: three days in all."""
JITTER = 0.1
"""By what part of it each of them is longer or shorter."""
PER_INSTANCE = 8
"""Of the AT_ONCE that are sent together, those of one instance at first; see windows."""
EACH = 4
"""Of these again, those to one webhook at first."""


class Tried(NamedTuple):
    """One try of a delivery and what it came to."""

    # Of claim_deliveries.
    row: Row
    outcome: Outcome

    @property
    def webhook(self) -> Lane:
        """The instance's id and the webhook's."""
        return self.row["instance_id"], self.row["webhook_id"]

    @property
    def tries(self) -> int:
        """How often it was tried, since it was last asked for."""
        return int(self.row["attempts"] - self.row["first_attempt"])

    @property
    def state(self) -> str:
        """The state of the delivery after this try."""
        if self.succeeded:
            return "delivered"
        return "failed" if self.outcome.status == 410 or self.tries > len(PAUSES) else "pending"

    @property
    def pause(self) -> float:
        """Seconds until the next try."""
        if self.state != "pending":
            return 0.0
        return jittered(PAUSES[self.tries - 1], JITTER)

    @property
    def disabling(self) -> tuple[str, float] | None:
        """Why the webhook is to be switched off, if it has taken nothing for so many seconds; or None."""
        if self.outcome.status == 410:
            return "410 Gone", 0.0
        if self.state == "failed" and self.tries == len(PAUSES) + 1:
            return "nothing was taken for three days", sum(PAUSES) * (1 - JITTER)
        return None

    @property
    def succeeded(self) -> bool:
        """Whether it was taken."""
        return self.outcome.error is None

    @property
    def fact(self) -> JobFact:
        """What is counted and logged of it."""
        said = {"delivered": "done", "pending": "retried", "failed": "parked"}[self.state]
        return JobFact(
            "webhook", said, self.outcome.seconds, None, self.tries, self.outcome.error,
            self.row["instance"], self.row["webhook_id"],
        )  # fmt: skip


async def try_one(sender: Sender, row: Row) -> Tried:
    """Send a delivery that was claimed.

    Args:
        row: of claim_deliveries.
    """
    if row["attempts"] - row["first_attempt"] > len(PAUSES) + 1:  # its workers died with it, again and again
        return Tried(row, Outcome(None, "given_up", 0.0))
    headers = headers_of(str(row["event_id"]), row["body"], row["secret"], row["old_secret"], row["moment"])
    return Tried(row, await sender.send(row["instance_id"], row["url"], row["body"], headers))


async def settle(database: Database, tried: list[Tried]) -> None:
    """Note what tries came to, in one transaction.

    Args:
        tried: in the order in which they ended.
    """
    # By webhook: whether any was taken, and whether the last one failed.
    told: dict[Lane, tuple[bool, bool]] = {}
    for one in tried:
        taken, _ = told.get(one.webhook, (False, False))
        told[one.webhook] = taken or one.succeeded, not one.succeeded
    async with database.transaction() as db:
        # The webhooks before their deliveries, in the order in which redeliverWebhook holds them.
        await db.run(
            "note_outcomes",
            instance_ids=[instance_id for instance_id, _ in told],
            webhook_ids=[webhook_id for _, webhook_id in told],
            taken=[taken for taken, _ in told.values()],
            failed=[failed for _, failed in told.values()],
        )
        for one in tried:
            if one.disabling is not None:
                await _disable(db, one, *one.disabling)
        await db.run(
            "settle_deliveries",
            instance_ids=[one.webhook[0] for one in tried],
            webhook_ids=[one.webhook[1] for one in tried],
            event_ids=[one.row["event_id"] for one in tried],
            attempts=[one.row["attempts"] for one in tried],
            states=[one.state for one in tried],
            due_ins=[one.pause for one in tried],
            statuses=[one.outcome.status for one in tried],
            errors=[one.outcome.error for one in tried],
        )


async def _disable(db: Connection, one: Tried, because: str, failing_for: float) -> None:
    instance_id, webhook_id = one.webhook
    disabled = await db.value(
        "disable_webhook",
        instance_id=instance_id,
        webhook_id=webhook_id,
        because=because,
        failing_for=failing_for,
    )
    if disabled:
        await db.run(
            "insert_events",
            instance_id=instance_id,
            types=["disableWebhook"],
            user_ids=[None],
            befores=[{"id": webhook_id, "isActive": True}],
            afters=[{"id": webhook_id, "isActive": False, "disabledBecause": because}],
            **by_itself("disableWebhook", str(one.row["event_id"])),
        )


class Deliveries(Worker[Tried]):
    """Sends what is due, as one worker. `async with Sender(settings) as sender` is around its run."""

    away = "deliveries_wait_for_database"
    unsettled = "delivery_not_noted"
    lane = "webhook_id"
    start = (0, 0)

    def __init__(self, database: Database, metrics: Metrics, most: int, sender: Sender) -> None:
        """
        Args:
            most: deliveries to one webhook at the same time, at most.
        """
        per_instance = Limits(PER_INSTANCE, PER_INSTANCE, max(PER_INSTANCE, 2 * most))
        super().__init__(database, metrics, Windows(AT_ONCE, per_instance, Limits(1, min(EACH, most), most)))
        self._sender = sender

    async def find_due(self, db: Connection, after: Lane, looks: int) -> list[Row]:
        """See Worker."""
        return await db.all("find_due_webhooks", after_instance=after[0], after_webhook=after[1], looks=looks)

    async def claim(self, db: Connection, lanes: list[Lane], shares: list[int]) -> list[Row]:
        """See Worker."""
        instances, webhooks = [of for of, _ in lanes], [webhook for _, webhook in lanes]
        return await db.all(
            "claim_deliveries", lease=LEASE, instance_ids=instances, webhook_ids=webhooks, shares=shares
        )

    async def attempt(self, row: Row) -> Tried:
        """See Worker."""
        return await try_one(self._sender, row)

    def together(self, tried: list[Tried]) -> Iterator[list[Tried]]:
        """See Worker. One that may switch a webhook off is settled alone, after those before it."""
        for alone, several in groupby(tried, key=lambda one: one.disabling is not None):
            ended = list(several)
            yield from [[one] for one in ended] if alone else [ended]

    async def settle(self, tried: list[Tried]) -> None:
        """See Worker."""
        await settle(self.database, tried)

    def waited(self, seconds: float) -> None:
        """See Worker."""
        self.metrics.webhooks_due(seconds)
