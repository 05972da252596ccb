"""`officerpc serve` as processes: started, signalled and killed.

Numbers are lines of the list of faults (design.md, "Time, faults and limits").
"""

import asyncio
import contextlib
import errno
import json
import os
import random
import shlex
import shutil
import signal
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import psutil
import pytest
from asyncpg import exceptions as pg
from conftest import ADMIN, insert_key
from processes import (
    DroppingProxy,
    Officerpc,
    OwnPostgres,
    Served,
    connected,
    emails,
    eventually,
    exchange,
    folder_for_postgres,
    kill,
    request,
    running,
)

from server.base.settings import Settings
from server.postgres.db import is_away, translated
from server.serving.process import Arbiter

pytestmark = pytest.mark.slow
LOOK_UP = {"method": "getUserByEmail", "params": {"email": ADMIN}}


@pytest.fixture
def embedded() -> Iterator[Officerpc]:
    """officerpc with a data directory of its own."""
    with running() as officerpc:
        yield officerpc


@pytest.fixture
def officerpc(database_url: str) -> Iterator[Officerpc]:
    """officerpc on the test's database."""
    with running(database_url) as officerpc:
        yield officerpc


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


@pytest.fixture
async def key(db: asyncpg.Connection) -> str:
    return await insert_key(db)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those of them that still run."""
    return [
        process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def naming(path: Path) -> list[list[str]]:
    """The command lines of all processes that name a path."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if any(str(path) in argument for argument in line)]


async def call(
    http: aiohttp.ClientSession, served: Served, key: str, method: str, params: Any
) -> tuple[int, Any]:
    """One call; OSError or aiohttp.ClientError if there is no answer."""
    async with http.post(
        served.url + "/rpc", json={"method": method, "params": params}, headers={"x-api-key": key}
    ) as response:
        return response.status, await response.json()


class Load:
    """Clients that create users one after another until the server is gone or they are told to stop."""

    def __init__(
        self, http: aiohttp.ClientSession, served: Served, key: str, name: str, clients: int = 6
    ) -> None:
        self.acknowledged: list[str] = []
        self.stopped = asyncio.Event()
        self._call = (http, served, key, "createUser")
        self._tasks = [asyncio.create_task(self._client(f"{name}{number}")) for number in range(clients)]

    async def _client(self, name: str) -> None:
        number = 0
        while not self.stopped.is_set():
            number += 1
            email = f"{name}-{number}@example.com"
            with contextlib.suppress(aiohttp.ClientError, OSError):
                status, answer = await call(*self._call, {"email": email, "password": "demo1234"})
                assert status in (200, 503), answer
                if status == 200:
                    self.acknowledged.append(email)
                continue
            await asyncio.sleep(0.01)

    async def reached(self, count: int) -> None:
        """Wait until so many users were acknowledged in all."""
        await eventually(lambda: len(self.acknowledged) >= count or any(task.done() for task in self._tasks))

    async def end(self) -> list[str]:
        """Who was acknowledged."""
        self.stopped.set()
        await asyncio.gather(*self._tasks)
        return self.acknowledged


# --- starting -----------------------------------------------------------------------------------------


async def test_first_and_second_start(embedded: Officerpc) -> None:
    """The first start prints URL, key and a curl line that works as it stands; the next keeps the data."""
    first = await embedded.serve(forked=False)
    key, command = shown_key(first), first.output.splitlines()[-1]
    assert f"officerpc serves {first.url}/rpc" in first.output.splitlines()
    assert json.loads(await through_a_shell(command))["email"] == ADMIN

    async with aiohttp.ClientSession() as http:
        status, created = await call(http, first, key, "createUser", {"email": "jane@example.com"})
        assert (status, created["id"]) == (200, 2)
        postgres = embedded.postgres()
        assert await first.stop() == 0
        assert key not in first.log

        second = await embedded.serve()
        assert second.output.splitlines() == [
            f"OFFICERPC_SMTP_HOST is not set: mails are written to {embedded.data_dir}/mail",
            f"officerpc serves {second.url}/rpc",
        ]
        status, found = await call(http, second, key, "getUserByEmail", {"email": "jane@example.com"})
        assert (status, found["id"]) == (200, 2)
    postgres += embedded.postgres()
    assert len(postgres) > 2
    assert await second.stop() == 0
    assert alive(postgres) == [] and naming(embedded.data_dir) == []


