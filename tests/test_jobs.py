"""The queue: done if the transaction commits, again after failures and deaths, parked when it is hopeless."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from conftest import FAST_HASHES, Client, Log, database_named, until

from server.base.metrics import Metrics
from server.base.settings import Settings
from server.jobs import queue
from server.jobs.queue import (
    AT_ONCE,
    JOBS,
    TRIES,
    Hopeless,
    Services,
    Suspended,
    enqueue,
    job,
    pause_after,
    work,
)
from server.postgres.db import Database

ROOT = Path(__file__).parent.parent


@pytest.fixture
async def services(database_url: str) -> AsyncIterator[Services]:
    settings = Settings(**FAST_HASHES, shutdown_timeout=0.2)
    database = Database(settings, database_url)
    await database.open()
    yield Services(settings, database, Metrics())
    await database.close()


Start = Callable[[], asyncio.Task[None]]


@pytest.fixture
async def start(services: Services) -> AsyncIterator[Start]:
    """Starts a worker; all are stopped at the end."""
    workers: list[asyncio.Task[None]] = []

    def begin() -> asyncio.Task[None]:
        workers.append(asyncio.create_task(work(services)))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


class Note:
    """A job that notes what it was given, and does what it is told to."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.act: Callable[[], Awaitable[None]] | None = None

    async def __call__(self, services: Services, payload: dict[str, Any]) -> None:
        self.seen.append(payload)
        if self.act is not None:
            await self.act()


@pytest.fixture
def note(monkeypatch: pytest.MonkeyPatch) -> Note:
    """A job of the kind "note", whose pauses are short."""
    handler = Note()
    monkeypatch.setitem(JOBS, "note", handler)
    monkeypatch.setattr(queue, "FIRST_PAUSE", 0.01)
    return handler


async def add(services: Services, payload: dict[str, Any] | None = None, after: float = 0) -> None:
    async with services.database.transaction() as db:
        await enqueue(db, "note", payload or {}, after=after)


async def statuses(db: asyncpg.Connection) -> list[str]:
    rows = await db.fetch("SELECT status::text FROM pgqueuer ORDER BY id")
    return [row["status"] for row in rows]


async def empty(db: asyncpg.Connection) -> bool:
    return await statuses(db) == []


def counted(services: Services, outcome: str) -> int:
    found = re.search(
        rf'officerpc_jobs_total{{kind="note",outcome="{outcome}"}} (\d+)',
        services.metrics.exposition().decode(),
    )
    return int(found[1]) if found else 0


def test_the_tables_are_those_of_the_installed_release() -> None:
    """If this fails after an upgrade of pgqueuer, its new DDL needs a migration."""
    done = subprocess.run(
        [sys.executable, "-m", "pgqueuer", "sql", "install"], capture_output=True, text=True, check=True
    )
    ours = (ROOT / "sql/migrations/0003_queue.sql").read_text()

    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.strip() and not line.startswith("--")]

    assert lines(ours) == lines(done.stdout)


def test_registration() -> None:
    with pytest.raises(ValueError, match="already"):
        job("mail-code")
    assert all(kind == kind.lower() for kind in JOBS)


async def test_an_unknown_kind_is_refused_at_once(services: Services) -> None:
    async with services.database.transaction() as db:
        with pytest.raises(ValueError, match="no job"):
            await enqueue(db, "nothing", {})


async def test_done_after_the_commit_and_only_then(
    services: Services, start: Start, note: Note, db: asyncpg.Connection
) -> None:
    with pytest.raises(RuntimeError, match="changed my mind"):
        async with services.database.transaction() as connection:
            await enqueue(connection, "note", {"number": 1})
            raise RuntimeError("changed my mind")
    async with services.database.transaction() as connection:
        await enqueue(connection, "note", {"number": 2, "text": "Ä\u0000"})
        start()
        assert note.seen == []
    await until(lambda: empty(db))
    assert note.seen == [{"number": 2, "text": "Ä\u0000"}]
    assert counted(services, "done") == 1


async def test_a_job_can_wait(services: Services, start: Start, note: Note, db: asyncpg.Connection) -> None:
    await add(services, {"number": 1}, after=3600)
    await add(services, {"number": 2})
    start()
    await until(lambda: _one(note))
    assert note.seen == [{"number": 2}]
    await db.execute("UPDATE pgqueuer SET execute_after = now() - interval '1 second'")
    await until(lambda: empty(db))
    assert note.seen == [{"number": 2}, {"number": 1}]


async def _one(note: Note) -> bool:
    return len(note.seen) == 1


async def test_failures_are_tried_again_with_growing_pauses(
    services: Services, start: Start, note: Note, db: asyncpg.Connection, logged: Log
) -> None:
    async def fail_twice() -> None:
        if len(note.seen) < 3:
            raise OSError("secret@example.com is not there")

    note.act = fail_twice
    await add(services)
    start()
    await until(lambda: empty(db))
    assert len(note.seen) == 3
    assert (counted(services, "retried"), counted(services, "done")) == (2, 1)
    tries = [entry for entry in logged.lines() if entry["event"] == "job"]
    assert [(entry["outcome"], entry["tries"]) for entry in tries] == [
        ("retried", 1),
        ("retried", 2),
        ("done", 3),
    ]
    assert tries[0]["cause"].startswith("OSError at test_jobs.py:")
    assert b"secret@example.com" not in logged.text
    told = await db.fetchval("SELECT string_agg(traceback::text, ' ') FROM pgqueuer_log")
    assert "OSError" in told and "secret@example.com" not in told


