"""officerpc doctor: checks an installation and says what to do."""

import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import typer

from server.cli.options import AsJson
from server.cli.session import Session, run
from server.cli.terminal import out, show

app = typer.Typer()

MAX_CLOCK_DIFFERENCE = 5.0
"""Seconds by which the clocks of program and database may differ."""
LISTENING_CONNECTIONS = 2
"""Connections of each worker outside its pool: one listens for changes of keys, one for jobs."""


class Finding(NamedTuple):
    """The result of a check."""

    state: Literal["ok", "warning", "failed"]
    text: str
    advice: str = ""


Check: TypeAlias = Callable[[Session], Awaitable[Finding]]


async def _version(session: Session) -> Finding:
    facts = await _facts(session)
    if 15 <= facts["major"] <= 18:
        return Finding("ok", f"Postgres {facts['version']}")
    text = f"Postgres {facts['version']} is not tested"
    return Finding("warning" if facts["major"] > 18 else "failed", text, "use a version from 15 to 18")


async def _facts(session: Session) -> Any:
    async with session.database.connection() as db:
        return await db.one("find_server_facts")


async def _migrations(session: Session) -> Finding:
    from server.postgres.migrations import MigrationError, load_migrations, pending

    connection = await session.database.direct()
    try:
        missing = await pending(connection, load_migrations())
    except MigrationError as error:
        return Finding("failed", str(error), "run the version of officerpc that migrated the database")
    finally:
        await connection.close(timeout=5)
    if missing:
        text = f"not applied: {', '.join(migration.name for migration in missing)}"
        return Finding("failed", text, "run officerpc migrate as the role that owns the tables")
    return Finding("ok", "the schema is up to date")


async def _writes(session: Session) -> Finding:
    if await session.database.writable():
        return Finding("ok", "a test write succeeded")
    advice = "see the log of Postgres: full disk, standby away, or read-only server"
    return Finding("failed", "a test write failed", advice)


async def _clocks(session: Session) -> Finding:
    before = time.time()
    theirs = (await _facts(session))["seconds"]
    after = time.time()
    apart = max(before - theirs, theirs - after, 0.0)  # they read their clock between these two
    if apart <= MAX_CLOCK_DIFFERENCE:
        return Finding("ok", "the clocks of program and database agree")
    return Finding(
        "warning",
        f"the clocks of program and database differ by {apart:.0f} seconds",
        "synchronise them with NTP",
    )


async def _feed(session: Session) -> Finding:
    from server.events.webhooks import HALTED_AFTER

    async with session.database.connection() as db:
        halt = await db.one("find_feed_halt")
    if halt is None or (halt["age"] is not None and halt["age"] < HALTED_AFTER):
        return Finding("ok", "no old transaction delays the feed and webhooks")
    process = f"process {halt['pid']} ({halt['application'] or 'without an application name'})"
    if halt["age"] is None:
        text = f"a transaction of {process} delays the feed and webhooks; this role cannot see its age"
        return Finding("ok", text, "GRANT pg_read_all_stats to see it")
    text = f"a transaction of {process} has delayed the feed and webhooks for {halt['age']:.0f} seconds"
    advice = f"SELECT pg_terminate_backend({halt['pid']})" if halt["pid"] else "COMMIT or ROLLBACK PREPARED"
    return Finding("warning", text, f"end it: {advice}")


async def _connections(session: Session) -> Finding:
    settings, allowed = session.settings, (await _facts(session))["connections"]
    most = settings.workers * (settings.pool_size + LISTENING_CONNECTIONS)
    text = f"this server may open {most} connections, Postgres allows {allowed}"
    if most <= allowed or settings.database_direct_url is not None:
        return Finding("ok", text)
    return Finding(
        "warning", text, "lower OFFICERPC_POOL_SIZE or OFFICERPC_WORKERS, or raise max_connections"
    )


async def _queue(session: Session) -> Finding:
    async with session.database.connection() as db:
        parked = await db.value("count_parked_jobs")
    if parked == 0:
        return Finding("ok", "no job is parked")
    return Finding("warning", f"{parked} jobs are parked", "see officerpc jobs list and officerpc jobs retry")


async def _statistics(session: Session) -> Finding:
    async with session.database.connection() as db:
        tables = await db.all("find_tables_without_statistics")
    if not tables:
        return Finding("ok", "tables with rows have statistics")
    names = ", ".join(row["name"] for row in tables)
    return Finding("warning", f"no statistics of {names}: queries may be slow", "run ANALYZE")


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
"""In the order in which they run. If the first fails, the others are not run."""


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check the installation and say what to do. Status 1 if a check failed."""
    findings = run(_check_all)
    if as_json:
        show([{"check": name, **finding._asdict()} for name, finding in findings.items()], as_json)
    else:
        for name, finding in findings.items():
            line = f"{finding.state:<8} {name:<12} {finding.text}"
            out.print(f"{line}; {finding.advice}" if finding.advice else line, soft_wrap=True)
    if any(finding.state == "failed" for finding in findings.values()):
        raise typer.Exit(1)


async def _check_all(session: Session) -> dict[str, Finding]:
    from server.postgres.db import advice

    findings: dict[str, Finding] = {}
    for name, check in CHECKS.items():
        try:
            findings[name] = await check(session)
        except Exception as error:  # the other checks go on
            text = str(error.__cause__ or error)
            findings[name] = Finding("failed", text, advice(error) or "see OFFICERPC_DATABASE_URL")
            if name == "database":
                break
    return findings