def shown_key(served: Served) -> str:
    """The API key on standard output of a first start."""
    (line,) = [line for line in served.output.splitlines() if line.startswith("API key of MYINSTANCE")]
    key = line.rpartition(" ")[2]
    assert key.startswith("orpc_")
    return key


async def through_a_shell(command: str) -> str:
    """What the printed curl line prints; where there is no curl, what its request is answered."""
    if shutil.which("curl"):
        process = await asyncio.create_subprocess_shell(command, stdout=asyncio.subprocess.PIPE)
        printed, _ = await process.communicate()
        return printed.decode()
    program, silent, url, *options = shlex.split(command)
    assert (program, silent, options[0::2]) == ("curl", "-s", ["-H", "-H", "-d"])
    headers = dict(header.split(": ") for header in (options[1], options[3]))
    async with aiohttp.ClientSession() as http, http.post(url, data=options[5], headers=headers) as response:
        return await response.text()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OFFICERPC_PORT", "eighty"),
        ("OFFICERPC_WORKERS", "0"),
        ("OFFICERPC_CALL_TIMEOUT", "-1"),
        ("OFFICERPC_LOG_LEVEL", "loud"),
        ("OFFICERPC_TRUSTED_PROXIES", "everybody"),
        ("OFFICERPC_BOOTSTRAP_API_KEY", "hunter2hunter2\u00fc"),
        ("OFFICERPC_DATABASE_URL", "mysql://root:hunter2hunter2@localhost/db"),
    ],
)
async def test_bad_settings(variable: str, value: str, embedded: Officerpc) -> None:
    """Status 1 and a line that names the variable, without what it holds of secrets."""
    name = variable.removeprefix("OFFICERPC_").lower()
    served = embedded.launch(**{"port": 1} | {name: value})
    assert await served.ended() == 1
    assert any(line.startswith(variable) for line in served.log.splitlines()), served.log
    assert "Traceback" not in served.log and "hunter2" not in served.log + served.output


@pytest.fixture
def own(postgres_url: str) -> Iterator[OwnPostgres]:
    """A Postgres of the test's own, not yet made."""
    with folder_for_postgres() as folder:
        server = asyncio.run(OwnPostgres.beside(postgres_url, folder))
        yield server
        kill(server.processes())


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_database_is_away_at_the_start(
    workers: int, own: OwnPostgres, http: aiohttp.ClientSession
) -> None:
    """6: it is live and not ready, says so once, and does what a first start does when the database comes."""
    with running(own.url) as officerpc:
        served = officerpc.launch(workers=workers)
        await eventually(lambda: "serve_waits_for_database" in served.log)
        plain = b"Host: x\r\nConnection: close\r\n\r\n"
        for _ in range(2):
            assert (await exchange(served.url, b"GET /livez HTTP/1.1\r\n" + plain)).status == 200
            assert (await exchange(served.url, b"GET /readyz HTTP/1.1\r\n" + plain)).status == 503
            answer = await exchange(served.url, request(json.dumps(LOOK_UP).encode()))
            assert (answer.status, answer.header("X-Error-Code")) == (503, "unavailable")
            assert answer.header("Retry-After") and isinstance(json.loads(answer.body), str)
        own.create()

        async def ready() -> bool:
            # The port changes hands: a connection that was accepted at that moment is closed unanswered.
            with contextlib.suppress(IndexError):
                return (await exchange(served.url, b"GET /readyz HTTP/1.1\r\n" + plain)).status == 200
            return False

        await eventually(ready)
        assert (await call(http, served, shown_key(served), **LOOK_UP))[0] == 200
        assert served.log.count("serve_waits_for_database") == 1
        assert await served.stop() == 0


