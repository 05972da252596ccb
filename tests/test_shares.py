"""Fair shares: connections, threads and bulk calls are shared by instance."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import bcrypt
import pytest
from conftest import ADMIN, Client, Serve, insert_key
from processes import eventually

from server.base.errors import Unavailable
from server.base.shares import CURRENT_SHARE, SERVER, Shares, taking_from
from server.base.threads import BoundedPool

A, B, C, D = 1, 2, 3, 4


# --- the order of turns ---------------------------------------------------------------------------------


class Queue:
    """Those who want slots, and who got one in which order."""

    def __init__(self, **shares: Any) -> None:
        self.shares = Shares(**{"waiting": 100, "refusal": "full"} | shares)
        self.served: deque[str] = deque()
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str) -> None:
        """One wants a slot after the other; the first letter of a name says whose share it is of."""
        for name in names:
            self.tasks[name] = asyncio.create_task(self._take(name))
            await asyncio.sleep(0)

    async def _take(self, name: str) -> None:
        await self.shares.take(ord(name[0]))
        self.served.append(name)

    async def end(self, *names: str) -> None:
        """Slots are given back, one after the other."""
        for name in names:
            self.shares.give_back(ord(name[0]))
            for _ in range(3):
                await asyncio.sleep(0)

    def got(self) -> str:
        """Who got a slot since this was asked last."""
        names = " ".join(self.served)
        self.served.clear()
        return names


async def test_turns_go_round_the_shares_and_within_one_by_arrival() -> None:
    queue = Queue(size=1, of_one=1)
    await queue.ask("a1", "a2", "a3", "a4", "b1", "b2", "c1")
    assert queue.got() == "a1"
    await queue.end("a1", "a2", "b1", "c1", "a3", "b2")
    assert queue.got() == "a2 b1 c1 a3 b2 a4"


async def test_one_share_leaves_slots_to_others() -> None:
    """It gets of_one; another one of those that are left, and the last is for a share that has none."""
    queue = Queue(size=6, of_one=3)
    await queue.ask("a1", "a2", "a3", "a4", "b1", "b2", "b3")
    assert queue.got() == "a1 a2 a3 b1 b2"
    await queue.ask("c1", "d1", "c2")
    assert queue.got() == "c1"
    await queue.end("c1")
    assert queue.got() == "d1"
    await queue.end("a1")  # the slot is the only free one: a and b have some already, c has none again
    assert queue.got() == "c2"
    await queue.end("d1")
    assert queue.got() == ""
    await queue.end("b1")  # two are free: one of them for whoever is first in turn
    assert queue.got() == "a4"


async def test_a_slot_alone_serves_all() -> None:
    queue = Queue(size=1, of_one=1)
    await queue.ask("a1", "b1")
    await queue.end("a1")
    assert queue.got() == "a1 b1"


async def test_without_a_size_each_share_has_its_own() -> None:
    queue = Queue(of_one=2)
    await queue.ask("a1", "a2", "a3", "b1", "b2", "b3")
    assert queue.got() == "a1 a2 b1 b2"
    await queue.end("b1")
    assert queue.got() == "b3"


async def test_whoever_gives_up_waits_no_more() -> None:
    queue = Queue(size=1, of_one=1)
    await queue.ask("a1", "a2", "b1", "b2")
    queue.tasks["a2"].cancel()
    queue.tasks["b1"].cancel()
    await queue.end("a1")
    assert queue.got() == "a1 b2"
    await queue.end("b2")
    assert queue.shares._waiting == {} and queue.shares._held == {}


async def test_a_turn_that_comes_as_somebody_gives_up_goes_to_the_next() -> None:
    """Whichever is first: the end of the waiting, or the slot."""
    for cancel_first in (True, False):
        queue = Queue(size=1, of_one=1)
        await queue.ask("a1", "a2", "b1")
        steps = [queue.tasks["a2"].cancel, lambda: queue.shares.give_back(ord("a"))]  # noqa: B023
        for step in steps if cancel_first else reversed(steps):
            step()
        await asyncio.gather(*queue.tasks.values(), return_exceptions=True)
        assert queue.got() == "a1 b1"
        await queue.end("b1")
        assert queue.shares._held == {} and queue.shares._free == 1


async def test_waiting_is_bounded_for_each_share() -> None:
    queue = Queue(size=1, of_one=1, waiting=2, waiting_in_all=4)
    await queue.ask("a1", "a2", "a3", "b1")
    with pytest.raises(Unavailable) as refused:
        await queue.shares.take(ord("a"))
    assert (refused.value.message, refused.value.code, refused.value.retry_after) == ("full", "busy", 1)
    await queue.ask("b2")
    with pytest.raises(Unavailable):  # four are waiting
        await queue.shares.take(ord("c"))
    await queue.end("a1", "a2", "b1", "a3")
    assert queue.got() == "a1 a2 b1 a3 b2"


async def test_a_thread_is_free_when_its_work_is_over() -> None:
    """And not when nobody waits for it any more."""
    gate = threading.Event()
    pool = BoundedPool("test", Shares(size=1, of_one=1, waiting=9, refusal="full"))
    working = asyncio.create_task(pool.run(gate.wait))
    await asyncio.sleep(0)
    working.cancel()
    after = asyncio.create_task(pool.run(lambda: "done"))
    with pytest.raises(asyncio.CancelledError):
        await working
    assert pool._slots._held == {SERVER: 1} and not after.done()
    gate.set()
    assert await after == "done"
    pool.close()


async def test_a_share_is_of_a_task_and_of_those_that_it_starts() -> None:
    async def current() -> int:
        return CURRENT_SHARE.get()

    with taking_from(A):
        assert await asyncio.gather(current(), current()) == [A, A]
        with taking_from(B):
            assert await asyncio.create_task(current()) == B
        assert await current() == A
    assert await current() == SERVER


# --- two tenants on one server --------------------------------------------------------------------------

JANE = {"email": "jane@example.com"}
BOB = {"email": "bob@other.example"}
RENAME = ("updateUserByEmail", JANE | {"displayName": "Another"})
PASSWORD = {"password": "demo1234"}


async def tenants(serve: Serve, db: asyncpg.Connection, **settings: Any) -> tuple[Client, Client, Client]:
    """An operator, the tenant MYINSTANCE with Jane, and OTHER with Bob, on a server with these settings."""
    mine = await serve(**settings)
    operator = mine.using(await insert_key(db, operator=True))
    await operator.call("createInstance", {"name": "OTHER", "admin": {"email": "boss@other.example"}})
    others = mine.using(await insert_key(db, instances=("OTHER",)))
    await mine.call("createUser", JANE | PASSWORD)
    await others.call("createUser", BOB | PASSWORD)
    return operator, mine, others


@contextlib.asynccontextmanager
async def jane_is_held(db: asyncpg.Connection) -> AsyncIterator[None]:
    """Another transaction holds Jane's row."""
    async with db.transaction():
        assert await db.fetchval("SELECT count(*) FROM users WHERE email_key = $1", JANE["email"]) == 1
        await db.execute("SELECT FROM users WHERE email_key = $1 FOR UPDATE", JANE["email"])
        yield


