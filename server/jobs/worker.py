"""What waits in a table: claimed with a lease, tried, and settled (done, tried again, or parked).

A row that is claimed is left alone by all other workers until its lease ends, so that a row whose worker died
is claimed again: it is tried at least once, and sometimes twice. Instances share the places of a worker; see
windows.
"""

import asyncio
import contextlib
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Generic, Protocol, TypeVar

import structlog

from server.base.errors import Contention, NotBegun, Unavailable
from server.base.logs import cause_of
from server.base.metrics import JobFact, Metrics
from server.jobs.windows import Due, Lane, Windows
from server.postgres.db import Connection, Database, Row, pass_on_cancelling

log = structlog.get_logger()

LEASE = 60.0
"""Seconds after which another worker takes a row over from one that died."""
POLL = 1.0
"""Seconds between two looks at what is due."""
GATHER = 0.005
"""Seconds in which several that have come to an end make room for one claim."""
LOOKS = 500
"""Lanes with waiting rows that one look steps over."""
SETTLE_AT_END = 2.0
"""Seconds to settle what has ended once the worker is told to stop."""


class Tried(Protocol):
    """One try and what it came to."""

    @property
    def row(self) -> Row:
        """As it was claimed."""

    @property
    def succeeded(self) -> bool:
        """Whether nothing is left to be done."""

    @property
    def fact(self) -> JobFact:
        """What is counted and logged of it."""


T = TypeVar("T", bound=Tried)


class Worker(ABC, Generic[T]):
    """Does what waits in one table; a subclass has its statements and knows what a try is."""

    away: str
    """What the log calls it if the database is away."""
    unsettled: str
    """What the log calls a row whose outcome could not be noted."""
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
        self._running: set[asyncio.Task[None]] = set()
        self._tried: asyncio.Queue[T | None] = asyncio.Queue(windows.at_once)
        # The lane after which the next look goes on, and the longest wait that this round of looks has seen.
        self._looked, self._waited = self.start, 0.0
        self._is_away = False

    @abstractmethod
    async def find_due(self, db: Connection, after: Lane, looks: int) -> list[Row]:
        """The next lanes in which rows wait, with is_due and age (seconds for which one has been due)."""

    @abstractmethod
    async def claim(self, db: Connection, lanes: list[Lane], shares: list[int]) -> list[Row]:
        """Rows that are due, of each lane so many at most, which nobody else takes for LEASE seconds."""

    @abstractmethod
    async def attempt(self, row: Row) -> T:
        """One try, however it ends."""

    @abstractmethod
    async def settle(self, tried: list[T]) -> None:
        """Note what tries came to, in the order in which they ended, all of them or none."""

    def together(self, tried: list[T]) -> Iterable[list[T]]:
        """Tries that have ended, in their order, cut where one must not be settled with others."""
        return [tried]

    def waited(self, seconds: float) -> None:  # not all want to know
        """For how long the row that waits longest has been due, once all lanes have been seen."""

    def tell(self, lanes: Iterable[Lane]) -> None:
        """Lanes have something to do."""
        self._due.add(lanes)
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled. What does not finish in its time then is cut off, and is tried again."""
        settling = asyncio.create_task(self._keep_settling())
        try:
            await self._keep_claiming()
        finally:
            if self._running:
                await asyncio.wait(self._running, timeout=self._grace)
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_AT_END):
                    await self._tried.put(None)
                    await settling

    async def _keep_claiming(self) -> None:
        loop = asyncio.get_running_loop()
        look_at = loop.time()
        while True:
            self._wake.clear()
            try:
                if loop.time() >= look_at:
                    look_at = loop.time() + POLL
                    if await self._look():  # there are more to look at
                        look_at = loop.time() + POLL / 10
                for row in await self._claim():
                    self._begin(row)
            except Exception as error:  # whatever it was, the next look may go better
                pass_on_cancelling(error)
                self._say_away(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(look_at - loop.time(), 0)):
                    await self._wake.wait()
            await asyncio.sleep(GATHER)

    def _say_away(self, error: Exception) -> None:
        if not self._is_away:
            log.warning(self.away, cause=cause_of(error))
        self._is_away = True

    async def _look(self) -> bool:
        """Find lanes in which something is due, among the next LOOKS in which anything waits."""
        async with self.database.round(), self.database.connection() as db:
            rows = await self.find_due(db, self._looked, LOOKS)
        self._is_away = False
        due = sorted((row for row in rows if row["is_due"]), key=lambda row: -row["age"])
        self._due.add(map(self._lane_of, due))
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
                rows = await self.claim(db, list(shares), list(shares.values()))
            left.subtract(map(self._lane_of, rows))
        except BaseException:
            left.clear()
            raise
        finally:
            # A lane of which less came than it might have had has no more.
            self._due.add(lane for lane in shares if left[lane] == 0)
        return rows

    def _begin(self, row: Row) -> None:
        self._windows.begin(self._lane_of(row))
        task = asyncio.create_task(self._try(row))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _try(self, row: Row) -> None:
        succeeded = False
        try:
            tried = await self.attempt(row)
            succeeded = tried.succeeded
            await self._tried.put(tried)
        except Exception as error:
            self._say_unsettled(row, error)
        finally:
            self._windows.end(self._lane_of(row), succeeded)
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
            for tried in self.together([one for one in waiting if one is not None]):
                await self._settle(tried)

    async def _settle(self, tried: list[T]) -> None:
        if not tried:
            return
        try:
            await self._settle_again(tried)
        except Unavailable as error:  # what is not noted is tried again once its lease ends
            pass_on_cancelling(error)
            self._say_away(error)
        except Exception as error:
            pass_on_cancelling(error)
            if len(tried) == 1:
                self._say_unsettled(tried[0].row, error)
                return
            for one in tried:  # whichever it was, not the others
                await self._settle([one])
        else:
            for one in tried:
                self.metrics.job(one.fact)

    async def _settle_again(self, tried: list[T]) -> None:
        for pause in (0.02, 0.1):
            try:
                async with self.database.round():
                    return await self.settle(tried)
            except (Contention, NotBegun):  # nothing of it was done
                await asyncio.sleep(random.uniform(0, pause))  # noqa: S311
        async with self.database.round():
            return await self.settle(tried)

    def _say_unsettled(self, row: Row, error: Exception) -> None:
        lane = {"instance_id": row["instance_id"], self.lane: row[self.lane]}
        log.warning(self.unsettled, **lane, cause=type(error).__name__)


def jittered(seconds: float, part: float) -> float:
    """A pause that is longer or shorter by up to a part of it, so that many do not end together."""
    return seconds * random.uniform(1 - part, 1 + part)  # noqa: S311
