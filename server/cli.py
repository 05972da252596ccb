"""The command line: officerpc serve | work | migrate | settings | instances | keys | users | verify ..."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import orjson
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from server import logs
from server.settings import Settings

T = TypeVar("T")

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A user-provisioning server.",
)
instances = typer.Typer(no_args_is_help=True, help="Tenants.")
keys = typer.Typer(no_args_is_help=True, help="API keys.")
users = typer.Typer(no_args_is_help=True, help="Users of an instance.")
jobs = typer.Typer(no_args_is_help=True, help="The queue of mails and other jobs.")
cli.add_typer(instances, name="instances")
cli.add_typer(keys, name="keys")
cli.add_typer(users, name="users")
cli.add_typer(jobs, name="jobs")

# What is no terminal has no width: nothing is folded there, unless COLUMNS asks for it.
out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100_000)
err = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="For machines: JSON, one document or one a line.")]
InstanceName = Annotated[str, typer.Option("--instance", "-i", help="The instance by name.")]


def main() -> None:
    """Run the command line."""
    cli()


def fail(message: str) -> NoReturn:
    """Say why on standard error and end with status 1."""
    err.print(f"officerpc: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def read_settings() -> Settings:
    """The settings, or an end that names every bad one."""
    try:
        return Settings()
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            err.print(f"OFFICERPC_{'.'.join(map(str, detail['loc'])).upper()}: {detail['msg']}", markup=False)
        fail("the settings are not usable")


@contextlib.contextmanager
def database_url(settings: Settings) -> Iterator[str]:
    """Where the database is: the configured one, or the embedded one, run meanwhile."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    from server.embedded import embedded_postgres_url

    with embedded_postgres_url(settings.data_dir) as url:
        yield url


class Session:
    """What a command needs: the database, and calls with an operator's rights."""

    def __init__(self, settings: Settings, url: str) -> None:
        from server.app import build

        self.settings = settings
        # The params of the last call: what an error is about.
        self.asked: dict[str, Any] = {}
        self.database, self.keys, self.hasher, self.dispatcher = build(settings, url)

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """A registered method, called by the operator."""
        from server.auth import OPERATOR
        from server.registry import Circumstances

        self.asked = params
        return await self.dispatcher.call(OPERATOR, method, params, Circumstances("command-line"))