async def waiting_for_locks(db: asyncpg.Connection) -> int:
    count: int = await db.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock' AND application_name = 'officerpc'"
    )
    return count


@pytest.mark.slow
async def test_callers_at_a_locked_row_leave_connections_to_others(
    serve: Serve, db: asyncpg.Connection
) -> None:
    """Of four connections three wait for the row: reads, writes and logins of another tenant go through, by
    a key that has to be looked up too. The callers are told 503 when their time is up."""
    operator, mine, others = await tenants(serve, db, pool_size=4, acquire_timeout=3, lock_timeout=3)
    fresh = others.using(await insert_key(db, instances=("OTHER",)))
    async with jane_is_held(db):
        method, params = RENAME
        stuck = [asyncio.create_task(mine.outcome(*RENAME)) for _ in range(15)]
        stuck += [
            asyncio.create_task(operator.outcome(method, params | {"instance": "MYINSTANCE"}))
            for _ in range(15)
        ]
        await eventually(lambda: waiting_for_locks(db))
        for caller in (others, fresh):
            assert (await caller.call("getUserByEmail", BOB))["email"] == BOB["email"]
            await caller.call("updateUserByEmail", BOB | {"displayName": "Bob"})
            await caller.call("updateUserByEmail", BOB | {"displayName": "Bobby"}, headers={
                "Idempotency-Key": caller.key
            })  # fmt: skip
            assert (await caller.call("login", BOB | PASSWORD))["token"]
        assert (await operator.call("getUserByEmail", BOB | {"instance": "OTHER"}))["displayName"] == "Bobby"
        assert (await operator.call("getInstance", {"instance": "OTHER"}))["name"] == "OTHER"
        async with operator.http.get(operator.url + "/readyz") as response:
            assert response.status == 200
        assert await waiting_for_locks(db) <= 3
        outcomes = await asyncio.gather(*stuck)
        assert {status for status, _ in outcomes} == {503}
    assert await mine.call(*RENAME) is True


