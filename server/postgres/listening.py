"""LISTEN on a connection outside the pool, as long as the process runs."""

import asyncio
import contextlib
from collections.abc import Callable

from server.postgres.db import Database


async def listen(
    database: Database,
    channel: str,
    heard: Callable[[str], None],
    begun: Callable[[], None] = lambda: None,
    lost: Callable[[Exception | None], None] = lambda _: None,
) -> None:
    """Receive notifications until cancelled; reconnect with a growing pause when the connection is lost.

    Notifications that are sent while it is lost never arrive.

    Args:
        heard: called with each payload.
        begun: called after each (re)connection.
        lost: called when the connection is lost or fails; None: the server or the network closed it.
    """
    pause = 0.1
    while True:
        closed = asyncio.Event()
        try:
            connection = await database.direct()
            try:
                connection.add_termination_listener(lambda *_, closed=closed: closed.set())
                await connection.add_listener(channel, lambda *said: heard(said[-1]))
                begun()
                pause = 0.1
                while not closed.is_set():
                    # A frozen server keeps the connection open: test it every two seconds.
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(closed.wait(), 2)
                        continue
                    await connection.execute("SELECT 1", timeout=2)
                lost(None)
            finally:
                connection.terminate()
        except Exception as error:  # any error means that the connection is lost
            lost(error)
        await asyncio.sleep(pause)
        pause = min(pause * 2, 5.0)
