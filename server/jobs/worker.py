"""What waits in a table: claimed with a lease, tried, and then done, retried or parked.

A row that is claimed is left alone by all other workers until its lease ends, so that a row whose worker died
is claimed again: it is tried at least once, and sometimes twice. Instances share the places of a worker; see
windows.
"""

import asyncio
import contextlib
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from itertools import groupby, islice
from typing import Any, NamedTuple

import structlog

from server.base.errors import Contention, NotBegun, Unavailable
from server.base.logs import cause_of
from server.base.metrics import JobFact, Metrics
from server.jobs.windows import Due, Lane, Windows
from server.postgres.db import Database, Row, pass_on_cancelling

log = structlog.get_logger()

LEASE = 60.0
"""Seconds after which another worker takes a row over from one that died."""
LONGEST_PAUSE = 3600.0
"""Seconds between two tries at most, whatever the other side asked for; those of a suspended instance's."""
POLL = 1.0
"""Seconds between two looks at what is due."""
GATHER = 0.005
"""Seconds in which several that have come to an end make room for one claim."""
LOOKS = 500
"""Lanes with waiting rows that one look steps over."""
SETTLE_AT_END = 2.0
"""Seconds to finish a claim, and again to settle the tries that have ended, when the worker is to stop."""


class Hopeless(Exception):
    """no further try will help: the row is parked at once"""


class GivenUp(Hopeless):
    """the workers of all tries died, so that nobody has parked the row"""


class Later(Exception):
    """another try may help, but no sooner than the other side said"""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__()


class Suspended(Exception):
    """the instance is suspended: the row is tried again hourly, without an end, until that is over"""


class Tried(NamedTuple):
    """One try and what it came to."""

    row: Row
    # done, retried (later, that is), parked, suspended, or stopped with its worker.
    outcome: str
    # Seconds until the next try.
    pause: float
    # What do() returned or raised.
    result: Any
    seconds: float = 0.0

    @property
    def tries(self) -> int:
        """How often the row was tried since its tries began to be counted."""
        return 0 if self.outcome == "suspended" else self.row["attempts"] - self.row["first_attempt"]


