"""officerpc audit."""

from typing import Annotated

import typer

from server.cli.options import AsJson, Since, Until
from server.cli.session import call_pages
from server.cli.terminal import show_json, show_list

app = typer.Typer()


@app.command()
def audit(
    instance: Annotated[
        str | None, typer.Option("--instance", "-i", help="Default: events that belong to no instance.")
    ] = None,
    email: Annotated[str | None, typer.Option(help="Events about the user with this e-mail.")] = None,
    event: Annotated[str | None, typer.Option("--type", help="For example user.created.")] = None,
    method: Annotated[str | None, typer.Option(help="For example createUser.")] = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of events.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List changes and who made them, newest first. --json: one event per line, with before and after.

    Users created today: officerpc audit -i MYINSTANCE --type user.created --since today
    """
    given = {
        "instance": instance, "email": email, "type": event, "method": method, "from": since, "until": until,
    }  # fmt: skip
    params = {name: value for name, value in given.items() if value is not None}
    events = call_pages("listAuditEvents", "events", params, limit)
    if as_json:
        for found in events:
            show_json(found)
        return
    show_list(
        events, as_json,
        {"time (UTC)": lambda row: row["createdAt"][:19].replace("T", " "), "type": "type", "user": "userId",
         "by": "keyName", "method": "method", "request": "requestId"},
    )  # fmt: skip
