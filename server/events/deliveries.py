"""Deliveries of webhooks: sent until somebody has taken them.

A delivery that its worker died with is taken by another one: none is lost, and some come twice, with the same
webhook-id.
"""

import asyncio
import contextlib
import random
from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

import structlog

from server.base.errors import Contention, NotBegun, Unavailable
from server.base.metrics import JobFact, Metrics
from server.base.settings import Settings
from server.events.emit import by_itself
from server.jobs.windows import Due, Limits, Ref, Windows
from server.outside.outbound import AT_ONCE, Outcome, Sender, headers_of
from server.postgres.db import Connection, Database, pass_on_cancelling

log = structlog.get_logger()

PAUSES = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds between two tries: three days in all."""
JITTER = 0.1
"""By what part of it each of them is longer or shorter."""
LEASE = 60.0
"""Seconds after which another worker takes a delivery over from one that died."""
POLL = 1.0
"""Seconds between two looks for events and for deliveries that are due."""
GATHER = 0.005
"""Seconds in which several that have come to an end make room for one claim."""
PER_INSTANCE = 8
"""Of the AT_ONCE that are sent together, those of one instance at first; see windows."""
EACH = 4
"""Of these again, those to one webhook at first."""
LOOKS = 500
"""Webhooks with pending deliveries that one look steps over."""
SETTLE_AT_END = 2.0
"""Seconds to note what has ended once the worker is told to stop."""


class Tried(NamedTuple):
    """One try of a delivery and what it came to."""

    # Of claim_deliveries.
    row: Any
    outcome: Outcome

    @property
    def ref(self) -> Ref:
        """The webhook."""
        return self.row["instance_id"], self.row["webhook_id"]

    @property
    def tries(self) -> int:
        """How often it was tried, since it was last asked for."""
        return int(self.row["attempts"] - self.row["first_attempt"])

    @property
    def state(self) -> str:
        """The state of the delivery after this try."""
        if self.outcome.error is None:
            return "delivered"
        return "failed" if self.outcome.status == 410 or self.tries > len(PAUSES) else "pending"

    @property
    def pause(self) -> float:
        """Seconds until the next try."""
        if self.state != "pending":
            return 0.0
        return PAUSES[self.tries - 1] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311

    @property
    def disabling(self) -> tuple[str, float] | None:
        """Why the webhook is to be switched off, if it has taken nothing for so many seconds; or None."""
        if self.outcome.status == 410:
            return "410 Gone", 0.0
        if self.state == "failed" and self.tries == len(PAUSES) + 1:
            return "nothing was taken for three days", sum(PAUSES) * (1 - JITTER)
        return None


async def try_one(sender: Sender, row: Any) -> Tried:
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
    told: dict[Ref, tuple[bool, bool]] = {}
    for one in tried:
        failed = one.outcome.error is not None
        told[one.ref] = told.get(one.ref, (False, False))[0] or not failed, failed
    async with database.round(), database.transaction() as db:
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
            instance_ids=[one.ref[0] for one in tried],
            webhook_ids=[one.ref[1] for one in tried],
            event_ids=[one.row["event_id"] for one in tried],
            attempts=[one.row["attempts"] for one in tried],
            states=[one.state for one in tried],
            due_ins=[one.pause for one in tried],
            statuses=[one.outcome.status for one in tried],
            errors=[one.outcome.error for one in tried],
        )


async def _disable(db: Connection, one: Tried, because: str, failing_for: float) -> None:
    instance_id, webhook_id = one.ref
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


class Delivering:
    """Sends what is due, as one worker."""

    def __init__(self, settings: Settings, database: Database, metrics: Metrics) -> None:
        self._settings = settings
        self._database = database
        self._metrics = metrics
        # As far as is known here.
        self._due = Due()
        self._wake = asyncio.Event()
        most = settings.webhook_concurrency
        self._windows = Windows(
            AT_ONCE,
            Limits(PER_INSTANCE, PER_INSTANCE, max(PER_INSTANCE, 2 * most)),
            Limits(1, min(EACH, most), most),
        )
        self._sending: set[asyncio.Task[None]] = set()
        self._tried: asyncio.Queue[Tried | None] = asyncio.Queue(AT_ONCE)
        # The webhook after which the next look goes on.
        self._looked: Ref = (0, 0)

    def tell(self, webhooks: Iterable[Ref]) -> None:
        """Webhooks have deliveries to send."""
        self._due.add(webhooks)
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled. What is under way then is cut off, and is sent again."""
        settling = asyncio.create_task(self._keep_settling())
        try:
            async with Sender(self._settings) as sender:
                try:
                    await self._keep_sending(sender)
                finally:
                    for task in tuple(self._sending):
                        task.cancel()
                    await asyncio.gather(*self._sending, return_exceptions=True)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_AT_END):
                    await self._tried.put(None)
                    await settling

    async def _keep_sending(self, sender: Sender) -> None:
        loop = asyncio.get_running_loop()
        look_at, away = loop.time(), False
        while True:
            self._wake.clear()
            try:
                if loop.time() >= look_at:
                    look_at = loop.time() + POLL
                    if await self._look():  # there are more to look at
                        look_at = loop.time() + POLL / 10
                for row in await self._claim():
                    self._begin(sender, row)
                away = False
            except Exception as error:  # whatever it was, the next look may go better
                pass_on_cancelling(error)
                if not away:
                    log.warning("deliveries_wait_for_database", cause=type(error).__name__)
                away = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(look_at - loop.time(), 0)):
                    await self._wake.wait()
            await asyncio.sleep(GATHER)

    async def _look(self) -> bool:
        """Find webhooks with deliveries that are due, among the next LOOKS that have any waiting."""
        async with self._database.round(), self._database.connection() as db:
            rows = await db.all(
                "find_due_webhooks",
                after_instance=self._looked[0],
                after_webhook=self._looked[1],
                looks=LOOKS,
            )
        more = len(rows) == LOOKS
        self._looked = (rows[-1]["instance_id"], rows[-1]["webhook_id"]) if more else (0, 0)
        due = sorted((row for row in rows if row["is_due"]), key=lambda row: row["due_at"])
        self._due.add((row["instance_id"], row["webhook_id"]) for row in due)
        return more

    async def _claim(self) -> list[Any]:
        # At most AT_ONCE webhooks have something under way, so as many others are among these.
        shares = self._windows.share_out(islice(self._due.of(self._windows), 2 * AT_ONCE))
        if not shares:
            return []
        left = shares.copy()
        self._due.take(shares)  # each stands there again if it is told of meanwhile
        try:
            # As a write: nothing is claimed while writes are in doubt. The claim itself could go through, as
            # it waits for no standby, but what came of the deliveries could not be noted: each would be sent
            # again when its lease ends, until it counts as given up.
            async with self._database.round(), self._database.statement() as db:
                rows = await db.all(
                    "claim_deliveries",
                    lease=LEASE,
                    instance_ids=[instance_id for instance_id, _ in shares],
                    webhook_ids=[webhook_id for _, webhook_id in shares],
                    shares=list(shares.values()),
                )
            left.subtract((row["instance_id"], row["webhook_id"]) for row in rows)
        except BaseException:
            left.clear()
            raise
        finally:
            # A webhook of which less came than it might have had has no more.
            self._due.add(ref for ref in shares if left[ref] == 0)
        return rows

    def _begin(self, sender: Sender, row: Any) -> None:
        self._windows.begin((row["instance_id"], row["webhook_id"]))
        task = asyncio.create_task(self._send(sender, row))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, sender: Sender, row: Any) -> None:
        taken = False
        try:
            tried = await try_one(sender, row)
            taken = tried.outcome.error is None
            await self._tried.put(tried)
        except Exception as error:
            self._not_noted(row, error)
        finally:
            self._windows.end((row["instance_id"], row["webhook_id"]), taken)
            if self._due:
                self._wake.set()

    async def _keep_settling(self) -> None:
        """Settle tries as they end, until None comes."""
        ending = False
        while not ending:
            waiting = [await self._tried.get()]
            while not self._tried.empty():
                waiting.append(self._tried.get_nowait())
            ending = None in waiting
            await self._settle_in_order([one for one in waiting if one is not None])

    async def _settle_in_order(self, waiting: list[Tried]) -> None:
        """Settle tries together, but for those that may switch a webhook off."""
        together: list[Tried] = []
        for one in waiting:
            if one.disabling is None:
                together.append(one)
                continue
            await self._settle(together)
            await self._settle([one])
            together = []
        await self._settle(together)

    async def _settle(self, tried: list[Tried]) -> None:
        if not tried:
            return
        try:
            await self._settle_again(tried)
        except Exception as error:  # what is not noted is sent again once its lease ends
            pass_on_cancelling(error)
            if len(tried) > 1 and not isinstance(error, Unavailable):  # whichever it was, not the others
                for one in tried:
                    await self._settle([one])
                return
            for one in tried:
                self._not_noted(one.row, error)
            return
        for one in tried:
            said = {"delivered": "done", "pending": "retried", "failed": "parked"}[one.state]
            self._metrics.job(
                JobFact(
                    "webhook", said, one.outcome.seconds, None, one.tries, one.outcome.error,
                    one.row["instance"], one.ref[1],
                )
            )  # fmt: skip

    async def _settle_again(self, tried: list[Tried]) -> None:
        for pause in (0.02, 0.1):
            try:
                return await settle(self._database, tried)
            except (Contention, NotBegun):  # nothing of it was done
                await asyncio.sleep(random.uniform(0, pause))  # noqa: S311
        return await settle(self._database, tried)

    def _not_noted(self, row: Any, error: Exception) -> None:
        log.warning(
            "delivery_not_noted",
            instance_id=row["instance_id"],
            webhook_id=row["webhook_id"],
            cause=type(error).__name__,
        )
