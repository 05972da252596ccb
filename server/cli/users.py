"""officerpc users."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import TaskProgressColumn, TextColumn

from server.base.printable import printable, printable_json_bytes
from server.cli.options import AsJson, InstanceName
from server.cli.session import Session, call, pages, run
from server.cli.terminal import err, fail, format_time, out, progress, show, show_json, show_list

app = typer.Typer(no_args_is_help=True, help="Users of an instance.")


@app.command("create")
def create_user(
    email: str,
    instance: InstanceName,
    display_name: Annotated[str | None, typer.Option(help="Default: the local part of the e-mail.")] = None,
    password: Annotated[
        str | None, typer.Option(envvar="OFFICERPC_NEW_PASSWORD", help="Prefer the environment variable.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="Make it an administrator.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create a user with its mailboxes, calendar and file folders."""
    params: dict[str, Any] = {"email": email, "instance": instance, "isAdmin": admin}
    params |= {"displayName": display_name} if display_name else {}
    params |= {"password": password} if password else {}
    show(call("createUser", params), as_json)


@app.command("get")
def get_user(email: str, instance: InstanceName, as_json: AsJson = False) -> None:
    """Show one user."""
    show(call("getUserByEmail", {"email": email, "instance": instance}), as_json)


@app.command("list")
def list_users(
    instance: InstanceName,
    status: Annotated[str, typer.Option(help="all, admins, suspended or deleted.")] = "all",
    as_json: AsJson = False,
) -> None:
    """List users; with --json one object per line."""

    async def work(session: Session) -> None:
        found = pages(session, "listUsers", "users", {"instance": instance, "status": status})
        if as_json:
            async for user in found:
                show_json(user)
        else:
            show_list(
                [user async for user in found], as_json,
                {"id": "id", "e-mail": "email", "name": "displayName", "state": _state,
                 "created (UTC)": lambda user: format_time(user["createdAt"])},
            )  # fmt: skip

    run(work)


def _state(user: Any) -> str:
    if user["deletedAt"] is not None:
        return "deleted"
    return ("admin" if user["isAdmin"] else "active") if user["isActive"] else "suspended"


@app.command("import")
def import_users(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="CSV with a header, or JSON lines.")
    ],
    instance: InstanceName,
    as_json: AsJson = False,
) -> None:
    """Create users from a file with the params of createUser. Status 1 if any failed.

    If interrupted, run it again: it continues. Failed rows are written to FILE.failed.csv or .jsonl with the
    reason; correct that file and import it. While it exists, FILE cannot be imported again. With --json,
    failures has the first thousand failed rows of this run, and notListed the number of the others.
    """
    from server.cli.transfer import Import, Progress, TransferError

    async def work(session: Session) -> tuple[Import, Progress]:
        await session.call("getInstance", {"instance": instance})  # so that an unknown one fails once
        import_ = Import(session.database, session.dispatcher, file, instance)
        with progress(TaskProgressColumn(), TextColumn("{task.fields[rows]} rows")) as bar:
            task = bar.add_task("Importing", total=file.stat().st_size, rows=0)
            done = await import_.run(lambda done: bar.update(task, completed=done.offset, rows=done.rows))
        return import_, done

    try:
        import_, done = run(work)
    except (TransferError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        err.print("interrupted: run it again to continue", soft_wrap=True)
        raise typer.Exit(130) from None
    failures = import_.failures
    if as_json:
        not_listed = done.failed - len(failures)
        show(
            {"created": done.created, "failed": done.failed, "failures": failures, "notListed": not_listed},
            as_json,
        )
    else:
        resumed = ", including those before the interruption" if import_.resumes else ""
        out.print(f"{done.created} created, {done.failed} failed{resumed}")
        if failures:
            show_list(failures[:20], as_json, {"row": "row", "e-mail": "email", "reason": "error"})
            if done.failed > 20:
                out.print(f"and {done.failed - len(failures[:20])} more")
    if done.failed:
        err.print(f"failed rows: {import_.failed_path}", soft_wrap=True)
        raise typer.Exit(1)


@app.command("export")
def export_users(instance: InstanceName) -> None:
    """Print users as JSON lines for users import, in the order of their ids.

    Users without an e-mail are skipped, as import cannot create them: standard error has their logins.
    """

    async def work(session: Session) -> None:
        from server.cli.export import exported_users
        from server.tenants.principals import OPERATOR

        session.last_params = {"instance": instance}
        target = await session.keys.instance(OPERATOR, instance, while_suspended=True)

        def skip(login: str) -> None:
            err.print(printable(f"skipped, has no e-mail: {login}"), soft_wrap=True)

        async for lines in exported_users(session.database, target.id, skip):
            sys.stdout.buffer.writelines(map(printable_json_bytes, lines))
        sys.stdout.buffer.flush()

    run(work)
