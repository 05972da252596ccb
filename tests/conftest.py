"""Fixtures: each test gets a clone of a migrated Postgres database, servers and clients."""

import asyncio
import base64
import functools
import gc
import io
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import cluster
import pytest
from aiohttp import ClientResponse, ClientSession, web
from aiohttp.test_utils import BaseTestServer
from invariants import violated
from processes import Command, Finished

from server.base import logs
from server.base.settings import Settings
from server.base.tokens import digest
from server.methods.avatars import EXAMPLE_DOT, EXAMPLE_NAME
from server.methods.codes import EXAMPLE_CODES
from server.methods.registry import METHODS, Method
from server.methods.sessions import EXAMPLE_TOKEN
from server.methods.webhooks import EXAMPLE_EVENT
from server.postgres import distribution
from server.postgres.migrations import load_migrations, migrate
from server.rpc.dispatch import Dispatcher
from server.serving.app import create_app
from server.serving.connections import Runner
from server.tenants.call import RequestContext
from server.tenants.keys import new_key
from server.tenants.principals import OPERATOR, SCOPES, TENANT_SCOPES
from server.wires.http import DISPATCHER

# Cheap hashes. test_passwords.py uses the default ones.
FAST_HASHES = {"argon2_memory": 64, "argon2_time": 1}
# A closed port instead of Microsoft Graph.
NO_GRAPH = {"graph_url": "http://127.0.0.1:9", "graph_login_url": "http://127.0.0.1:9"}
ADMIN = "admin@example.com"
TEMPLATE = "test"
"""The request id of the events in the template database."""
LINK_HOST = "example.com"
"""The only host allowed in links of MYINSTANCE's mails."""


class Log(io.RawIOBase):
    """Collects the log, and writes it to standard error, which pytest shows for failing tests."""

    def __init__(self) -> None:
        self.text = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.text += bytes(data)
        sys.stderr.write(bytes(data).decode())
        return len(data)

    def lines(self) -> list[dict[str, Any]]:
        """Every entry, parsed."""
        return [json.loads(line) for line in self.text.splitlines()]


LOG = Log()


@pytest.fixture(scope="session", autouse=True)
def _logging() -> None:
    logs.configure("debug", LOG)


