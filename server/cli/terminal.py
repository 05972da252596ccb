"""Output of commands: tables, JSON, progress bars and errors."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from server.base.printable import printable, printable_json

# Without a terminal lines are folded only if COLUMNS is set. Markup is off, as tenants' names can contain it.
out = Console(
    width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100_000,
    markup=False, emoji=False, highlight=False,
)  # fmt: skip
err = Console(stderr=True, markup=False, emoji=False, highlight=False)

Columns = Mapping[str, str | Callable[[Any], Any]]
"""Columns of a table: for each heading the member to show, or a function of the row."""


def fail(message: str) -> NoReturn:
    """Print an error on standard error and end with status 1."""
    err.print(printable(f"officerpc: {message}"), style="red", soft_wrap=True)
    raise typer.Exit(1)


def say(line: str) -> None:
    """Print a line and flush."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def show_json(value: Any) -> None:
    """Print one line of JSON."""
    sys.stdout.write(printable_json(value).decode() + "\n")


def show(result: Any, as_json: bool) -> None:
    """Print an object as JSON or as a table of its members."""
    if as_json:
        show_json(result)
        return
    grid = table("", "", show_header=False)
    for name, value in result.items():
        grid.add_row(printable(name), cell(name, value))
    out.print(grid)


def show_list(rows: Sequence[Any], as_json: bool, columns: Columns, *, unbroken: bool = False) -> None:
    """Print a list of objects: as JSON with all members, or as a table.

    Args:
        columns: of the table, few enough for 80 characters.
        unbroken: never fold the first column, so that it can be copied.
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
    """A table that folds long values instead of cutting them."""
    return Table(
        *(Column(name, overflow="fold") for name in names), show_header=show_header, box=None,
        pad_edge=False, padding=(0, 2, 0, 0), header_style="bold",
    )  # fmt: skip


def format_time(seconds: int | None) -> str:
    """Unix seconds as date and time in UTC; empty for None."""
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def cell(name: str, value: Any) -> str:
    """A value in a table: times in UTC, lists of texts with commas, everything else as JSON.

    Args:
        name: of the member; if it ends in At, the value is in Unix seconds.
    """
    if value is None:
        return ""
    if name.endswith("At") and isinstance(value, int) and not isinstance(value, bool):
        return f"{format_time(value)} UTC"
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return printable(", ".join(value))
    return printable_json(value).decode()


def progress(*columns: ProgressColumn) -> Progress:
    """A progress bar on standard error, with these columns before the remaining time."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn(), console=err
    )
