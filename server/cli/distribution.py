"""officerpc distribute."""

from typing import TYPE_CHECKING, Any

import typer
from rich.progress import MofNCompleteColumn, TextColumn

from server.cli.options import AsJson, DryRun
from server.cli.session import Session, run
from server.cli.terminal import fail, out, progress, show_json, show_list

if TYPE_CHECKING:
    from server.postgres.distribution import Plan, Progress, Step

app = typer.Typer()


@app.command()
def distribute(dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Distribute a migrated database over its Citus cluster. After an interruption, run it again."""
    from server.postgres.distribution import DistributionError
    from server.postgres.pool import DRIVER_ERRORS

    try:
        plan, done = run(lambda session: _distribute(session, dry_run=dry_run, as_json=as_json))
    except DistributionError as error:
        fail(str(error))
    except DRIVER_ERRORS as error:
        fail(f"{str(error) or type(error).__name__}: remove the cause and run it again")
    if as_json:
        show_json(
            {"nodes": plan.nodes, "resumed": plan.is_resumed, "steps": [_shown(step) for step in plan.steps]}
            | ({} if dry_run else {"done": [_shown(step) for step in done]})
        )
    elif not plan.steps:
        out.print("the database is distributed, nothing to do")
    elif not dry_run:
        out.print(f"distributed over {', '.join(plan.nodes)}", soft_wrap=True)


async def _distribute(session: Session, *, dry_run: bool, as_json: bool) -> "tuple[Plan, list[Step]]":
    from server.postgres import distribution
    from server.postgres.migrations import load_migrations

    connection = await session.database.direct()
    try:
        plan = await distribution.plan(connection, load_migrations())
        if not as_json and plan.steps:
            show_list(
                [_shown(step) for step in plan.steps], as_json,
                {"step": "action", "of": "name", "rows": "rows"},
            )  # fmt: skip
        if dry_run or not plan.steps:
            return plan, []
        total = sum(step.rows or 0 for step in plan.steps)
        with progress(MofNCompleteColumn(), TextColumn("rows")) as bar:
            task = bar.add_task("Distributing", total=total)
            before = 0

            def watch(at: "Progress") -> None:
                nonlocal before
                bar.update(
                    task, completed=before + at.copied, description=f"{at.step.action}: {at.step.name}"
                )
                if at.is_done:
                    before += at.copied
                    rows = "" if at.step.rows is None else f", {at.copied} rows"
                    bar.console.print(f"done: {at.step.action}: {at.step.name}{rows}", soft_wrap=True)

            return plan, await distribution.distribute(connection, load_migrations(), watch)
    finally:
        await connection.close(timeout=5)


def _shown(step: "Step") -> dict[str, Any]:
    return step._asdict()
