"""Worker processes: gunicorn's arbiter with aiohttp's uvloop worker."""

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

_STOP_GRACE = 1.0
"""Seconds at shutdown for idle clients to send a request whose answer has Connection: close."""
_STOP_MARGIN = 30
"""Seconds of a worker's shutdown for closing connections, the pool and the queue."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def _reset_signals() -> None:
    # They stay blocked until the worker's event loop runs: handlers set earlier would lose them.
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _forget_metrics(pid: int) -> None:
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


class _Master(arbiter.Arbiter):  # type: ignore[misc]
    """gunicorn's loop, which also calls look_after at least once a second."""

    def manage_workers(self) -> None:
        try:
            self.app.look_after()
        except Exception as error:
            sys.stderr.write(f"officerpc: {error}\n")
            raise HaltServer(None, 1) from error
        super().manage_workers()


class Arbiter(BaseApplication):  # type: ignore[misc]
    """Starts the workers, replaces those that die, and stops them all on SIGTERM or SIGINT.

    On SIGHUP new workers start before the old ones stop. Settings and code stay those of the start.
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
            listening: the socket of the server; it is closed at the end.
            look_after: called every second; an exception ends the server with status 1.
            when_ready: called before the first worker starts.
        """
        self._settings = settings
        self._when_ready = when_ready
        # Number of reloads when this process was forked, and now (shared with all workers).
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
            # Running calls get shutdown_timeout; the arbiter waits a little longer than the workers.
            "graceful_timeout": int(settings.shutdown_timeout) + 5,
            # A stopping worker sends no heartbeats, and must not be killed before its calls may finish.
            "timeout": max(60, int(settings.keepalive_timeout + settings.shutdown_timeout) + _STOP_MARGIN),
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

    def _idle_grace(self) -> float:
        """Seconds that a stopping worker waits for idle clients.

        After a reload, while new workers serve, it waits until they send a request or their time is over.
        """
        if self._reloads_now[0] == self._reloads % 256:
            return _STOP_GRACE
        return min(self._settings.keepalive_timeout, self._settings.shutdown_timeout)

    def run(self) -> None:
        """Serve until a signal."""
        # A worker inherits the arbiter's handlers, and would lose signals until it has set its own.
        os.register_at_fork(
            before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS),
            after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS),
            after_in_child=_reset_signals,
        )
        _Master(self).run()

    def load(self) -> Any:
        """The function by which a worker makes its runner."""

        async def make_runner() -> web.AppRunner:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
            runner = Runner(create_app(self._settings, self._database_url), self._idle_grace)
            # These objects live until the end. A full collection of them blocks the event loop for 50 ms.
            gc.collect()
            gc.freeze()
            return runner

        return make_runner
