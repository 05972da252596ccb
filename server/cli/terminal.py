"""What commands print: tables for people, JSON for machines, progress and errors on standard error."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from server.base.printable import printable, printable_json

# Without a terminal there is no width: nothing is folded, unless COLUMNS asks for it. Markup is off: tenants
# write names such as [link=...].
out = Console(
    width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100_000,
    markup=False, emoji=False, highlight=False,
)  # fmt: skip
err = Console(stderr=True, markup=False, emoji=False, highlight=False)

Columns = Mapping[str, str | Callable[[Any], Any]]
"""The columns of a table: its heading, and the member that it shows or what it makes of a row."""


def fail(message: str) -> NoReturn:
    """Print an error on standard error and end with status 1."""
    err.print(printable(f"officerpc: {message}"), style="red", soft_wrap=True)
    raise typer.Exit(1)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def show_json(value: Any) -> None:
    """One line of JSON on standard output."""
    sys.stdout.write(printable_json(value).decode() + "\n")


def show(result: Any, as_json: bool) -> None:
    """One object: JSON for machines, a table of its members for people.

    Args:
        result: the object, as a method answers it.
        as_json: whether a machine reads it.
    """
    if as_json:
        show_json(result)
        return
    grid = table("", "", show_header=False)
    for name, value in result.items():
        grid.add_row(printable(name), cell(name, value))
    out.print(grid)


def show_list(rows: Sequence[Any], as_json: bool, columns: Columns, *, unbroken: bool = False) -> None:
    """A list of objects: JSON for machines, a table with the columns that fit 80 characters for people.

    Args:
        rows: as methods answer them.
        as_json: whether a machine reads it, and gets every member.
        columns: what people see.
        unbroken: never fold the first column, which is copied from.
    """
    if as_json:
        show_json(rows)
        return
    if not rows:
        out.print("none")
        return
    grid = table(*columns)
    grid.columns[0].no_wrap = unbroken
    for row in rows:
        grid.add_row(
            *(
                cell(shows, row[shows]) if isinstance(shows, str) else cell(heading, shows(row))
                for heading, shows in columns.items()
            )
        )
    out.print(grid)


def table(*names: str, show_header: bool = True) -> Table:
    """A table that cuts nothing off: what does not fit is folded."""
    return Table(
        *(Column(name, overflow="fold") for name in names), show_header=show_header, box=None,
        pad_edge=False, padding=(0, 2, 0, 0), header_style="bold",
    )  # fmt: skip


def moment(seconds: int | None) -> str:
    """Unix seconds as a date and a time of day in UTC; empty for None."""
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def cell(name: str, value: Any) -> str:
    """A value for people: times in UTC, lists of texts with commas, everything else as JSON.

    Args:
        name: of the member; one that ends in At holds Unix seconds.
    """
    if value is None:
        return ""
    if name.endswith("At") and isinstance(value, int) and not isinstance(value, bool):
        return f"{moment(value)} UTC"
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return printable(", ".join(value))
    return printable_json(value).decode()


def progress(unit: str) -> Progress:
    """A progress bar on standard error, so that standard output stays clean."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TimeRemainingColumn(), console=err,
    )  # fmt: skip
