"""The queue: jobs run if the transaction commits, are retried after failures and killed workers, and then parked."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from conftest import FAST_HASHES, Client, Log, Serve, database_named, until

from server.base.metrics import Metrics
from server.base.settings import Settings
from server.jobs import queue, worker
from server.jobs.queue import (
    AT_ONCE,
    JOBS,
    TRIES,
    Jobs,
    Services,
    enqueue,
    job,
    pause_after,
    work,
)
from server.jobs.worker import Hopeless, Suspended, Tried
from server.postgres.db import Database
from server.postgres.migrations import load_migrations, migrate


@pytest.fixture
async def services(database_url: str) -> AsyncIterator[Services]:
    settings = Settings(**FAST_HASHES, shutdown_timeout=0.2)
    database = Database(settings, database_url)
    await database.open()
    yield Services(settings, database, Metrics())
    await database.close()


@pytest.fixture
async def client(serve: Serve) -> Client:
    """A server that leaves the jobs to the workers of the test."""
    return await serve(run_jobs=False)


Start = Callable[[], asyncio.Task[None]]


@pytest.fixture
async def start(services: Services) -> AsyncIterator[Start]:
    """Starts a worker; all are stopped at the end."""
    workers: list[asyncio.Task[None]] = []

    def begin() -> asyncio.Task[None]:
        workers.append(asyncio.create_task(work(services)))
        return workers[-1]

    yield begin
    for one in workers:
        one.cancel()
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
    rows = await db.fetch("SELECT state FROM jobs ORDER BY id")
    return [row["state"] for row in rows]


async def empty(db: asyncpg.Connection) -> bool:
    return await statuses(db) == []


def counted(services: Services, outcome: str) -> int:
    found = re.search(
        rf'officerpc_jobs_total{{kind="note",outcome="{outcome}"}} (\d+)',
        services.metrics.exposition().decode(),
    )
    return int(found[1]) if found else 0


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
    await db.execute("UPDATE jobs SET due_at = now() - interval '1 second'")
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


def test_pauses_grow_to_a_limit() -> None:
    pauses = [pause_after(tries) for tries in range(1, TRIES)]
    for tries, pause in enumerate(pauses, start=1):
        middle = min(queue.FIRST_PAUSE * 2 ** (tries - 1), worker.LONGEST_PAUSE)
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
    return await statuses(db) == ["parked"]


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
    monkeypatch.setattr(worker, "LONGEST_PAUSE", 0.01)

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
    await db.execute("UPDATE jobs SET state = 'running', attempts = $1, due_at = now()", TRIES)
    start()
    await until(lambda: _parked(db))
    assert note.seen == [] and counted(services, "parked") == 1


async def test_a_dead_workers_job_is_taken_over(
    services: Services, start: Start, note: Note, db: asyncpg.Connection
) -> None:
    """Once its lease has ended, and not before; test_mail.py kills a real one."""
    for number in (1, 2):
        await add(services, {"number": number})
    await db.execute("UPDATE jobs SET state = 'running', attempts = 1, due_at = now() + interval '1 hour'")
    await db.execute("UPDATE jobs SET due_at = now() WHERE id = (SELECT max(id) FROM jobs)")
    start()
    await until(lambda: _one(note))
    await add(services, {"number": 3})
    await until(lambda: _is(services, "done", 2))
    assert note.seen == [{"number": 2}, {"number": 3}] and await statuses(db) == ["running"]


async def _is(services: Services, outcome: str, count: int) -> bool:
    return counted(services, outcome) == count


async def test_a_lease_is_renewed_as_long_as_its_job_runs(
    services: Services, start: Start, note: Note, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a job may take longer than a lease, and no other worker takes it over."""
    monkeypatch.setattr(worker, "LEASE", 3.0)
    gate = asyncio.Event()
    note.act = lambda: _passed(gate)
    await add(services)
    for _ in range(2):
        start()
    await until(lambda: _one(note))
    first = await db.fetchval("SELECT due_at FROM jobs")
    await until(lambda: db.fetchval("SELECT now() > $1 FROM jobs", first))
    gate.set()
    await until(lambda: empty(db))
    assert len(note.seen) == 1


async def _passed(gate: asyncio.Event) -> None:
    await gate.wait()


