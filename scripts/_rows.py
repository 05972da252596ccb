"""Rows of bench.py: reads, writes, search, the event loop and memory."""

import asyncio
import re
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import argon2
from _data import branch_sizes, grow_tree
from _figures import Figure, ratio
from _rig import CORES, DEFAULTS, Bench, bulk_users, gauge
from _statements import recorded

HASHER = argon2.PasswordHasher(DEFAULTS.argon2_time, DEFAULTS.argon2_memory, DEFAULTS.argon2_parallelism)
HASH = HASHER.hash("correct horse battery")
PASSWORD = '"password":"correct horse battery"'


def get_user(bench: Bench) -> Iterator[Figure]:
    """getUserByEmail compared with a bare handler that runs the same query."""
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


def scim(bench: Bench) -> Iterator[Figure]:
    """A SCIM user by id and by userName, against a handler with the same query; PATCH against /rpc."""
    users = 1000
    few = bench.database("few", users)
    with bench.server(few) as server, bench.bare(few, users) as bare:
        sides = {
            "get": (server, "scim_get"), "find": (server, "scim_find"),
            "bare_get": (bare, "scim_get"), "bare_find": (bare, "scim_find"),
            "patch": (server, "scim_active"), "update": (server, "active"),
        }  # fmt: skip
        for side, kind in sides.values():
            bench.load(side, kind, users=users, seconds=1)
        rounds = bench.alternate(
            "SCIM",
            {name: partial(bench.load, side, kind, users=users) for name, (side, kind) in sides.items()},
        )
    yield ratio("scim_get_vs_bare", "SCIM: GET Users/{id} / bare handler", rounds, "get", "bare_get", 0.60)
    what = "SCIM: filter=userName eq / bare handler"
    yield ratio("scim_find_vs_bare", what, rounds, "find", "bare_find", 0.60)
    yield ratio(
        "scim_patch_vs_update", "SCIM: PATCH active / updateUserByEmail", rounds, "patch", "update", 0.80
    )


