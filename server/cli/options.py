"""Options of several commands."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: one document, or one object per line.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")]
InstanceName = Annotated[str, typer.Option("--instance", "-i", help="Name of the instance.")]

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def parse_time(text: str) -> int:
    """Unix seconds of today, yesterday, 90m, 2h or 7d ago, or an ISO 8601 time (in UTC if it has no offset).

    Raises:
        typer.BadParameter: any other text.
    """
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if text in ("today", "yesterday"):
        return int((midnight - timedelta(days=text == "yesterday")).timestamp())
    try:
        if ago := re.fullmatch(r"(\d{1,6})([mhd])", text):
            return int((now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})).timestamp())
        found = datetime.fromisoformat(text)
        return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter("use today, yesterday, 90m, 2h, 7d or a date such as 2026-01-31") from error


_MOMENT = "today, yesterday, 90m, 2h, 7d (ago), or an ISO 8601 date or time (UTC)."
Since = Annotated[int | None, typer.Option(parser=parse_time, metavar="TIME", help=f"From: {_MOMENT}")]
Until = Annotated[int | None, typer.Option(parser=parse_time, metavar="TIME", help=f"Before: {_MOMENT}")]
