"""Worker processes: gunicorn's arbiter over aiohttp's uvloop worker."""

import gc
import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from aiohttp import web
from gunicorn import arbiter
from gunicorn.app.base import BaseApplication
from gunicorn.errors import HaltServer
from prometheus_client import multiprocess

from server.base.settings import Settings
from server.serving.app import create_app
from server.serving.connections import Runner

IDLE_AT_STOP = 1.0
"""Seconds that kept-alive clients get to be told that the server stops."""
ENDING_MARGIN = 30
"""Seconds beyond those of clients and calls, for closing connections, the pool and the queue."""

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def _end_by_signal() -> None:
    # They stay blocked until the worker's event loop runs: handlers that are set before it would lose them.
    for number in _ENDING:
        signal.signal(number, signal.SIG_DFL)


def _forget_metrics(pid: int) -> None:
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


class _Master(arbiter.Arbiter):  # type: ignore[misc]
    """gunicorn's loop, which also looks after what the workers need. It comes by once a second at least."""

    def manage_workers(self) -> None:
        try:
            self.app.look_after()
        except Exception as error:
            sys.stderr.write(f"officerpc: {error}\n")
            raise HaltServer(None, 1) from error
        super().manage_workers()


class Arbiter(BaseApplication):  # type: ignore[misc]
    """Starts the workers, replaces those that die, and ends them all on SIGTERM or SIGINT.

    On SIGHUP new workers take over before the old ones end. Settings and code stay those of the start.
    """

    def __init__(
        self,
        settings: Settings,
        database_url: str,
        listening: socket.socket,
        look_after: Callable[[], None],
        when_ready: Callable[[], None],
    ) -> None:
        """
        Args:
            listening: the socket that workers take connections from; it is closed when this ends.
            look_after: called every second; an exception ends the server with status 1.
            when_ready: called before the first worker starts.
        """
        self._settings = settings
        self._when_ready = when_ready
        # Reloads until this process was forked, and (shared with all workers) until now.
        self._reloads = 0
        self._reloads_now = mmap.mmap(-1, mmap.PAGESIZE)
        self._listening = listening.detach()
        self._database_url = database_url
        self.look_after = look_after
        super().__init__()

    def load_config(self) -> None:
        """gunicorn's settings from ours."""
        settings = self._settings
        options: dict[str, Any] = {
            "bind": f"fd://{self._listening}",
            "workers": settings.workers,
            "worker_class": "aiohttp.GunicornUVLoopWebWorker",
            # What runs gets shutdown_timeout; the arbiter waits a little longer than the workers do.
            "graceful_timeout": int(settings.shutdown_timeout) + 5,
            # A worker that ends no longer tells that it lives, and must not be killed before its calls' time.
            "timeout": max(60, int(settings.keepalive_timeout + settings.shutdown_timeout) + ENDING_MARGIN),
            "proc_name": "officerpc",
            "accesslog": None,
            "loglevel": "warning",
            "control_socket_disable": True,
            "when_ready": lambda _: self._when_ready(),
            "on_reload": lambda _: self._count_reload(),
            "child_exit": lambda _, worker: _forget_metrics(worker.pid),
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def _count_reload(self) -> None:
        self._reloads += 1
        self._reloads_now[0] = self._reloads % 256

    def _patience(self) -> float:
        """For how long a worker that ends waits for idle clients, in seconds.

        One that was replaced can wait until they send a request or have idled for too long: others serve.
        """
        if self._reloads_now[0] == self._reloads % 256:
            return IDLE_AT_STOP
        return min(self._settings.keepalive_timeout, self._settings.shutdown_timeout)

    def run(self) -> None:
        """Serve until a signal ends it."""
        # A worker would inherit the arbiter's handlers, and lose signals that come before it has its own.
        os.register_at_fork(
            before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING),
            after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING),
            after_in_child=_end_by_signal,
        )
        _Master(self).run()

    def load(self) -> Any:
        """What a worker serves, made within the worker."""

        async def runner() -> web.AppRunner:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
            made = Runner(create_app(self._settings, self._database_url), self._patience)
            # All of this stays. A full collection that goes through it keeps the event loop for 50 ms.
            gc.collect()
            gc.freeze()
            return made

        return runner
