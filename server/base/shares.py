"""Fair shares: limited slots, distributed so that no instance keeps another waiting."""

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar

from server.base.errors import Unavailable

SERVER, FILES, KEY_LOOKUPS, PROOFS = 0, -1, -2, -3
"""Shares without an instance: the server's own tasks and operators' calls without an instance; readers of
/files; look-ups of keys, whose instance is not known yet; proofs that the database accepts writes."""

CURRENT_SHARE: ContextVar[int] = ContextVar("CURRENT_SHARE", default=SERVER)
"""The share of the running task: an instance's id, or one of those above. Dispatch sets it."""


@contextlib.contextmanager
def taking_from(share: int) -> Iterator[None]:
    """The running task uses this share within the block."""
    token = CURRENT_SHARE.set(share)
    try:
        yield
    finally:
        CURRENT_SHARE.reset(token)


class Shares:
    """A number of slots, of which each share may hold some.

    A free slot goes to any share that holds none. A share that holds one already cannot have the last free
    slot, and never holds more than of_one. Waiting shares are served round robin, and the tasks of a share
    first in, first out.
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
            size: number of slots; default: no limit but of_one.
            of_one: slots that one share may hold.
            waiting: how many tasks of one share may wait.
            waiting_in_all: how many tasks of all shares may wait, if each needs much memory.
            refusal: error message for the next task.
        """
        self.size, self.of_one = size, of_one
        self._free = size
        self._waiting_limit, self._waiting_in_all = waiting, waiting_in_all
        self._refusal = refusal
        # By share: slots held, and waiting tasks. The share that is served next comes first.
        self._held: dict[int, int] = {}
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {}

    def take_now(self, share: int) -> bool:
        """Take a slot if one is free for this share. None of its waiting tasks could have it."""
        if not self._is_free(share):
            return False
        self._free -= 1
        self._held[share] = self._held.get(share, 0) + 1
        return True

    async def take(self, share: int) -> None:
        """Take a slot, after waiting if necessary.

        Raises:
            Unavailable: too many tasks are waiting; try again after a second.
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
        """Free a slot, for the next waiting task."""
        held = self._held.pop(share) - 1
        if held:
            self._held[share] = held
        self._free += 1
        if self._waiting:
            self._serve()

    @contextlib.asynccontextmanager
    async def turn(self, share: int) -> AsyncIterator[None]:
        """Hold a slot during the block; raises as take."""
        await self.take(share)
        try:
            yield
        finally:
            self.give_back(share)

    def _is_free(self, share: int) -> bool:
        held = self._held.get(share, 0)
        return self._free > 0 if held == 0 else self._free > 1 and held < self.of_one

    def _serve(self) -> None:
        # Skips at most the shares that hold slots, so it is fast however many wait.
        while (share := next(filter(self._is_free, self._waiting), None)) is not None:
            queue = self._waiting.pop(share)
            while queue:
                turn = queue.popleft()
                if not turn.done():  # not cancelled
                    self.take_now(share)
                    turn.set_result(None)
                    break
            if queue:
                self._waiting[share] = queue  # behind the others

    def _forget(self, share: int, turn: "asyncio.Future[None]") -> None:
        queue = self._waiting.get(share, deque())
        with contextlib.suppress(ValueError):  # removed by _serve
            queue.remove(turn)
        if not queue:
            self._waiting.pop(share, None)
