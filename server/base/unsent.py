"""Answers that clients have not read yet: how much memory they may take, and whose are dropped beyond that.

An answer that fits into the socket's buffer is not counted. What is counted stays in this process: answers
whose client reads slowly or not at all, and those of batches that still run.
"""

from collections import Counter
from collections.abc import Callable
from typing import Protocol

SHARE = 4
"""The batches of one owner may hold one part in so many of the limit."""


class Connection(Protocol):
    """A connection whose client has not read all of its answer."""

    def drop(self) -> None:
        """Close it at once; what was not sent is lost."""


class Unsent:
    """Counts the bytes of unread answers of one worker and keeps them within a limit.

    When it is exceeded, the owner that holds most loses its oldest unread answers: a client that reads is not
    refused for the sake of those that do not.
    """

    def __init__(self, limit: int, observe: Callable[[int], None]) -> None:
        """
        Args:
            limit: bytes that all of them may hold.
            observe: told the bytes held whenever they change.
        """
        self.held = 0
        self._limit = limit
        self._observe = observe
        self._of: Counter[int] = Counter()
        # The connections that wait for their client, by owner, the oldest first, with the bytes of each.
        self._waiting: dict[int, dict[Connection, int]] = {}

    def grow(self, owner: int, size: int) -> bool:
        """Count more bytes of a batch that runs; shrink() gives them back.

        Args:
            owner: the instance whose key calls, so that one tenant's batches leave room for another's.

        Returns:
            False where the batches of this owner should hold no more. The bytes are counted all the same.
        """
        self._count(owner, size)
        self._make_room()
        return self.held <= self._limit and self._of[owner] <= self._limit // SHARE

    def shrink(self, owner: int, size: int) -> None:
        """The bytes of a batch are gone, or are an answer by now."""
        self._count(owner, -size)

    def wait(self, owner: int, connection: Connection, size: int) -> None:
        """An answer did not fit into the socket's buffer: its bytes stay until done()."""
        self._waiting.setdefault(owner, {})[connection] = size
        self._count(owner, size)
        self._make_room()

    def done(self, owner: int, connection: Connection) -> None:
        """The answer was read, or the connection is gone. Harmless if nothing is counted for it."""
        waiting = self._waiting.get(owner, {})
        size = waiting.pop(connection, None)
        if size is not None:
            if not waiting:
                del self._waiting[owner]
            self._count(owner, -size)

    def _make_room(self) -> None:
        while self.held > self._limit and self._waiting:
            owner = max(self._waiting, key=self._of.__getitem__)
            oldest = next(iter(self._waiting[owner]))
            self.done(owner, oldest)
            oldest.drop()

    def _count(self, owner: int, size: int) -> None:
        self.held += size
        self._of[owner] += size
        if not self._of[owner]:
            del self._of[owner]
        self._observe(self.held)
