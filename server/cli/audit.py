"""officerpc audit."""

from typing import Annotated, Any

import typer

from server.cli.options import AsJson, Since, Until
from server.cli.session import Session, pages, run
from server.cli.terminal import show_json, show_list

app = typer.Typer()


@app.command()
def audit(
    instance: Annotated[
        str | None, typer.Option("--instance", "-i", help="By default what belongs to no instance.")
    ] = None,
    email: Annotated[str | None, typer.Option(help="About the user with this e-mail.")] = None,
    event: Annotated[str | None, typer.Option("--type", help="Such as user.created.")] = None,
    method: Annotated[str | None, typer.Option(help="Such as createUser.")] = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, help="Events at most.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List who changed what, the newest first; with --json one event per line, with before and after.

    Who was created today: officerpc audit -i MYINSTANCE --type user.created --since today
    """
    asked = {
        "instance": instance, "email": email, "type": event, "method": method, "from": since, "until": until,
    }  # fmt: skip
    params = {name: value for name, value in asked.items() if value is not None}

    async def work(session: Session) -> list[Any]:
        return [found async for found in pages(session, "listAuditEvents", "events", params, limit=limit)]

    events = run(work)
    if as_json:
        for found in events:
            show_json(found)
        return
    show_list(
        events, as_json,
        {"time (UTC)": lambda row: row["createdAt"][:19].replace("T", " "), "type": "type", "user": "userId",
         "by": "keyName", "method": "method", "request": "requestId"},
    )  # fmt: skip
