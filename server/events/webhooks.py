"""Webhooks: events become deliveries, in the transaction that stores the read position.

Events are read in the order in which their transactions become visible, so none is skipped.
"""

import asyncio
import random
import time
import uuid
from collections.abc import Iterable
from typing import Any, NamedTuple

import structlog

from server.base.errors import Unavailable
from server.base.metrics import Metrics
from server.base.settings import Settings
from server.events import feed
from server.events.deliveries import Deliveries
from server.jobs import worker
from server.jobs.windows import Lane
from server.outside.outbound import Sender
from server.postgres.db import Connection, Database, pass_on_cancelling

log = structlog.get_logger()

METER_EVERY = 15.0
"""Seconds between two checks for a transaction that holds the feed back."""
HALTED_AFTER = 60.0
"""Seconds after which such a transaction is logged, and between two such log lines."""
LOOK_PAUSE = 5.0
"""The pause after find_waiting_webhooks, as a multiple of its duration: it takes at most a sixth of the time
of a connection, however many webhooks there are."""
# Events read at once: the event loop decodes and encodes them in one go.
_BATCH = 100
# After so many webhooks in a row without the database the others are not tried.
_FAILURES = 3


class _Page(NamedTuple):
    """Events that were read for a webhook, for reuse by the next webhook of its instance."""

    instance_id: int
    xid: str
    seq: int
    events: list[Any]
    # Event id -> body, of the events that a webhook wanted so far.
    bodies: dict[str, bytes]


async def relay(database: Database, waiting: Iterable[Any]) -> tuple[list[Lane], bool]:
    """Create deliveries of unread events, at most _BATCH of each webhook.

    The transaction that creates deliveries also stores the read position. Webhooks that another worker has
    locked are skipped. A webhook that fails does not delay the others.

    Args:
        waiting: rows of find_waiting_webhooks, in their order.

    Returns:
        the webhooks with new deliveries, and whether there may be more to read.

    Raises:
        Unavailable: the database was unavailable for several webhooks in a row.
    """
    made: list[Lane] = []
    more, failures = False, 0
    page: _Page | None = None
    for webhook in waiting:
        try:
            async with database.round(), database.transaction() as db:
                page, chosen = await _read_on(db, webhook, page)
        except Exception as error:
            pass_on_cancelling(error)
            failures = failures + 1 if isinstance(error, Unavailable) else 0
            log.warning(
                "webhook_not_read",
                instance_id=webhook["instance_id"],
                webhook_id=webhook["id"],
                cause=type(error).__name__,
            )
            if failures == _FAILURES:
                raise
            continue
        failures = 0
        if chosen:
            made.append((webhook["instance_id"], webhook["id"]))
        more = more or (page is not None and feed.is_full(page.events, _BATCH))
    return made, more


async def _read_on(db: Connection, waiting: Any, page: _Page | None) -> tuple[_Page | None, int]:
    instance_id = waiting["instance_id"]
    ref = {"instance_id": instance_id, "webhook_id": waiting["id"]}
    webhook = await db.one("take_webhook", **ref)
    if webhook is None:
        return None, 0
    start = instance_id, webhook["xid"], webhook["seq"]
    if page is None or page[:3] != start:
        # After the row is locked: events read before that may have been delivered by another worker.
        events = await feed.read(
            db, instance_id, webhook["xid"], webhook["seq"], _BATCH, horizon=waiting["horizon"]
        )
        known = page.bodies if page and page.instance_id == instance_id else {}
        bodies = {event["id"]: known[event["id"]] for event in events if event["id"] in known}
        page = _Page(*start, events, bodies)
    if not page.events:
        return page, 0
    chosen = [event for event in page.events if feed.wants(webhook["types"], webhook["skip_origin"], event)]
    if chosen:
        for event in chosen:
            if event["id"] not in page.bodies:
                page.bodies[event["id"]] = feed.body_of(event, webhook["instance"])
        await db.run(
            "insert_deliveries",
            **ref,
            event_ids=[uuid.UUID(event["id"]) for event in chosen],
            types=[event["type"] for event in chosen],
            bodies=[page.bodies[event["id"]] for event in chosen],
        )
    await db.run("advance_webhook", **ref, xid=page.events[-1]["xid"], seq=page.events[-1]["seq"])
    return page, len(chosen)


async def keep_delivering(settings: Settings, database: Database, metrics: Metrics) -> None:
    """Relay and deliver until cancelled. Running deliveries are then cut off, and sent again later."""
    async with Sender(settings) as sender:
        delivering = Deliveries(database, metrics, settings.webhook_concurrency, sender)
        beside = [
            asyncio.create_task(_keep_relaying(database, metrics, delivering)),
            asyncio.create_task(_keep_metering(database, metrics)),
        ]
        try:
            await delivering.run()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)


async def _keep_relaying(database: Database, metrics: Metrics, delivering: Deliveries) -> None:
    away = False
    while True:
        more, took = False, 0.0
        try:
            began = time.monotonic()
            async with database.round(), database.connection() as db:
                waiting = await db.all("find_waiting_webhooks")
            took = time.monotonic() - began
            metrics.webhooks_unread(max((webhook["age"] for webhook in waiting), default=0.0))
            ready = [webhook for webhook in waiting if webhook["ready"]]
            # Each worker begins at a random webhook, so that workers do not wait for one another.
            start = random.randrange(len(ready)) if ready else 0  # noqa: S311
            made, more = await relay(database, ready[start:] + ready[:start])
            if made:
                delivering.tell(made)
            away = False
        except Exception as error:  # the next try may succeed
            pass_on_cancelling(error)
            if not away:
                log.warning("webhooks_wait_for_database", cause=type(error).__name__)
            away = True
        await asyncio.sleep(0 if more else max(worker.POLL, LOOK_PAUSE * took))


async def _keep_metering(database: Database, metrics: Metrics) -> None:
    halt = FeedHalt(metrics)
    while True:
        try:
            async with database.round(), database.connection() as db:
                halt.observe(await db.one("find_feed_halt"))
        except Exception as error:  # other tasks log that the database is away
            pass_on_cancelling(error)
        await asyncio.sleep(METER_EVERY)


class FeedHalt:
    """Logs the transaction that has held the feed back for HALTED_AFTER."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._seen: tuple[int, str] | None = None
        self._since = 0.0
        self._told_at = float("-inf")

    def observe(self, row: Any) -> None:
        """Check a row of find_feed_halt.

        Args:
            row: None: no transaction is open. If this role may not see the age of the transaction, it is
                counted from the first row with it.
        """
        now = time.monotonic()
        found = None if row is None else (row["pid"], row["application"])
        if found != self._seen:
            self._seen, self._since = found, now
        age = now - self._since if row is None or row["age"] is None else row["age"]
        if row is None or age < HALTED_AFTER:
            self._metrics.feed_halted(None)
            return
        self._metrics.feed_halted((str(row["pid"]), row["application"]), age)
        if now - self._told_at >= HALTED_AFTER:
            self._told_at = now
            log.warning("feed_halted", pid=row["pid"], application=row["application"], seconds=round(age))