def run(work: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
    """Run a command against the database. Whatever the caller can mend ends with status 1 and one line."""
    from server.errors import ServiceError

    settings = read_settings()
    logs.configure("error")

    async def session(url: str) -> T:
        session = Session(settings, url)
        await session.database.open()
        try:
            return await work(session)
        except ServiceError as error:
            fail(_worded(error, session.asked))
        finally:
            session.hasher.close()
            await session.database.close()

    with database_url(settings) as url:
        try:
            return asyncio.run(session(url))
        except ServiceError as error:
            fail(error.message)


def _worded(error: Any, asked: dict[str, Any]) -> str:
    """What the caller can mend, with the name that was not found."""
    from server.errors import Forbidden, NotFound

    if isinstance(error, Forbidden):  # an operator may do everything else
        return f"there is no instance {asked.get('instance')}"
    if isinstance(error, NotFound) and (name := asked.get("email") or asked.get("id")):
        return f"{name}: {error.message}"
    for field, _ in error.fields:
        if field.startswith("instances."):
            return f"there is no instance {asked['instances'][int(field.removeprefix('instances.'))]}"
    return str(error.message)


def show(result: Any, as_json: bool) -> None:
    """An answer: JSON for machines, a table of its members for people."""
    if as_json:
        sys.stdout.write(orjson.dumps(result).decode() + "\n")
        return
    rows = result if isinstance(result, list) else [result]
    if not rows:
        out.print("nothing")
        return
    if len(rows) == 1:
        table = _table("", "", show_header=False)
        for name, value in rows[0].items():
            table.add_row(name, _plain(value))
    else:
        table = _table(*rows[0])
        for row in rows:
            table.add_row(*(_plain(value) for value in row.values()))
    out.print(table)


def _table(*names: str, show_header: bool = True) -> Table:
    """A table that cuts nothing off: what does not fit is folded."""
    return Table(*(Column(name, overflow="fold") for name in names), show_header=show_header)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def progress(unit: str) -> Progress:
    """A progress bar on standard error, so that standard output stays clean."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TimeRemainingColumn(), console=err,
    )  # fmt: skip


@cli.command()
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
    from server.db import MigrationError
    from server.errors import ServiceError
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
        _say(f"API key of {settings.bootstrap_instance}, shown this once: {key}")
    Arbiter(settings, url, when_ready=lambda: _greet(settings, key)).run()


def _greet(settings: Settings, key: str | None) -> None:
    address = f"http://{settings.host}:{settings.port}/rpc"
    if not settings.smtp_host:
        from server.mail import folder

        _say(f"OFFICERPC_SMTP_HOST is not set: mails are written to {folder(settings)}")
    _say(f"officerpc serves {address}")
    if key is not None:
        body = f'{{"method":"getUserByEmail","params":{{"email":"{settings.bootstrap_admin_email}"}}}}'
        _say("Try it:")
        _say(f"curl -s {address} -H 'x-api-key: {key}' -H 'Content-Type: application/json' -d '{body}'")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@cli.command()
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


@cli.command()
def migrate(as_json: AsJson = False) -> None:
    """Bring the database's schema up to date."""
    from server.db import MigrationError, load_migrations
    from server.db import migrate as apply

    async def work(session: Session) -> list[str]:
        connection = await session.database.direct()
        try:
            return await apply(connection, load_migrations())
        finally:
            await connection.close(timeout=5)

    try:
        done = run(work)
    except (MigrationError, OSError, TimeoutError) as error:
        fail(str(error))
    show({"applied": done}, as_json)


@cli.command("settings")
def show_settings(as_json: AsJson = False) -> None:
    """Every setting with its value; secrets are hidden."""
    settings = read_settings()
    shown = settings.shown()
    if as_json:
        show(shown, as_json)
        return
    table = _table("Variable", "Value", "Meaning")
    for (name, value), field in zip(shown.items(), Settings.model_fields.values(), strict=True):
        table.add_row(name, "" if value is None else _plain(value), field.description)
    out.print(table)


@cli.command()
def openrpc() -> None:
    """The OpenRPC document of the service."""
    import server.methods  # noqa: F401  # fills the registry
    from server.openrpc import document
    from server.registry import METHODS

    sys.stdout.write(
        orjson.dumps(document(tuple(METHODS.values())), option=orjson.OPT_INDENT_2).decode() + "\n"
    )


@cli.command()
def openapi() -> None:
    """The OpenAPI document of the REST wires."""
    from server.app import openapi

    sys.stdout.write(orjson.dumps(orjson.loads(openapi()), option=orjson.OPT_INDENT_2).decode() + "\n")


@cli.command()
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Give each user what it lacks.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check that every user has its mailboxes, calendar and file folders. Status 1 if any lacks some."""
    from server.verify import incomplete_users

    async def work(session: Session) -> tuple[int, list[Any]]:
        async with session.database.connection() as db:
            total = await db.value("count_users")
        checked, lacking = 0, []
        with progress("users") as bar:
            task = bar.add_task("Verifying", total=total)
            async for size, found in incomplete_users(session.database, repair=repair):
                checked += size
                lacking += found
                bar.update(task, completed=checked)
        return checked, lacking

    checked, lacking = run(work)
    described = [
        {"instance": user.instance, "id": user.user_id, "email": user.email, "missing": user.missing}
        for user in lacking
    ]
    if as_json:
        show({"checked": checked, "incomplete": described, "repaired": repair}, as_json)
    else:
        out.print(f"{checked} users, {len(lacking)} incomplete{', repaired' if repair and lacking else ''}")
        if described:
            show(described, as_json)
    if lacking and not repair:
        raise typer.Exit(1)


@instances.command("create")
def create_instance(
    name: str,
    admin_email: Annotated[str, typer.Option(help="E-mail of its administrator, its first user.")],
    title: str = "",
    as_json: AsJson = False,
) -> None:
    """Make an instance with its administrator."""
    params = {"name": name, "title": title, "admin": {"email": admin_email}}
    show(run(lambda session: session.call("createInstance", params)), as_json)


@instances.command("list")
def list_instances(as_json: AsJson = False) -> None:
    """List all instances."""

    async def work(session: Session) -> list[Any]:
        return [instance async for instance in _pages(session, "listInstances", "instances", {})]

    show(run(work), as_json)


@instances.command("get")
def get_instance(name: str, as_json: AsJson = False) -> None:
    """Look at one instance."""
    show(run(lambda session: session.call("getInstance", {"instance": name})), as_json)


@jobs.command("list")
def list_jobs(
    state: Annotated[str, typer.Option(help="parked (given up), waiting or running.")] = "parked",
    as_json: AsJson = False,
) -> None:
    """List jobs of the queue, by default those that were given up."""

    async def work(session: Session) -> list[Any]:
        found: list[Any] = []
        while page := await session.call(
            "listJobs", {"state": state, "after": found[-1]["id"] if found else 0}
        ):
            found += page
        return found

    show(run(work), as_json)


@jobs.command("retry")
def retry_job(job_id: int, as_json: AsJson = False) -> None:
    """Put a job that was given up back into the queue."""
    run(lambda session: session.call("retryJob", {"id": job_id}))
    show({"retried": job_id}, as_json)


@keys.command("create")
def create_key(
    name: str,
    instance: Annotated[
        list[str] | None, typer.Option("--instance", "-i", help="Instances, the first being the default.")
    ] = None,
    operator: Annotated[bool, typer.Option("--operator", help="A key for all instances.")] = False,
    scope: Annotated[
        list[str] | None, typer.Option("--scope", "-s", help="Scopes; by default all it can have.")
    ] = None,
    expires_in: Annotated[int | None, typer.Option(help="Seconds until it expires.")] = None,
    rate: Annotated[int | None, typer.Option(help="Calls a minute; 0: any.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key, shown this once."""
    from server.auth import SCOPES, TENANT_SCOPES

    params: dict[str, Any] = {
        "name": name, "scopes": scope or list(SCOPES if operator else TENANT_SCOPES), "isOperator": operator,
        "expiresIn": expires_in, "ratePerMinute": rate,
    }  # fmt: skip
    if not operator:
        params["instances"] = instance or [read_settings().bootstrap_instance]
    elif instance:
        fail("an operator's key holds every instance: leave --instance out")
    show(run(lambda session: session.call("createApiKey", params)), as_json)


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List all keys without their secrets."""

    async def work(session: Session) -> list[Any]:
        found: list[Any] = []
        while page := await session.call(
            "listApiKeys", {"after": found[-1]["id"] if found else 0, "limit": 1000}
        ):
            found += page
        return found

    show(run(work), as_json)


@keys.command("rotate")
def rotate_key(
    key_id: int,
    overlap: Annotated[int, typer.Option(help="Seconds for which the old key still works.")] = 3600,
    as_json: AsJson = False,
) -> None:
    """Replace a key by a new one, shown this once."""
    show(run(lambda session: session.call("rotateApiKey", {"id": key_id, "overlap": overlap})), as_json)


@keys.command("revoke")
def revoke_key(key_id: int, as_json: AsJson = False) -> None:
    """End a key now."""
    run(lambda session: session.call("revokeApiKey", {"id": key_id}))
    show({"revoked": key_id}, as_json)


@users.command("create")
def create_user(
    email: str,
    instance: InstanceName,
    display_name: Annotated[str | None, typer.Option(help="By default the local part of the e-mail.")] = None,
    password: Annotated[
        str | None, typer.Option(envvar="OFFICERPC_NEW_PASSWORD", help="Rather in the environment.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="Make it an administrator.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create a user with all its provisioning."""
    params: dict[str, Any] = {"email": email, "instance": instance, "isAdmin": admin}
    params |= {"displayName": display_name} if display_name else {}
    params |= {"password": password} if password else {}
    show(run(lambda session: session.call("createUser", params)), as_json)


@users.command("get")
def get_user(email: str, instance: InstanceName, as_json: AsJson = False) -> None:
    """Look a user up."""
    params = {"email": email, "instance": instance}
    show(run(lambda session: session.call("getUserByEmail", params)), as_json)


@users.command("list")
def list_users(
    instance: InstanceName,
    status: Annotated[str, typer.Option(help="all, admins, suspended or deleted.")] = "all",
    as_json: AsJson = False,
) -> None:
    """List users; with --json one a line."""

    async def work(session: Session) -> None:
        found = _pages(session, "listUsers", "users", {"instance": instance, "status": status})
        if as_json:
            async for user in found:
                show(user, as_json)
        else:
            show([user async for user in found], as_json)

    run(work)


async def _pages(session: Session, method: str, member: str, params: dict[str, Any]) -> AsyncIterator[Any]:
    after = None
    while True:
        page = await session.call(method, params | {"after": after, "limit": 1000})
        for item in page[member]:
            yield item
        after = page["next"]
        if after is None:
            return


@users.command("import")
def import_users(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="CSV with a header, or JSON lines.")
    ],
    instance: InstanceName,
    as_json: AsJson = False,
) -> None:
    """Create users from a file whose columns or members are those of createUser. Status 1 if any failed.

    Interrupted, it goes on from where it was when it is run again. Rows that failed are in FILE.failed.csv or
    .jsonl with the reason, and can be imported from there once they are mended; while that file is there, no
    other import of FILE begins. With --json, failures are the first thousand of this run, and notListed says
    how many more rows failed.
    """
    from server.transfer import Import, TransferError
    from server.transfer import Progress as Done

    async def work(session: Session) -> tuple[Import, Done]:
        await session.call("getInstance", {"instance": instance})  # better no such instance now than per row
        import_ = Import(session.database, session.dispatcher, file, instance)
        columns = (
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
            TextColumn("{task.fields[rows]} rows"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=err) as bar:
            task = bar.add_task("Importing", total=file.stat().st_size, rows=0)
            done = await import_.run(lambda done: bar.update(task, completed=done.offset, rows=done.rows))
        return import_, done

    try:
        import_, done = run(work)
    except (TransferError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        err.print("interrupted: run it again, and it goes on", soft_wrap=True)
        raise typer.Exit(130) from None
    failures = import_.failures
    if as_json:
        not_listed = done.failed - len(failures)
        show(
            {"created": done.created, "failed": done.failed, "failures": failures, "notListed": not_listed},
            as_json,
        )
    else:
        resumed = ", with those from before the interruption" if import_.resumes else ""
        out.print(f"{done.created} created, {done.failed} failed{resumed}")
        if failures:
            show(failures[:20], as_json)
            if done.failed > 20:
                out.print(f"and {done.failed - len(failures[:20])} more")
    if done.failed:
        told = f"the rows that failed: {import_.failed_path}"
        err.print(told, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)


@users.command("export")
def export_users(instance: InstanceName) -> None:
    """Write users as JSON lines, in the order of their ids; users import takes them."""

    async def work(session: Session) -> None:
        from server.auth import OPERATOR
        from server.transfer import exported_users

        session.asked = {"instance": instance}
        target = await session.keys.instance(OPERATOR, instance)
        async for lines in exported_users(session.database, target.id):
            sys.stdout.buffer.writelines(lines)
        sys.stdout.buffer.flush()

    run(work)