async def test_a_try_that_was_taken_for_dead_counts_only_if_it_succeeded(
    services: Services, db: asyncpg.Connection
) -> None:
    """Its job is tried again by another worker by then."""
    for _ in range(2):
        async with services.database.transaction() as connection:
            await enqueue(connection, "mail-code", {"instance_id": 1})
    async with services.database.connection() as connection:
        for lease in (0.0, 60.0):
            claimed = await connection.all(
                "claim_jobs", lease=lease, instance_ids=[1], lanes=["mail-code"], shares=[2]
            )
    assert [row["attempts"] for row in claimed] == [2, 2]
    late = [
        Tried(dict(row) | {"attempts": 1}, outcome, 0.0, None)
        for row, outcome in zip(claimed, ("done", "parked"), strict=True)
    ]
    await Jobs(services).settle(late)
    rows = await db.fetch("SELECT id, state, attempts FROM jobs")
    assert [tuple(row) for row in rows] == [(claimed[1]["id"], "running", 2)]


async def test_a_tenant_with_many_jobs_leaves_room_for_others(
    services: Services, start: Start, note: Note, db: asyncpg.Connection
) -> None:
    """Also where all that run of its jobs hang."""
    gate = asyncio.Event()

    async def hang() -> None:
        if note.seen[-1]["instance_id"] == 1:
            await gate.wait()

    note.act = hang
    async with services.database.transaction() as connection:
        for number in range(5 * AT_ONCE):
            await enqueue(connection, "note", {"instance_id": 1, "number": number})
    start()

    async def full() -> bool:
        return len(note.seen) == AT_ONCE

    await until(full)
    for _ in range(3):
        await add(services, {"instance_id": 2})
    await until(lambda: _is(services, "done", 3))
    assert sum(payload["instance_id"] == 1 for payload in note.seen) == AT_ONCE
    gate.set()
    await until(lambda: empty(db))


