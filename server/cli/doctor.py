"""officerpc doctor: what is wrong with an installation, and what to do about it."""

import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import typer

from server.base.settings import Settings
from server.cli.options import AsJson
from server.cli.session import Session, run
from server.cli.terminal import out, show

app = typer.Typer()

CLOCKS_APART = 5.0
"""Seconds by which the clocks of program and database may differ."""
BESIDE_THE_POOL = 2
"""Connections that each worker holds beside its pool: it listens for changes of keys, and for jobs."""


class Finding(NamedTuple):
    """What one check found."""

    state: Literal["ok", "warning", "failed"]
    text: str
    advice: str = ""


Check: TypeAlias = Callable[[Session], Awaitable[Finding]]


async def _version(session: Session) -> Finding:
    facts = await _facts(session)
    if 15 <= facts["major"] <= 18:
        return Finding("ok", f"Postgres {facts['version']} answers")
    text = f"Postgres {facts['version']} was never tried"
    return Finding("warning" if facts["major"] > 18 else "failed", text, "use one of 15 to 18")


async def _facts(session: Session) -> Any:
    async with session.database.connection() as db:
        return await db.one("find_server_facts")


async def _migrations(session: Session) -> Finding:
    from server.postgres.migrations import MigrationError, load_migrations, pending

    connection = await session.database.direct()
    try:
        missing = await pending(connection, load_migrations())
    except MigrationError as error:
        return Finding("failed", str(error), "run the version of officerpc that the database was migrated by")
    finally:
        await connection.close(timeout=5)
    if missing:
        text = f"not applied: {', '.join(migration.name for migration in missing)}"
        return Finding("failed", text, "run officerpc migrate as the role that owns the tables")
    return Finding("ok", "the schema is up to date")


async def _writes(session: Session) -> Finding:
    if await session.database.writable():
        return Finding("ok", "a write went through")
    advice = (
        "look for a full disk, a standby that is away, or a server that only reads, in the log of Postgres"
    )
    return Finding("failed", "the database takes no writes", advice)


async def _clocks(session: Session) -> Finding:
    before = time.time()
    theirs = (await _facts(session))["seconds"]
    after = time.time()
    apart = max(before - theirs, theirs - after, 0.0)  # the answer was made at some moment in between
    if apart <= CLOCKS_APART:
        return Finding("ok", "the clocks of program and database agree")
    return Finding(
        "warning",
        f"the clocks of program and database differ by {apart:.0f} seconds",
        "synchronise them by NTP",
    )


async def _feed(session: Session) -> Finding:
    from server.events.webhooks import HALTED_AFTER

    async with session.database.connection() as db:
        halt = await db.one("find_feed_halt")
    if halt is None or (halt["age"] is not None and halt["age"] < HALTED_AFTER):
        return Finding("ok", "no old transaction holds the feed and webhooks back")
    whose = f"process {halt['pid']} ({halt['application'] or 'without an application name'})"
    if halt["age"] is None:
        text = f"a transaction of {whose} holds the feed and webhooks back, its age is hidden from this role"
        return Finding("ok", text, "GRANT pg_read_all_stats shows it")
    text = f"a transaction of {whose} has held the feed and webhooks back for {halt['age']:.0f} seconds"
    advice = f"SELECT pg_terminate_backend({halt['pid']})" if halt["pid"] else "COMMIT or ROLLBACK PREPARED"
    return Finding("warning", text, f"end it: {advice}")


async def _connections(session: Session) -> Finding:
    settings, allowed = session.settings, (await _facts(session))["connections"]
    wanted = _wanted(settings)
    text = f"this server may open {wanted} connections, Postgres takes {allowed}"
    if wanted <= allowed or settings.database_direct_url is not None:
        return Finding("ok", text)
    return Finding(
        "warning", text, "lower OFFICERPC_POOL_SIZE or OFFICERPC_WORKERS, or raise max_connections"
    )


def _wanted(settings: Settings) -> int:
    return settings.workers * (settings.pool_size + BESIDE_THE_POOL)


async def _queue(session: Session) -> Finding:
    async with session.database.connection() as db:
        parked = await db.value("count_parked_jobs")
    if parked == 0:
        return Finding("ok", "no job was given up")
    return Finding(
        "warning", f"{parked} jobs were given up", "see officerpc jobs list and officerpc jobs retry"
    )


async def _statistics(session: Session) -> Finding:
    async with session.database.connection() as db:
        tables = await db.all("find_tables_without_statistics")
    if not tables:
        return Finding("ok", "tables with rows have statistics")
    names = ", ".join(row["name"] for row in tables)
    return Finding("warning", f"no statistics of {names}: statements may be slow", "run ANALYZE")


CHECKS: dict[str, Check] = {
    "database": _version,
    "migrations": _migrations,
    "writes": _writes,
    "clocks": _clocks,
    "feed": _feed,
    "connections": _connections,
    "queue": _queue,
    "statistics": _statistics,
}
"""By name, in the order in which they are made. Where the first fails, the others could only fail too."""


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check the installation: what is wrong, and what to do about it. Status 1 if a check failed."""
    findings = run(_examined)
    if as_json:
        show([{"check": name, **finding._asdict()} for name, finding in findings.items()], as_json)
    else:
        for name, finding in findings.items():
            line = f"{finding.state:<8} {name:<12} {finding.text}"
            out.print(f"{line}; {finding.advice}" if finding.advice else line, soft_wrap=True)
    if any(finding.state == "failed" for finding in findings.values()):
        raise typer.Exit(1)


async def _examined(session: Session) -> dict[str, Finding]:
    from server.postgres.db import advice

    findings: dict[str, Finding] = {}
    for name, check in CHECKS.items():
        try:
            findings[name] = await check(session)
        except Exception as error:  # whatever it is, the other checks may still say something
            text = str(error.__cause__ or error)
            findings[name] = Finding("failed", text, advice(error) or "see OFFICERPC_DATABASE_URL")
            if name == "database":
                break
    return findings