def pytest_collection_finish() -> None:
    """Exempt the imported modules and collected tests from garbage collection, to save time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def logged() -> Log:
    """The log of this test."""
    LOG.text.clear()
    return LOG


# --- the database server ------------------------------------------------------------------------------


DATABASE = os.environ.get("OFFICERPC_TEST_DATABASE", "embedded")
"""embedded, system (Debian's Postgres) or citus; make test DATABASE=citus."""


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The server of this test session, or the coordinator of its cluster."""
    if DATABASE == "citus":
        yield cluster.address(request.getfixturevalue("citus_ports")[0], "postgres")
        return
    memory = Path("/dev/shm")  # cloning a database, many small files, takes a tenth of the time in memory
    where = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="officerpc-test-", dir=where) as scratch:
        folder = Path(scratch)
        if DATABASE == "system":
            yield from _system_postgres(folder)
            return
        from server.postgres.embedded import embedded_server

        with embedded_server(folder) as server:
            yield server.url


def _system_postgres(folder: Path) -> Iterator[str]:
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not versions:
        pytest.exit("DATABASE=system needs Debian's postgresql package", 3)
    binaries = versions[-1].parent
    # Postgres refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    shutil.chown(folder, user)
    data = folder / "data"

    def run(*command: str | Path) -> None:
        subprocess.run(command, check=True, user=user, cwd="/", stdout=subprocess.DEVNULL)

    run(
        binaries / "initdb",
        "-D",
        data,
        "-U",
        "postgres",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
    )
    run(binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", f"-k {folder} -h ''", "start")
    try:
        yield f"postgresql://postgres:@/postgres?host={quote(str(folder))}"
    finally:
        run(binaries / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")


def database_named(postgres_url: str, name: str) -> str:
    """The URL of another database of the same server."""
    return postgres_url.replace("/postgres?", f"/{name}?")


@pytest.fixture(scope="session")
def node_urls(postgres_url: str, request: pytest.FixtureRequest) -> list[str]:
    """The server, or all nodes of the cluster, the coordinator first."""
    if DATABASE != "citus":
        return [postgres_url]
    return [cluster.address(port, "postgres") for port in request.getfixturevalue("citus_ports")]


@pytest.fixture(scope="session")
def template_url(postgres_url: str, node_urls: list[str]) -> str:
    """A migrated database with the instance MYINSTANCE and its administrator, which tests clone.

    On Citus it is distributed. Citus keeps all that it knows of the nodes and of the parts of tables in the
    database itself: when the databases of all nodes are cloned, the clones are a distributed database.
    """

    async def make() -> None:
        for url in node_urls:
            server = await asyncpg.connect(url)
            for setting in ("fsync", "synchronous_commit", "full_page_writes", "jit"):
                await server.execute(f"ALTER SYSTEM SET {setting} = off")
            await server.execute("SELECT pg_reload_conf()")
            await server.execute("CREATE DATABASE template_test")
            await server.close()
        connection = await asyncpg.connect(database_named(postgres_url, "template_test"))
        await migrate(connection, load_migrations())
        await connection.close()
        settings = Settings(**FAST_HASHES, run_jobs=False)
        app = create_app(settings, database_named(postgres_url, "template_test"))
        runner = web.AppRunner(app)
        await runner.setup()
        mine = {
            "name": "MYINSTANCE",
            "admin": {"email": ADMIN},
            "settings": {"confirmationHosts": [LINK_HOST]},
        }
        await app[DISPATCHER].call(OPERATOR, "createInstance", mine, RequestContext(TEMPLATE))
        await runner.cleanup()
        if DATABASE == "citus":
            ports = [urlsplit(url).port or 0 for url in node_urls]
            await cluster.prepare(ports, "template_test")
            connection = await asyncpg.connect(database_named(postgres_url, "template_test"))
            await distribution.distribute(connection, load_migrations())
            await connection.close()
            # Without statistics of the catalogues asyncpg's look-ups of types take seconds.
            await cluster.everywhere(ports, "VACUUM ANALYZE", database="template_test")
            for url in node_urls:  # connections of Citus between the nodes would prevent clones
                server = await asyncpg.connect(url)
                await server.execute("ALTER DATABASE template_test ALLOW_CONNECTIONS false")
                await server.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'template_test'"
                )
                await server.close()

    asyncio.run(make())
    return database_named(postgres_url, "template_test")


@pytest.fixture(scope="session")
def on_server(node_urls: list[str], template_url: str) -> Iterator[Callable[[str], None]]:
    """Runs statements on the server, or on each node, by connections that all tests share, in its own thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def done(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    connections = [done(asyncpg.connect(url)) for url in node_urls]

    async def everywhere(statement: str) -> None:
        await asyncio.gather(*(connection.execute(statement) for connection in connections))

    yield lambda statement: done(everywhere(statement))
    for connection in connections:
        done(connection.close())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def database_url(
    postgres_url: str, on_server: Callable[[str], None], request: pytest.FixtureRequest
) -> Iterator[str]:
    """The URL of the database of this test."""
    name = f"test_{os.getpid()}_{abs(hash(request.node.nodeid))}"
    on_server(f"CREATE DATABASE {name} TEMPLATE template_test STRATEGY file_copy")
    yield database_named(postgres_url, name)
    on_server(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def db(database_url: str, request: pytest.FixtureRequest) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test to its database.

    After the test, when its servers have ended, the invariants of tests/invariants.py are checked if there are new
    events, unless the test has the marker damages.
    """
    connection = await asyncpg.connect(database_url)
    yield connection
    if request.node.get_closest_marker("damages") is None:
        if connection.is_closed():
            connection = await asyncpg.connect(database_url)
        elif connection.is_in_transaction():
            await connection.execute("ROLLBACK")
        # Every call that writes emits an event. This query takes a tenth of the time of the check.
        if await connection.fetchval("SELECT EXISTS (SELECT 1 FROM events WHERE request_id <> $1)", TEMPLATE):
            broken = await violated(connection)
            assert broken == {}, "the test broke invariants: see tests/invariants.py"
    if not connection.is_closed():
        await connection.close()


# --- a Citus cluster ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def citus_ports() -> Iterator[list[int]]:
    """A coordinator and two workers; their ports, the coordinator's first."""
    with cluster.running(shards=4) as ports:
        yield ports


@pytest.fixture
async def migrated_url(citus_ports: list[int]) -> str:
    """A migrated database on the coordinator of the cluster. It is one Postgres's until it is distributed."""
    return await cluster.new_database(citus_ports, load_migrations())


# --- the server ---------------------------------------------------------------------------------------


class _LiveServer(BaseTestServer):
    """A server with the Runner of production."""

    def __init__(self, app: web.Application) -> None:
        super().__init__()
        self._app = app

    async def _make_runner(self, **_: Any) -> Runner:
        return Runner(self._app)


@dataclass
class Client:
    """Sends calls with an API key."""

    http: ClientSession
    url: str
    key: str
    dispatcher: Dispatcher

    async def post(self, body: Any, *, verb: str = "POST", **options: Any) -> ClientResponse:
        """A request to /rpc; a body of bytes, text or a stream is sent unchanged."""
        headers = {"x-api-key": self.key, "Content-Type": "application/json"} | options.pop("headers", {})
        payload = {"data": body} if isinstance(body, (bytes, str, io.IOBase)) else {"json": body}
        return await self.http.request(verb, self.url + "/rpc", headers=headers, **payload, **options)

    async def call(self, method: str, params: Any = None, **options: Any) -> Any:
        """The result of a call that must succeed."""
        status, result = await self.outcome(method, params, **options)
        assert status == 200, result
        return result

    async def outcome(self, method: str, params: Any = None, **options: Any) -> tuple[int, Any]:
        """Status and answer of a call in the plain envelope."""
        async with await self.post({"method": method, "params": params or {}}, **options) as response:
            return response.status, await response.json()

    def using(self, key: str) -> "Client":
        """A client of the same server with another key."""
        return Client(self.http, self.url, key, self.dispatcher)


Serve = Callable[..., Awaitable[Client]]


WITH_JOBS = {
    "test_accounts", "test_audit", "test_client_online_office", "test_client_publica",
    "test_client_workspace365", "test_codes", "test_deploy", "test_events", "test_faults", "test_graph", "test_idempotency", "test_jobs", "test_logins", "test_mail",
    "test_openapi", "test_operations", "test_process", "test_search", "test_store", "test_webhooks",
}  # fmt: skip
"""Test files whose servers run the queue. The others run without it, which saves a fifth of the time."""


@functools.cache
def default_settings() -> Settings:
    """Read once, as this takes a fifth of the time to start a server."""
    return Settings(**FAST_HASHES | NO_GRAPH)


@pytest.fixture
async def serve(
    database_url: str, db: asyncpg.Connection, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Serve]:
    """Starts servers on the test's database, with these settings and methods.

    They run the queue in the files WITH_JOBS, or with run_jobs. Mails are written to files in tmp_path.
    """
    run_jobs = request.path.stem in WITH_JOBS
    servers: list[BaseTestServer] = []
    sessions: list[ClientSession] = []

    async def start(methods: dict[str, Method] = METHODS, url: str = database_url, **settings: Any) -> Client:
        own = {"data_dir": tmp_path, "run_jobs": run_jobs}
        if settings:
            chosen = Settings(**FAST_HASHES | NO_GRAPH | own | settings)
        else:
            chosen = default_settings().model_copy(update=own)
        app = create_app(chosen, url, methods=methods, check_results=True)
        server = _LiveServer(app)
        await server.start_server()
        servers.append(server)
        http = ClientSession()
        sessions.append(http)
        key = await insert_key(db)
        return Client(http, str(server.make_url("")).rstrip("/"), key, app[DISPATCHER])

    yield start
    for session in sessions:
        await session.close()
    for server in servers:
        await server.close()


@pytest.fixture
async def client(serve: Serve) -> Client:
    """A client with a key for MYINSTANCE with all scopes of tenants."""
    return await serve()


@pytest.fixture
async def operator(client: Client, db: asyncpg.Connection) -> Client:
    """A client with an operator's key."""
    return client.using(await insert_key(db, operator=True))


async def insert_key(
    db: asyncpg.Connection,
    *,
    instances: tuple[str, ...] = ("MYINSTANCE",),
    scopes: tuple[str, ...] | None = None,
    operator: bool = False,
    networks: tuple[str, ...] = (),
) -> str:
    """Insert an API key into the database and return it."""
    key = new_key()
    held = [] if operator else instances
    # A separate query, as Citus does not support subqueries in VALUES.
    default = await db.fetchval("SELECT id FROM instances WHERE name = $1", held[0]) if held else None
    key_id = await db.fetchval(
        "INSERT INTO api_keys (name, digest, prefix, scopes, is_operator, default_instance_id, networks)"
        " VALUES ('test', $1, $2, $3, $4, $5, $6::text[]::cidr[])"
        " RETURNING id",
        digest(key),
        key[:11],
        list(scopes or (SCOPES if operator else TENANT_SCOPES)),
        operator,
        default,
        list(networks),
    )
    for name in held:
        await db.execute(
            "INSERT INTO api_key_instances SELECT $1, id FROM instances WHERE name = $2", key_id, name
        )
    return key


@pytest.fixture
async def other(operator: Client, db: asyncpg.Connection) -> Client:
    """A client with a key for another instance."""
    await operator.call("createInstance", {"name": "OTHER", "admin": {"email": "boss@other.example"}})
    return operator.using(await insert_key(db, instances=("OTHER",)))


@pytest.fixture
async def jane(client: Client, db: asyncpg.Connection) -> dict[str, Any]:
    """The user of the examples, with a session (EXAMPLE_TOKEN) and codes (EXAMPLE_CODES).

    The administrator gets the picture EXAMPLE_NAME.
    """
    created: dict[str, Any] = await client.call(
        "createUser", {"email": "jane@example.com", "displayName": "Jane Doe", "password": "demo1234"}
    )
    await db.execute(
        "INSERT INTO sessions (instance_id, id, user_id, token_digest, expires_at)"
        " VALUES (1, 1, $1, $2, now() + interval '1 day')",
        created["id"],
        digest(EXAMPLE_TOKEN),
    )
    await db.execute("UPDATE instance_counters SET sessions = 1")
    for purpose, code in EXAMPLE_CODES.items():
        await db.execute(
            "INSERT INTO codes (instance_id, user_id, purpose, digest, expires_at)"
            " VALUES (1, $1, $2, $3, now() + interval '1 day')",
            created["id"],
            purpose,
            digest(code),
        )
    await db.execute(
        "INSERT INTO pictures (instance_id, user_id, name, media_type, small, large)"
        " VALUES (1, 1, $1, 'image/png', $2, $2)",
        EXAMPLE_NAME,
        base64.b64decode(EXAMPLE_DOT),
    )
    await db.execute("UPDATE users SET avatar = $1 WHERE id = 1", f"/files/1-{EXAMPLE_NAME}-large")
    return created


@pytest.fixture
async def examples(client: Client, operator: Client, jane: dict[str, Any], db: asyncpg.Connection) -> None:
    """The objects that the examples of the methods use: Jane, a deleted user, and one object of each other kind."""
    await client.call("createUser", {"email": "gone@example.com"})
    await client.call("deleteUserByEmail", {"email": "gone@example.com"})
    for login in ("one@example.com", "two@example.com"):
        profile = {"firstname": login[:3], "lastname": "Member"}
        await client.call("createMember", {"login": login, "sponsorId": 1, "profile": profile})
    await client.call("createPlan", {"type": "prepaid", "name": "A year", "duration": 12})
    await client.call("assignPlan", {"userId": 1, "planId": 1, "planValidTo": "2099-12-31"})
    await client.call("createGroup", {"name": "Sales"})
    await client.call("defineProfileField", {"alias": "shoe_size", "title": "Shoe size", "type": "number"})
    await db.execute(
        "INSERT INTO documents (instance_id, id, entity, action, user_id)"
        " VALUES (1, '00000000-0000-4000-8000-000000000001', 'user', 'profile-update', 2)"
    )
    await db.execute(
        "INSERT INTO jobs (instance_id, id, state, kind) VALUES (0, 1000, 'parked', 'mail-code')"
    )
    await db.execute(
        "INSERT INTO office365_accounts (instance_id, user_id, state, error)"
        " SELECT 1, id, 'failed', 'Authorization_RequestDenied' FROM users WHERE email = 'one@example.com'"
    )
    await db.execute(
        "INSERT INTO webhooks (instance_id, id, url, description, types, secret)"
        " VALUES (1, 1, 'https://192.0.2.1/', '', '{}', 'whsec_' || encode(decode(repeat('ab', 32), 'hex'), 'base64'))"
    )
    await db.execute("UPDATE instance_counters SET webhooks = 1 WHERE instance_id = 1")
    await db.execute(
        "INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body, state, attempts, done_at)"
        f" VALUES (1, 1, '{EXAMPLE_EVENT}', 'user.created', '', 'failed', 10, now())"
    )
    graph = {"tenantId": "acme.example", "clientId": "an-id", "clientSecret": "a secret"}
    await operator.call("updateInstance", {"instance": "MYINSTANCE", "settings": {"office365": graph}})


@pytest.fixture
def officerpc_command(database_url: str) -> Iterator[Callable[..., Command]]:
    """Starts `officerpc ...` on the test's database."""
    settings = {"DATABASE_URL": database_url, "ARGON2_MEMORY": "64", "ARGON2_TIME": "1"}
    with tempfile.TemporaryDirectory(prefix="officerpc-commands-") as name:

        def start(*words: str, **environment: str) -> Command:
            own = {f"OFFICERPC_{setting}": value for setting, value in settings.items()}
            return Command(words, os.environ | own | environment, Path(name))

        yield start


@pytest.fixture
def officerpc(officerpc_command: Callable[..., Command]) -> Any:
    """Runs `officerpc ...` on the test's database."""

    async def run(*words: str, **environment: str) -> Finished:
        return await officerpc_command(*words, **environment).finished()

    return run


async def footprint(db: asyncpg.Connection) -> dict[str, int]:
    """The number of rows of every table, to test that a call wrote nothing."""
    tables = await db.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
    return {table: await db.fetchval(f"SELECT count(*) FROM {table}") for (table,) in tables}


async def contents(db: asyncpg.Connection) -> dict[str, str]:
    """A hash of every table, except those of the queue and webhooks, which workers change meanwhile."""
    tables = await db.fetch(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        " AND tablename !~ '^(jobs|webhook|deliveries)' ORDER BY 1"
    )
    return {
        table: await db.fetchval(
            f"SELECT md5(coalesce(string_agg(t::text, '\n' ORDER BY t::text), '')) FROM {table} AS t"
        )
        for (table,) in tables
    }


async def until(met: Callable[[], Awaitable[Any]], seconds: float = 60) -> Any:
    """Call met() until its result is true, and return it."""
    async with asyncio.timeout(seconds):
        while not (answer := await met()):
            await asyncio.sleep(0.02)
        return answer
