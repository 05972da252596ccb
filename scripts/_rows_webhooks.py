"""Rows of bench.py: webhooks."""

import asyncio
import contextlib
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import asyncpg
from _data import FIRST_INSTANCE
from _figures import Figure
from _rig import Bench, BenchError

from server.outside.outbound import new_secret

EVENTS = """
INSERT INTO events (instance_id, place, type, user_id, after, method, key_id, key_name, request_id)
SELECT
    $1, number, 'user.created', number, jsonb_build_object('email', 'user' || number || '@example.com'),
    'createUsers', 1, 'bench', '0'
FROM generate_series(1, 1000) AS number
"""
WEBHOOK = """
INSERT INTO webhooks (instance_id, id, url, description, types, secret) VALUES ($1, 1, $2, 'bench', '{}', $3)
ON CONFLICT (instance_id, id) DO UPDATE
SET url = $2, read_xid = event_horizon(), read_place = 0
"""


@contextlib.contextmanager
def _receiver(milliseconds: int) -> Iterator[str]:
    """The address of a receiver process that answers each delivery after so many milliseconds."""
    command = [sys.executable, str(Path(__file__).with_name("_receiver.py")), str(milliseconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
        finally:
            process.kill()


async def _add_events(database: str, url: str, thousands: int) -> None:
    connection = await asyncpg.connect(database)
    try:
        instance = await connection.fetchval(FIRST_INSTANCE)
        await connection.execute(WEBHOOK, instance, url, new_secret())
        for _ in range(thousands):
            await connection.execute(EVENTS, instance)
    finally:
        await connection.close()


def _rate(bench: Bench, database: str, milliseconds: int, thousands: int) -> tuple[float, float]:
    """Deliveries a second of new events by one worker, and its milliseconds of CPU for each."""
    private = {"OFFICERPC_WEBHOOK_PRIVATE_ADDRESSES": "true"}
    with _receiver(milliseconds) as url, bench.server(database, 1, private) as server:
        before = server.workers[0].cpu_times()
        asyncio.run(_add_events(database, url, thousands))
        until = time.monotonic() + 120
        while True:
            with urllib.request.urlopen(url, timeout=10) as response:
                seen, seconds = response.read().split()
            if int(seen) >= thousands * 1000:
                after = server.workers[0].cpu_times()
                cpu = after.user + after.system - before.user - before.system
                return (int(seen) - 1) / float(seconds), cpu / int(seen) * 1000
            if time.monotonic() > until:
                raise BenchError(f"{int(seen)} of {thousands * 1000} deliveries arrived within two minutes")
            time.sleep(0.1)


def webhooks(bench: Bench) -> Iterator[Figure]:
    """Deliveries of one webhook to a receiver that answers at once, and to one that answers after 100 ms."""
    database = bench.database("hooks")
    rounds = (bench.scale.rounds + 1) // 2
    for name, milliseconds, thousands, target in (("fast", 0, 5, 1000), ("slow", 100, 2, 300)):
        task = bench.progress.add_task(f"webhooks, {milliseconds} ms", total=rounds)
        rates, cpus = [], []
        for _ in range(rounds):
            rate, cpu = _rate(bench, database, milliseconds, min(thousands, bench.scale.batches))
            rates.append(rate)
            cpus.append(cpu)
            bench.progress.advance(task)
        what = f"deliveries a second to a receiver that answers after {milliseconds} ms"
        yield Figure(
            f"webhooks_{name}", what, rates, target, details={"cpu_ms": round(statistics.median(cpus), 3)}
        )
