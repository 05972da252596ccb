"""The figures of bench.py, as a table and as JSON."""

import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from _rig import CORES, Rounds, Scale
from rich.table import Table


@dataclass
class Figure:
    """One result: the median of its samples, and its target."""

    name: str
    what: str
    samples: list[float]
    target: float | None = None
    at_most: bool = False
    details: dict[str, float] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None without a target."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target

    @property
    def wanted(self) -> str:
        """The target as text."""
        return "" if self.target is None else f"{'<=' if self.at_most else '>='} {self.target:g}"


def ratio(
    name: str, what: str, rounds: Rounds, of: str, to: str, target: float | None = None, **more: str
) -> Figure:
    """The ratio of two sides, computed in each round.

    Args:
        of, to: names of the sides.
        more: other sides whose rates are shown in the details, by their names there.
    """
    sides = {"rate": of, "reference": to} | more
    details = {
        title: round(statistics.median(sides_of[side] for sides_of in rounds), 1)
        for title, side in sides.items()
    }
    return Figure(name, what, [rates[of] / rates[to] for rates in rounds], target, details=details)


def table(figures: list[Figure]) -> Table:
    """The figures as a table."""
    table = Table("Figure", "Value", "Target", "Met", "Details", show_lines=True)
    for figure in figures:
        met = {True: "[green]yes", False: "[red]no", None: ""}[figure.met]
        value = f"{figure.value:.3g}"
        if len(figure.samples) > 1:
            value += f"\n[dim]{min(figure.samples):.3g} to {max(figure.samples):.3g}"
        details = "\n".join(f"{name} {value:g}" for name, value in figure.details.items())
        table.add_row(f"{figure.name}\n[dim]{figure.what}", value, figure.wanted, met, details)
    return table


def document(figures: list[Figure], failed: dict[str, str], scale: Scale) -> dict[str, Any]:
    """The figures as JSON, and the errors of rows that failed."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": CORES,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "scale": scale._asdict(),
        "failed": failed,
        "figures": [asdict(figure) | {"value": figure.value, "met": figure.met} for figure in figures],
    }
