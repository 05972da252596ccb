"""A second tenant for bench.py that puts load on the server of the first."""

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

import asyncpg
import bcrypt
import orjson
from _data import run_sql
from _rig import BenchError, Server, bulk_users, connect, officerpc_path, post

PASSWORD = "correct horse battery"
BULK_CALLERS, BULK_SIZE = 30, 200
LOCK_CALLERS = 30
LOGIN_CALLERS, BCRYPT_COST = 120, 14
"""Hashes imported before OFFICERPC_BCRYPT_MAX_COST was introduced can have this cost."""


class Neighbour:
    """A tenant with heavy load."""

    def __init__(self, database: str, name: str) -> None:
        """Create the instance and an API key.

        Args:
            database: URL of the server's database.
            name: of the instance.
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
        """Create the users that log in. Checking one of their hashes takes about a second of a core."""
        users = [
            {"email": f"user{number}@example.com", "passwordHash": bcrypt_hash(4)}
            for number in range(LOGIN_CALLERS)
        ]
        body = orjson.dumps({"method": "createUsers", "params": {"users": users}})
        status, answer = post(connect(server), self._key, body)
        if status != 200:
            raise BenchError(f"createUsers: {answer!r}")
        costly = (
            f"UPDATE credentials SET password_hash = '{bcrypt_hash(BCRYPT_COST)}'"
            f" WHERE instance_id = (SELECT id FROM instances WHERE name = '{self._name}')"
        )
        asyncio.run(run_sql(self._database, costly))

    def creating(self, server: Server) -> contextlib.AbstractContextManager[Counter[int]]:
        """BULK_CALLERS create BULK_SIZE users a call."""
        self._runs += 1
        run = self._runs

        def bulk_body(label: str) -> bytes:
            users = bulk_users(label, bcrypt_hash(4), BULK_SIZE)
            return orjson.dumps({"method": "createUsers", "params": {"users": users}})

        return self._busy(server, BULK_CALLERS, lambda caller, call: bulk_body(f"{run}-{caller}-{call}"))

    @contextlib.contextmanager
    def locked(self, server: Server) -> Iterator[Counter[int]]:
        """LOCK_CALLERS change a user whose row is locked by another transaction."""
        body = orjson.dumps(
            {
                "method": "updateUserByEmail",
                "params": {"email": "user1@example.com", "displayName": "Another"},
            }
        )
        with self._row_locked(), self._busy(server, LOCK_CALLERS, lambda caller, call: body) as statuses:
            yield statuses

    def logging_in(self, server: Server) -> contextlib.AbstractContextManager[Counter[int]]:
        """LOGIN_CALLERS log in."""

        def body(caller: int, call: int) -> bytes:
            params = {"email": f"user{caller}@example.com", "password": PASSWORD}
            return orjson.dumps({"method": "checkAuth" if call else "login", "params": params})

        return self._busy(server, LOGIN_CALLERS, body)

    @contextlib.contextmanager
    def _row_locked(self) -> Iterator[None]:
        lock = (
            "BEGIN; SELECT FROM users AS u JOIN instances AS i ON i.id = u.instance_id"
            f" WHERE i.name = '{self._name}' AND u.email_key = 'user1@example.com' FOR UPDATE OF u"
        )
        with asyncio.Runner() as runner:
            connection = runner.run(asyncpg.connect(self._database))
            try:
                runner.run(connection.execute(lock))
                yield
            finally:
                runner.run(connection.close())

    @contextlib.contextmanager
    def _busy(
        self, server: Server, callers: int, body: Callable[[int, int], bytes]
    ) -> Iterator[Counter[int]]:
        """Callers that send one call after another until the block ends.

        Args:
            body: makes the body of a call from the numbers of its caller and of the call.

        Yields:
            how often each status was answered; 0 for a lost connection.
        """
        over = threading.Event()
        statuses: Counter[int] = Counter()
        connections = [connect(server) for _ in range(callers)]

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
                for connection in connections:  # calls in progress need no answer
                    with contextlib.suppress(OSError, AttributeError):
                        connection.sock.shutdown(socket.SHUT_RDWR)


def bcrypt_hash(cost: int) -> str:
    """A hash of PASSWORD."""
    return bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(cost)).decode()
