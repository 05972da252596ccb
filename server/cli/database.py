"""officerpc migrate and verify."""

from typing import Annotated, Any

import typer
from rich.progress import MofNCompleteColumn, TextColumn

from server.cli.options import AsJson
from server.cli.session import Session, run
from server.cli.terminal import fail, out, progress, show, show_list

app = typer.Typer()


@app.command()
def migrate(as_json: AsJson = False) -> None:
    """Apply the migrations that the database lacks."""
    from server.postgres.migrations import MigrationError, load_migrations
    from server.postgres.migrations import migrate as apply
    from server.postgres.pool import DRIVER_ERRORS

    async def work(session: Session) -> list[str]:
        connection = await session.database.direct()
        try:
            return await apply(connection, load_migrations())
        finally:
            await connection.close(timeout=5)

    try:
        done = run(work)
    except (MigrationError, *DRIVER_ERRORS) as error:
        fail(str(error) or type(error).__name__)
    show({"applied": done}, as_json)


@app.command()
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Create what is missing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check that every user has its mailboxes, calendar and file folders. Status 1 if any is missing."""
    from server.cli.verify import incomplete_users

    async def work(session: Session) -> tuple[int, list[Any]]:
        async with session.database.connection() as db:
            total = await db.value("count_users")
        checked, incomplete = 0, []
        with progress(MofNCompleteColumn(), TextColumn("users")) as bar:
            task = bar.add_task("Verifying", total=total)
            async for size, found in incomplete_users(session.database, repair=repair):
                checked += size
                incomplete += found
                bar.update(task, completed=checked)
        return checked, incomplete

    checked, incomplete = run(work)
    if as_json:
        show({"checked": checked, "incomplete": incomplete, "repaired": repair}, as_json)
    else:
        repaired = ", repaired" if repair and incomplete else ""
        out.print(f"{checked} users, {len(incomplete)} incomplete{repaired}")
        if incomplete:
            show_list(
                incomplete, as_json,
                {"instance": "instance", "id": "id", "e-mail": "email", "missing": "missing"},
            )  # fmt: skip
    if incomplete and not repair:
        raise typer.Exit(1)