async def test_a_tenant_without_connections_leaves_the_proof_of_writes_to_others(
    serve: Serve, db: asyncpg.Connection
) -> None:
    """Writes are in doubt, and the first who asks for a proof has used up its own share of the connections."""
    _, mine, others = await tenants(serve, db, pool_size=4, acquire_timeout=5, lock_timeout=20)
    database = mine.dispatcher._database
    writes = database.writes
    async with jane_is_held(db):
        stuck = [asyncio.create_task(mine.outcome(*RENAME)) for _ in range(8)]
        await eventually(lambda: database.pool._slots._held.get(1) == 3)
        writes.doubt("a test")
        with taking_from(1):
            asked = asyncio.create_task(writes.proven())
            await asyncio.sleep(0)
        await others.call("updateUserByEmail", BOB | {"displayName": "Bobby"})
        assert await asked and not writes.in_doubt
    await asyncio.gather(*stuck)


async def test_a_tenants_queue_for_connections_is_its_own(serve: Serve, db: asyncpg.Connection) -> None:
    """What is beyond it is refused at once; another tenant's calls are not."""
    _, mine, others = await tenants(
        serve, db, pool_size=2, instance_queue=2, acquire_timeout=20, lock_timeout=20
    )

    async def rename() -> tuple[int, str | None, str | None]:
        async with await mine.post({"method": RENAME[0], "params": RENAME[1]}) as response:
            return response.status, response.headers.get("X-Error-Code"), response.headers.get("Retry-After")

    async with jane_is_held(db):
        stuck = [asyncio.create_task(rename()) for _ in range(8)]
        refused = [await turn for turn in await first_done(stuck, 5)]
        assert refused == [(503, "busy", "1")] * 5
        assert (await others.call("getUserByEmail", BOB))["email"] == BOB["email"]
    assert sorted(await asyncio.gather(*stuck)) == [(200, None, None)] * 3 + refused  # type: ignore[type-var]


async def first_done(tasks: list[asyncio.Task[Any]], number: int) -> list[asyncio.Task[Any]]:
    """So many of these tasks, as soon as they are done."""
    await eventually(lambda: sum(task.done() for task in tasks) >= number)
    return [task for task in tasks if task.done()]


@pytest.mark.slow
async def test_expensive_logins_leave_a_thread_to_others(serve: Serve, db: asyncpg.Connection) -> None:
    """Another tenant's login is done before those of the first that came before it."""
    _, mine, others = await tenants(serve, db, hash_threads=1)
    expensive = bcrypt.hashpw(b"demo1234", bcrypt.gensalt(12)).decode()
    await db.execute("UPDATE credentials SET password_hash = $1 WHERE instance_id = 1", expensive)
    done: list[str] = []

    async def log_in(who: Client, whose: dict[str, str], name: str) -> None:
        await who.call("checkAuth", {"login": whose["email"]} | PASSWORD)
        done.append(name)

    slots = mine.dispatcher._hasher._pool._slots
    first = [asyncio.create_task(log_in(mine, JANE, "mine")) for _ in range(8)]
    await eventually(lambda: any(slots._waiting.values()))
    await log_in(others, BOB, "other")
    await asyncio.gather(*first)
    assert "other" in done[:-1], done