class Worker(ABC):
    """Does what waits in one table; a subclass knows how. Rows have instance_id, the lane, attempts,
    first_attempt and kind."""

    away: str
    """What the log calls it if the database is away."""
    unsettled: str
    """What the log calls a row whose outcome could not be noted."""
    find: str
    """The statement that finds the next lanes in which rows wait."""
    claim: str
    """The statement that claims rows of lanes."""
    lane: str
    """The column that makes a lane of an instance: rows that are claimed one after another."""
    start: Lane
    """A lane before all others."""

    def __init__(self, database: Database, metrics: Metrics, windows: Windows, grace: float = 0.0) -> None:
        """
        Args:
            windows: how many tries run at the same time.
            grace: seconds that running tries get to finish once the worker is told to stop.
        """
        self.database = database
        self.metrics = metrics
        self._windows = windows
        self._grace = grace
        # As far as is known here.
        self._due = Due()
        self._wake = asyncio.Event()
        # With what they try, and when its lease was last known to be a whole one.
        self._running: dict[asyncio.Task[None], tuple[Row, float]] = {}
        self._tried: asyncio.Queue[Tried | None] = asyncio.Queue(windows.at_once)
        # The lane after which the next look goes on, and the longest wait that this round of looks has seen.
        self._looked, self._waited = self.start, 0.0
        self._is_away = False

    @abstractmethod
    async def do(self, row: Row) -> Any:
        """One try, which limits its own time. Whatever it raises, the row is tried again after a pause, but
        for Hopeless."""

    @abstractmethod
    async def settle(self, tried: list[Tried]) -> None:
        """Note what tries came to, in the order in which they ended, all of them or none."""

    @abstractmethod
    def pause(self, tries: int) -> float | None:
        """Seconds before the next try after so many; None: it is parked instead."""

    def knows(self, lane: Lane) -> bool:
        """Whether a lane is one of those that this version can do."""
        return True

    def cause(self, result: Any) -> str | None:
        """What went wrong, for the log."""
        return cause_of(result) if isinstance(result, Exception) else None

    async def renew(self, rows: list[Row]) -> None:  # noqa: B027
        """Make the leases of rows whose tries take long whole again."""

    async def note_parked(self, row: Row) -> None:  # noqa: B027
        """Called before a row is parked."""

    def waited(self, seconds: float) -> None:  # noqa: B027
        """For how long the row that waits longest has been due, once all lanes have been seen."""

    def tell(self, lanes: Iterable[Lane]) -> None:
        """Lanes have something to do."""
        self._due.add(filter(self.knows, lanes))
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled. What does not finish in its time then is cut off, and is due at once."""
        settling = asyncio.create_task(self._keep_settling())
        try:
            await self._keep_claiming()
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._grace):
                    await self._finish()
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_AT_END):
                    await self._tried.put(None)
                    await settling

    async def _finish(self) -> None:
        """Wait for running tries, whose leases do not end meanwhile."""
        while self._running:
            await asyncio.wait(self._running, timeout=LEASE / 3)
            try:
                await self._renew_old()
            except Exception as error:  # another worker may take them over
                pass_on_cancelling(error)
                self._say_away(error)

    async def _keep_claiming(self) -> None:
        loop = asyncio.get_running_loop()
        look_at = loop.time()
        while True:
            self._wake.clear()
            try:
                if loop.time() >= look_at:
                    look_at = loop.time() + POLL
                    await self._renew_old()
                    if await self.look():
                        look_at = loop.time() + POLL / 10
                    self._is_away = False
                await self._begin()
            except Exception as error:  # whatever it was, the next look may go better
                pass_on_cancelling(error)
                self._say_away(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(look_at - loop.time(), 0)):
                    await self._wake.wait()
            await asyncio.sleep(GATHER)

    async def _begin(self) -> None:
        """Claim rows and start their tries."""

        async def begin() -> None:
            for row in await self._claim():
                task = asyncio.create_task(self._try(row))
                self._running[task] = row, asyncio.get_running_loop().time()
                task.add_done_callback(self._running.pop)

        beginning = asyncio.create_task(begin())
        try:
            await asyncio.shield(beginning)
        except asyncio.CancelledError:
            # A cancelled claim may have been committed: its rows would wait for the end of their lease.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_AT_END):
                    await asyncio.gather(beginning, return_exceptions=True)
            raise

    def _say_away(self, error: Exception) -> None:
        if not self._is_away:
            log.warning(self.away, cause=cause_of(error))
        self._is_away = True

    async def _renew_old(self) -> None:
        now = asyncio.get_running_loop().time()
        old = {task: row for task, (row, since) in self._running.items() if now - since > LEASE / 3}
        if old:
            async with self.database.round():
                await self.renew(list(old.values()))
            self._running |= {task: (row, now) for task, row in old.items() if task in self._running}

    async def look(self) -> bool:
        """Find lanes in which something is due, among the next LOOKS in which anything waits.

        Returns:
            whether there are more to look at.
        """
        async with self.database.round(), self.database.connection() as db:
            rows = await db.all(
                self.find, after_instance=self._looked[0], after_lane=self._looked[1], looks=LOOKS
            )
        due = sorted((row for row in rows if row["is_due"]), key=lambda row: -row["age"])
        self.tell(map(self._lane_of, due))
        self._waited = max([self._waited, *(row["age"] for row in due[:1])])
        if len(rows) == LOOKS:
            self._looked = self._lane_of(rows[-1])
            return True
        self.waited(self._waited)
        self._looked, self._waited = self.start, 0.0
        return False

    def _lane_of(self, row: Row) -> Lane:
        return row["instance_id"], row[self.lane]

    async def _claim(self) -> list[Row]:
        # No more lanes have something under way than there are places, so as many others are among these.
        shares = self._windows.share_out(islice(self._due.of(self._windows), 2 * self._windows.at_once))
        if not shares:
            return []
        left: Counter[Lane] = shares.copy()
        self._due.take(shares)  # each stands there again if it is told of meanwhile
        try:
            # As a write: nothing is claimed while writes are in doubt. The claim itself could go through, as
            # it may wait for no standby, but what came of the tries could not be noted: each would be made
            # again when its lease ends, until it counts as one whose workers died.
            async with self.database.round(), self.database.statement() as db:
                rows = await db.all(
                    self.claim,
                    lease=LEASE,
                    instance_ids=[instance_id for instance_id, _ in shares],
                    lanes=[lane for _, lane in shares],
                    shares=list(shares.values()),
                )
            for lane in map(self._lane_of, rows):
                left[lane] -= 1
                self._windows.begin(lane)
        except BaseException:
            left.clear()
            raise
        finally:
            # A lane of which less came than it might have had has no more.
            self._due.add(lane for lane in shares if left[lane] == 0)
        return rows

    async def _try(self, row: Row) -> None:
        began = time.perf_counter()
        tries, outcome, pause, result = row["attempts"] - row["first_attempt"], "done", 0.0, None
        try:
            try:
                if tries > 1 and self.pause(tries - 1) is None:
                    raise GivenUp
                result = await self.do(row)
            except asyncio.CancelledError as error:
                outcome, result = "stopped", error
            except Suspended as error:
                outcome, pause, result = "suspended", LONGEST_PAUSE, error
            except Exception as error:
                following, result = self.pause(tries), error
                if following is None or isinstance(error, Hopeless):
                    outcome = "parked"
                    await self.note_parked(row)
                else:
                    asked = error.seconds if isinstance(error, Later) else 0.0
                    outcome, pause = "retried", max(following, min(asked, LONGEST_PAUSE))
            await self._tried.put(Tried(row, outcome, pause, result, time.perf_counter() - began))
        finally:
            self._windows.end(self._lane_of(row), outcome == "done")
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
            ended = [one for one in waiting if one is not None]
            # One that is parked may change what becomes of the next: it is settled alone, in its turn.
            for parked, several in groupby(ended, key=lambda one: one.outcome == "parked"):
                tried = list(several)
                for together in [[one] for one in tried] if parked else [tried]:
                    await self._settle(together)

    async def _settle(self, tried: list[Tried]) -> None:
        try:
            await self._settle_again(tried)
        except Unavailable as error:  # what is not noted is tried again once its lease ends
            pass_on_cancelling(error)
            self._say_away(error)
        except Exception as error:
            pass_on_cancelling(error)
            if len(tried) > 1:  # whichever it was, not the others
                for one in tried:
                    await self._settle([one])
                return
            row = tried[0].row
            about = {"instance_id": row["instance_id"], self.lane: row[self.lane]}
            log.warning(self.unsettled, **about, cause=type(error).__name__)
        else:
            for one in tried:
                said = "retried" if one.outcome == "suspended" else one.outcome
                cause = "CancelledError" if said == "stopped" else self.cause(one.result)
                row = one.row
                self.metrics.job(
                    JobFact(
                        row["kind"], said, one.seconds, row.get("id"), one.tries, cause, row.get("instance"),
                        row.get("webhook_id"),
                    )
                )  # fmt: skip

    async def _settle_again(self, tried: list[Tried]) -> None:
        for pause in (0.02, 0.1):
            try:
                async with self.database.round():
                    return await self.settle(tried)
            except (Contention, NotBegun):  # nothing of it was done
                await asyncio.sleep(random.uniform(0, pause))  # noqa: S311
        async with self.database.round():
            return await self.settle(tried)


def jittered(seconds: float, part: float) -> float:
    """A pause that is longer or shorter by up to a part of it, so that many do not end together."""
    return seconds * random.uniform(1 - part, 1 + part)  # noqa: S311
