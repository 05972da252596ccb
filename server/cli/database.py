"""officerpc migrate and verify."""

from typing import Annotated, Any

import typer

from server.cli.options import AsJson
from server.cli.session import Session, run
from server.cli.terminal import fail, out, progress, show, show_list

app = typer.Typer()


@app.command()
def migrate(as_json: AsJson = False) -> None:
    """Bring the database's schema up to date."""
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
    repair: Annotated[bool, typer.Option("--repair", help="Give each user what it lacks.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check that every user has its mailboxes, calendar and file folders. Status 1 if any lacks some."""
    from server.cli.verify import incomplete_users

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
            show_list(
                described, as_json,
                {"instance": "instance", "id": "id", "e-mail": "email", "missing": "missing"},
            )  # fmt: skip
    if lacking and not repair:
        raise typer.Exit(1)
