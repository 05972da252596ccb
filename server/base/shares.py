"""Shares: slots of what is scarce, handed out so that no instance keeps another waiting."""

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar

from server.base.errors import Unavailable

SERVER, FILES, KEY_LOOKUPS, PROOFS = 0, -1, -2, -3
"""Shares that are no instance's: the server's own tasks and operators' calls about no instance; readers of
/files; look-ups of keys, whose instance is not known yet; proofs that the database takes writes."""

CURRENT_SHARE: ContextVar[int] = ContextVar("CURRENT_SHARE", default=SERVER)
"""Whose share the running task takes from: an instance's id, or one of those above. Dispatch sets it."""


@contextlib.contextmanager
def taking_from(share: int) -> Iterator[None]:
    """Within the block the running task takes from this share."""
    token = CURRENT_SHARE.set(share)
    try:
        yield
    finally:
        CURRENT_SHARE.reset(token)


class Shares:
    """A number of slots, of which each share may hold some.

    A free slot goes to any share that holds none. A share that holds one already leaves the last free slot
    for those, and never holds more than of_one. Whoever waits is served in turn, one of each share (round
    robin), and within a share in the order of arrival.
    """

    def __init__(
        self,
        *,
        size: int = sys.maxsize,
        of_one: int,
        waiting: int,
        waiting_in_all: int = sys.maxsize,
        refusal: str,
    ) -> None:
        """
        Args:
            size: slots; by default as many as are asked for, so that only of_one limits.
            of_one: slots that one share may hold.
            waiting: how many of one share may wait.
            waiting_in_all: how many of all shares together may, where each keeps much in memory.
            refusal: what the next one is told.
        """
        self.of_one = of_one
        self._free = size
        self._waiting_limit, self._waiting_in_all = waiting, waiting_in_all
        self._refusal = refusal
        # By share: slots held, and those who wait. The share that is first served next stands first.
        self._held: dict[int, int] = {}
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {}

    def take_now(self, share: int) -> bool:
        """Take a slot if one is free for this share. Whoever waits in it could not have it either."""
        if not self._is_free(share):
            return False
        self._free -= 1
        self._held[share] = self._held.get(share, 0) + 1
        return True

    async def take(self, share: int) -> None:
        """Take a slot, when the turn comes.

        Raises:
            Unavailable: too many of this share are waiting; try again after a second.
        """
        if self.take_now(share):
            return
        if (
            len(self._waiting.get(share, ())) >= self._waiting_limit
            or sum(map(len, self._waiting.values())) >= self._waiting_in_all
        ):
            raise Unavailable(self._refusal, code="busy", retry_after=1)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(share, deque()).append(turn)
        try:
            await turn
        except BaseException:
            if turn.cancelled():
                self._forget(share, turn)
            else:  # the turn came as the task was cancelled: the next one's
                self.give_back(share)
            raise

    def give_back(self, share: int) -> None:
        """A slot is free again: whoever may have it next gets it."""
        held = self._held.pop(share) - 1
        if held:
            self._held[share] = held
        self._free += 1
        if self._waiting:
            self._serve()

    @contextlib.asynccontextmanager
    async def turn(self, share: int) -> AsyncIterator[None]:
        """A slot for as long as the block lasts; take says what it raises."""
        await self.take(share)
        try:
            yield
        finally:
            self.give_back(share)

    def _is_free(self, share: int) -> bool:
        held = self._held.get(share, 0)
        return self._free > 0 if held == 0 else self._free > 1 and held < self.of_one

    def _serve(self) -> None:
        # At most as many shares as hold slots are passed over, so this ends soon however many wait.
        while (share := next(filter(self._is_free, self._waiting), None)) is not None:
            queue = self._waiting.pop(share)
            while queue:
                turn = queue.popleft()
                if not turn.done():  # else it was cancelled a moment ago
                    self.take_now(share)
                    turn.set_result(None)
                    break
            if queue:
                self._waiting[share] = queue  # behind the others

    def _forget(self, share: int, turn: "asyncio.Future[None]") -> None:
        queue = self._waiting.get(share, deque())
        with contextlib.suppress(ValueError):  # passed over already
            queue.remove(turn)
        if not queue:
            self._waiting.pop(share, None)
