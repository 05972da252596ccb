"""officerpc serve and work."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog
import typer

from server.base import logs
from server.base.settings import Settings, unknown_variables
from server.cli.session import Located, Session, located_database, read_settings
from server.cli.terminal import fail, say

log = structlog.get_logger()
app = typer.Typer()


@app.command()
def serve() -> None:
    """Migrate, create the demo instance on the first start, and serve until SIGTERM or Ctrl-C.

    Waits for the database if it is away at the start.
    """
    # Until gunicorn installs its own handlers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = read_settings(warn=False)
    with _metrics_folder(settings), located_database(settings) as database:
        _serve(settings, database)


METRICS_FOLDERS = "officerpc-metrics-"


@contextlib.contextmanager
def _metrics_folder(settings: Settings) -> Iterator[None]:
    """A folder where several workers add up their metrics. One worker counts in memory, which is faster.

    prometheus_client reads PROMETHEUS_MULTIPROC_DIR when it is imported. A server and its workers hold a lock
    on their folder; folders without a lock are left from servers that were killed.
    """
    _remove_dead_folders(Path(tempfile.gettempdir()))
    if settings.workers == 1:
        yield
        return
    # Lock it before it gets the name that other servers look for.
    making = Path(tempfile.mkdtemp(prefix="officerpc-making-"))
    fcntl.flock(os.open(making, os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_EX)
    folder = making.rename(making.with_name(making.name.replace("officerpc-making-", METRICS_FOLDERS)))
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    owner = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_dead_folders(where: Path) -> None:
    for folder in where.glob(METRICS_FOLDERS + "*"):
        with contextlib.suppress(OSError):  # locked, of another user, or removed by another server
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
            finally:
                os.close(lock)


def _serve(settings: Settings, database: Located) -> None:
    from server.base.errors import ServiceError
    from server.postgres.db import advice
    from server.postgres.migrations import MigrationError
    from server.postgres.pool import DRIVER_ERRORS
    from server.serving.bootstrap import bootstrap
    from server.serving.process import Arbiter
    from server.serving.waiting import listen, prepared
    from server.tenants.keys import new_key

    logs.configure(settings.log_level)
    _warn_of_unknown_variables()
    try:
        listening = listen(settings.host, settings.port)
    except OSError as error:
        where = settings.listen_address()
        fail(f"cannot listen on {where}: see OFFICERPC_HOST and OFFICERPC_PORT ({error.strerror})")

    # The same for all attempts: one whose COMMIT got no answer may have stored it.
    offered_key = new_key()

    async def first_start() -> Any:
        async with Session(settings, database.url) as session:
            return await prepared(
                settings,
                listening,
                lambda: bootstrap(settings, session.database, session.dispatcher, offered_key),
            )

    try:
        stored_key = asyncio.run(first_start())
    except (MigrationError, ServiceError, *DRIVER_ERRORS) as error:
        fail(f"the database cannot be prepared: {advice(error) or error.__cause__ or error}")
    key = stored_key if settings.bootstrap_api_key is None else None
    if key is not None:  # now, before anything can fail: it is stored nowhere
        say(f"API key of {settings.bootstrap_instance}, shown this once: {key}")
    Arbiter(settings, database.url, listening, database.look_after, lambda: _greet(settings, key)).run()


def _warn_of_unknown_variables() -> None:
    for name, meant in unknown_variables().items():
        log.warning("unknown_setting", variable=name, did_you_mean=meant)


def _greet(settings: Settings, key: str | None) -> None:
    address = f"http://{settings.listen_address()}/rpc"
    if not settings.smtp_host:
        from server.outside.mail import folder

        say(f"OFFICERPC_SMTP_HOST is not set: mails are written to {folder(settings)}")
    say(f"officerpc serves {address}")
    if key is not None:
        body = f'{{"method":"getUserByEmail","params":{{"email":"{settings.bootstrap_admin_email}"}}}}'
        say("Try it:")
        say(f"curl -s {address} -H 'x-api-key: {key}' -H 'Content-Type: application/json' -d '{body}'")


@app.command()
def work() -> None:
    """Send mails and webhooks, run other jobs and purges, until SIGTERM or Ctrl-C.

    For servers with OFFICERPC_RUN_JOBS=false. Several may run. The database must be migrated.
    """
    settings = read_settings(warn=False)
    logs.configure(settings.log_level)
    _warn_of_unknown_variables()

    async def working(database: Located) -> None:
        from server.directory import upkeep
        from server.events import webhooks
        from server.jobs import queue

        failures: list[Exception] = []

        async def look_after() -> None:
            try:
                while True:
                    await asyncio.sleep(1)
                    await asyncio.to_thread(database.look_after)
            except Exception as error:
                failures.append(error)
                stop()

        def stop() -> None:
            for task in tasks:
                task.cancel()

        async with Session(settings, database.url) as session:
            metrics = session.dispatcher.metrics
            tasks = [
                asyncio.create_task(coroutine)
                for coroutine in (
                    queue.work(queue.Services(settings, session.database, metrics)),
                    upkeep.keep_purging(session.database, settings),
                    webhooks.keep_delivering(settings, session.database, metrics),
                    look_after(),
                )
            ]
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop)
            await asyncio.gather(*tasks, return_exceptions=True)
        if failures:
            fail(str(failures[0]))

    with located_database(settings) as database:
        asyncio.run(working(database))
