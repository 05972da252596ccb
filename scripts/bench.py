"""Measures the server against the best its parts can do: make bench ARGS=--quick.

The figures are ratios of rates that were measured in turn (A, B, B, A, ...) within one run, and of those
the median, so that a slow or busy machine moves both sides alike. Everything is real: an embedded Postgres
in a temporary directory (the full run needs 4 GB there), `officerpc serve` processes, and wrk and pgbench as
load. Each entry of MEASUREMENTS starts what it needs and yields figures.
"""

import asyncio
import os
import platform
import re
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import argon2
import orjson
import typer
from _neighbour import Neighbour
from _rig import (
    CORES,
    DEFAULTS,
    FIRST_INSTANCE,
    Bench,
    BenchError,
    Rounds,
    branch_sizes,
    gauge,
    grow_tree,
    pgbench_path,
    run_sql,
    wrk_path,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from server.embedded import embedded_server
from server.methods._provision import creation
from server.methods._users import CreateUser

HASHER = argon2.PasswordHasher(DEFAULTS.argon2_time, DEFAULTS.argon2_memory, DEFAULTS.argon2_parallelism)
PASSWORD = '"password":"correct horse battery"'
err = Console(stderr=True)


@dataclass
class Figure:
    """One result: the median of its samples, and what it should be."""

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
        """The target in words."""
        return "" if self.target is None else f"{'<=' if self.at_most else '>='} {self.target:g}"


def ratio(
    name: str, what: str, rounds: Rounds, of: str, to: str, target: float | None = None, **more: str
) -> Figure:
    """The figure that compares two sides of some rounds.

    Args:
        of, to: the sides; the ratio is taken within each round.
        more: other sides whose rates belong to the details, with their names there.
    """
    sides = {"rate": of, "reference": to} | more
    details = {
        title: round(statistics.median(sides_of[side] for sides_of in rounds), 1)
        for title, side in sides.items()
    }
    return Figure(name, what, [rates[of] / rates[to] for rates in rounds], target, details=details)


def get_user(bench: Bench) -> Iterator[Figure]:
    """getUserByEmail against a handler that runs the same query and nothing else."""
    users = 1000
    few = bench.database("few", users)
    with (
        bench.server(few, 1) as one, bench.bare(few, users, 1) as bare_one,
        bench.server(few, 2) as two, bench.bare(few, users, 2) as bare_two,
    ):  # fmt: skip
        servers = {"one": one, "bare_one": bare_one, "two": two, "bare_two": bare_two}
        for server in servers.values():  # opens connections, prepares statements
            bench.load(server, "get", users=users, seconds=1)
        rounds = bench.alternate(
            "getUserByEmail",
            {name: partial(bench.load, server, "get", users=users) for name, server in servers.items()},
        )
    yield ratio("get_user_vs_bare", "getUserByEmail / bare handler", rounds, "one", "bare_one", 0.70)
    yield ratio("get_user_vs_bare_2", "the same, both with 2 workers", rounds, "two", "bare_two", 0.70)
    yield ratio("get_user_workers", "getUserByEmail, 2 workers / 1", rounds, "two", "one")


def create_user(bench: Bench) -> Iterator[Figure]:
    """createUser with a password against the hashes that the cores can compute.

    The time of a hash is that of one while every core computes one: alone it is up to a tenth shorter, for it
    shares neither cache nor memory with another. The ratio to that stands in the details.
    """
    writes = bench.database("writes", 1000)
    with bench.server(writes, 1) as one, bench.server(writes, 2) as two:
        for server in (one, two):
            bench.load(server, "create", members=PASSWORD, seconds=1)
        rounds = bench.alternate(
            "createUser, password",
            {
                "lone": lambda: CORES / _argon2_seconds(),
                "one": lambda: bench.load(one, "create", members=PASSWORD),
                "all_cores": lambda: _argon2_rate(bench.seconds),
                "two": lambda: bench.load(two, "create", members=PASSWORD),
            },
        )
    for name, side, what in (
        ("create_user_vs_argon2", "one", "createUser / (cores / seconds of a hash)"),
        ("create_user_vs_argon2_2", "two", "the same with 2 workers"),
    ):
        figure = ratio(name, what, rounds, side, "all_cores", 0.85, lone_hashes="lone")
        against_lone = statistics.median(rates[side] / rates["lone"] for rates in rounds)
        figure.details["ratio_to_lone"] = round(against_lone, 3)
        yield figure
    yield ratio("create_user_workers", "createUser, 2 workers / 1", rounds, "two", "one")


def create_hashed_user(bench: Bench) -> Iterator[Figure]:
    """createUser with a given hash against the same statement run by pgbench."""
    writes, password_hash = bench.database("writes", 1000), HASHER.hash("correct horse battery")
    members = f'"passwordHash":"{password_hash}"'
    model = CreateUser(email="any@example.com", displayName="Bench User", passwordHash=password_hash)
    params = {
        "instance_id": str(asyncio.run(run_sql(writes, FIRST_INSTANCE))),
        "display_name": model.displayName,
        "is_active": "true",
        "is_admin": "false",
        "profile": model.profile.model_dump_json(),
        "app_values": model.values.model_dump_json(),
        "settings": "{" + ",".join(map(str, model.settings)) + "}",
        "apps": "{" + ",".join(map(str, model.apps)) + "}",
        "avatar": model.avatar,
        "fields": "{}",
        "language": "en",
        "is_confirmed": "true",
        "password_hash": password_hash,
        "event": orjson.dumps(creation(model)).decode(),
        "method": "createUser",
        "key_id": "1",
        "key_name": "bench",
        "request_id": "0" * 32,
        "address": "127.0.0.1",
        "origin": "bench",
    }
    pool = DEFAULTS.pool_size
    with bench.server(writes, 1) as one, bench.server(writes, 2) as two:
        for server in (one, two):
            bench.load(server, "create", members=members, seconds=1)
        rounds = bench.alternate(
            "createUser, hash",
            {
                "one": lambda: bench.load(one, "create", members=members),
                "pgbench_one": lambda: bench.pgbench(writes, "create_user", params, pool),
                "two": lambda: bench.load(two, "create", members=members),
                "pgbench_two": lambda: bench.pgbench(writes, "create_user", params, pool * 2),
            },
        )
    yield ratio("create_user_vs_pgbench", "createUser / pgbench", rounds, "one", "pgbench_one", 0.35)
    yield ratio("create_user_vs_pgbench_2", "the same with 2 workers", rounds, "two", "pgbench_two", 0.35)


def bulk(bench: Bench) -> Iterator[Figure]:
    """createUsers, a thousand at a time with given hashes, against its statements run by psql alone."""
    writes = bench.database("writes", 1000)
    instance = asyncio.run(run_sql(writes, FIRST_INSTANCE))
    lags: list[float] = []
    with bench.server(writes) as server:
        bench.bulk(server, 1)
        rounds = bench.alternate(
            "createUsers",
            {"server": lambda: bench.bulk(server), "psql": lambda: bench.psql(writes, instance)},
        )
        # As for loop_lag: what the start cost has to go by.
        task = bench.progress.add_task("createUsers, lag", total=1)
        time.sleep(62)
        bench.bulk(server, 5 if bench.quick else 30)
        lags.append(gauge(server, "officerpc_event_loop_lag_seconds"))
        bench.progress.advance(task)
    yield ratio("bulk_vs_psql", "createUsers / the same SQL by psql", rounds, "server", "psql", 0.5)
    yield Figure(
        "bulk_users", "users a second that createUsers makes", [each["server"] for each in rounds], 3000
    )
    yield Figure(
        "bulk_loop_lag", "seconds the event loop is late at most meanwhile", lags, 0.020, at_most=True
    )


def table_size(bench: Bench) -> Iterator[Figure]:
    """getUserByEmail among a thousand users and among a million."""
    sizes = {"few": 1000, "many": bench.large}
    databases = {name: bench.database(name, users) for name, users in sizes.items()}
    with bench.server(databases["few"]) as few, bench.server(databases["many"]) as many:
        for name, server in (("few", few), ("many", many)):
            bench.load(server, "get", users=sizes[name], seconds=bench.seconds)
        rounds = bench.alternate(
            "getUserByEmail, size",
            {
                "few": lambda: bench.load(few, "get", users=sizes["few"]),
                "many": lambda: bench.load(many, "get", users=sizes["many"]),
            },
        )
    what = f"getUserByEmail among {bench.large:,} users / 1,000"
    yield ratio("get_user_table_size", what, rounds, "many", "few", 0.85)


def loop_lag(bench: Bench) -> Iterator[Figure]:
    """How late the event loop is at most while createUser hashes on every core."""
    lags: list[float] = []
    waits: list[float] = []

    def watch() -> None:
        # What a thread that does nothing is late by tells how busy the machine is with others.
        started = time.perf_counter()
        time.sleep(0.05)
        waits.append(time.perf_counter() - started - 0.05)
        if len(waits) % 40 == 0:
            lags.append(gauge(server, "officerpc_event_loop_lag_seconds"))

    with bench.server(bench.database("writes", 1000)) as server:
        # The gauge keeps the worst of a minute: the one with the start in it has to go by.
        task = bench.progress.add_task("createUser, lag", total=2)
        bench.load(server, "create", members=PASSWORD, seconds=62)
        bench.progress.advance(task)
        bench.load(server, "create", members=PASSWORD, seconds=10 if bench.quick else 60, meanwhile=watch)
        lags.append(gauge(server, "officerpc_event_loop_lag_seconds"))
        bench.progress.advance(task)
    details = {"median": round(statistics.median(lags), 4), "idle_thread_late": round(max(waits), 4)}
    yield Figure(
        "loop_lag",
        "seconds the event loop is late at most",
        [max(lags)],
        0.020,
        at_most=True,
        details=details,
    )


def peak_memory(bench: Bench) -> Iterator[Figure]:
    """Memory of a worker that has 200 createUser calls at once."""
    with bench.server(bench.database("writes", 1000)) as server:
        task = bench.progress.add_task("createUser, memory", total=1)
        worker = server.workers[0]
        before = worker.memory_info().rss / 2**20
        Path(f"/proc/{worker.pid}/clear_refs").write_text("5")  # the peak is counted from here on
        bench.load(server, "create", members=PASSWORD, seconds=5 if bench.quick else 15, connections=200)
        status = Path(f"/proc/{worker.pid}/status").read_text()
        bench.progress.advance(task)
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10  # type: ignore[index]
    hashing = CORES * DEFAULTS.argon2_memory / 2**10
    details = {"idle": round(before, 1), "peak": round(peak, 1), "hashing": round(hashing, 1)}
    yield Figure(
        "peak_memory", "MiB of a worker beyond hashing", [peak - hashing], 150, at_most=True, details=details
    )


def search(bench: Bench) -> Iterator[Figure]:
    """searchUsers among a million users, and beneath accounts of a tree of a hundred thousand."""
    many = bench.database("many", bench.large)
    places = bench.large // 10
    asyncio.run(grow_tree(many, places))
    # Places with the most beneath them, then half of that, and so on.
    sizes = asyncio.run(branch_sizes(many, [places, places // 2, places // 4, places // 8, places // 64, 1]))
    texts = {
        "rare": "ser 4242",
        "e-mail": "4242@exam",
        "two letters": "42",
        "everybody": "us",
        "nobody": "zq",
    }
    with bench.server(many) as server:
        for text, words in texts.items():
            taken = bench.latency(server, "searchUsers", {"searchText": words})
            yield Figure(
                f"search_{text.replace(' ', '_')}", f"ms, {words!r} among {bench.large:,} users", taken, 50,
                at_most=True,
            )  # fmt: skip
        for account, beneath in sizes.items():
            worst: list[float] = []
            for words in texts.values():
                taken = bench.latency(server, "searchUsers", {"searchText": words, "accountId": account})
                worst = max(worst, taken, key=lambda samples: statistics.median(samples or [0]))
            what = f"ms, the slowest of these texts beneath a place with {beneath:,} beneath it"
            yield Figure(f"search_beneath_{beneath}", what, worst, 50, at_most=True)
        taken = bench.latency(server, "getBranch", {"accountId": 1})
        yield Figure("branch", f"ms, getBranch at the root of {places:,} places", taken, 50, at_most=True)


def fair_shares(bench: Bench) -> Iterator[Figure]:
    """Look-ups of a tenant while another one has a lot of work, by their 99th percentile when it has none.

    The load of a round goes on for as long as the look-ups are measured. In the details are medians of these,
    of a login and of a change of the quiet tenant meanwhile, all of which must succeed, and how many calls of
    the load were answered with 200 and with 503.
    """
    users = 1000
    user = {"email": "quiet@example.com", "password": "correct horse battery"}
    change = {"email": "quiet@example.com", "displayName": "Quiet User"}
    database = bench.database("shared", users)
    neighbour = Neighbour(database, "NEIGHBOUR")
    with bench.server(database) as server:
        neighbour.prepare(server)
    loads = {
        "bulk": ("while another creates 200 users a call, 30 at once", neighbour.creating),
        "lock": ("while 30 calls of another wait for a locked row", neighbour.locked),
        "logins": ("while another has 120 logins with bcrypt, cost 14", neighbour.logging_in),
    }
    rounds = 1 if bench.quick else 5
    task = bench.progress.add_task("fair shares", total=rounds * len(loads))
    for name, (what, load) in loads.items():
        ratios, details = [], defaultdict[str, float](float)
        for _ in range(rounds):
            # A server of its own for each: calls of the load that nobody waits for any more would go on.
            with bench.server(database, OFFICERPC_SHUTDOWN_TIMEOUT="1") as server:
                bench.latency(server, "ensureUser", user, 1)
                bench.reads(server, users)
                quiet = bench.reads(server, users)
                with load(server) as statuses:
                    time.sleep(1)
                    busy = bench.reads(server, users)
                    login = statistics.median(bench.latency(server, "login", user, 3))
                    write = statistics.median(bench.latency(server, "updateUserByEmail", change, 3))
            ratios.append(busy["p99"] / quiet["p99"])
            for title, value in {
                "quiet_p99_ms": quiet["p99"], "p50_ms": busy["p50"], "p99_ms": busy["p99"],
                "login_ms": login, "change_ms": write, "load_200": statuses[200], "load_503": statuses[503],
            }.items():  # fmt: skip
                details[title] += value / rounds
            bench.progress.advance(task)
        rounded = {title: round(value, 2) for title, value in details.items()}
        yield Figure(
            f"fair_{name}", f"p99 of look-ups {what} / alone", ratios, 5, at_most=True, details=rounded
        )


MEASUREMENTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "get_user": get_user,
    "create_user": create_user,
    "create_hashed_user": create_hashed_user,
    "bulk": bulk,
    "table_size": table_size,
    "search": search,
    "loop_lag": loop_lag,
    "peak_memory": peak_memory,
    "fair_shares": fair_shares,
}


def _argon2_seconds() -> float:
    """Of one hash with the default parameters, while the other cores are idle."""
    taken = []
    for _ in range(30):
        started = time.perf_counter()
        HASHER.hash("correct horse battery")
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _argon2_rate(seconds: float) -> float:
    """Hashes a second with a thread for every core."""

    def hash_until(end: float) -> int:
        hashes = 0
        while time.perf_counter() < end:
            HASHER.hash("correct horse battery")
            hashes += 1
        return hashes

    started = time.perf_counter()
    with ThreadPoolExecutor(CORES) as threads:
        hashes = sum(threads.map(hash_until, [started + seconds] * CORES))
    return hashes / (time.perf_counter() - started)


def _table(figures: list[Figure]) -> Table:
    table = Table("Figure", "Value", "Target", "Met", "Details", show_lines=True)
    for figure in figures:
        met = {True: "[green]yes", False: "[red]no", None: ""}[figure.met]
        value = f"{figure.value:.3g}"
        if len(figure.samples) > 1:
            value += f"\n[dim]{min(figure.samples):.3g} to {max(figure.samples):.3g}"
        details = "\n".join(f"{name} {value:g}" for name, value in figure.details.items())
        table.add_row(f"{figure.name}\n[dim]{figure.what}", value, figure.wanted, met, details)
    return table


def _document(figures: list[Figure], quick: bool) -> dict[str, Any]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": CORES,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "quick": quick,
        "figures": [asdict(figure) | {"value": figure.value, "met": figure.met} for figure in figures],
    }


def main(
    path: Annotated[Path, typer.Option("--json", help="Where the figures go.")] = Path(".data/bench.json"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Short loads, and 100,000 users instead of a million.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"Some of: {', '.join(MEASUREMENTS)}.")
    ] = None,
) -> None:
    """Measure, print the figures with their targets, and write them as JSON."""
    names = only or list(MEASUREMENTS)
    if unknown := [name for name in names if name not in MEASUREMENTS]:
        _fail(f"no measurement {unknown[0]}: there are {', '.join(MEASUREMENTS)}")
    if (load := os.getloadavg()[0]) > CORES / 2:
        err.print(f"The machine is busy (load {load:.1f}): expect figures to scatter.", style="yellow")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    figures: list[Figure] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        wrk_path(), pgbench_path()  # better missing now than in ten minutes
        with (
            tempfile.TemporaryDirectory(prefix="officerpc-bench-") as directory,
            embedded_server(Path(directory)) as postgres,
            Progress(*columns, console=err) as progress,
        ):
            bench = Bench(Path(directory), postgres.url, quick, progress)
            for name in names:
                figures += MEASUREMENTS[name](bench)
    except BenchError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted")
    Console().print(_table(figures))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(_document(figures, quick), option=orjson.OPT_INDENT_2) + b"\n")
    err.print(f"{CORES} cores; written to {path}", highlight=False)


def _fail(message: str) -> NoReturn:
    err.print(f"bench: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
