"""A Citus cluster for tests. It needs Debian's Postgres 15 with the extension citus."""

import contextlib
import os
import pwd
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import asyncpg
from processes import free_port

from server.postgres.migrations import Migration, migrate

BINARIES = Path("/usr/lib/postgresql/15/bin")
NODES = 3
"""The coordinator and two workers."""
CONFIGURATION = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{folder}'
shared_preload_libraries = 'citus'
wal_level = logical
max_connections = 300
max_prepared_transactions = 400
max_worker_processes = 40
shared_buffers = 32MB
fsync = off
full_page_writes = off
synchronous_commit = off
autovacuum = off
jit = off
citus.shard_count = {shards}
citus.max_background_task_executors = 1
"""
EXTENSIONS = ("citus", "pg_trgm", "ltree", "btree_gin")


def run(program: str, *arguments: str | Path) -> None:
    """One of Postgres's programs, as its system user: it refuses to run as root."""
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    # Nodes connect to one another with libpq, which looks for certificates at home.
    command = [BINARIES / program, *arguments]
    subprocess.run(
        command, check=True, user=user, env=os.environ | {"HOME": "/"}, cwd="/", stdout=subprocess.DEVNULL
    )


@contextlib.contextmanager
def running(shards: int) -> Iterator[list[int]]:
    """A coordinator and two workers; their ports, the coordinator's first.

    Args:
        shards: of each table.
    """
    memory = Path("/dev/shm")  # files of many databases are copied in a tenth of the time there
    where = memory if os.access(memory, os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="officerpc-citus-", dir=where) as name,
        contextlib.ExitStack() as started,
    ):
        folder = Path(name)
        folder.chmod(0o777)
        ports: list[int] = []
        while len(ports) < NODES:
            port = free_port()
            node = folder / f"node{len(ports)}"
            options = ("-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
            run("initdb", "-D", node, *options)
            with (node / "postgresql.conf").open("a") as conf:
                conf.write(CONFIGURATION.format(port=port, folder=folder, shards=shards))
            run("pg_ctl", "-D", node, "-w", "-l", folder / f"log{len(ports)}", "start")
            started.callback(run, "pg_ctl", "-D", node, "-w", "-m", "immediate", "stop")
            ports.append(port)
        yield ports


def address(port: int, database: str) -> str:
    """The URL of a database of a node."""
    return f"postgresql://postgres:@127.0.0.1:{port}/{database}?sslmode=disable"


async def everywhere(ports: list[int], *statements: str, database: str = "postgres") -> None:
    """Run statements on every node."""
    for port in ports:
        node = await asyncpg.connect(address(port, database))
        for statement in statements:
            await node.execute(statement)
        await node.close()


async def new_database(ports: list[int], migrations: list[Migration]) -> str:
    """The URL of a new database on the coordinator with these migrations. It is not distributed."""
    name = f"test_{uuid.uuid4().hex}"
    await everywhere(ports, f"CREATE DATABASE {name}")
    url = address(ports[0], name)
    coordinator = await asyncpg.connect(url)
    await migrate(coordinator, migrations)
    await coordinator.close()
    return url


async def prepare(ports: list[int], database: str) -> None:
    """What an operator does before `officerpc distribute`: the extensions on every node, and the workers."""
    await everywhere(
        ports, *(f"CREATE EXTENSION IF NOT EXISTS {name}" for name in EXTENSIONS), database=database
    )
    coordinator = await asyncpg.connect(address(ports[0], database))
    await coordinator.execute("SELECT citus_set_coordinator_host('127.0.0.1', $1)", ports[0])
    for port in ports[1:]:
        await coordinator.execute("SELECT citus_add_node('127.0.0.1', $1)", port)
    await coordinator.close()
