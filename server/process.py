"""Worker processes: gunicorn's arbiter over aiohttp's uvloop worker."""

import gc
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

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def _end_by_signal() -> None:
    for number in _ENDING:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def _forget_metrics(pid: int) -> None:
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


class Arbiter(BaseApplication):  # type: ignore[misc]
    """Starts the workers, replaces those that die, and ends them all on SIGTERM or SIGINT."""

    def __init__(self, settings: Settings, database_url: str, when_ready: Callable[[], None]) -> None:
        """
        Args:
            when_ready: called once the port is open.
        """
        self._settings = settings
        self._when_ready = when_ready
        self._is_ready = False
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
            "child_exit": lambda _, worker: _forget_metrics(worker.pid),
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def _ready(self) -> None:
        self._is_ready = True
        self._when_ready()

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
            made = Runner(create_app(self._settings, self._database_url))
            # All of this stays. A full collection that goes through it keeps the event loop for 50 ms.
            gc.collect()
            gc.freeze()
            return made

        return runner
