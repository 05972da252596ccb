"""Compares the server with what its parts can do: make bench ARGS=--quick.

Most figures are medians of ratios of two rates. Both rates are measured in turn (A, B, B, A, ...) in one run,
so that a slow or busy machine changes both. The run uses an embedded Postgres in a temporary directory (4 GB
for the full run), `officerpc serve` processes, and wrk and pgbench as load.

A row is a function that takes a Bench and yields figures; ROWS lists them. Rows are independent: one that
fails is reported at the end, after the figures of the others.
"""

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from os import getloadavg
from pathlib import Path
from typing import Annotated, NoReturn

import _rows
import _rows_fair
import _rows_webhooks
import orjson
import typer
from _figures import Figure, document, table
from _rig import CORES, FULL, QUICK, SMOKE, Bench, BenchError, wrk_path
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from server.postgres.embedded import embedded_server

Row = Callable[[Bench], Iterator[Figure]]

ROWS: tuple[Row, ...] = (
    _rows.get_user,
    _rows.scim,
    _rows.create_user,
    _rows.create_hashed_user,
    _rows.bulk,
    _rows.fresh,
    _rows.table_size,
    _rows.search,
    _rows.loop_lag,
    _rows.peak_memory,
    _rows_fair.fair_shares,
    _rows_webhooks.webhooks,
)
NAMES = {row.__name__: row for row in ROWS}
err = Console(stderr=True)


def measure(rows: list[Row], bench: Bench, targets: bool) -> tuple[list[Figure], dict[str, str]]:
    """The figures of all rows, and the error of each row that failed, by its name.

    Args:
        targets: whether figures keep their targets.
    """
    figures: list[Figure] = []
    failed: dict[str, str] = {}
    for row in rows:
        try:
            for figure in row(bench):
                if not targets:
                    figure.target = None
                figures.append(figure)
        except Exception as error:  # the other rows go on
            what = "" if isinstance(error, BenchError) else f"{type(error).__name__}: "
            failed[row.__name__] = f"{what}{error}"
            err.print(f"{row.__name__} failed", style="red")
    return figures, failed


def main(
    path: Annotated[Path, typer.Option("--json", help="File for the figures.")] = Path(".data/bench.json"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Short loads, and 100,000 users instead of a million.")
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Run every row for about a second, without targets.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"A row: {', '.join(NAMES)}. May be repeated.")
    ] = None,
) -> None:
    """Measure, print the figures with their targets, and write them as JSON. Status 1 if a row failed."""
    if unknown := [name for name in only or () if name not in NAMES]:
        _fail(f"no row {unknown[0]}: there are {', '.join(NAMES)}")
    rows = [NAMES[name] for name in only] if only else list(ROWS)
    if not smoke and (load := getloadavg()[0]) > CORES / 2:
        err.print(f"The machine is busy (load {load:.1f}): the figures will vary.", style="yellow")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    scale = SMOKE if smoke else QUICK if quick else FULL
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        wrk_path()  # fails now instead of in ten minutes
        with (
            tempfile.TemporaryDirectory(prefix="officerpc-bench-") as directory,
            embedded_server(Path(directory)) as postgres,
            Progress(*columns, console=err) as progress,
        ):
            bench = Bench(Path(directory), postgres.url, scale, progress)
            figures, failed = measure(rows, bench, targets=not smoke)
    except FileNotFoundError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted")
    Console().print(table(figures))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(document(figures, failed, scale), option=orjson.OPT_INDENT_2) + b"\n")
    err.print(f"{CORES} cores; written to {path}", highlight=False)
    for name, why in failed.items():
        err.print(f"bench: {name} failed: {why}", style="red", markup=False, highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _fail(message: str) -> NoReturn:
    err.print(f"bench: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
