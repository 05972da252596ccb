"""Worker processes: gunicorn's arbiter over aiohttp's uvloop worker."""

import gc
import mmap
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from aiohttp import web
from gunicorn.app.base import BaseApplication
from prometheus_client import multiprocess

from server.app import Runner, create_app
from server.settings import Settings

IDLE_AT_STOP = 1.0
"""Seconds that kept-alive clients get to be told that the server stops."""

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def _end_by_signal() -> None:
    for number in _ENDING:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def _forget_metrics(pid: int) -> None:
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


class Arbiter(BaseApplication):  # type: ignore[misc]
    """Starts the workers, replaces those that die, and ends them all on SIGTERM or SIGINT.

    On SIGHUP new workers take over before the old ones end. Settings and code stay those of the start.
    """

    def __init__(self, settings: Settings, database_url: str, when_ready: Callable[[], None]) -> None:
        """
        Args:
            when_ready: called once the port is open.
        """
        self._settings = settings
        self._when_ready = when_ready
        self._is_ready = False
        # Reloads until this process was forked, and (shared with all workers) until now.
        self._reloads = 0
        self._reloads_now = mmap.mmap(-1, mmap.PAGESIZE)
        self._database_url = database_url
        super().__init__()

    def load_config(self) -> None:
        """gunicorn's settings from ours."""
        settings = self._settings
        options: dict[str, Any] = {
            "bind": f"{settings.host}:{settings.port}",
            "workers": settings.workers,
            "worker_class": "aiohttp.GunicornUVLoopWebWorker",
            # What runs gets shutdown_timeout; the arbiter waits a little longer than the workers do.
            "graceful_timeout": int(settings.shutdown_timeout) + 5,
            "timeout": 60,
            "proc_name": "officerpc",
            "accesslog": None,
            "loglevel": "warning",
            "control_socket_disable": True,
            "when_ready": lambda _: self._ready(),
            "on_reload": lambda _: self._count_reload(),
            "child_exit": lambda _, worker: _forget_metrics(worker.pid),
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def _ready(self) -> None:
        self._is_ready = True
        self._when_ready()

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
        try:
            super().run()
        except SystemExit as end:
            if end.code and not self._is_ready:  # gunicorn has said why
                where = f"{self._settings.host}:{self._settings.port}"
                hint = "see OFFICERPC_HOST and OFFICERPC_PORT"
                sys.stderr.write(f"officerpc: cannot listen on {where}: {hint}\n")
            raise

    def load(self) -> Any:
        """What a worker serves, made within the worker."""

        async def runner() -> web.AppRunner:
            made = Runner(create_app(self._settings, self._database_url), self._patience)
            # All of this stays. A full collection that goes through it keeps the event loop for 50 ms.
            gc.collect()
            gc.freeze()
            return made

        return runner
