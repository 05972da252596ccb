"""What commands print: tables for people, JSON for machines, progress and errors on standard error."""

import os
import sys
from typing import Annotated, Any, NoReturn

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

# Without a terminal there is no width: nothing is folded, unless COLUMNS asks for it.
out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100_000)
err = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="JSON: one document, or one object per line.")]


def fail(message: str) -> NoReturn:
    """Say why on standard error and end with status 1."""
    err.print(f"officerpc: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def show(result: Any, as_json: bool) -> None:
    """An answer: JSON for machines, a table of its members for people."""
    if as_json:
        sys.stdout.write(orjson.dumps(result).decode() + "\n")
        return
    rows = result if isinstance(result, list) else [result]
    if not rows:
        out.print("nothing")
        return
    if len(rows) == 1:
        grid = table("", "", show_header=False)
        for name, value in rows[0].items():
            grid.add_row(name, plain(value))
    else:
        grid = table(*rows[0])
        for row in rows:
            grid.add_row(*(plain(value) for value in row.values()))
    out.print(grid)


def table(*names: str, show_header: bool = True) -> Table:
    """A table that cuts nothing off: what does not fit is folded."""
    return Table(*(Column(name, overflow="fold") for name in names), show_header=show_header)


def plain(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def progress(unit: str) -> Progress:
    """A progress bar on standard error, so that standard output stays clean."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TimeRemainingColumn(), console=err,
    )  # fmt: skip


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
