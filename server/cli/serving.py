"""officerpc serve and work: processes that run until they are told to stop."""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from typing import Any

import typer

from server import logs
from server.cli.session import Session, database_url, read_settings
from server.cli.terminal import fail, say
from server.settings import Settings

app = typer.Typer()


@app.command()
def serve() -> None:
    """Migrate, make the demo instance on first start, and serve until SIGTERM or Ctrl-C."""
    # gunicorn takes the signals over when it starts; an earlier SIGTERM ends us in order too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = read_settings()
    # Read by prometheus_client when it is imported: where several workers put their numbers together.
    # One worker alone counts in its memory, which is faster.
    metrics_dir = tempfile.mkdtemp(prefix="officerpc-metrics-") if settings.workers > 1 else ""
    if metrics_dir:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics_dir
    owner = os.getpid()
    try:
        with database_url(settings) as url:
            _serve(settings, url)
    finally:
        if metrics_dir and os.getpid() == owner:
            shutil.rmtree(metrics_dir, ignore_errors=True)


def _serve(settings: Settings, url: str) -> None:
    from server.errors import ServiceError
    from server.migrations import MigrationError
    from server.process import Arbiter

    logs.configure(settings.log_level)

    async def first_start() -> Any:
        from server.bootstrap import bootstrap

        session = Session(settings, url)
        await session.database.open()
        try:
            return await bootstrap(settings, session.database, session.dispatcher)
        finally:
            session.hasher.close()
            await session.database.close()

    try:
        started = asyncio.run(first_start())
    except (MigrationError, ServiceError, OSError, TimeoutError) as error:
        fail(f"the database cannot be prepared: {error.__cause__ or error}")
    key = started.api_key if settings.bootstrap_api_key is None else None
    if key is not None:  # before anything else can go wrong: it is nowhere else
        say(f"API key of {settings.bootstrap_instance}, shown this once: {key}")
    Arbiter(settings, url, when_ready=lambda: _greet(settings, key)).run()


def _greet(settings: Settings, key: str | None) -> None:
    address = f"http://{settings.host}:{settings.port}/rpc"
    if not settings.smtp_host:
        from server.mail import folder

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
    settings = read_settings()
    logs.configure(settings.log_level)

    async def working(url: str) -> None:
        from server import jobs, webhooks

        session = Session(settings, url)
        services = jobs.Services(settings, session.database, session.dispatcher.metrics)
        await session.database.open()
        tasks = [
            asyncio.create_task(jobs.work(services)),
            asyncio.create_task(jobs.keep_purging(session.database, settings)),
            asyncio.create_task(
                webhooks.keep_delivering(settings, session.database, session.dispatcher.metrics)
            ),
        ]

        def stop() -> None:
            for task in tasks:
                task.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            session.hasher.close()
            await session.database.close()

    with database_url(settings) as url:
        asyncio.run(working(url))
