"""Rows of bench.py: what a tenant notices of another's work."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator

from _figures import Figure
from _neighbour import Neighbour
from _rig import Bench


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
    rounds = (bench.scale.rounds + 1) // 2
    task = bench.progress.add_task("fair shares", total=rounds * len(loads))
    for name, (what, load) in loads.items():
        ratios, details = [], defaultdict[str, float](float)
        for _ in range(rounds):
            # A server of its own for each: calls of the load that nobody waits for any more would go on.
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
