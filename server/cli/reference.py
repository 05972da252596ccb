"""officerpc settings, openrpc and openapi: what the program says of itself."""

import sys

import orjson
import typer

from server.cli.options import AsJson
from server.cli.session import read_settings
from server.cli.terminal import cell, out, show, table
from server.settings import Settings

app = typer.Typer()


@app.command("settings")
def show_settings(as_json: AsJson = False) -> None:
    """Every setting with its value; secrets are hidden."""
    settings = read_settings()
    shown = settings.shown()
    if as_json:
        show(shown, as_json)
        return
    grid = table("variable", "value", "meaning")
    for (name, value), field in zip(shown.items(), Settings.model_fields.values(), strict=True):
        grid.add_row(name, cell(name, value), field.description)
    out.print(grid)


@app.command()
def openrpc() -> None:
    """The OpenRPC document of the service."""
    import server.methods  # noqa: F401  # fills the registry
    from server.openrpc import document
    from server.registry import METHODS

    sys.stdout.write(
        orjson.dumps(document(tuple(METHODS.values())), option=orjson.OPT_INDENT_2).decode() + "\n"
    )


@app.command()
def openapi() -> None:
    """The OpenAPI document of the REST wires."""
    from server.app import openapi

    sys.stdout.write(orjson.dumps(orjson.loads(openapi()), option=orjson.OPT_INDENT_2).decode() + "\n")
