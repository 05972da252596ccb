"""The memory limit of answers that clients have not read yet.

An answer that fits into the socket's buffer is not counted. Answers to clients that read slowly or not at all
are, and the answers of running batches.
"""

from collections import Counter
from collections.abc import Callable
from typing import Protocol

SHARE = 4
"""The batches of one owner may hold a quarter of the limit."""


class Connection(Protocol):
    """A connection with an unread answer."""

    def drop(self) -> None:
        """Close it at once; unsent bytes are lost."""


class Unsent:
    """Counts the bytes of unread answers of one worker and keeps them within a limit.

    Beyond it the owner that holds most loses its oldest unread answers: clients that read are not refused
    because of clients that do not.
    """

    def __init__(self, limit: int, observe: Callable[[int], None]) -> None:
        """
        Args:
            limit: bytes of all unread answers.
            observe: called with the bytes whenever they change.
        """
        self.held = 0
        self._limit = limit
        self._observe = observe
        self._of: Counter[int] = Counter()
        # By owner: connections with unread answers, the oldest first, and the bytes of each.
        self._waiting: dict[int, dict[Connection, int]] = {}

    def grow(self, owner: int, size: int) -> bool:
        """Count more bytes of a running batch, until shrink().

        Args:
            owner: the instance of the calling key, so that one tenant's batches leave room for others.

        Returns:
            False if the batches of this owner should hold no more. The bytes are counted nevertheless.
        """
        self._count(owner, size)
        self._make_room()
        return self.held <= self._limit and self._of[owner] <= self._limit // SHARE

    def shrink(self, owner: int, size: int) -> None:
        """The bytes of a batch are gone, or became an answer."""
        self._count(owner, -size)

    def wait(self, owner: int, connection: Connection, size: int) -> None:
        """Count the bytes of an answer that did not fit into the socket's buffer, until done()."""
        self._waiting.setdefault(owner, {})[connection] = size
        self._count(owner, size)
        self._make_room()

    def done(self, owner: int, connection: Connection) -> None:
        """The answer was read, or the connection is closed. Harmless if nothing is counted."""
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
