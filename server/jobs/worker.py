"""Rows that wait in a table: claimed with a lease, tried, and then done, retried or parked.

Other workers skip a claimed row until its lease ends. The row of a worker that died is then claimed again, so
a row is tried at least once, and sometimes twice. Instances share the capacity of a worker; see windows.
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
"""Seconds after which another worker takes over the row of a worker that died."""
LONGEST_PAUSE = 3600.0
"""Most seconds between two tries, also if the receiver asks for more; the pause of a suspended instance."""
POLL = 1.0
"""Seconds between two looks for due rows."""
GATHER = 0.005
"""Seconds between two claims, so that one claim serves several tries that ended."""
LOOKS = 500
"""Lanes with waiting rows that one look examines."""
SETTLE_AT_END = 2.0
"""Seconds to finish a claim, and again to settle the tries that have ended, when the worker is to stop."""


class Hopeless(Exception):
    """a retry would not help: the row is parked at once"""


class GivenUp(Hopeless):
    """the workers of all tries died, and none of them parked the row"""


class Later(Exception):
    """a retry may help, after the time that the other side asked for"""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__()


class Suspended(Exception):
    """the instance is suspended: the row is retried every hour until it is reactivated"""


class Tried(NamedTuple):
    """One try and its outcome."""

    row: Row
    # done, retried, parked, suspended, or stopped with its worker.
    outcome: str
    # Seconds until the next try.
    pause: float
    # Returned or raised by do().
    result: Any
    seconds: float = 0.0

    @property
    def tries(self) -> int:
        """The number of tries since the count began anew."""
        return 0 if self.outcome == "suspended" else self.row["attempts"] - self.row["first_attempt"]


class Worker(ABC):
    """Does the rows of one table. They have instance_id, the lane, attempts, first_attempt and kind."""

    away: str
    """The log event when the database is away."""
    unsettled: str
    """The log event for a row whose outcome could not be stored."""
    find: str
    """The statement that finds the next lanes with waiting rows."""
    claim: str
    """The statement that claims rows of lanes."""
    lane: str
    """The column with the key of the lane."""
    start: Lane
    """A lane before all others."""

    def __init__(self, database: Database, metrics: Metrics, windows: Windows, grace: float = 0.0) -> None:
        """
        Args:
            windows: limits of parallel tries.
            grace: seconds that running tries have to finish when the worker is to stop.
        """
        self.database = database
        self.metrics = metrics
        self._windows = windows
        self._grace = grace
        # The lanes that are known to be due.
        self._due = Due()
        self._wake = asyncio.Event()
        # Task -> row, and the time when its lease was last renewed.
        self._running: dict[asyncio.Task[None], tuple[Row, float]] = {}
        self._tried: asyncio.Queue[Tried | None] = asyncio.Queue(windows.at_once)
        # The lane after which the next look continues, and the longest wait in this round of looks.
        self._looked, self._waited = self.start, 0.0
        self._is_away = False

    @abstractmethod
    async def do(self, row: Row) -> Any:
        """One try, with its own time limit. After an error, except Hopeless, the row is retried."""

    @abstractmethod
    async def settle(self, tried: list[Tried]) -> None:
        """Store the outcomes of all tries or none, in the order in which they ended."""

    @abstractmethod
    def pause(self, tries: int) -> float | None:
        """Seconds before the next try after this number of tries; None: park the row."""

    def knows(self, lane: Lane) -> bool:
        """Whether this version can do the rows of a lane."""
        return True

    def cause(self, result: Any) -> str | None:
        """The cause of a failure, for the log."""
        return cause_of(result) if isinstance(result, Exception) else None

    async def renew(self, rows: list[Row]) -> None:  # noqa: B027
        """Renew the leases of rows whose tries take long."""

    async def note_parked(self, row: Row) -> None:  # noqa: B027
        """Called before a row is parked."""

    def waited(self, seconds: float) -> None:  # noqa: B027
        """Called after all lanes were examined, with the time that the oldest due row has waited."""

    def tell(self, lanes: Iterable[Lane]) -> None:
        """Rows of these lanes are due."""
        self._due.add(filter(self.knows, lanes))
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled. Tries that do not finish in their time then are cut off, and due at once."""
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
        """Wait for running tries, and renew their leases."""
        while self._running:
            await asyncio.wait(self._running, timeout=LEASE / 3)
            try:
                await self._renew_old()
            except Exception as error:  # another worker may take the rows over
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
            except Exception as error:  # the next look may succeed
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
        """Find lanes with due rows among the next LOOKS lanes with waiting rows.

        Returns:
            whether there are more lanes.
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
        # At most at_once lanes have running tries, so at least as many of these have none.
        shares = self._windows.share_out(islice(self._due.of(self._windows), 2 * self._windows.at_once))
        if not shares:
            return []
        left: Counter[Lane] = shares.copy()
        self._due.take(shares)  # tell may add them again during the claim
        try:
            # A statement that writes, so nothing is claimed while writes are in doubt. The claim itself might
            # succeed then, as it need not wait for a standby. But the outcomes of the tries could not be
            # stored: each would be repeated when its lease ends, until the row counts as given up.
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
            # A lane with fewer rows than its share has no more.
            self._due.add(lane for lane in shares if left[lane] == 0)
        return rows

    async def _try(self, row: Row) -> None:
        began = time.perf_counter()
        outcome, pause, result = "stopped", 0.0, None
        try:
            # Around note_parked too: without an outcome the row would wait for the end of its lease.
            try:
                outcome, pause, result = await self._outcome(row)
            except asyncio.CancelledError as error:
                result = error
            await self._tried.put(Tried(row, outcome, pause, result, time.perf_counter() - began))
        finally:
            self._windows.end(self._lane_of(row), outcome == "done")
            if self._due:
                self._wake.set()

    async def _outcome(self, row: Row) -> tuple[str, float, Any]:
        """The outcome, pause and result of one try (see Tried)."""
        tries = row["attempts"] - row["first_attempt"]
        try:
            if tries > 1 and self.pause(tries - 1) is None:
                raise GivenUp
            return "done", 0.0, await self.do(row)
        except Suspended as error:
            return "suspended", LONGEST_PAUSE, error
        except Exception as error:
            following = self.pause(tries)
            if following is None or isinstance(error, Hopeless):
                await self.note_parked(row)
                return "parked", 0.0, error
            asked = error.seconds if isinstance(error, Later) else 0.0
            return "retried", max(following, min(asked, LONGEST_PAUSE)), error

    async def _keep_settling(self) -> None:
        """Settle tries as they end; None is the end."""
        ending = False
        while not ending:
            waiting = [await self._tried.get()]
            while not self._tried.empty():
                waiting.append(self._tried.get_nowait())
            ending = None in waiting
            ended = [one for one in waiting if one is not None]
            # A parked try may affect the following ones: it is settled alone, in its turn.
            for parked, several in groupby(ended, key=lambda one: one.outcome == "parked"):
                tried = list(several)
                for together in [[one] for one in tried] if parked else [tried]:
                    await self._settle(together)

    async def _settle(self, tried: list[Tried]) -> None:
        try:
            await self._settle_again(tried)
        except Unavailable as error:  # the rows are retried when their leases end
            pass_on_cancelling(error)
            self._say_away(error)
        except Exception as error:
            pass_on_cancelling(error)
            if len(tried) > 1:  # one outcome may be the cause: settle the others
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
            except (Contention, NotBegun):  # nothing was stored
                await asyncio.sleep(random.uniform(0, pause))  # noqa: S311
        async with self.database.round():
            return await self.settle(tried)


def jittered(seconds: float, part: float) -> float:
    """A pause that is longer or shorter by up to this part, so that many do not end together."""
    return seconds * random.uniform(1 - part, 1 + part)  # noqa: S311
