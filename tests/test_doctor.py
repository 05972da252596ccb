"""`officerpc doctor` on healthy and broken installations."""

import time
from typing import Any

import asyncpg
import pytest
from test_horizon import open_transaction

from server.base.settings import Settings
from server.cli import doctor
from server.cli.session import Session


async def found(officerpc: Any, **environment: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The status, and what each check found."""
    ended = await officerpc("doctor", "--json", **environment)
    return ended.status, {finding["check"]: finding for finding in ended.json}


async def test_all_is_in_order(officerpc: Any) -> None:
    status, findings = await found(officerpc)
    assert {finding["state"] for finding in findings.values()} == {"ok"}, findings
    assert (status, list(findings)) == (0, list(doctor.CHECKS))
    plain = await officerpc("doctor")
    assert plain.status == 0
    assert [line.split()[:2] for line in plain.out.splitlines()] == [["ok", name] for name in doctor.CHECKS]


async def test_the_database_is_away(officerpc: Any, tmp_path: Any) -> None:
    """One line, and no traceback."""
    url = f"postgresql://postgres:hunter2@/postgres?host={tmp_path}"
    ended = await officerpc("doctor", OFFICERPC_DATABASE_URL=url)
    assert ended.status == 1 and len(ended.out.splitlines()) == 1
    assert ended.out.startswith("failed   database") and "OFFICERPC_DATABASE_URL" in ended.out
    assert "hunter2" not in ended.out + ended.err and "Traceback" not in ended.err


async def test_the_schema_is_not_up_to_date(officerpc: Any, db: asyncpg.Connection) -> None:
    last = await db.fetchval("SELECT max(version) FROM schema_migrations")
    await db.execute("DELETE FROM schema_migrations WHERE version = $1", last)
    status, findings = await found(officerpc)
    assert (status, findings["migrations"]["state"]) == (1, "failed")
    assert "officerpc migrate" in findings["migrations"]["advice"]
    await db.execute("INSERT INTO schema_migrations (version, name, checksum) VALUES (9999, 'x', 'x')")
    status, findings = await found(officerpc)
    assert status == 1 and "9999" in findings["migrations"]["text"]


async def test_the_database_takes_no_writes(officerpc: Any, db: asyncpg.Connection) -> None:
    name = await db.fetchval("SELECT current_database()")
    await db.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    status, findings = await found(officerpc)
    assert (status, findings["writes"]["state"]) == (1, "failed")


async def test_warnings(officerpc: Any, db: asyncpg.Connection) -> None:
    """They do not make it fail, and say what to do."""
    await db.execute("INSERT INTO jobs (instance_id, kind, state) VALUES (0, 'x', 'parked')")
    status, findings = await found(officerpc, OFFICERPC_POOL_SIZE="1000")
    assert status == 0
    assert findings["connections"]["state"] == findings["queue"]["state"] == "warning"
    assert "OFFICERPC_POOL_SIZE" in findings["connections"]["advice"]
    assert "officerpc jobs" in findings["queue"]["advice"]


async def test_statistics_that_are_missing(officerpc: Any, db: asyncpg.Connection) -> None:
    await db.execute("CREATE TABLE grown (id integer) WITH (autovacuum_enabled = off)")
    await db.execute("INSERT INTO grown SELECT generate_series(1, 2000)")
    await db.execute("SELECT pg_stat_force_next_flush()")
    status, findings = await found(officerpc)
    assert (status, findings["statistics"]["state"]) == (0, "warning")
    assert "grown" in findings["statistics"]["text"] and "ANALYZE" in findings["statistics"]["advice"]


async def test_what_halts_the_feed(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, with the statement that ends it."""
    monkeypatch.setattr("server.events.webhooks.HALTED_AFTER", 0.0)
    async with open_transaction(database_url, "report") as halting:
        finding = await examined(database_url, "feed")
        assert finding.state == "warning"
        assert f"process {halting.get_server_pid()} (report)" in finding.text
        assert f"pg_terminate_backend({halting.get_server_pid()})" in finding.advice


async def test_clocks_that_differ(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    finding = await examined(database_url, "clocks")
    assert finding.state == "warning" and "differ by 3" in finding.text


async def examined(database_url: str, check: str) -> doctor.Finding:
    """What one check finds, within this process."""
    session = Session(Settings(), database_url)
    await session.database.open()
    try:
        return await doctor.CHECKS[check](session)
    finally:
        session.hasher.close()
        await session.database.close()