async def test_a_tenants_queue_for_threads_is_its_own(serve: Serve, db: asyncpg.Connection) -> None:
    _, mine, others = await tenants(serve, db, hash_threads=1, hash_queue=1)
    gate = threading.Event()
    with taking_from(1):
        pool = mine.dispatcher._hasher._pool
        working = [asyncio.create_task(pool.run(gate.wait)) for _ in range(2)]
        await asyncio.sleep(0)
    async with await mine.post({"method": "login", "params": JANE | PASSWORD}) as response:
        assert (response.status, response.headers["X-Error-Code"]) == (503, "busy")
    assert (await others.call("login", BOB | PASSWORD))["token"]
    gate.set()
    assert await asyncio.gather(*working) == [True, True]


async def test_look_ups_pass_bulk_calls_of_another_tenant(serve: Serve, db: asyncpg.Connection) -> None:
    """Calls that create two hundred users each: two of them run at once, and look-ups get between."""
    _, mine, others = await tenants(serve, db, lock_timeout=120, statement_timeout=120, call_timeout=600)
    many = mine.dispatcher._many
    running: list[int] = []

    async def create(call: int) -> None:
        users = [{"email": f"user{call}-{number}@example.com"} for number in range(200)]
        await mine.call("createUsers", {"users": users})
        running.append(many._held.get(1, 0))

    creating = [asyncio.create_task(create(call)) for call in range(10)]
    await eventually(lambda: many._held.get(1))
    for _ in range(20):
        assert (await others.call("getUserByEmail", BOB))["email"] == BOB["email"]
    await others.call("createUsers", {"users": [{"email": "new@other.example"}]})
    assert not all(task.done() for task in creating)
    await asyncio.gather(*creating)
    assert max(running) <= 2
    assert await db.fetchval("SELECT count(*) FROM users WHERE instance_id = 1") == 2 + 10 * 200


async def test_few_calls_about_many_users_wait(serve: Serve, db: asyncpg.Connection) -> None:
    """Each waits with all its items. Beyond fifty of an instance they are refused at once."""
    _, mine, others = await tenants(serve, db)
    many = mine.dispatcher._many
    for _ in range(2):
        await many.take(1)
    waiting = [asyncio.create_task(many.take(1)) for _ in range(50)]
    await asyncio.sleep(0)
    body = {"method": "deleteUsers", "params": {"users": [JANE]}}
    async with await mine.post(body) as response:
        assert (response.status, response.headers["X-Error-Code"]) == (503, "busy")
    assert (await mine.call("getUserByEmail", JANE))["email"] == JANE["email"]
    assert (await others.call("deleteUsers", {"users": [BOB]}))["succeeded"] == 1
    for _ in range(2 + len(waiting)):
        many.give_back(1)
        await asyncio.sleep(0)
    assert (await mine.call("deleteUsers", {"users": [JANE]}))["succeeded"] == 1


async def test_two_long_lists_of_a_tenant_are_read_at_once(serve: Serve, db: asyncpg.Connection) -> None:
    """Whatever else it asks for passes them, and so does another tenant."""
    _, mine, others = await tenants(serve, db)
    lists = mine.dispatcher._long_lists
    for _ in range(2):
        await lists.take(1)
    long = asyncio.create_task(mine.call("listUsers", {"limit": 101}))
    await eventually(lambda: lists._waiting)
    for who in (mine, others):
        assert len((await who.call("listUsers", {"limit": 100}))["users"]) == 2
        await who.call("createUsers", {"users": [{"email": "new@example.com"}]})
    assert len((await others.call("listUsers", {"limit": 1000}))["users"]) == 3
    assert not long.done()
    lists.give_back(1)
    assert len((await long)["users"]) == 3


async def test_a_share_ends_with_its_call(client: Client) -> None:
    """Nothing is held by anybody afterwards, whatever came of the calls on a connection."""
    await client.outcome("getUserByEmail", {"email": ADMIN})
    await client.outcome("getUserByEmail", {"email": "nobody@example.com"})
    await client.outcome("createUser", {"email": ADMIN})
    await client.outcome("createUsers", {"users": [{"email": ADMIN}]})
    await client.outcome("login", {"email": ADMIN, "password": "wrong"})
    dispatcher = client.dispatcher
    for shares in (dispatcher._database.pool._slots, dispatcher._many, dispatcher._hasher._pool._slots):
        await eventually(lambda shares=shares: shares._held == {} and shares._waiting == {})
