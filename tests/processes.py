"""What tests of whole processes share: officerpc as it is started, a Postgres to harm, bytes on a socket."""

import asyncio
import contextlib
import inspect
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import asyncpg
import psutil

OFFICERPC = str(Path(sys.executable).with_name("officerpc"))
FAST_HASHES = {"OFFICERPC_ARGON2_MEMORY": "64", "OFFICERPC_ARGON2_TIME": "1"}


async def eventually(probe: Callable[[], Any | Awaitable[Any]], within: float = 60) -> Any:
    """What probe() gives once that is true. The time is there so that nothing hangs, it is no promise."""
    async with asyncio.timeout(within):
        while True:
            found = probe()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.02)


# --- officerpc, forked --------------------------------------------------------------------------------

# officerpc is forked from a process that has imported everything but server.cli: to start Python and to import it
# all takes over a second of CPU time, and most of what tests start takes a twentieth of that. server.cli is imported
# after the fork, because it looks at COLUMNS and at the terminal then.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["server.serving.app", "server.serving.bootstrap", "server.serving.process", "typer.rich_utils"]
)


class Forked:
    """`officerpc WORDS` in a process of its own; the members are those of subprocess.Popen."""

    def __init__(
        self, words: tuple[str, ...], environment: Mapping[str, str], folder: Path, out: Path, err: Path
    ) -> None:
        """
        Args:
            words: what follows officerpc.
            environment: all of its environment.
            folder: its working directory.
            out, err: files for its output.
        """
        self._process = _FORKS.Process(
            target=_officerpc, args=(words, dict(environment), folder, out, err), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """None while it runs; below zero the signal that ended it."""
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def wait(self) -> int:
        """Its status once it has ended."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _officerpc(
    words: tuple[str, ...], environment: dict[str, str], folder: Path, out: Path, err: Path
) -> None:
    """What the forked process does."""
    for path, number in ((out, 1), (err, 2)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # Whoever runs the tests in the background of a shell has it ignored, which children inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv[:] = ["officerpc", *words]
    from server.cli import main

    main()


class Finished(NamedTuple):
    """What a command printed and how it ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Command:
    """`officerpc WORDS`, which ends by itself."""

    def __init__(self, words: tuple[str, ...], environment: Mapping[str, str], folder: Path) -> None:
        """
        Args:
            words: what follows officerpc.
            environment: all of its environment.
            folder: for its output.
        """
        self._out, self._err = (Path(tempfile.mkstemp(dir=folder, prefix=name)[1]) for name in ("out", "err"))
        self.process = Forked(words, environment, Path.cwd(), self._out, self._err)

    async def finished(self) -> Finished:
        """Wait for its end."""
        status = await asyncio.to_thread(self.process.wait)
        return Finished(status, self._out.read_bytes().decode(), self._err.read_bytes().decode())


# --- officerpc serve ----------------------------------------------------------------------------------


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel hands out."""
    while True:
        port = random.randint(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with no settings but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OFFICERPC_")}
    return kept | settings


@dataclass
class Served:
    """`officerpc serve`, started."""

    process: Forked | subprocess.Popen[bytes]
    url: str
    folder: Path

    @property
    def output(self) -> str:
        """What it said on standard output."""
        return (self.folder / "stdout").read_text()

    @property
    def log(self) -> str:
        """What it said on standard error."""
        return (self.folder / "stderr").read_text(errors="replace")

    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        return psutil.Process(self.process.pid).children()

    async def ended(self) -> int:
        """The exit status, once it has ended."""
        await eventually(lambda: self.process.poll() is not None)
        return self.process.returncode

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit status after a signal."""
        self.process.send_signal(number)
        return await self.ended()


class Officerpc:
    """Starts `officerpc serve`, and sees to it that nothing of it outlives the test."""

    def __init__(self, folder: Path, database_url: str | None = None) -> None:
        """
        Args:
            folder: for the data directory and all that it writes.
            database_url: None: the embedded Postgres.
        """
        self.data_dir = folder / "data"
        self._folder = folder
        self._database_url = database_url
        self._started: list[Forked | subprocess.Popen[bytes]] = []

    def settings(self, **settings: Any) -> dict[str, str]:
        """The environment of every process of this test."""
        given = {"OFFICERPC_" + name.upper(): str(value) for name, value in settings.items()}
        database = (
            {"OFFICERPC_DATA_DIR": str(self.data_dir)}
            if self._database_url is None
            else {"OFFICERPC_DATABASE_URL": self._database_url}
        )
        return environment(FAST_HASHES | database | {"TMPDIR": str(self._folder)} | given)

    def launch(self, command: str = "serve", *, forked: bool = True, **settings: Any) -> Served:
        """Start it and do not wait.

        Args:
            command: serve or work.
            forked: False: by its script, as an operator does, which takes a second longer. Metrics of several
                workers need it: prometheus_client looks at the environment when it is imported.
            settings: without OFFICERPC_.
        """
        port = settings.setdefault("port", free_port())
        folder = self._folder / f"start{len(self._started)}"
        folder.mkdir()
        out, err = folder / "stdout", folder / "stderr"
        process: Forked | subprocess.Popen[bytes]
        if forked:
            out.touch()
            err.touch()
            process = Forked((command,), self.settings(**settings), folder, out, err)
        else:
            with out.open("wb") as stdout, err.open("wb") as stderr:
                process = subprocess.Popen(
                    [OFFICERPC, command],
                    env=self.settings(**settings),
                    cwd=folder,
                    stdout=stdout,
                    stderr=stderr,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
        self._started.append(process)
        return Served(process, f"http://127.0.0.1:{port}", folder)

    async def serve(self, **settings: Any) -> Served:
        """Start it and wait until a worker answers."""
        served = self.launch(**settings)

        async def answers() -> bool:
            assert served.process.poll() is None, served.log
            with contextlib.suppress(OSError):
                return (
                    "officerpc serves" in served.output
                    and (await exchange(served.url, b"GET /livez HTTP/1.0\r\n\r\n")).status == 200
                )
            return False

        await eventually(answers)
        return served

    async def command(self, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        """Run another command on the same database."""
        return await asyncio.to_thread(
            subprocess.run,
            [OFFICERPC, *arguments],
            env=self.settings(**settings),
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def postgres(self) -> list[psutil.Process]:
        """Every process of the embedded Postgres."""
        return postgres_in(self.data_dir / "postgres")

    def clean(self) -> None:
        """End whatever is left: each process was put into a group of its own at its start."""
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._database_url is None:
            kill(self.postgres())


@contextlib.contextmanager
def running(database_url: str | None = None) -> Iterator[Officerpc]:
    """officerpc in a folder of its own; the address of a Unix socket in it must not be too long."""
    with tempfile.TemporaryDirectory(prefix="officerpc-") as folder:
        officerpc = Officerpc(Path(folder), database_url)
        try:
            yield officerpc
        finally:
            officerpc.clean()


def postgres_in(data: Path) -> list[psutil.Process]:
    """The postmaster of a database directory and its children; none while it is down."""
    try:
        # initdb puts its process id there too, with a minus.
        postmaster = psutil.Process(abs(int((data / "postmaster.pid").read_text().split()[0])))
        return [postmaster, *postmaster.children(recursive=True)]
    except (OSError, IndexError, psutil.Error):
        return []


def kill(processes: list[psutil.Process]) -> None:
    """kill -9, and wait until they are gone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes)


# --- Postgres -----------------------------------------------------------------------------------------


class OwnPostgres:
    """A Postgres beside the tests' common one, of the same make, to be killed and frozen."""

    def __init__(self, like: int, folder: Path) -> None:
        """
        Args:
            like: the process id of a running server, whose binaries and system user are taken.
            folder: where to; its files and its socket.
        """
        model = psutil.Process(like)
        self._binaries = Path(model.exe()).parent
        self._user = model.username()
        self._data = folder / "data"
        self._folder = folder
        self.url = f"postgresql://postgres:@/postgres?host={quote(str(folder))}"

    @classmethod
    async def beside(cls, url: str, folder: Path) -> "OwnPostgres":
        """One of the make of the server at an address; its files and its socket are in the folder."""
        connection = await asyncpg.connect(url)
        try:
            return cls(connection.get_server_pid(), folder)
        finally:
            await connection.close()

    def create(self) -> None:
        """Make its files and start it."""
        self._run("initdb", "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        with (self._data / "postgresql.conf").open("a") as conf:
            conf.write(
                f"listen_addresses = ''\nunix_socket_directories = '{self._folder}'\n"
                "fsync = off\nfull_page_writes = off\nshared_buffers = 16MB\n"
            )
        self.start()

    def create_standby(self, folder: Path) -> "OwnPostgres":
        """Copy this running server into another one that follows it, and start that.

        Args:
            folder: for its files and its socket; the system user of this server can write there.
        """
        standby = OwnPostgres(self.processes()[0].pid, folder)
        standby._run(
            "pg_basebackup", "-h", str(self._folder), "-U", "postgres", "-R", "-c", "fast", "--no-sync"
        )
        with (folder / "data" / "postgresql.conf").open("a") as conf:
            conf.write(f"unix_socket_directories = '{folder}'\nsynchronous_standby_names = ''\n")
        standby.start()
        return standby

    def promote(self) -> None:
        """Let a standby become a primary."""
        self._run("pg_ctl", "-w", "promote")

    def start(self) -> None:
        """Start it, also after a kill."""
        self._run("pg_ctl", "-w", "-l", str(self._folder / "log"), "start")

    def stop(self) -> None:
        """Stop it at once."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def processes(self) -> list[psutil.Process]:
        """The postmaster and its children; none while it is down."""
        return postgres_in(self._data)

    def kill(self) -> None:
        """kill -9 for all of it."""
        kill(self.processes())

    def freeze(self) -> None:
        """SIGSTOP for all of it: connections stay open and nothing answers."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # an autovacuum worker that was done
                process.suspend()

    def thaw(self) -> None:
        """SIGCONT for all of it."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._binaries / program, "-D", self._data, *arguments],
            check=True,
            user=self._user if os.geteuid() == 0 else None,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@contextlib.contextmanager
def folder_for_postgres() -> Iterator[Path]:
    """An empty folder that the system user of Postgres can write to."""
    with tempfile.TemporaryDirectory(prefix="officerpc-own-") as folder:
        if os.geteuid() == 0:
            Path(folder).chmod(0o777)
        yield Path(folder)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """A file system of this size on a folder, as root; False where this process may not mount one."""
    options = ["-o", f"size={megabytes}m,mode=0777"]
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", *options, "tmpfs", folder], check=False, capture_output=True
        ).returncode
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)


class DroppingProxy:
    """Stands between server and Postgres, and loses the connection at a COMMIT, or at whatever else commits."""

    COMMIT = b"Q\x00\x00\x00\x0cCOMMIT;\x00"
    """The message that asyncpg sends: Query, its length, its text."""

    def __init__(
        self, database_url: str, folder: Path, *, after: bool, hang: bool = False, at: bytes = COMMIT
    ) -> None:
        """
        Args:
            database_url: of a server on a Unix socket.
            folder: for our own socket.
            after: whether Postgres still gets what commits.
            hang: keep the connection, and let nothing through any more.
            at: what the message that commits holds.
        """
        host = urlsplit(database_url).query.removeprefix("host=")
        self.url = database_url.replace(host, quote(str(folder), safe=""))
        self.commits = 0
        self._socket = folder / ".s.PGSQL.5432"
        self._behind = Path(host.replace("%2F", "/")) / ".s.PGSQL.5432"
        self._after, self._hang, self._at = after, hang, at
        self._armed = False
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["DroppingProxy"]:
        """Listen as long as the block lasts."""
        server = await asyncio.start_unix_server(self._serve, self._socket)
        try:
            yield self
        finally:
            server.close()
            await asyncio.sleep(0.1)  # connections that were accepted a moment ago begin, and so can be ended
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def arm(self) -> None:
        """From now on, until it happens."""
        self._armed, self.commits = True, 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            try:
                await self._relay(reader, writer)
            finally:
                writer.transport.abort()  # also where it was cancelled before it began

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_unix_connection(self._behind)
        back = asyncio.create_task(self._back(behind_reader, writer))
        try:
            while data := await reader.read(65536):
                if self._at in data:
                    self.commits += 1
                    if self._armed:
                        self._armed = False
                        if self._after:
                            back.cancel()
                            await asyncio.gather(back, return_exceptions=True)
                            behind_writer.write(data)
                            await behind_writer.drain()
                            await behind_reader.read(65536)  # Postgres has answered: it is committed
                        if self._hang:
                            await asyncio.Event().wait()
                        return
                behind_writer.write(data)
                await behind_writer.drain()
        finally:
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
            behind_writer.transport.abort()
            writer.transport.abort()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.transport.abort()


HALF_USERS = """
SELECT u.email
FROM users AS u
WHERE
    (SELECT count(*) FROM mailboxes AS m WHERE m.instance_id = u.instance_id AND m.user_id = u.id) <> 6
    OR (SELECT count(*) FROM calendars AS c WHERE c.instance_id = u.instance_id AND c.user_id = u.id) <> 1
    OR (SELECT count(*) FROM file_folders AS f WHERE f.instance_id = u.instance_id AND f.user_id = u.id) <> 2
"""


async def emails(db: asyncpg.Connection) -> set[str]:
    """Whom the database holds. Each of them must be whole."""
    assert [row["email"] for row in await db.fetch(HALF_USERS)] == []
    stored = [row["email"] for row in await db.fetch("SELECT email FROM users")]
    assert len(stored) == len(set(stored))
    return set(stored)


# --- HTTP as bytes ------------------------------------------------------------------------------------


class Raw(NamedTuple):
    """An answer as it came."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """One header's value."""
        return next((value for given, value in self.headers if given.lower() == name.lower()), None)


def parsed(data: bytes) -> Raw:
    """One answer from its bytes."""
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.partition(": ") for line in lines]
    return Raw(int(status.split()[1]), [(name, value) for name, _, value in pairs], body)


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A plain connection to where an URL leads."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def until_closed(reader: asyncio.StreamReader, within: float = 60) -> bytes:
    """What arrives until the other side closes; being reset is being closed."""
    data = b""
    async with asyncio.timeout(within):
        with contextlib.suppress(ConnectionError):
            while more := await reader.read(65536):
                data += more
    return data


async def exchange(url: str, data: bytes) -> Raw:
    """Send bytes, and the answer until the server closes: the request must ask for that or be broken."""
    async with connected(url) as (reader, writer):
        writer.write(data)
        return parsed(await until_closed(reader))


def request(body: bytes, *headers: bytes, target: bytes = b"/rpc", verb: bytes = b"POST") -> bytes:
    """A request to be sent as bytes, with `Connection: close`."""
    lines = [
        verb + b" " + target + b" HTTP/1.1",
        b"Host: localhost",
        b"Connection: close",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
