"""officerpc instances."""

from typing import Annotated, Any

import typer

from server.cli.options import AsJson
from server.cli.session import call, call_pages
from server.cli.terminal import format_time, show, show_list

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


def _state(instance: Any) -> str:
    return "active" if instance["isActive"] else "suspended"