@pytest.mark.parametrize(
    ("host", "url", "reached_at"),
    [
        ("::", "http://[::]", ["127.0.0.1", "::1"]),
        ("[::]", "http://[::]", ["127.0.0.1", "::1"]),
        ("[::1]", "http://[::1]", ["::1"]),
        ("0.0.0.0", "http://0.0.0.0", ["127.0.0.1"]),
    ],
)
async def test_listening_on_ipv6(
    host: str, url: str, reached_at: list[str], officerpc: Officerpc, key: str
) -> None:
    """With brackets or without; :: is all addresses of the machine, those of IPv4 too."""
    served = officerpc.launch(host=host)
    port = served.url.rpartition(":")[2]
    await eventually(lambda: "officerpc serves" in served.output or served.process.poll() is not None)
    assert f"officerpc serves {url}:{port}/rpc" in served.output, served.log
    for address in reached_at:
        at = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
        assert (await exchange(at, b"GET /livez HTTP/1.0\r\n\r\n")).status == 200
    assert await served.stop() == 0


async def test_sigterm_while_the_database_is_away(own: OwnPostgres) -> None:
    """14: whoever waits for its database ends with status 0 too."""
    with running(own.url) as officerpc:
        served = officerpc.launch()
        await eventually(lambda: "serve_waits_for_database" in served.log)
        assert await served.stop() == 0
        assert await eventually(lambda: refuses(served.url))


async def test_the_answer_to_the_first_key_is_lost(
    officerpc: Officerpc, database_url: str, db: asyncpg.Connection, http: aiohttp.ClientSession
) -> None:
    """7: the key was stored when the connection broke; the next try shows that key and makes no other."""
    with tempfile.TemporaryDirectory(prefix="officerpc-proxy-") as folder:
        async with DroppingProxy(database_url, Path(folder), after=True).running() as proxy:
            proxy.arm()
            served = await officerpc.serve(database_url=proxy.url)
            assert "serve_waits_for_database" in served.log
            assert (await call(http, served, shown_key(served), **LOOK_UP))[0] == 200
            assert await db.fetchval("SELECT count(*) FROM api_keys") == 1
            assert await served.stop() == 0


async def test_work_waits_for_the_database(own: OwnPostgres, http: aiohttp.ClientSession) -> None:
    """6: `officerpc work` does so too, and works the queue once the database is there."""
    with running(own.url) as officerpc:
        worker = officerpc.launch("work")
        await eventually(lambda: "queue_waits_for_database" in worker.log)
        own.create()
        served = await officerpc.serve(run_jobs=False)
        key = shown_key(served)
        db = await asyncpg.connect(own.url)
        await db.execute("""UPDATE instances SET settings = '{"confirmationHosts": ["example.com"]}'""")
        await db.close()
        asked = {"email": ADMIN, "confirmationUrl": "https://example.com/{{code}}"}
        assert (await call(http, served, key, "requestPasswordReset", asked))[0] == 200
        await eventually(lambda: list(worker.folder.glob(".data/mail/[!.]*.eml")))
        assert await worker.stop() == 0
        assert await served.stop() == 0


async def test_there_is_no_such_database(officerpc: Officerpc, database_url: str) -> None:
    served = officerpc.launch(database_url=database_url.replace("/test_", "/missing_"))
    assert await served.ended() == 1
    assert "does not exist" in served.log and "Traceback" not in served.log


async def test_a_migration_that_is_refused(officerpc: Officerpc, db: asyncpg.Connection) -> None:
    """Waiting would not help: status 1 and one line."""
    await db.execute("INSERT INTO schema_migrations (version, name, checksum) VALUES (9999, 'x', 'x')")
    served = officerpc.launch()
    assert await served.ended() == 1
    assert "migration 9999, which this program does not know" in served.log and "Traceback" not in served.log