async def test_a_kind_that_fails_leaves_room_for_others_of_its_instance(
    services: Services, start: Start, note: Note, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as mails, where the instance's Microsoft directory is away."""
    gate, other = asyncio.Event(), Note()
    monkeypatch.setitem(JOBS, "other", other)

    async def fail() -> None:
        if note.seen[-1]["number"] == AT_ONCE:
            await gate.wait()
        elif not gate.is_set():
            raise Hopeless

    note.act = fail
    for number in range(AT_ONCE):
        await add(services, {"instance_id": 1, "number": number})
    start()
    await until(lambda: _is(services, "parked", AT_ONCE))
    await add(services, {"instance_id": 1, "number": AT_ONCE})

    async def hangs() -> bool:
        return len(note.seen) == AT_ONCE + 1

    await until(hangs)
    async with services.database.transaction() as connection:
        await enqueue(connection, "other", {"instance_id": 1})

    async def done() -> bool:
        return len(other.seen) == 1

    await until(done, seconds=5)
    gate.set()


async def test_one_outcome_that_cannot_be_noted_does_not_keep_the_others_from_it(
    services: Services, start: Start, note: Note, db: asyncpg.Connection, logged: Log
) -> None:
    """It is told in the log, and its job is tried again once its lease ends."""
    await db.execute("ALTER TABLE jobs ADD CONSTRAINT test CHECK (state <> 'parked' OR kind <> 'note')")

    async def fail_one() -> None:
        if note.seen[-1] == {"number": 1}:
            raise Hopeless

    note.act = fail_one
    for number in range(5):
        await add(services, {"number": number})
    start()
    await until(lambda: _is(services, "done", 4))
    await until(lambda: _told(logged))
    (line,) = [line for line in logged.lines() if line["event"] == "job_not_noted"]
    assert (line["instance_id"], line["kind"]) == (0, "note")
    assert await statuses(db) == ["running"] and counted(services, "parked") == 0


async def _told(logged: Log) -> bool:
    return any(line["event"] == "job_not_noted" for line in logged.lines())


async def test_a_stopped_worker_lets_its_job_finish(
    services: Services, start: Start, note: Note, db: asyncpg.Connection
) -> None:
    running, gate = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        running.set()
        await gate.wait()

    note.act = hold
    await add(services)
    running_worker = start()
    await running.wait()
    running_worker.cancel()
    gate.set()
    await asyncio.gather(running_worker, return_exceptions=True)
    assert await empty(db) and counted(services, "done") == 1


async def test_a_worker_that_is_stopped_while_it_claims_leaves_no_lease(
    services: Services, note: Note, db: asyncpg.Connection
) -> None:
    claimed = asyncio.Event()

    class SlowToHear(Jobs):
        async def _claim(self) -> Any:
            rows = await super()._claim()
            if rows:
                claimed.set()
                await asyncio.sleep(0.1)
            return rows

    await add(services)
    stopped = asyncio.create_task(SlowToHear(services).run())
    await claimed.wait()
    stopped.cancel()
    await asyncio.gather(stopped, return_exceptions=True)
    assert await empty(db) and len(note.seen) == 1


async def test_a_stopped_worker_keeps_the_leases_of_what_it_finishes(
    services: Services, start: Start, note: Note, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that may take, no other worker does the same beside it."""
    monkeypatch.setattr(worker, "LEASE", 3.0)
    patient = services.settings.model_copy(update={"shutdown_timeout": 60})
    gate = asyncio.Event()
    note.act = lambda: _passed(gate)
    await add(services)
    stopped = asyncio.create_task(work(replace(services, settings=patient)))
    await until(lambda: _one(note))
    stopped.cancel()
    start()
    first = await db.fetchval("SELECT due_at FROM jobs")
    await until(lambda: db.fetchval("SELECT now() > $1::timestamptz + interval '1 second'", first))
    gate.set()
    await asyncio.gather(stopped, return_exceptions=True)
    assert await empty(db) and len(note.seen) == 1


async def test_a_job_that_outlasts_its_worker_goes_back_to_the_queue(
    services: Services, start: Start, note: Note, db: asyncpg.Connection
) -> None:
    running = asyncio.Event()

    async def hold() -> None:
        running.set()
        await asyncio.Event().wait()

    note.act = hold
    await add(services)
    running_worker = start()
    await running.wait()
    running_worker.cancel()
    await asyncio.gather(running_worker, return_exceptions=True)
    assert await statuses(db) == ["waiting"] and counted(services, "stopped") == 1


async def test_a_job_goes_back_to_the_queue_if_its_worker_stops_before_it_is_parked(
    services: Services, start: Start, note: Note, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    parking = asyncio.Event()

    async def hold(services: Services, payload: dict[str, Any]) -> None:
        parking.set()
        await asyncio.Event().wait()

    async def fail() -> None:
        raise Hopeless

    monkeypatch.setitem(queue.PARKED, "note", hold)
    note.act = fail
    await add(services)
    running_worker = start()
    await parking.wait()
    running_worker.cancel()
    await asyncio.gather(running_worker, return_exceptions=True)
    assert await statuses(db) == ["waiting"] and counted(services, "stopped") == 1
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
    await db.execute("INSERT INTO jobs (instance_id, kind) VALUES (0, 'future')")
    await add(services)
    start()
    await until(lambda: _one(note))
    assert await db.fetchval("SELECT state FROM jobs WHERE kind = 'future'") == "waiting"


async def test_it_looks_without_being_told(
    services: Services, start: Start, note: Note, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NOTIFY is a hint: on another channel nobody hears it."""
    monkeypatch.setattr(worker, "POLL", 0.1)
    monkeypatch.setattr(queue, "CHANNEL", "somewhere_else")
    await add(services, {"number": 1})
    start()
    await until(lambda: empty(db))
    await add(services, {"number": 2})
    await until(lambda: empty(db))
    assert note.seen == [{"number": 1}, {"number": 2}]


async def test_it_is_told_without_looking(
    services: Services, start: Start, note: Note, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By NOTIFY: the next look is an hour away."""
    monkeypatch.setattr(worker, "POLL", 3600.0)
    start()
    listening = (
        "SELECT true FROM pg_stat_activity WHERE query ILIKE 'LISTEN%jobs%' AND datname = current_database()"
    )
    await until(lambda: db.fetchval(listening))
    await add(services)
    await until(lambda: _one(note))


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
    running_worker = start()
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
    await again.execute("UPDATE jobs SET due_at = now()")
    await add(services, {"number": 2})
    await until(lambda: empty(again))
    await again.close()
    assert not running_worker.done()
    assert {payload["number"] for payload in note.seen} == {1, 2}
    told = [entry["event"] for entry in logged.lines() if entry["level"] != "info"]
    assert [event for event in told if event != "connection_dropped"] == ["queue_waits_for_database"]


# --- the upgrade from pgqueuer ---------------------------------------------------------------------------

OLD_ENQUEUE = (
    "INSERT INTO pgqueuer (priority, entrypoint, payload, execute_after, status)"
    " VALUES (0, $1, $2, now() + make_interval(secs => $3), 'queued')"
)
"""enqueue_job as it was before migration 23."""


async def test_jobs_that_wait_during_the_upgrade_are_carried_over(postgres_url: str) -> None:
    """With their ids and times; what an old worker is doing is left to it as long as that lives."""
    server = await asyncpg.connect(database_named(postgres_url, "postgres"))
    await server.execute("CREATE DATABASE before_jobs")
    db = await asyncpg.connect(database_named(postgres_url, "before_jobs"))
    try:
        migrations = load_migrations()
        await migrate(db, [one for one in migrations if one.version < 23])
        for kind, payload, delay in (
            ("mail-code", b'{"instance_id":7,"email_key":"jane@example.com"}', 0.0),
            ("office365", b'{"instance_id":8,"user_id":2,"request_id":"\\u0000"}', 3600.0),
            ("profile-update", b'{"text":{"instance_id":9}}', 0.0),
            ("parked", None, 0.0),
            ("running", b'{"instance_id":7}', 0.0),
            ("died", b'{"instance_id":7}', 0.0),
        ):
            await db.execute(OLD_ENQUEUE, kind, payload, delay)
        await db.execute(
            "UPDATE pgqueuer SET status = 'failed', updated = now() - interval '1 day' WHERE entrypoint = 'parked'"
        )
        await db.execute("UPDATE pgqueuer SET status = 'picked' WHERE entrypoint IN ('running', 'died')")
        await db.execute(
            "UPDATE pgqueuer SET heartbeat = now() - interval '1 hour' WHERE entrypoint = 'died'"
        )
        before = {row["entrypoint"]: row for row in await db.fetch("SELECT * FROM pgqueuer")}
        await migrate(db, migrations)
        rows = {row["kind"]: row for row in await db.fetch("SELECT * FROM jobs")}
        assert {kind: (row["instance_id"], row["state"]) for kind, row in rows.items()} == {
            "mail-code": (7, "waiting"), "office365": (8, "waiting"), "profile-update": (0, "waiting"),
            "parked": (0, "parked"), "died": (7, "waiting"),
        }  # fmt: skip
        for kind, row in rows.items():
            old = before[kind]
            assert (row["id"], row["created_at"]) == (old["id"], old["created"])
            assert row["payload"] == (old["payload"] or b"{}")
            assert row["due_at"] == old["updated" if kind == "parked" else "execute_after"]
            assert (row["attempts"], row["first_attempt"]) == (0, 0)
        assert [row["entrypoint"] for row in await db.fetch("SELECT * FROM pgqueuer")] == ["running"]
        # No id is given twice, whichever version enqueues.
        await db.execute("INSERT INTO jobs (instance_id, kind) VALUES (1, 'new')")
        await db.execute(OLD_ENQUEUE, "old", None, 0.0)
        await db.execute("SELECT adopt_old_jobs()")
        ids = [row["id"] for row in await db.fetch("SELECT id FROM jobs UNION ALL SELECT id FROM pgqueuer")]
        assert sorted(ids) == [1, 2, 3, 4, 5, 6, 7, 8]
    finally:
        await db.close()
        await server.execute("DROP DATABASE before_jobs")
        await server.close()


async def test_jobs_of_an_old_server_are_done(
    services: Services, start: Start, note: Note, db: asyncpg.Connection
) -> None:
    """During a rolling upgrade it still enqueues where it knows."""
    start()
    await add(services, {"number": 1})
    await until(lambda: _one(note))
    await db.execute(OLD_ENQUEUE, "note", b'{"instance_id":1,"number":2}', 0.0)
    await until(lambda: _is(services, "done", 2))
    assert note.seen == [{"number": 1}, {"instance_id": 1, "number": 2}]
    assert await db.fetchval("SELECT count(*) FROM pgqueuer") == 0
