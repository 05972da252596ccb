"""A second tenant for bench.py, and the loads that it puts on the server which it shares with the first."""

import asyncio
import contextlib
import http.client
import itertools
import os
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import asyncpg
import bcrypt
import orjson
from _data import run_sql
from _rig import BenchError, Server, bulk_users, officerpc_path

PASSWORD = "correct horse battery"
BULK_CALLERS, BULK_SIZE = 30, 200
LOCK_CALLERS = 30
LOGIN_CALLERS, BCRYPT_COST = 120, 14
"""The cost is that of hashes which were taken before OFFICERPC_BCRYPT_MAX_COST was."""


class Neighbour:
    """A tenant with a lot of work."""

    def __init__(self, database: str, name: str) -> None:
        """Make the instance with an API key and users for the loads.

        Args:
            database: of the server that it shares.
        """
        self._database = database
        self._name = name
        self._runs = 0
        environment = os.environ | {"OFFICERPC_DATABASE_URL": database}
        for words in (
            ("instances", "create", name, "--admin-email", f"admin@{name.lower()}.example"),
            ("keys", "create", name, "--instance", name, "--json"),
        ):
            done = subprocess.run([officerpc_path(), *words], env=environment, capture_output=True, text=True)
            if done.returncode != 0:
                raise BenchError(f"officerpc {words[0]}: {done.stderr[:1000]}")
        self._key: str = orjson.loads(done.stdout)["key"]

    def prepare(self, server: Server) -> None:
        """Create the users that log in, with hashes that take a core about a second each."""
        users = [
            {"email": f"user{number}@example.com", "passwordHash": bcrypt_hash(4)}
            for number in range(LOGIN_CALLERS)
        ]
        status, answer = self.call(server, {"method": "createUsers", "params": {"users": users}})
        if status != 200:
            raise BenchError(f"createUsers: {answer!r}")
        costly = (
            f"UPDATE credentials SET password_hash = '{bcrypt_hash(BCRYPT_COST)}'"
            f" WHERE instance_id = (SELECT id FROM instances WHERE name = '{self._name}')"
        )
        asyncio.run(run_sql(self._database, costly))

    def call(self, server: Server, call: object) -> tuple[int, bytes]:
        """One call of this tenant."""
        return post(_connection(server), self._key, orjson.dumps(call))

    def creating(self, server: Server) -> contextlib.AbstractContextManager[Counter[int]]:
        """Thirty callers create two hundred users at a time."""
        self._runs += 1
        run = self._runs

        def bulk_body(label: str) -> bytes:
            users = bulk_users(label, bcrypt_hash(4), BULK_SIZE)
            return orjson.dumps({"method": "createUsers", "params": {"users": users}})

        return self._busy(server, BULK_CALLERS, lambda caller, call: bulk_body(f"{run}-{caller}-{call}"))

    @contextlib.contextmanager
    def locked(self, server: Server) -> Iterator[Counter[int]]:
        """Thirty callers change a user whose row another transaction holds."""
        body = orjson.dumps(
            {
                "method": "updateUserByEmail",
                "params": {"email": "user1@example.com", "displayName": "Another"},
            }
        )
        with self._row_held(), self._busy(server, LOCK_CALLERS, lambda caller, call: body) as statuses:
            yield statuses

    def logging_in(self, server: Server) -> contextlib.AbstractContextManager[Counter[int]]:
        """A hundred and twenty callers log in."""

        def body(caller: int, call: int) -> bytes:
            params = {"email": f"user{caller}@example.com", "password": PASSWORD}
            return orjson.dumps({"method": "checkAuth" if call else "login", "params": params})

        return self._busy(server, LOGIN_CALLERS, body)

    @contextlib.contextmanager
    def _row_held(self) -> Iterator[None]:
        held, over = threading.Event(), threading.Event()

        async def hold() -> None:
            connection = await asyncpg.connect(self._database)
            async with connection.transaction():
                await connection.execute(
                    "SELECT FROM users AS u JOIN instances AS i ON i.id = u.instance_id"
                    " WHERE i.name = $1 AND u.email_key = 'user1@example.com' FOR UPDATE OF u",
                    self._name,
                )
                held.set()
                await asyncio.to_thread(over.wait)
            await connection.close()

        with ThreadPoolExecutor(1) as threads:
            holding = threads.submit(asyncio.run, hold())
            try:
                if not held.wait(30):
                    raise BenchError("the row could not be locked")
                yield
            finally:
                over.set()
                holding.result()

    @contextlib.contextmanager
    def _busy(
        self, server: Server, callers: int, body: Callable[[int, int], bytes]
    ) -> Iterator[Counter[int]]:
        """Callers that post call after call as long as the block lasts.

        Args:
            body: of a call, by the numbers of its caller and of the call.

        Returns:
            how often each status was answered; 0 for a lost connection.
        """
        over = threading.Event()
        statuses: Counter[int] = Counter()
        connections = [_connection(server) for _ in range(callers)]

        def work(caller: int) -> None:
            for call in itertools.count():
                if over.is_set():
                    return
                try:
                    status, _ = post(connections[caller], self._key, body(caller, call))
                except (OSError, http.client.HTTPException):
                    status = 0
                    connections[caller].close()
                if not over.is_set():
                    statuses[status] += 1

        with ThreadPoolExecutor(callers) as threads:
            for caller in range(callers):
                threads.submit(work, caller)
            try:
                yield statuses
            finally:
                over.set()
                for connection in connections:  # whoever waits for an answer need not have it
                    with contextlib.suppress(OSError, AttributeError):
                        connection.sock.shutdown(socket.SHUT_RDWR)


def bcrypt_hash(cost: int) -> str:
    """Of PASSWORD."""
    return bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(cost)).decode()


def _connection(server: Server) -> http.client.HTTPConnection:
    address = urlsplit(server.url)
    return http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)


def post(connection: http.client.HTTPConnection, key: str, body: bytes) -> tuple[int, bytes]:
    """Status and answer of one call to /rpc."""
    connection.request("POST", "/rpc", body, {"x-api-key": key, "Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read()