def test_pauses_grow_to_a_limit() -> None:
    pauses = [pause_after(tries) for tries in range(1, TRIES)]
    for tries, pause in enumerate(pauses, start=1):
        middle = min(queue.FIRST_PAUSE * 2 ** (tries - 1), queue.LONGEST_PAUSE)
        assert middle * 0.8 <= pause <= middle * 1.2
    assert len({pause_after(3) for _ in range(10)}) > 1
    assert 4 * 3600 < sum(pauses) < 8 * 3600


async def test_a_poison_job_is_parked(
    operator: Client,
    services: Services,
    start: Start,
    note: Note,
    db: asyncpg.Connection,
    logged: Log,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue, "TRIES", 3)

    async def fail() -> None:
        raise ValueError("a secret")

    note.act = fail
    await add(services, {"instance_id": 1})
    start()
    await until(lambda: _parked(db))
    assert len(note.seen) == 3
    assert (counted(services, "retried"), counted(services, "parked")) == (2, 1)
    (entry,) = [entry for entry in logged.lines() if entry.get("outcome") == "parked"]
    assert (entry["level"], entry["tries"]) == ("error", 3) and entry["cause"].startswith("ValueError at ")
    assert b"a secret" not in logged.text

    # Mended and put back by an operator, it has all its tries again.
    note.act = None
    (parked,) = await operator.call("listJobs", {})
    assert (parked["kind"], parked["state"]) == ("note", "parked")
    assert await operator.call("retryJob", {"id": parked["id"]}) is True
    assert (await operator.outcome("retryJob", {"id": parked["id"]}))[0] == 400
    await until(lambda: empty(db))
    assert len(note.seen) == 4
    assert [entry["tries"] for entry in logged.lines() if entry.get("outcome") == "done"] == [1]


async def _parked(db: asyncpg.Connection) -> bool:
    return await statuses(db) == ["failed"]


async def test_a_hopeless_job_is_parked_at_once(
    services: Services, start: Start, note: Note, db: asyncpg.Connection
) -> None:
    async def give_up() -> None:
        raise Hopeless

    note.act = give_up
    await add(services)
    start()
    await until(lambda: _parked(db))
    assert len(note.seen) == 1


