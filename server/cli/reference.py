"""officerpc settings, errors, openrpc and openapi: the reference."""

import sys
from typing import Annotated, Any

import orjson
import typer

from server.base.error_codes import ERROR_CODES
from server.base.settings import Settings
from server.cli.options import AsJson
from server.cli.session import read_settings
from server.cli.terminal import cell, fail, out, show, show_list, table

app = typer.Typer()


@app.command("settings")
def show_settings(as_json: AsJson = False) -> None:
    """Print every setting with its value; secrets are hidden."""
    settings = read_settings()
    shown = settings.shown()
    if as_json:
        show(shown, as_json)
        return
    grid = table("variable", "value", "meaning")
    for (name, value), field in zip(shown.items(), Settings.model_fields.values(), strict=True):
        grid.add_row(name, cell(name, value), field.description)
    out.print(grid)


_SOURCES = {
    "request": "any request",
    "wire": "one wire format, as the meaning says",
    "call": "any method",
    "write": "any method that writes",
    "kept": "any method that writes and whose answer is stored for retries",
}


@app.command()
def errors(
    code: Annotated[str | None, typer.Argument(help="One code. Default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Explain error codes: meaning, whether to retry, what to do, and the methods that answer them."""
    if code is None:
        show_list(
            [_error(known) for known in ERROR_CODES], as_json,
            {"code": "code", "status": "status", "retry": lambda one: "yes" if one["retryable"] else "no",
             "meaning": "meaning", "what to do": "remedy"},
            unbroken=True,
        )  # fmt: skip
    elif code in ERROR_CODES:
        one = _error(code)
        show(one if as_json else one | {"givenBy": ", ".join(one["givenBy"])}, as_json)
    else:
        fail(f"there is no error code {code}")


def _error(code: str) -> dict[str, Any]:
    from server.rpc.openrpc import rpc_number

    entry = ERROR_CODES[code]
    methods = [method.name for method in _methods() if code in method.errors]
    return {
        "code": code,
        "status": entry.status,
        "rpcCode": rpc_number(code),
        "retryable": entry.retryable,
        "meaning": entry.meaning,
        "remedy": entry.remedy,
        "givenBy": [_SOURCES[entry.source]] if entry.source in _SOURCES else methods,
    }


def _methods() -> tuple[Any, ...]:
    import server.rpc.discovery  # noqa: F401  # imports all methods
    from server.methods.registry import METHODS

    return tuple(METHODS.values())


@app.command()
def openrpc() -> None:
    """Print the OpenRPC document."""
    from server.rpc.openrpc import document

    _print_indented(document(_methods(), read_settings().own_address()))


@app.command()
def openapi() -> None:
    """Print the OpenAPI document of the REST wire formats."""
    from server.serving.app import openapi

    _print_indented(orjson.loads(openapi()))


def _print_indented(document: Any) -> None:
    sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")
