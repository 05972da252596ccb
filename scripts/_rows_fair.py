"""Rows of bench.py: how the load of one tenant slows down another."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator

from _figures import Figure
from _neighbour import Neighbour
from _rig import Bench


def fair_shares(bench: Bench) -> Iterator[Figure]:
    """The 99th percentile of look-ups of a tenant while another has heavy load, compared with no load.

    The load runs as long as the look-ups are measured. The details have the times of look-ups, a login and a
    change of the quiet tenant meanwhile, which must all succeed, and the numbers of 200 and 503 of the load.
    """
    users = 1000
    user = {"email": "quiet@example.com", "password": "correct horse battery"}
    change = {"email": "quiet@example.com", "displayName": "Quiet User"}
    database = bench.database("shared", users)
    neighbour = Neighbour(database, "NEIGHBOUR")
    with bench.server(database) as server:
        neighbour.prepare(server)
    loads = {
        "bulk": ("while another tenant has 30 concurrent createUsers of 200", neighbour.creating),
        "lock": ("while 30 calls of another tenant wait for a locked row", neighbour.locked),
        "logins": ("while another tenant has 120 logins with bcrypt, cost 14", neighbour.logging_in),
    }
    rounds = (bench.scale.rounds + 1) // 2
    task = bench.progress.add_task("fair shares", total=rounds * len(loads))
    for name, (what, load) in loads.items():
        ratios, details = [], defaultdict[str, float](float)
        for _ in range(rounds):
            # A new server for each round: calls of the load would go on after it.
            with bench.server(database, settings={"OFFICERPC_SHUTDOWN_TIMEOUT": "1"}) as server:
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