async def test_a_job_that_waits_for_its_instance_is_never_parked(
    services: Services, start: Start, note: Note, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suspension lasts longer than all tries; after it, the job has all of them again."""
    monkeypatch.setattr(queue, "TRIES", 2)
    monkeypatch.setattr(queue, "LONGEST_PAUSE", 0.01)

    async def wait() -> None:
        if len(note.seen) <= 4:
            raise Suspended
        if len(note.seen) == 5:
            raise ValueError

    note.act = wait
    await add(services)
    start()
    await until(lambda: empty(db))
    assert len(note.seen) == 6
    assert (counted(services, "retried"), counted(services, "parked")) == (5, 0)


async def test_a_job_whose_workers_die_is_parked(
    services: Services, start: Start, note: Note, db: asyncpg.Connection
) -> None:
    """Nobody reports such tries: they are known by having been begun."""
    await add(services)
    await db.execute(
        "INSERT INTO pgqueuer_log (job_id, status, priority, entrypoint)"
        " SELECT id, 'picked', 0, 'note' FROM pgqueuer, generate_series(1, $1)",
        TRIES,
    )
    start()
    await until(lambda: _parked(db))
    assert note.seen == [] and counted(services, "parked") == 1


async def test_a_dead_workers_job_is_taken_over(
    services: Services, start: Start, note: Note, db: asyncpg.Connection
) -> None:
    """Once its heartbeat is old; test_mail.py kills a real one."""
    await add(services)
    await db.execute(
        "UPDATE pgqueuer SET status = 'picked', queue_manager_id = gen_random_uuid(),"
        " heartbeat = now() - make_interval(secs => $1)",
        queue.HEARTBEAT + 1,
    )
    start()
    await until(lambda: empty(db))
    assert len(note.seen) == 1


async def test_a_stopped_worker_lets_its_job_finish(
    services: Services, start: Start, note: Note, db: asyncpg.Connection
) -> None:
    running, gate = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        running.set()
        await gate.wait()

    note.act = hold
    await add(services)
    worker = start()
    await running.wait()
    worker.cancel()
    gate.set()
    await asyncio.gather(worker, return_exceptions=True)
    assert await empty(db) and counted(services, "done") == 1


async def test_a_job_that_outlasts_its_worker_goes_back_to_the_queue(
    services: Services, start: Start, note: Note, db: asyncpg.Connection
) -> None:
    running = asyncio.Event()

    async def hold() -> None:
        running.set()
        await asyncio.Event().wait()

    note.act = hold
    await add(services)
    worker = start()
    await running.wait()
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    assert await statuses(db) == ["queued"] and counted(services, "stopped") == 1
    note.act = None
    start()
    await until(lambda: empty(db))
    assert len(note.seen) == 2


async def test_a_job_that_hangs_is_ended(
    services: Services,
    start: Start,
    note: Note,
    db: asyncpg.Connection,
    logged: Log,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue, "TIME_LIMIT", 0.5)

    async def hang_once() -> None:
        if len(note.seen) == 1:
            await asyncio.Event().wait()

    note.act = hang_once
    await add(services)
    start()
    await until(lambda: empty(db))
    assert len(note.seen) == 2
    assert [entry["outcome"] for entry in logged.lines() if entry["event"] == "job"] == ["retried", "done"]


async def test_a_worker_does_only_so_many_at_once(
    services: Services, start: Start, note: Note, db: asyncpg.Connection
) -> None:
    gate = asyncio.Event()
    now, most = 0, 0

    async def hold() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await gate.wait()
        now -= 1

    note.act = hold
    for number in range(3 * AT_ONCE):
        await add(services, {"number": number})
    start()

    async def full() -> bool:
        return now == AT_ONCE

    await until(full)
    gate.set()
    await until(lambda: empty(db))
    assert most == AT_ONCE
    assert sorted(payload["number"] for payload in note.seen) == list(range(3 * AT_ONCE))


async def test_jobs_of_another_release_are_left_alone(
    services: Services, start: Start, note: Note, db: asyncpg.Connection
) -> None:
    await db.execute("INSERT INTO pgqueuer (priority, entrypoint, status) VALUES (0, 'future', 'queued')")
    await add(services)
    start()
    await until(lambda: _one(note))
    assert await db.fetchval("SELECT status::text FROM pgqueuer WHERE entrypoint = 'future'") == "queued"


async def test_it_looks_without_being_told(
    services: Services, start: Start, note: Note, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NOTIFY is a hint: without its trigger nobody is notified."""
    monkeypatch.setattr(queue, "POLL", 0.1)
    await db.execute("ALTER TABLE pgqueuer DISABLE TRIGGER tg_pgqueuer_changed")
    await add(services, {"number": 1})
    start()
    await until(lambda: empty(db))
    await add(services, {"number": 2})
    await until(lambda: empty(db))
    assert note.seen == [{"number": 1}, {"number": 2}]


async def test_it_survives_the_database_going_away(
    services: Services,
    start: Start,
    note: Note,
    db: asyncpg.Connection,
    postgres_url: str,
    database_url: str,
    logged: Log,
) -> None:
    """While nobody gets in, in the middle of a job, and it says so once."""
    name = await db.fetchval("SELECT current_database()")
    server = await asyncpg.connect(database_named(postgres_url, "postgres"))
    running, gate = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        running.set()
        await gate.wait()

    note.act = hold
    await add(services, {"number": 1})
    worker = start()
    await running.wait()
    await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
    gate.set()
    note.act = None

    async def waits() -> bool:
        return any(entry["event"] == "queue_waits_for_database" for entry in logged.lines())

    await until(waits)
    await asyncio.sleep(1)  # several more of its tries
    await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await server.close()
    again = await asyncpg.connect(database_url)
    # What it had done could not be noted, so it is done again: at least once.
    await again.execute("UPDATE pgqueuer SET heartbeat = now() - interval '1 hour'")
    await add(services, {"number": 2})
    await until(lambda: empty(again))
    await again.close()
    assert not worker.done()
    assert {payload["number"] for payload in note.seen} == {1, 2}
    told = [entry["event"] for entry in logged.lines() if entry["level"] != "info"]
    assert [event for event in told if event != "connection_dropped"] == ["queue_waits_for_database"]


async def test_an_answer_is_not_waited_for_for_ever(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "PATIENCE", 0.1)
    driver = queue._Driver(await services.database.direct())
    with pytest.raises(TimeoutError):
        await driver.fetch("SELECT pg_sleep(60)")
    with pytest.raises(asyncpg.InterfaceError):
        await driver.execute("SELECT 1")


async def test_a_burst_of_notices_is_heard_as_one(services: Services, db: asyncpg.Connection) -> None:
    """But what else is said on the channel is passed on, each of it."""
    heard: list[str] = []
    connection = await services.database.direct()
    driver = queue._Driver(connection)
    await driver.add_listener("ch_test", lambda payload: heard.append(str(payload)))
    for number in range(200):
        await db.execute("SELECT pg_notify('ch_test', $1)", f'{{"type":"table_changed_event","n":{number}}}')
        await db.execute("SELECT pg_notify('ch_test', $1)", f'{{"type":"health_check_event","n":{number}}}')

    async def all_heard() -> bool:
        return sum("health_check" in payload for payload in heard) == 200

    await until(all_heard)
    await until(lambda: _changes(heard))
    assert sum("table_changed" in payload for payload in heard) < 100
    await connection.close()


async def _changes(heard: list[str]) -> bool:
    return any("table_changed" in payload for payload in heard)
