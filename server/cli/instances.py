"""officerpc instances."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import DownloadColumn

from server.cli.options import AsJson, DryRun
from server.cli.session import Session, call, call_pages, run
from server.cli.terminal import fail, format_time, out, progress, show, show_json, show_list

if TYPE_CHECKING:
    from server.postgres.placement import Copied, Move

app = typer.Typer(no_args_is_help=True, help="Tenants.")


@app.command("create")
def create_instance(
    name: str,
    admin_email: Annotated[str, typer.Option(help="E-mail of its administrator, its first user.")],
    title: str = "",
    as_json: AsJson = False,
) -> None:
    """Create an instance and its administrator."""
    params = {"name": name, "title": title, "admin": {"email": admin_email}}
    show(call("createInstance", params), as_json)


@app.command("list")
def list_instances(as_json: AsJson = False) -> None:
    """List all instances."""
    show_list(
        call_pages("listInstances", "instances", {}), as_json,
        {"name": "name", "title": "title", "state": _state,
         "created (UTC)": lambda row: format_time(row["createdAt"])},
    )  # fmt: skip


@app.command("get")
def get_instance(name: str, as_json: AsJson = False) -> None:
    """Show one instance."""
    show(call("getInstance", {"instance": name}), as_json)


@app.command("place")
def place_instance(
    name: str,
    node: Annotated[
        str | None, typer.Option(help="Also move it to this node: HOST:PORT, as Citus knows it.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Put an instance on a shard of its own in a distributed database."""
    from server.postgres.placement import PlacementError
    from server.postgres.pool import DRIVER_ERRORS

    try:
        move = run(lambda session: _place(session, name, node, dry_run=dry_run, as_json=as_json))
    except PlacementError as error:
        fail(str(error))
    except DRIVER_ERRORS as error:
        reason = str(error) or type(error).__name__
        fail(f"{reason}: {name} stays where it is; remove the cause and run it again")
    if as_json:
        show_json(_shown(name, move))
    elif not move.steps:
        out.print(f"{name} is on a shard of its own on {move.node}, nothing to do")
    elif not dry_run:
        out.print(f"{name} is now on a shard of its own on {move.node}")


async def _place(session: Session, name: str, node: str | None, *, dry_run: bool, as_json: bool) -> "Move":
    from server.postgres import placement

    async with session.database.connection() as db:
        instance_id = await db.value("find_instance", name=name)
    if instance_id is None:
        fail(f"there is no instance {name}")
    connection = await session.database.direct()
    try:
        move = await placement.plan(connection, instance_id, node)
        if not as_json and move.steps:
            show(_shown(name, move), as_json)
        if dry_run or not move.steps:
            return move
        with progress(DownloadColumn()) as bar:
            task = bar.add_task("Placing", total=None)

            def watch(at: "Copied") -> None:
                bar.update(task, description=at.step, completed=at.copied, total=at.total)

            return await placement.place(connection, instance_id, node, session.database.direct, watch)
    finally:
        await connection.close(timeout=5)


def _shown(name: str, move: "Move") -> dict[str, Any]:
    return {
        "instance": name, "steps": move.steps, "from": move.placement.node, "to": move.node,
        "bytes": move.placement.size, "rows": move.placement.rows,
    }  # fmt: skip


def _state(instance: Any) -> str:
    return "active" if instance["isActive"] else "suspended"