async def test_a_schema_that_is_not_ours(officerpc: Officerpc, db: asyncpg.Connection) -> None:
    """The driver's own error, of a statement of the migration: status 1 and one line."""
    await db.execute("ALTER TABLE schema_migrations RENAME COLUMN checksum TO sum")
    served = officerpc.launch()
    assert await served.ended() == 1
    assert 'the database cannot be prepared: column "checksum" does not exist' in served.log
    assert "Traceback" not in served.log
    migrated = await officerpc.command("migrate")
    assert migrated.returncode == 1
    assert 'column "checksum" does not exist' in migrated.stderr and "Traceback" not in migrated.stderr


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        # Of statements of a migration, which nobody translates.
        (pg.ConnectionDoesNotExistError("connection was closed in the middle of operation"), True),
        (pg.AdminShutdownError("terminating connection due to administrator command"), True),
        (pg.ReadOnlySQLTransactionError("cannot execute CREATE TABLE in a read-only transaction"), True),
        (pg.DiskFullError("could not extend file"), True),
        (pg.LockNotAvailableError("canceling statement due to lock timeout"), True),
        (pg.InterfaceError("connection is closed"), True),
        (pg.CannotConnectNowError("the database system is starting up"), True),
        # Of connecting.
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed"), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), True),  # the Unix socket
        (OSError(errno.EHOSTUNREACH, "No route to host"), True),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed"), True),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), True),
        (TimeoutError(), True),
        # What waiting does not mend.
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "root.crt"), False),
        (OSError(errno.EMFILE, "Too many open files"), False),
        (ssl.SSLCertVerificationError("certificate verify failed"), False),
        (pg.InvalidPasswordError("password authentication failed"), False),
        (pg.InvalidCatalogNameError('database "x" does not exist'), False),
        (pg.InsufficientPrivilegeError("permission denied for schema public"), False),
        (pg.UndefinedColumnError('column "checksum" does not exist'), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_which_errors_are_waited_out(error: Exception, waits: bool) -> None:
    """The driver's error and what it is translated into are judged alike."""
    assert is_away(error) is waits
    known = translated(error)
    known.__cause__ = error if known is not error else None
    assert is_away(known) is waits


async def test_the_port_is_taken(officerpc: Officerpc) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        served = officerpc.launch(port=port)
        assert await served.ended() != 0
    assert f"cannot listen on 127.0.0.1:{port}: see OFFICERPC_HOST and OFFICERPC_PORT" in served.log
    assert "Traceback" not in served.log


# --- ending -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C"])
async def test_a_signal_ends_everything(how: str, embedded: Officerpc) -> None:
    """14: status 0, and neither a worker nor a process of Postgres is left."""
    served = await embedded.serve(workers=2)
    started = [*served.workers(), *embedded.postgres()]
    assert len(started) > 4
    if how == "Ctrl-C":  # a terminal sends it to all processes that were started there
        os.killpg(served.process.pid, signal.SIGINT)
        assert await served.ended() == 0
    else:
        assert await served.stop() == 0
    assert alive(started) == [] and naming(embedded.data_dir) == []
    assert "Traceback" not in served.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_the_first_start_is_cut_short(number: signal.Signals, embedded: Officerpc) -> None:
    """14: ended while its database is being made, it leaves nothing that the next start stumbles over."""
    first = embedded.launch()
    await eventually(lambda: naming(embedded.data_dir))
    if number == signal.SIGTERM:
        assert await first.stop() == 0
        assert naming(embedded.data_dir) == []
    else:
        os.killpg(first.process.pid, number)
        await first.ended()
    second = await embedded.serve()
    assert shown_key(second)
    assert await second.stop() == 0


async def test_sigterm_the_moment_it_is_ready(officerpc: Officerpc) -> None:
    """14: workers that are not yet up end as well, and do not have to be waited for and killed."""

    async def start_and_stop() -> int:
        served = officerpc.launch(workers=2, shutdown_timeout=600)
        await eventually(lambda: "officerpc serves" in served.output)
        return await served.stop()

    assert await asyncio.gather(*(start_and_stop() for _ in range(3))) == [0, 0, 0]


async def test_after_kill_9_the_next_start_works(embedded: Officerpc) -> None:
    """The killed one leaves Postgres and workers behind; the next start takes over and ends them."""
    first = await embedded.serve()
    key = shown_key(first)
    orphans = first.workers()
    postgres = embedded.postgres()
    assert await first.stop(signal.SIGKILL) == -signal.SIGKILL
    assert alive(postgres) != []
    second = await embedded.serve()
    async with aiohttp.ClientSession() as http:
        assert (await call(http, second, key, **LOOK_UP))[0] == 200
    postgres += embedded.postgres()
    assert await second.stop() == 0
    assert alive(postgres) == [] and naming(embedded.data_dir) == []
    await eventually(lambda: not alive(orphans))


async def test_two_servers_on_one_data_directory(embedded: Officerpc) -> None:
    """They share Postgres: it stays while one of them lives, also where the other was killed, and ends with the last."""
    first = await embedded.serve()
    key = shown_key(first)
    second, third = [await embedded.serve() for _ in range(2)]
    postgres = embedded.postgres()
    assert await first.stop(signal.SIGKILL) == -signal.SIGKILL
    assert await third.stop() == 0
    async with aiohttp.ClientSession() as http:
        assert (await call(http, second, key, **LOOK_UP))[0] == 200
    postgres += embedded.postgres()
    assert await second.stop() == 0
    assert alive(postgres) == [] and naming(embedded.data_dir) == []


async def test_the_embedded_postgres_is_killed(embedded: Officerpc, http: aiohttp.ClientSession) -> None:
    """6: it is started again, and what was acknowledged is there."""
    served = await embedded.serve(workers=2)
    key = shown_key(served)

    async def found() -> bool:
        with contextlib.suppress(aiohttp.ClientError):
            return (await call(http, served, key, **LOOK_UP))[0] == 200
        return False

    assert (await call(http, served, key, "createUser", {"email": "jane@example.com"}))[0] == 200
    for times in (1, 2):
        killed = embedded.postgres()
        killed[0].kill()  # the postmaster alone: the others see that it is gone
        await eventually(lambda killed=killed: not alive(killed))
        await eventually(found)
        await eventually(lambda times=times: served.log.count("embedded_postgres_restarted") == times)
    look_up = {"email": "jane@example.com"}
    assert (await call(http, served, key, "getUserByEmail", look_up))[0] == 200
    assert await served.stop() == 0
    assert naming(embedded.data_dir) == []


@pytest.mark.parametrize("command", ["serve", "work"])
async def test_the_embedded_postgres_cannot_be_started_again(command: str, embedded: Officerpc) -> None:
    """6: after some tries the server ends, with a status that is not 0 and one line that says where to look."""
    served = embedded.launch(command)
    await eventually(lambda: len(embedded.postgres()) > 3)
    await eventually(lambda: "officerpc serves" in served.output or "queue_waits" in served.log)
    pgdata = embedded.data_dir / "postgres"
    (pgdata / "postgresql.conf").write_text("nonsense")
    embedded.postgres()[0].kill()
    assert await served.ended() == 1
    told = [line for line in served.log.splitlines() if "does not stay up" in line]
    assert told == [f"officerpc: the embedded Postgres does not stay up: see {pgdata / 'log'}"]
    assert "Traceback" not in served.log
    assert naming(embedded.data_dir) == []


async def test_folders_for_metrics(officerpc: Officerpc) -> None:
    """What a killed server left behind goes at the next start, what a living one uses stays."""

    def folders() -> set[Path]:
        return set(officerpc.data_dir.parent.glob("officerpc-metrics-*"))

    first = await officerpc.serve(workers=2)
    (of_first,) = folders()
    second = await officerpc.serve(workers=2)
    assert len(folders()) == 2 and of_first in folders()
    os.killpg(first.process.pid, signal.SIGKILL)
    await first.ended()
    of_second = folders() - {of_first}
    third = await officerpc.serve()
    assert folders() == of_second
    assert await second.stop() == 0
    assert await third.stop() == 0
    assert folders() == set()


async def test_sigterm_under_load(
    officerpc: Officerpc, http: aiohttp.ClientSession, key: str, database_url: str, db: asyncpg.Connection
) -> None:
    """14: the port refuses, what runs finishes, status 0, and nothing that was acknowledged is lost."""
    served = await officerpc.serve(workers=2, lock_timeout=50, statement_timeout=50)
    load = Load(http, served, key, "load")
    await load.reached(50)
    other = await asyncpg.connect(database_url)
    holding = other.transaction()
    await holding.start()
    await other.execute("LOCK TABLE users IN SHARE MODE")  # the calls of all six clients wait for us
    await eventually(
        lambda: db.fetchval(
            "SELECT count(*) = 6 FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'officerpc' AND wait_event_type = 'Lock'"
        )
    )
    before = len(load.acknowledged)
    load.stopped.set()
    served.process.send_signal(signal.SIGTERM)
    await eventually(lambda: refuses(served.url))
    assert served.process.poll() is None
    await holding.rollback()
    await other.close()
    assert await served.ended() == 0
    acknowledged = await load.end()
    assert len(acknowledged) == before + 6
    assert await emails(db) == {ADMIN, *acknowledged}


async def test_a_reload_under_load(
    officerpc: Officerpc, http: aiohttp.ClientSession, key: str, db: asyncpg.Connection
) -> None:
    """Kept-alive clients, busy and pausing, lose no call while workers are replaced, and are told to reconnect."""
    served = await officerpc.serve(workers=2)
    stopped = asyncio.Event()
    told: list[str] = []
    made = [0] * 12

    async def client(number: int) -> None:
        pause = (0.0, 0.01, 0.3)[number % 3]
        # A connection of its own, and POST, which aiohttp does not send a second time.
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
            while not stopped.is_set():
                async with session.post(
                    served.url + "/rpc", json=LOOK_UP, headers={"x-api-key": key}
                ) as response:
                    assert response.status == 200 and (await response.json())["email"] == ADMIN
                    told.append(response.headers.get("Connection", "keep-alive"))
                made[number] += 1
                await asyncio.sleep(pause)

    clients = [asyncio.create_task(client(number)) for number in range(12)]

    async def all_went_on(since: list[int]) -> bool:
        assert not any(task.done() for task in clients), [task for task in clients if task.done()]
        return all(now > before + 2 for now, before in zip(made, since, strict=True))

    await eventually(lambda: all_went_on([0] * 12))
    for _ in range(2):
        before = served.workers()
        served.process.send_signal(signal.SIGHUP)
        await eventually(lambda before=before: not alive(before))
        await eventually(lambda: len(alive(served.workers())) == 2)
        so_far = list(made)
        await eventually(lambda so_far=so_far: all_went_on(so_far))
    stopped.set()
    await asyncio.gather(*clients)
    assert "close" in told
    assert "Traceback" not in served.log
    assert await served.stop() == 0


@pytest.mark.parametrize(("keepalive", "shutdown"), [(25.0, 20.0), (30.0, 30.0), (30.0, 600.0)])
async def test_a_replaced_worker_is_not_killed_before_its_time(keepalive: float, shutdown: float) -> None:
    """gunicorn kills a worker that says nothing for `timeout`; one that ends says nothing while it waits."""
    settings = Settings(keepalive_timeout=keepalive, shutdown_timeout=shutdown)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        arbiter = Arbiter(settings, "postgresql://nowhere/none", listening.dup(), lambda: None, lambda: None)
    os.close(arbiter._listening)
    # Idle clients get the smaller of the two, then half a connection is closed, then calls get theirs.
    assert arbiter.cfg.timeout > min(keepalive, shutdown) + 1 + shutdown
    assert arbiter.cfg.timeout >= 60


async def test_sigterm_and_an_idle_client(officerpc: Officerpc, key: str) -> None:
    """It sees the end of its connection, not a reset."""
    served = await officerpc.serve(workers=1)
    kept = request(json.dumps(LOOK_UP).encode(), b"x-api-key: " + key.encode())
    async with connected(served.url) as (reader, writer):
        writer.write(kept.replace(b"Connection: close\r\n", b""))
        assert b"Connection" not in await reader.readuntil(b"\r\n\r\n")
        served.process.send_signal(signal.SIGTERM)
        assert (await reader.read()).endswith(b"}")
    assert await served.ended() == 0


async def refuses(url: str) -> bool:
    """Whether nobody accepts connections there."""
    try:
        async with connected(url):
            return False
    except ConnectionRefusedError:
        return True


async def test_kill_9_in_a_stream_of_creations(
    officerpc: Officerpc, http: aiohttp.ClientSession, key: str, db: asyncpg.Connection
) -> None:
    """1: workers are killed and replaced, then all of it is: users are whole or not there, none is lost."""
    served = await officerpc.serve(workers=2)
    load = Load(http, served, key, "stream")
    for round_ in range(1, 6):
        await load.reached(40 * round_)
        await asyncio.sleep(random.uniform(0, 0.02))  # any moment will do, a different one each time
        with contextlib.suppress(psutil.NoSuchProcess):
            random.choice(served.workers()).kill()
    await load.reached(240)
    os.killpg(served.process.pid, signal.SIGKILL)
    acknowledged = await load.end()
    assert len(acknowledged) >= 240
    verified = await officerpc.command("verify", "--json")
    assert verified.returncode == 0, verified.stderr
    report = json.loads(verified.stdout)
    assert report["incomplete"] == []
    assert report["checked"] >= len(acknowledged) + 1
    assert await emails(db) >= {ADMIN, *acknowledged}


async def test_clients_that_do_not_read(officerpc: Officerpc) -> None:
    """As in test_unsent.py, on the event loop of production: no connection and no byte is held."""
    served = await officerpc.serve(write_timeout=1)
    (worker,) = served.workers()
    port = int(served.url.rpartition(":")[2])

    async def unsent() -> float:
        answer = await exchange(served.url, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        (line,) = [line for line in answer.body.splitlines() if line.startswith(b"officerpc_unsent_bytes ")]
        return float(line.split()[1])

    with contextlib.ExitStack() as opened:
        for _ in range(5):
            deaf = opened.enter_context(socket.socket())
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", port))
            deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 60)
        await eventually(unsent)
        await eventually(lambda: served.log.count('"client_does_not_read"') == 5)

        async def all_gone() -> bool:
            held = [found for found in worker.net_connections("tcp") if found.laddr.port == port]
            return not any(found.status == psutil.CONN_ESTABLISHED for found in held) and await unsent() == 0

        await eventually(all_gone)


# --- two workers --------------------------------------------------------------------------------------


async def spread(http: aiohttp.ClientSession, served: Served, key: str) -> int:
    """Make calls at the same time until every worker holds connections; how many calls it took."""
    calls = 0

    async def everyone() -> bool:
        nonlocal calls
        # Ever more at the same time, so that new connections are opened each time.
        answers = await asyncio.gather(*(call(http, served, key, **LOOK_UP) for _ in range(calls + 20)))
        assert {status for status, _ in answers} == {200}
        calls += len(answers)
        port = int(served.url.rpartition(":")[2])
        return all(
            any(
                connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == port
                for connection in worker.net_connections("tcp")
            )
            for worker in served.workers()
        )

    await eventually(everyone)
    return calls


async def test_a_revoked_key_is_refused_by_every_worker(
    officerpc: Officerpc, http: aiohttp.ClientSession, key: str, db: asyncpg.Connection
) -> None:
    """Security 4: one worker revokes, no worker lets the key in any more, on connections old and new."""
    served = await officerpc.serve(workers=2)
    status, shop = await call(http, served, key, "createApiKey", {"name": "shop", "scopes": ["users:read"]})
    assert status == 200
    await spread(http, served, shop["key"])
    assert await call(http, served, key, "revokeApiKey", {"id": shop["id"]}) == (200, True)

    async def refused_everywhere() -> bool:
        kept = [call(http, served, shop["key"], **LOOK_UP) for _ in range(20)]
        fresh = [
            exchange(served.url, request(json.dumps(LOOK_UP).encode(), b"x-api-key: " + shop["key"].encode()))
            for _ in range(20)
        ]
        statuses = [status for status, _ in await asyncio.gather(*kept)]
        statuses += [answer.status for answer in await asyncio.gather(*fresh)]
        assert set(statuses) <= {200, 401}
        return set(statuses) == {401}

    await eventually(refused_everywhere)
    assert await refused_everywhere()


async def test_metrics_sum_over_the_workers(
    officerpc: Officerpc, http: aiohttp.ClientSession, key: str
) -> None:
    """Whichever worker is asked, /metrics counts the calls of both."""
    served = await officerpc.serve(workers=2, forked=False)
    calls = await spread(http, served, key)
    counted = f'officerpc_calls_total{{code="ok",method="getUserByEmail"}} {float(calls)}'
    for _ in range(20):
        answer = await exchange(served.url, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.status == 200
        assert counted in answer.body.decode().splitlines()