def create_user(bench: Bench) -> Iterator[Figure]:
    """createUser with a password compared with the hashes that the cores can compute.

    Hashes are timed while every core computes one. A lone hash is up to a tenth faster, as it does not share
    cache and memory; the ratio to that is in the details.
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
                "all_cores": lambda: _argon2_rate(bench.scale.seconds),
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
    """createUser with a given hash compared with pgbench running the same statement."""
    writes = bench.database("writes", 1000)
    members = f'"passwordHash":"{HASH}"'
    marker = "any@example.com"
    user = {"email": marker, "displayName": "Bench User", "passwordHash": HASH}
    (statement,) = recorded(writes, "createUser", user | {"instance": DEFAULTS.bootstrap_instance})
    pool = DEFAULTS.pool_size
    with bench.server(writes, 1) as one, bench.server(writes, 2) as two:
        for server in (one, two):
            bench.load(server, "create", members=members, seconds=1)
        rounds = bench.alternate(
            "createUser, hash",
            {
                "one": lambda: bench.load(one, "create", members=members),
                "pgbench_one": lambda: bench.pgbench(writes, statement, pool, marker),
                "two": lambda: bench.load(two, "create", members=members),
                "pgbench_two": lambda: bench.pgbench(writes, statement, pool * 2, marker),
            },
        )
    yield ratio("create_user_vs_pgbench", "createUser / pgbench", rounds, "one", "pgbench_one", 0.35)
    yield ratio("create_user_vs_pgbench_2", "the same with 2 workers", rounds, "two", "pgbench_two", 0.35)


def bulk(bench: Bench) -> Iterator[Figure]:
    """createUsers, a thousand users a call with given hashes, compared with psql running its statements."""
    writes = bench.database("writes", 1000)
    marker = "xmarkerx"
    params = {"instance": DEFAULTS.bootstrap_instance, "users": bulk_users(marker, HASH)}
    statements = recorded(writes, "createUsers", params)
    lags: list[float] = []
    with bench.server(writes) as server:
        bench.bulk(server, HASH, 1)
        rounds = bench.alternate(
            "createUsers",
            {
                "server": lambda: bench.bulk(server, HASH),
                "psql": lambda: bench.psql(writes, statements, marker),
            },
        )
        # Wait until the gauge of the last minute no longer includes the start of the server.
        task = bench.progress.add_task("createUsers, lag", total=1)
        time.sleep(bench.scale.settle)
        bench.bulk(server, HASH, bench.scale.watch // 2)
        lags.append(gauge(server, "officerpc_event_loop_lag_seconds"))
        bench.progress.advance(task)
    yield ratio("bulk_vs_psql", "createUsers / psql with the same SQL", rounds, "server", "psql", 0.5)
    created = [rates["server"] for rates in rounds]
    yield Figure("bulk_users", "users a second that createUsers creates", created, 3000)
    yield Figure("bulk_loop_lag", "maximum event loop lag meanwhile, seconds", lags, 0.020, at_most=True)


def fresh(bench: Bench) -> Iterator[Figure]:
    """createUser with a given hash in a fresh database: the first and the tenth thousand users."""
    rounds = (bench.scale.rounds + 1) // 2
    ratios: list[float] = []
    thousands: list[list[float]] = []
    task = bench.progress.add_task("createUser, fresh", total=rounds * 10)
    for number in range(rounds):
        with bench.server(bench.database(f"fresh{number}")) as server:
            bench.create_each(server, 40, HASH)  # opens connections, prepares statements
            rates: list[float] = []
            for _ in range(10):
                rates.append(bench.create_each(server, bench.scale.tenth, HASH))
                bench.progress.advance(task)
            thousands.append(rates)
            ratios.append(min(rates[0], rates[9]) / max(rates[0], rates[9]))
    details = {
        f"thousand_{number + 1}": round(statistics.median(rates[number] for rates in thousands), 1)
        for number in range(10)
    }
    what = "createUser in a fresh database: the slower / the faster of the first and the tenth thousand"
    yield Figure("fresh_database", what, ratios, 0.85, details=details)


def table_size(bench: Bench) -> Iterator[Figure]:
    """getUserByEmail among a thousand users and among a million."""
    sizes = {"few": 1000, "many": bench.scale.large}
    databases = {name: bench.database(name, users) for name, users in sizes.items()}
    with bench.server(databases["few"]) as few, bench.server(databases["many"]) as many:
        for name, server in (("few", few), ("many", many)):
            bench.load(server, "get", users=sizes[name], seconds=bench.scale.seconds)
        rounds = bench.alternate(
            "getUserByEmail, size",
            {
                "few": lambda: bench.load(few, "get", users=sizes["few"]),
                "many": lambda: bench.load(many, "get", users=sizes["many"]),
            },
        )
    what = f"getUserByEmail among {bench.scale.large:,} users / 1,000"
    yield ratio("get_user_table_size", what, rounds, "many", "few", 0.85)


def loop_lag(bench: Bench) -> Iterator[Figure]:
    """Maximum event loop lag while createUser hashes on every core."""
    lags: list[float] = []
    waits: list[float] = []

    def watch() -> None:
        # The delay of an idle thread shows the load by other programs.
        started = time.perf_counter()
        time.sleep(0.05)
        waits.append(time.perf_counter() - started - 0.05)
        if len(waits) % 40 == 0:
            lags.append(gauge(server, "officerpc_event_loop_lag_seconds"))

    with bench.server(bench.database("writes", 1000)) as server:
        # Wait until the gauge of the last minute no longer includes the start of the server.
        task = bench.progress.add_task("createUser, lag", total=2)
        bench.load(server, "create", members=PASSWORD, seconds=bench.scale.settle)
        bench.progress.advance(task)
        bench.load(server, "create", members=PASSWORD, seconds=bench.scale.watch, meanwhile=watch)
        lags.append(gauge(server, "officerpc_event_loop_lag_seconds"))
        bench.progress.advance(task)
    details = {"median": round(statistics.median(lags), 4), "idle_thread_late": round(max(waits), 4)}
    what = "maximum event loop lag, seconds"
    yield Figure("loop_lag", what, [max(lags)], 0.020, at_most=True, details=details)


def peak_memory(bench: Bench) -> Iterator[Figure]:
    """Memory of a worker with 200 concurrent createUser calls."""
    with bench.server(bench.database("writes", 1000)) as server:
        task = bench.progress.add_task("createUser, memory", total=1)
        worker = server.workers[0]
        before = worker.memory_info().rss / 2**20
        Path(f"/proc/{worker.pid}/clear_refs").write_text("5")  # resets the peak
        bench.load(server, "create", members=PASSWORD, seconds=bench.scale.watch // 2, connections=200)
        status = Path(f"/proc/{worker.pid}/status").read_text()
        bench.progress.advance(task)
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10  # type: ignore[index]
    hashing = CORES * DEFAULTS.argon2_memory / 2**10
    details = {"idle": round(before, 1), "peak": round(peak, 1), "hashing": round(hashing, 1)}
    yield Figure(
        "peak_memory", "MiB of a worker beyond hashing", [peak - hashing], 150, at_most=True, details=details
    )


def search(bench: Bench) -> Iterator[Figure]:
    """searchUsers among a million users, and below accounts of a tree of a hundred thousand."""
    many = bench.database("many", bench.scale.large)
    places = bench.scale.large // 10
    asyncio.run(grow_tree(many, places))
    # Accounts with different numbers of accounts below them.
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
                f"search_{text.replace(' ', '_')}", f"ms, {words!r} among {bench.scale.large:,} users",
                taken, 50, at_most=True,
            )  # fmt: skip
        for account, below in sizes.items():
            worst: list[float] = []
            for words in texts.values():
                taken = bench.latency(server, "searchUsers", {"searchText": words, "accountId": account})
                worst = max(worst, taken, key=lambda samples: statistics.median(samples or [0]))
            what = f"ms, the slowest of these texts below an account with {below:,} below it"
            yield Figure(f"search_beneath_{below}", what, worst, 50, at_most=True)
        taken = bench.latency(server, "getBranch", {"accountId": 1})
        yield Figure("branch", f"ms, getBranch at the root of {places:,} accounts", taken, 50, at_most=True)


def _argon2_seconds() -> float:
    """The time of one hash with the default parameters, while the other cores are idle."""
    taken = []
    for _ in range(30):
        started = time.perf_counter()
        HASHER.hash("correct horse battery")
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _argon2_rate(seconds: float) -> float:
    """Hashes a second with one thread for each core."""

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
