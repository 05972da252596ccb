"""officerpc serve and work: processes that run until they are told to stop."""

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
    """Migrate, make the demo instance on first start, and serve until SIGTERM or Ctrl-C.

    A database that is away at the start is waited for.
    """
    # gunicorn takes the signals over when it starts; an earlier SIGTERM ends us in order too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = read_settings(warn=False)
    with _metrics_folder(settings), located_database(settings) as database:
        _serve(settings, database)


METRICS_FOLDERS = "officerpc-metrics-"


@contextlib.contextmanager
def _metrics_folder(settings: Settings) -> Iterator[None]:
    """Where several workers put their numbers together. One worker counts in its memory, which is faster.

    prometheus_client reads its place when it is imported. Each server holds a lock on its folder for as long
    as it or one of its workers lives; folders without one were left behind by servers that were killed.
    """
    _remove_dead_folders(Path(tempfile.gettempdir()))
    if settings.workers == 1:
        yield
        return
    # Locked before it has the name by which others look for it.
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
        with contextlib.suppress(OSError):  # locked, or another user's, or removed by another server
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
        where = f"{_in_url(settings.host)}:{settings.port}"
        fail(f"cannot listen on {where}: see OFFICERPC_HOST and OFFICERPC_PORT ({error.strerror})")

    # One for all tries: one of them may have stored it without hearing of it.
    offered_key = new_key()

    async def first_start() -> Any:
        session = Session(settings, database.url)
        await session.database.open()
        try:
            return await prepared(
                settings,
                listening,
                lambda: bootstrap(settings, session.database, session.dispatcher, offered_key),
            )
        finally:
            session.hasher.close()
            await session.database.close()

    try:
        stored_key = asyncio.run(first_start())
    except (MigrationError, ServiceError, *DRIVER_ERRORS) as error:
        fail(f"the database cannot be prepared: {advice(error) or error.__cause__ or error}")
    key = stored_key if settings.bootstrap_api_key is None else None
    if key is not None:  # before anything else can go wrong: it is nowhere else
        say(f"API key of {settings.bootstrap_instance}, shown this once: {key}")
    Arbiter(settings, database.url, listening, database.look_after, lambda: _greet(settings, key)).run()


def _warn_of_unknown_variables() -> None:
    for name, meant in unknown_variables().items():
        log.warning("unknown_setting", variable=name, did_you_mean=meant)


def _in_url(host: str) -> str:
    """A host as URLs have it: IPv6 addresses stand in brackets (RFC 3986, section 3.2.2)."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _greet(settings: Settings, key: str | None) -> None:
    address = f"http://{_in_url(settings.host)}:{settings.port}/rpc"
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
    """Work the queue of mails and other jobs, and purge, until SIGTERM or Ctrl-C.

    For servers with OFFICERPC_RUN_JOBS=false; several may run. The database must be migrated.
    """
    settings = read_settings(warn=False)
    logs.configure(settings.log_level)
    _warn_of_unknown_variables()

    async def working(database: Located) -> None:
        from server.directory import upkeep
        from server.events import webhooks
        from server.jobs import queue

        session = Session(settings, database.url)
        services = queue.Services(settings, session.database, session.dispatcher.metrics)
        await session.database.open()
        tasks = [
            asyncio.create_task(queue.work(services)),
            asyncio.create_task(upkeep.keep_purging(session.database, settings)),
            asyncio.create_task(
                webhooks.keep_delivering(settings, session.database, session.dispatcher.metrics)
            ),
        ]
        failures: list[Exception] = []

        def stop() -> None:
            for task in tasks:
                task.cancel()

        async def look_after() -> None:
            try:
                while True:
                    await asyncio.sleep(1)
                    await asyncio.to_thread(database.look_after)
            except Exception as error:
                failures.append(error)
                stop()

        tasks.append(asyncio.create_task(look_after()))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            session.hasher.close()
            await session.database.close()
        if failures:
            fail(str(failures[0]))

    with located_database(settings) as database:
        asyncio.run(working(database))
