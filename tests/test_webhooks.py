"""Webhooks: signed, sent at least once, never to private addresses; and the feed, which misses nothing."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import random
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from conftest import ADMIN, Client, Log, Serve, insert_key, until
from processes import DroppingProxy, eventually, running

from server.base.settings import Settings
from server.directory.upkeep import purge_expired
from server.events import deliveries as deliveries_module
from server.events import feed, webhooks
from server.jobs import worker as worker_module
from server.jobs.windows import Limits, Windows
from server.outside import outbound
from server.outside.addresses import is_public
from server.postgres import analyze
from server.postgres.db import Database
from server.postgres.queries import load_queries

JANE = "jane@example.com"
PAUSES = deliveries_module.PAUSES


@dataclass
class Received:
    """One POST as it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    request: web.Request

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def said(self) -> Any:
        return json.loads(self.body)

    def signed_by(self, secret: str) -> bool:
        """Whether one of the signatures is by a secret, reckoned as Standard Webhooks describes it."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = f"{self.id}.{self.headers['webhook-timestamp']}.".encode() + self.body
        expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        return expected in self.headers["webhook-signature"].split(" ")


@dataclass
class Receiver:
    """Somebody's endpoint: notes what it gets, and answers as it is told."""

    url: str = ""
    got: list[Received] = field(default_factory=list)
    answer: Callable[[Received], Awaitable[web.StreamResponse]] | None = None
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        received = Received(request.path, headers, await request.read(), request)
        self.got.append(received)
        return await self.answer(received) if self.answer else web.Response(status=204)

    def answers(self, *statuses: int, **headers: str) -> None:
        """Statuses for the next ones, the last for all that follow."""
        left = list(statuses)

        async def answer(received: Received) -> web.StreamResponse:
            return web.Response(status=left.pop(0) if len(left) > 1 else left[0], headers=headers)

        self.answer = answer

    async def has(self, count: int) -> list[Received]:
        async def enough() -> bool:
            return len(self.got) >= count

        await until(enough)
        return self.got


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    it = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", it.handle)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    it.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield it
    it.closing.set()
    await runner.cleanup()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "POLL", 0.02)
    monkeypatch.setattr(deliveries_module, "PAUSES", (0.01,) * 9)


@pytest.fixture
async def client(serve: Serve) -> Client:
    """A server that leaves deliveries to the other one: it would refuse to send to this machine."""
    return await serve(run_jobs=False)


@pytest.fixture
async def inside(serve: Serve) -> Client:
    """A server whose webhooks may lead to this machine."""
    return await serve(webhook_private_addresses=True)


async def deliveries(client: Client, webhook_id: int = 1, **asked: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.call("listDeliveries", {"id": webhook_id} | asked))[
        "deliveries"
    ]
    return found


async def settled(client: Client, count: int, webhook_id: int = 1) -> list[dict[str, Any]]:
    """The deliveries, once so many have come to an end."""

    async def done() -> Any:
        found = await deliveries(client, webhook_id)
        return [one for one in found if one["state"] != "pending"][count - 1 :] and found

    return list(await until(done))


# --- what is sent -------------------------------------------------------------------------------------


async def test_an_event_is_sent_signed(inside: Client, receiver: Receiver, logged: Log) -> None:
    made = await inside.call(
        "createWebhook", {"url": receiver.url, "types": ["user.created", "user.suspended"]}
    )
    await inside.call("createUser", {"email": JANE, "password": "Sesame-4711"}, headers={"X-Origin": "crm"})
    await inside.call("updateUserByEmail", {"email": JANE, "displayName": "not for this one"})
    await inside.call("updateUserByEmail", {"email": JANE, "isActive": False})
    created, suspended = sorted(await receiver.has(2), key=lambda one: str(one.said["timestamp"]))
    for one in (created, suspended):
        assert one.signed_by(made["secret"]) and not one.signed_by(outbound.new_secret())
        assert one.headers["content-type"] == "application/json" and one.path == "/hook"
        assert int(one.headers["webhook-timestamp"]) > 1_700_000_000
    data = created.said["data"]
    assert created.said["type"] == "user.created" and created.said["timestamp"].endswith("Z")
    assert (data["id"], data["instance"], data["userId"], data["origin"]) == (
        created.id,
        "MYINSTANCE",
        2,
        "crm",
    )
    assert data["before"] is None and data["after"]["email"] == JANE
    assert suspended.said["data"]["before"] == {"isActive": True}
    assert b"Sesame" not in created.body
    assert [one["state"] for one in await settled(inside, 2)] == ["delivered"] * 2
    assert made["secret"].encode() not in logged.text


def test_the_signature_is_the_standards() -> None:
    """The example of the reference implementations (standard-webhooks, libraries/python/tests)."""
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert outbound.signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == expected
    with pytest.raises(ValueError, match="not a secret"):
        outbound.signature("whsec_?", "x", 1, b"")


async def test_nothing_of_before_and_nothing_of_others(
    inside: Client, operator: Client, receiver: Receiver, db: asyncpg.Connection
) -> None:
    await inside.call("createUser", {"email": "before@example.com"})
    await inside.call("createWebhook", {"url": receiver.url})
    await operator.call("createInstance", {"name": "OTHER", "admin": {"email": "boss@other.example"}})
    await inside.call("createUser", {"email": JANE})
    await settled(inside, 1)
    assert [one.said["data"]["after"]["email"] for one in receiver.got] == [JANE]


async def test_ones_own_echo_is_skipped(inside: Client, receiver: Receiver) -> None:
    await inside.call("createWebhook", {"url": receiver.url, "skipOrigin": "shop"})
    for number, origin in enumerate(("shop", "crm", None)):
        headers = {"X-Origin": origin} if origin else {}
        await inside.call("createUser", {"email": f"{number}@example.com"}, headers=headers)
    await settled(inside, 2)
    assert {one.said["data"]["origin"] for one in receiver.got} == {"crm", None}


# --- when it fails ------------------------------------------------------------------------------------


async def test_tried_again_with_the_same_id(inside: Client, receiver: Receiver) -> None:
    receiver.answers(500, 429, 302, 204, Location="http://127.0.0.1:9/elsewhere")
    await inside.call("createWebhook", {"url": receiver.url})
    await inside.call("createUser", {"email": JANE})
    (done,) = await settled(inside, 1)
    assert (done["state"], done["attempts"], done["status"], done["error"]) == ("delivered", 4, 204, None)
    assert len({one.id for one in receiver.got}) == len({one.body for one in receiver.got}) == 1
    assert [one.path for one in receiver.got] == ["/hook"] * 4


async def test_redirects_are_not_followed(inside: Client, receiver: Receiver) -> None:
    receiver.answers(307, Location=receiver.url + "/elsewhere")
    await inside.call("createWebhook", {"url": receiver.url})
    told = await inside.call("testWebhook", {"id": 1})
    assert (told["delivered"], told["status"], told["error"]) == (False, 307, "http_307")
    assert [one.path for one in receiver.got] == ["/hook"]


async def test_given_up_after_ten_tries(inside: Client, receiver: Receiver) -> None:
    receiver.answers(500)
    await inside.call("createWebhook", {"url": receiver.url})
    await inside.call("createUser", {"email": JANE})
    (failed,) = await settled(inside, 1)
    assert (failed["state"], failed["attempts"], failed["error"]) == ("failed", 10, "http_500")
    assert len(receiver.got) == 10


async def test_one_that_takes_nothing_for_three_days_is_switched_off(
    inside: Client, receiver: Receiver, db: asyncpg.Connection
) -> None:
    receiver.answers(500)
    await inside.call("createWebhook", {"url": receiver.url})
    await inside.call("createUser", {"email": JANE})
    await settled(inside, 1)
    shown = await inside.call("getWebhook", {"id": 1})
    assert (shown["isActive"], shown["disabledBecause"]) == (False, "nothing was taken for three days")
    (event,) = (await inside.call("listAuditEvents", {"type": "disableWebhook"}))["events"]
    assert event["after"]["disabledBecause"] == shown["disabledBecause"]
    receiver.answers(200)
    await inside.call("updateWebhook", {"id": 1, "isActive": True})
    assert await db.fetchval("SELECT failing_since FROM webhooks") is None
    await inside.call("createUser", {"email": "later@example.com"})
    await settled(inside, 2)
    assert (await inside.call("getWebhook", {"id": 1}))["isActive"]


async def test_one_that_takes_some_stays_on(
    inside: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that no receiver could take is given up; what came through meanwhile keeps the webhook on."""
    monkeypatch.setattr(deliveries_module, "PAUSES", (0.01,) * 8 + (1.0,))
    tries = 0

    async def refuse_one(received: Received) -> web.StreamResponse:
        nonlocal tries
        refused = received.said["data"]["after"]["email"] == JANE
        tries += refused
        return web.Response(status=500 if refused else 204)

    receiver.answer = refuse_one
    await inside.call("createWebhook", {"url": receiver.url})
    await inside.call("createUser", {"email": JANE})

    async def nearly() -> bool:
        return tries == 9

    await until(nearly)
    await inside.call("createUser", {"email": "taken@example.com"})
    told = {one["state"]: one["attempts"] for one in await settled(inside, 2)}
    assert told == {"failed": 10, "delivered": 1}
    assert (await inside.call("getWebhook", {"id": 1}))["isActive"]


def test_the_pauses_take_three_days() -> None:
    assert 3 * 86400 <= sum(PAUSES) <= 3.5 * 86400 and list(PAUSES) == sorted(PAUSES)


async def test_a_receiver_that_does_not_answer(
    inside: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    monkeypatch.setattr(outbound, "TIME_LIMIT", 0.3)
    hasty = await serve(webhook_private_addresses=True, run_jobs=False)

    async def never(received: Received) -> web.StreamResponse:
        await receiver.closing.wait()
        return web.Response(status=503)

    receiver.answer = never
    await inside.call("createWebhook", {"url": receiver.url})
    told = await hasty.call("testWebhook", {"id": 1})
    assert (told["delivered"], told["status"], told["error"]) == (False, None, "timeout")


async def test_an_endless_answer_is_not_read(inside: Client, receiver: Receiver) -> None:
    async def flooding(received: Received) -> web.StreamResponse:
        return web.Response(status=200, body=b"x" * 50_000_000)

    receiver.answer = flooding
    await inside.call("createWebhook", {"url": receiver.url})
    assert (await inside.call("testWebhook", {"id": 1}))["delivered"]


async def test_a_body_that_stalls_is_not_waited_for(
    inside: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status has said it; and one that breaks off is no failure either."""
    monkeypatch.setattr(outbound, "READ_FOR", 0.2)
    monkeypatch.setattr(outbound, "TIME_LIMIT", 30)

    async def stall(received: Received) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(received.request)
        await response.write(b"half of it")
        if received.path == "/hook/break":
            assert received.request.transport is not None
            received.request.transport.abort()
        else:
            await receiver.closing.wait()
        return response

    receiver.answer = stall
    for number, path in enumerate(("/stall", "/break"), 1):
        await inside.call("createWebhook", {"url": receiver.url + path})
        told = await inside.call("testWebhook", {"id": number})
        assert (told["delivered"], told["status"], told["error"]) == (True, 200, None)
    await inside.call("createUser", {"email": JANE})
    for number in (1, 2):
        (done,) = await settled(inside, 1, webhook_id=number)
        assert (done["state"], done["attempts"], done["status"]) == ("delivered", 1, 200)


async def test_410_switches_it_off(inside: Client, receiver: Receiver) -> None:
    receiver.answers(410)
    await inside.call("createWebhook", {"url": receiver.url})
    await inside.call("createUser", {"email": JANE})
    (failed,) = await settled(inside, 1)
    assert (failed["state"], failed["attempts"], failed["status"]) == ("failed", 1, 410)
    shown = await inside.call("getWebhook", {"id": 1})
    assert (shown["isActive"], shown["disabledBecause"]) == (False, "410 Gone")
    (event,) = (await inside.call("listAuditEvents", {"type": "disableWebhook"}))["events"]
    assert event["after"]["disabledBecause"] == "410 Gone"
    await inside.call("createUser", {"email": "while-off@example.com"})
    await asyncio.sleep(0.2)
    assert len(receiver.got) == 1
    receiver.answers(200)
    await inside.call("updateWebhook", {"id": 1, "isActive": True})
    await settled(inside, 2)
    assert receiver.got[-1].said["data"]["after"]["email"] == "while-off@example.com"
    assert (await inside.call("getWebhook", {"id": 1}))["disabledBecause"] is None


# --- by hand ------------------------------------------------------------------------------------------


async def test_a_test_is_signed_and_in_no_log(inside: Client, receiver: Receiver) -> None:
    made = await inside.call("createWebhook", {"url": receiver.url, "types": ["user.purged"]})
    told = await inside.call("testWebhook", {"id": 1})
    assert (told["delivered"], told["status"], told["error"]) == (True, 204, None)
    (one,) = receiver.got
    assert one.signed_by(made["secret"]) and one.said["type"] == "webhook.test"
    assert await deliveries(inside) == []


async def test_redelivered_with_the_same_id(inside: Client, receiver: Receiver) -> None:
    await inside.call("createUser", {"email": "old@example.com"})
    await inside.call("createWebhook", {"url": receiver.url, "types": ["user.created"]})
    await inside.call("createUser", {"email": JANE})
    (first,) = await settled(inside, 1)
    await inside.call("redeliverWebhook", {"id": 1, "eventId": first["eventId"]})
    await receiver.has(2)
    assert receiver.got[0].id == receiver.got[1].id == first["eventId"]
    assert receiver.got[0].body == receiver.got[1].body
    # One from before the webhook.
    (old,) = (await inside.call("listAuditEvents", {"email": "old@example.com"}))["events"]
    await inside.call("redeliverWebhook", {"id": 1, "eventId": old["id"]})
    await receiver.has(3)
    assert receiver.got[2].said["data"]["after"]["email"] == "old@example.com"
    for unknown in ("00000000-0000-4000-8000-000000000000",):
        assert await inside.outcome("redeliverWebhook", {"id": 1, "eventId": unknown}) == (400, "not found")


async def test_redelivered_while_a_try_runs(
    inside: Client, receiver: Receiver, db: asyncpg.Connection
) -> None:
    """What comes of the older try, good or bad, is not taken for what comes of the newer one."""
    answers: list[asyncio.Future[int]] = []

    async def when_told(received: Received) -> web.StreamResponse:
        answers.append(asyncio.get_running_loop().create_future())
        return web.Response(status=await answers[-1])

    receiver.answer = when_told
    await inside.call("createWebhook", {"url": receiver.url})
    await inside.call("createUser", {"email": JANE})
    (first,) = await receiver.has(1)
    (pending,) = await deliveries(inside)
    assert (pending["state"], pending["attempts"]) == ("pending", 1)
    for number, (old, said) in enumerate(((500, "retried"), (204, "done"))):
        await inside.call("redeliverWebhook", {"id": 1, "eventId": first.id})
        await receiver.has(number + 2)
        answers[number].set_result(old)

        async def noted(said: str = said) -> bool:
            async with inside.http.get(inside.url + "/metrics") as response:
                return f'{{kind="webhook",outcome="{said}"}} 1.0' in await response.text()

        await until(noted)
        (shown,) = await deliveries(inside)
        assert (shown["state"], shown["attempts"], shown["error"]) == ("pending", 1, None)
    answers[-1].set_result(202)
    (done,) = await settled(inside, 1)
    assert (done["state"], done["attempts"], done["status"]) == ("delivered", 1, 202)
    assert len(receiver.got) == 3


async def test_nothing_is_redelivered_to_one_that_is_off(
    inside: Client, receiver: Receiver, db: asyncpg.Connection
) -> None:
    await inside.call("createWebhook", {"url": receiver.url})
    await inside.call("createUser", {"email": JANE})
    (first,) = await settled(inside, 1)
    await inside.call("updateWebhook", {"id": 1, "isActive": False})
    before = await db.fetch("SELECT * FROM deliveries")
    answer = await inside.outcome("redeliverWebhook", {"id": 1, "eventId": first["eventId"]})
    assert answer == (400, "the webhook is switched off")
    assert await db.fetch("SELECT * FROM deliveries") == before


async def test_times_are_the_databases(
    inside: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock of ours that is wrong would make receivers refuse everything as too old."""
    await inside.call("createWebhook", {"url": receiver.url})
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 86400)
    await inside.call("testWebhook", {"id": 1})
    await inside.call("createUser", {"email": JANE})
    for one in await receiver.has(2):
        assert abs(int(one.headers["webhook-timestamp"]) - now()) < 3600


async def test_tests_of_one_instance_are_few_at_a_time(
    inside: Client, other: Client, receiver: Receiver
) -> None:
    async def wait(received: Received) -> web.StreamResponse:
        if received.path == "/hook/slow":
            await receiver.closing.wait()
        return web.Response()

    receiver.answer = wait
    other = inside.using(other.key)
    await inside.call("createWebhook", {"url": receiver.url + "/slow"})
    await other.call("createWebhook", {"url": receiver.url})
    running = [asyncio.create_task(inside.call("testWebhook", {"id": 1})) for _ in range(2)]
    await receiver.has(2)
    async with await inside.post({"method": "testWebhook", "params": {"id": 1}}) as response:
        assert response.status == 429 and int(response.headers["Retry-After"]) > 0
        assert await response.json() == "too many tests of webhooks are running, try again later"
    assert (await other.call("testWebhook", {"id": 1}))["delivered"]
    receiver.closing.set()
    assert all(told["delivered"] for told in await asyncio.gather(*running))
    assert (await inside.call("testWebhook", {"id": 1}))["delivered"]


async def test_secrets_rotate_with_an_overlap(
    inside: Client, receiver: Receiver, db: asyncpg.Connection, database_url: str
) -> None:
    old = (await inside.call("createWebhook", {"url": receiver.url}))["secret"]
    rotated = await inside.call("rotateWebhookSecret", {"id": 1, "overlap": 3600})
    assert rotated["secret"] != old and rotated["oldSecretUntil"] > time.time()

    async def signed() -> tuple[bool, bool]:
        await inside.call("testWebhook", {"id": 1})
        return receiver.got[-1].signed_by(old), receiver.got[-1].signed_by(rotated["secret"])

    assert await signed() == (True, True)
    await db.execute("UPDATE webhooks SET old_secret_until = now() - interval '1 second'")
    assert await signed() == (False, True)
    settings = Settings()
    database = Database(settings, database_url)
    await database.open()

    async def forgotten() -> bool:  # a webhook that is just being read on is passed over
        return (await purge_expired(database, settings))["secrets"] == 1

    await until(forgotten)
    await database.close()
    assert await db.fetchval("SELECT old_secret FROM webhooks") is None
    again = await inside.call("rotateWebhookSecret", {"id": 1, "overlap": 0})
    assert again["oldSecretUntil"] is None
    assert await signed() == (False, False) and receiver.got[-1].signed_by(again["secret"])


async def test_secrets_are_shown_once(inside: Client, receiver: Receiver, db: asyncpg.Connection) -> None:
    secrets = [(await inside.call("createWebhook", {"url": receiver.url}))["secret"]]
    secrets.append((await inside.call("rotateWebhookSecret", {"id": 1}))["secret"])
    shown = [await inside.call("listWebhooks"), await inside.call("getWebhook", {"id": 1})]
    shown.append(await inside.call("listAuditEvents", {"limit": 1000}))
    written = await db.fetch("SELECT * FROM events")
    for secret in secrets:
        assert secret.startswith("whsec_") and len(base64.b64decode(secret[6:])) == 32
        assert secret not in str(shown) and secret not in str(written)


async def test_changes_and_deletion(inside: Client, receiver: Receiver, db: asyncpg.Connection) -> None:
    made = await inside.call("createWebhook", {"url": receiver.url, "description": "shop"})
    await inside.call(
        "updateWebhook", {"id": made["id"], "types": ["user.deleted"], "url": receiver.url + "/b"}
    )
    shown = await inside.call("getWebhook", {"id": 1})
    assert (shown["types"], shown["url"], shown["description"]) == (
        ["user.deleted"],
        receiver.url + "/b",
        "shop",
    )
    assert await inside.call("listWebhooks") == [shown]
    await inside.call("createUser", {"email": JANE})
    await inside.call("deleteUserByEmail", {"email": JANE})
    await settled(inside, 1)
    assert [(one.path, one.said["type"]) for one in receiver.got] == [("/hook/b", "user.deleted")]
    await inside.call("deleteWebhook", {"id": 1})
    assert await inside.call("listWebhooks") == []
    for name in ("getWebhook", "deleteWebhook", "testWebhook", "rotateWebhookSecret", "listDeliveries"):
        assert await inside.outcome(name, {"id": 1}) == (400, "not found")
    again = {"id": 1, "eventId": receiver.got[0].id}
    assert await inside.outcome("redeliverWebhook", again) == (400, "not found")
    assert await inside.outcome("updateWebhook", {"id": 1, "isActive": True}) == (400, "not found")
    left = await db.fetchrow("SELECT url, secret, old_secret FROM webhooks")
    assert tuple(left) == ("", "", None)
    assert (await inside.call("createWebhook", {"url": receiver.url}))["id"] == 2


async def test_tenants_are_apart(
    inside: Client, operator: Client, receiver: Receiver, db: asyncpg.Connection
) -> None:
    await operator.call("createInstance", {"name": "OTHER", "admin": {"email": "boss@other.example"}})
    other = inside.using(await insert_key(db, instances=("OTHER",)))
    await inside.call("createWebhook", {"url": receiver.url})
    await inside.call("createUser", {"email": JANE})
    (done,) = await settled(inside, 1)
    before = await db.fetch("SELECT * FROM webhooks")
    again = {"id": 1, "eventId": done["eventId"]}
    for name, params in (
        ("getWebhook", {"id": 1}), ("updateWebhook", {"id": 1, "isActive": False}), ("deleteWebhook", {"id": 1}),
        ("rotateWebhookSecret", {"id": 1}), ("testWebhook", {"id": 1}), ("listDeliveries", {"id": 1}),
        ("redeliverWebhook", again),
    ):  # fmt: skip
        assert await other.outcome(name, params) == (400, "not found")
    assert await other.call("listWebhooks") == []
    await other.call("createWebhook", {"url": receiver.url})
    assert await other.outcome("redeliverWebhook", again) == (400, "not found")
    emails = [one["data"]["after"].get("email") for one in (await other.call("listChanges"))["events"]]
    assert emails == ["boss@other.example"]
    assert (await db.fetch("SELECT * FROM webhooks WHERE instance_id = 1"))[0]["secret"] == before[0][
        "secret"
    ]


@pytest.mark.damages
async def test_an_instance_has_fifty_at_most(
    inside: Client, receiver: Receiver, db: asyncpg.Connection
) -> None:
    await db.execute(
        "INSERT INTO webhooks (instance_id, id, url, description, types, secret, is_active)"
        " SELECT 1, number + 1000, 'https://a.example', '', '{}', '', false FROM generate_series(1, 50) AS number"
    )
    status, told = await inside.outcome("createWebhook", {"url": receiver.url})
    assert (status, told) == (400, "the instance has 50 webhooks already")


async def test_pages_of_deliveries(inside: Client, receiver: Receiver) -> None:
    await inside.call("createWebhook", {"url": receiver.url})
    for number in range(5):
        await inside.call("createUser", {"email": f"{number}@example.com"})
    everything = [one["eventId"] for one in await settled(inside, 5)]
    seen, after = [], None
    while True:
        page = await inside.call("listDeliveries", {"id": 1, "limit": 2, "after": after})
        seen += [one["eventId"] for one in page["deliveries"]]
        if (after := page["next"]) is None:
            break
    assert seen == everything
    assert await deliveries(inside, state="failed") == []
    assert [one["eventId"] for one in await deliveries(inside, state="delivered")] == everything
    assert (await inside.outcome("listDeliveries", {"id": 1, "after": "x"}))[0] == 400


async def test_deliveries_that_are_failing(inside: Client, receiver: Receiver) -> None:
    """They wait for their next try: pending, and all the same findable as failing."""
    receiver.answers(500)
    await inside.call("createWebhook", {"url": receiver.url})
    await inside.call("createUser", {"email": JANE})

    async def failing() -> Any:
        return await deliveries(inside, hasFailed=True)

    [one] = await until(failing)
    assert (one["state"], one["status"], one["error"]) == ("pending", 500, "http_500")
    assert one["answer"] == "500 Internal Server Error"
    assert one["dueAt"] >= one["createdAt"]  # when it is tried next
    assert await deliveries(inside, state="failed") == []
    receiver.answers(204)
    await inside.call("redeliverWebhook", {"id": 1, "eventId": one["eventId"]})
    [done] = await settled(inside, 1)
    assert (done["answer"], done["error"]) == ("204 No Content", None)
    assert await deliveries(inside, hasFailed=True) == []
    assert await inside.outcome("listDeliveries", {"id": 1, "hasFailed": True, "state": "failed"}) == (
        400, "params: give state or hasFailed, not both",
    )  # fmt: skip


async def test_pages_of_failing_deliveries(inside: Client, db: asyncpg.Connection) -> None:
    await inside.call("createWebhook", {"url": "https://192.0.2.1/", "types": ["group.deleted"]})
    await db.execute(
        "INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body, state, attempts, due_at, error)"
        " SELECT 1, 1, gen_random_uuid(), 'user.created', '', CASE number % 3 WHEN 0 THEN 'failed' ELSE 'pending' END,"
        " 1, now() + interval '1 day', CASE number % 3 WHEN 2 THEN NULL ELSE 'timeout' END"
        " FROM generate_series(0, 8) AS number"
    )
    seen, after = [], None
    while True:
        params = {"id": 1, "hasFailed": True, "limit": 4, "after": after}
        page = await inside.call("listDeliveries", params)
        seen += [one["answer"] for one in page["deliveries"]]
        if (after := page["next"]) is None:
            break
    assert seen == ["no answer within 15 seconds"] * 6


async def test_the_sample_in_the_readme_verifies(inside: Client, receiver: Receiver) -> None:
    """As it stands there, on a delivery as it came."""
    readme = (Path(__file__).parents[1] / "server/methods/README.md").read_text()
    [sample] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(sample, scope)
    verified = scope["verified"]
    created = await inside.call("createWebhook", {"url": receiver.url})
    rotated = await inside.call("rotateWebhookSecret", {"id": created["id"]})
    await inside.call("createUser", {"email": JANE})
    [one] = await receiver.has(1)
    for secret in (created["secret"], rotated["secret"]):
        assert verified(one.headers, one.body, secret)
    assert not verified(one.headers, one.body, outbound.new_secret())
    assert not verified(one.headers, one.body + b" ", rotated["secret"])
    old = one.headers | {"webhook-timestamp": str(int(one.headers["webhook-timestamp"]) - 600)}
    assert not verified(old, one.body, rotated["secret"])
    signed = outbound.headers_of("id", b"{}", created["secret"], None, int(time.time()) - 600)
    assert not verified(signed, b"{}", created["secret"])


async def test_who_was_created_today_is_one_call(client: Client) -> None:
    await client.call("createUser", {"email": JANE})
    today = int(time.time()) // 86400 * 86400
    asked = {"type": "user.created", "from": today}
    events = (await client.call("listAuditEvents", asked))["events"]
    assert JANE in [event["after"]["email"] for event in events]
    assert (await client.call("listAuditEvents", asked | {"from": today + 86400}))["events"] == []


# --- pruning ------------------------------------------------------------------------------------------


@pytest.fixture
async def purge(database_url: str) -> AsyncIterator[Callable[[], Awaitable[dict[str, int]]]]:
    settings = Settings()
    database = Database(settings, database_url)
    await database.open()
    yield lambda: purge_expired(database, settings)
    await database.close()


async def test_a_deleted_webhook_is_purged_in_batches(
    serve: Serve, db: asyncpg.Connection, purge: Callable[[], Awaitable[dict[str, int]]]
) -> None:
    client = await serve(run_jobs=False)
    for _ in range(2):
        await client.call("createWebhook", {"url": "https://hooks.example.com/"})
    await db.execute(
        "INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body, state)"
        " SELECT 1, 1 + number % 2, gen_random_uuid(), 'user.created', '',"
        " CASE WHEN number % 3 = 0 THEN 'pending' ELSE 'delivered' END FROM generate_series(1, 2400) AS number"
    )
    await client.call("deleteWebhook", {"id": 2})
    assert await db.fetchval("SELECT count(*) FROM deliveries") == 2400  # it does not wait for that
    (event,) = (await client.call("listAuditEvents", {"type": "deleteWebhook"}))["events"]
    assert event["before"]["url"] == "https://hooks.example.com/" and event["before"]["isActive"]
    gone = await purge()
    assert (gone["deliveries_of_deleted"], gone["webhooks"], gone["deliveries"]) == (1200, 1, 0)
    assert await db.fetchval("SELECT count(*) FROM deliveries WHERE webhook_id = 1") == 1200
    assert [one["id"] for one in await client.call("listWebhooks")] == [1]
    assert set((await purge()).values()) == {0}


async def test_what_nobody_will_send_is_purged(
    serve: Serve, db: asyncpg.Connection, purge: Callable[[], Awaitable[dict[str, int]]]
) -> None:
    """Thirty days old: of those that wait only what an active webhook of a living instance still gets is kept."""
    client = await serve(run_jobs=False)
    operator = client.using(await insert_key(db, operator=True))
    for name in ("GONE", "HERE"):
        await operator.call("createInstance", {"name": name, "admin": {"email": f"{name}@example.com"}})
        for active in (True, False):
            made = await operator.call(
                "createWebhook", {"instance": name, "url": "https://hooks.example.com/"}
            )
            await operator.call("updateWebhook", {"instance": name, "id": made["id"], "isActive": active})
    for days in (29, 32):
        await db.execute(
            "INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body, state, created_at)"
            " SELECT instance_id, id, gen_random_uuid(), 'user.created', '', state, now() - make_interval(days => $1)"
            " FROM webhooks CROSS JOIN unnest('{pending,failed}'::text[]) AS state",
            days,
        )
    await operator.call("deleteInstance", {"instance": "GONE"})
    assert (await purge())["deliveries"] == 7
    left = await db.fetch(
        "SELECT i.name, w.is_active FROM deliveries AS d JOIN instances AS i ON i.id = d.instance_id"
        " JOIN webhooks AS w ON w.instance_id = d.instance_id AND w.id = d.webhook_id"
        " WHERE d.created_at < now() - interval '30 days'"
    )
    assert [tuple(row) for row in left] == [("HERE", True)]
    assert await db.fetchval("SELECT count(*) FROM deliveries") == 9


# --- where to -----------------------------------------------------------------------------------------

FORBIDDEN = {
    "private": "10.1.2.3", "private 172": "172.16.0.1", "private 192": "192.168.1.1", "loopback": "127.0.0.1",
    "all loopback": "127.9.9.9", "this host": "0.0.0.0", "link-local": "169.254.1.1",
    "metadata": "169.254.169.254", "metadata of Alibaba": "100.100.100.200", "of Azure": "168.63.129.16",
    "shared": "100.64.0.1", "documentation": "192.0.2.1", "multicast": "224.0.0.1", "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255", "benchmarks": "198.18.0.1", "loopback 6": "::1", "any 6": "::",
    "mapped": "::ffff:127.0.0.1", "mapped public": "::ffff:8.8.8.8", "compatible": "::127.0.0.1",
    "unique local": "fd00:ec2::254", "link-local 6": "fe80::1", "site-local": "fec0::1", "NAT64": "64:ff9b::7f00:1",
    "NAT64 local": "64:ff9b:1::1", "6to4": "2002:7f00:1::1", "Teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "documentation 6": "2001:db8::1", "multicast 6": "ff02::1", "protocols": "192.0.0.9", "metadata of Oracle": "192.0.0.192",
    "6to4 relays": "192.88.99.1", "new documentation 6": "3fff::1", "6to4 public": "2002:808:808::1",
    "segment routing": "5f00::1",
}  # fmt: skip


class Names(AbstractResolver):
    """A resolver that says what the test wants."""

    found: tuple[str, ...] = ()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host=address, port=port, proto=0, flags=socket.AI_NUMERICHOST,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            )
            for address in self.found
        ]  # fmt: skip

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("kind", FORBIDDEN)
async def test_addresses_that_are_refused(
    kind: str, client: Client, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are, when it is made; and by a name, when it is connected to."""
    address = FORBIDDEN[kind]
    assert not is_public(ip_address(address))
    written = f"[{address}]" if ":" in address else address
    status, told = await client.outcome("createWebhook", {"url": f"https://{written}/"})
    assert (status, told) == (400, "url: leads to an address that is not public")
    assert await db.fetchval("SELECT count(*) FROM webhooks") == 0
    await client.call("createWebhook", {"url": "https://innocent.example/"})
    monkeypatch.setattr(outbound, "make_resolver", Names)
    for found in ((address,), ("93.184.216.34", address)):
        monkeypatch.setattr(Names, "found", found)
        told = await client.call("testWebhook", {"id": 1})
        assert (told["delivered"], told["status"], told["error"]) == (False, None, "forbidden_address")
    # Whoever got it into the database by another way.
    await db.execute("UPDATE webhooks SET url = $1", f"https://{written}/")
    assert (await client.call("testWebhook", {"id": 1}))["error"] == "forbidden_address"


async def test_every_socket_is_checked(monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> None:
    """The last gate, were an address to pass the others."""
    monkeypatch.setattr(outbound, "url_problem", lambda *_: None)
    async with outbound.Sender(Settings()) as sender:
        assert (await sender.send(1, receiver.url, b"", {})).error == "forbidden_address"
    assert receiver.got == []


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://hooks.example.com/", "must be an https address"),
        ("ftp://hooks.example.com/", "must be an https address"),
        ("hooks.example.com", "must be an https address"),
        ("https://", "must be an address with a host, without a name, a password or a fragment"),
        ("https://me:secret@hooks.example.com/", "must be an address with a host, without a name, a password or a fragment"),
        ("https://hooks.example.com/#a", "must be an address with a host, without a name, a password or a fragment"),
        ("https://%31%32%37.0.0.1/", "must be an address with a host, without a name, a password or a fragment"),
        ("https://hööks.example.com/", "must be an address with a host, without a name, a password or a fragment"),
        ("https://hooks.example.com/\\a", "holds characters that do not belong into an address"),
        ("https://hooks.example.com/a b", "holds characters that do not belong into an address"),
        ("https://hooks.example.com:99999/", "is not an address"),
        ("https://[::1/", "is not an address"),
        ("https://hooks.example.com:22/", "must have the port 443 or 8443"),
        ("https://hooks.example.com:0/", "must have the port 443 or 8443"),
        ("https://hooks.example.com:80/", "must have the port 443 or 8443"),
    ],
)  # fmt: skip
async def test_addresses_that_are_none(url: str, why: str, client: Client, db: asyncpg.Connection) -> None:
    assert await client.outcome("createWebhook", {"url": url}) == (400, f"url: {why}")
    await client.call("createWebhook", {"url": "https://innocent.example/"})
    assert await client.outcome("updateWebhook", {"id": 1, "url": url}) == (400, f"url: {why}")
    assert await db.fetchval("SELECT url FROM webhooks") == "https://innocent.example/"


async def test_ports_are_those_of_the_setting(serve: Serve, db: asyncpg.Connection) -> None:
    """When a webhook is made and changed, and at each try, as the setting may have changed since."""
    client = await serve(run_jobs=False, webhook_ports="443, 9443")
    await client.call("createWebhook", {"url": "https://innocent.example:9443/"})
    await client.call("updateWebhook", {"id": 1, "url": "https://innocent.example:443/"})
    refused = 400, "url: must have the port 443 or 9443"
    for method, params in (("createWebhook", {}), ("updateWebhook", {"id": 1})):
        assert await client.outcome(method, params | {"url": "https://innocent.example:8443/"}) == refused
    await db.execute("UPDATE webhooks SET url = 'https://innocent.example:8443/'")
    assert (await client.call("testWebhook", {"id": 1}))["error"] == "forbidden_address"


@pytest.mark.parametrize(
    "bad", [{"types": ["user.eaten"]}, {"skipOrigin": "a b"}, {"types": "user.created"}, {"secret": "x"}]
)
async def test_bad_params(bad: dict[str, Any], client: Client, db: asyncpg.Connection) -> None:
    status, told = await client.outcome("createWebhook", {"url": "https://innocent.example/"} | bad)
    assert status == 400 and next(iter(bad)) in told
    assert await db.fetchval("SELECT count(*) FROM webhooks") == 0


async def test_proxies_of_the_environment_are_ignored(
    serve: Serve, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What connects is what was checked."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    client = await serve(webhook_private_addresses=True)
    await client.call("createWebhook", {"url": receiver.url})
    assert (await client.call("testWebhook", {"id": 1}))["delivered"]


async def test_slow_names_keep_nobody_else_waiting(
    inside: Client, other: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the webhooks of others nor what else looks names up; nor do they grow more and more."""
    monkeypatch.setattr(outbound, "LOOKUP_LIMIT", 0.2)
    other = inside.using(other.key)
    answer, looking, asked = threading.Event(), 0, 0
    look_up = socket.getaddrinfo

    def slow(host: Any, *args: Any, **options: Any) -> Any:
        nonlocal looking, asked
        if host not in ("slow.example", b"slow.example"):
            return look_up(host, *args, **options)
        looking, asked = looking + 1, asked + 1
        answer.wait(120)
        looking -= 1
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        for _ in range(10):
            await inside.call("createWebhook", {"url": "http://slow.example/"})
        for number in range(10):
            await inside.call("createUser", {"email": f"{number}@example.com"})

        async def tried_and_tried_again() -> bool:
            found = [await deliveries(inside, webhook_id=number) for number in range(1, 11)]
            return sum(one["attempts"] for page in found for one in page) >= 30

        await until(tried_and_tried_again)
        assert (await inside.call("testWebhook", {"id": 1}))["error"] == "timeout"
        assert looking == asked == outbound.LOOKUPS_EACH
        monkeypatch.setattr(outbound, "LOOKUP_LIMIT", 5.0)
        await other.call("createWebhook", {"url": receiver.url.replace("127.0.0.1", "localhost")})
        await other.call("createUser", {"email": JANE})
        (done,) = await settled(other, 1)
        assert (done["state"], done["error"]) == ("delivered", None)
        await asyncio.get_running_loop().getaddrinfo("localhost", 80)
    finally:
        answer.set()

    async def room_again() -> bool:
        return not looking

    await until(room_again)
    assert (await inside.call("testWebhook", {"id": 1}))["error"] == "unknown_host"


# --- at least once ------------------------------------------------------------------------------------


async def test_none_is_lost_when_the_server_is_killed(
    database_url: str, db: asyncpg.Connection, serve: Serve, receiver: Receiver
) -> None:
    """kill -9 in the middle of a delivery: another server sends it again, under the same id."""
    caller = await serve(run_jobs=False, webhook_private_addresses=True)
    await caller.call("createWebhook", {"url": receiver.url})

    async def hang(received: Received) -> web.StreamResponse:
        await receiver.closing.wait()
        return web.Response(status=503)

    receiver.answer = hang
    with running(database_url) as officerpc:
        served = await officerpc.serve(webhook_private_addresses="true")
        await caller.call("createUser", {"email": JANE})
        await receiver.has(1)
        os.killpg(served.process.pid, signal.SIGKILL)
        await served.ended()
        await caller.call("createUser", {"email": "meanwhile@example.com"})
        receiver.answers(204)
        # Not to wait for the end of the dead one's lease.
        assert await db.fetchval("UPDATE deliveries SET due_at = now() RETURNING attempts") == 1
        await officerpc.serve(webhook_private_addresses="true")
        await settled(caller, 2)
    first, *later = receiver.got
    assert first.id in {one.id for one in later}
    assert {one.said["data"]["after"]["email"] for one in later} == {JANE, "meanwhile@example.com"}
    told = {one["eventId"]: one["attempts"] for one in await deliveries(caller)}
    assert told[first.id] == 2 and sorted(told.values()) == [1, 2]


async def test_a_worker_that_stops_leaves_its_deliveries_to_others(
    serve: Serve, db: asyncpg.Connection, database_url: str, receiver: Receiver
) -> None:
    caller = await serve(run_jobs=False, webhook_private_addresses=True)
    await caller.call("createWebhook", {"url": receiver.url})
    settings = Settings(webhook_private_addresses=True)
    database = Database(settings, database_url)
    await database.open()

    async def hang(received: Received) -> web.StreamResponse:
        await receiver.closing.wait()
        return web.Response(status=503)

    receiver.answer = hang
    metrics = caller.dispatcher.metrics
    worker = asyncio.create_task(webhooks.keep_delivering(settings, database, metrics))
    await caller.call("createUser", {"email": JANE})
    await receiver.has(1)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    assert await db.fetchval("SELECT due_at <= now() AND state = 'pending' AND error IS NULL FROM deliveries")
    receiver.answers(204)
    others = [asyncio.create_task(webhooks.keep_delivering(settings, database, metrics)) for _ in range(3)]
    await settled(caller, 1)
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await database.close()
    assert len(receiver.got) == 2 and receiver.got[0].id == receiver.got[1].id


async def test_a_lease_ends_by_itself(
    serve: Serve, database_url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "LEASE", 1.0)
    monkeypatch.setattr(worker_module, "SETTLE_AT_END", 0.0)  # it ends like one that is killed
    caller = await serve(run_jobs=False, webhook_private_addresses=True)
    await caller.call("createWebhook", {"url": receiver.url})
    await caller.call("createUser", {"email": JANE})
    settings = Settings(webhook_private_addresses=True)
    database = Database(settings, database_url)
    await database.open()

    async def hang(received: Received) -> web.StreamResponse:
        await receiver.closing.wait()
        return web.Response(status=503)

    receiver.answer = hang
    for answer in (hang, None):
        receiver.answer = answer
        worker = asyncio.create_task(webhooks.keep_delivering(settings, database, caller.dispatcher.metrics))
        await receiver.has(1 if answer else 2)
        if answer is None:
            await settled(caller, 1)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
    await database.close()
    (done,) = await deliveries(caller)
    assert (done["state"], done["attempts"]) == ("delivered", 2)
    assert receiver.got[0].id == receiver.got[1].id


async def test_nothing_is_sent_while_its_outcome_cannot_be_noted(
    inside: Client, receiver: Receiver, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claims go through, outcomes and proofs of writes do not: a delivery that was taken does not end as failed."""
    monkeypatch.setattr(worker_module, "LEASE", 0.1)
    monkeypatch.setattr("server.postgres.writes.PAUSE", 0.0)
    await inside.call("createWebhook", {"url": receiver.url})
    await db.execute("CREATE SEQUENCE refused; GRANT ALL ON refused TO PUBLIC")
    await db.execute("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                     " PERFORM nextval('refused');"
                     " RAISE EXCEPTION 'made by the test' USING ERRCODE = '53100'; END $$")  # fmt: skip
    await db.execute("CREATE TRIGGER refuse BEFORE UPDATE ON deliveries FOR EACH ROW"
                     " WHEN (NEW.done_at IS NOT NULL) EXECUTE FUNCTION refuse()")  # fmt: skip
    await db.execute("CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON heartbeats FOR EACH STATEMENT"
                     " EXECUTE FUNCTION refuse()")  # fmt: skip
    await inside.call("createUser", {"email": JANE})

    async def refused() -> bool:
        return bool(await db.fetchval("SELECT last_value >= 30 FROM refused"))

    await until(refused)
    await db.execute("DROP FUNCTION refuse CASCADE")
    (done,) = await settled(inside, 1)
    assert done["state"] == "delivered" and done["attempts"] < 5


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(b"AS ready", id="find_waiting_webhooks"),
        pytest.param(b"UPDATE OF w SKIP LOCKED", id="take_webhook"),
        pytest.param(b"waiting.step + 1", id="find_due_webhooks"),
        pytest.param(b"taken AS MATERIALIZED", id="claim_deliveries"),
        pytest.param(b"state = told.state", id="settle_deliveries"),
        pytest.param(DroppingProxy.COMMIT, id="commit"),
        pytest.param(b"pg_prepared_xacts", id="find_feed_halt"),
        pytest.param(b"pg_stat_get_live_tuples", id="find_grown_table"),
    ],
)
async def test_no_background_task_waits_for_good_for_an_answer(
    at: bytes, serve: Serve, receiver: Receiver, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database's host vanishes while it is asked something: it is asked again over another connection."""
    monkeypatch.setattr(worker_module, "LEASE", 0.5)
    monkeypatch.setattr(webhooks, "METER_EVERY", 0.05)
    monkeypatch.setattr(analyze, "LOOK_EVERY", 0.01)
    short = {"call_timeout": 1, "statement_timeout": 0.5, "idle_transaction_timeout": 0.5}
    with tempfile.TemporaryDirectory(prefix="officerpc-proxy-") as folder:
        proxy = DroppingProxy(database_url, Path(folder), after=True, hang=True, at=at)
        async with proxy.running():
            if at != proxy.COMMIT:
                proxy.arm()
            inside = await serve(url=proxy.url, webhook_private_addresses=True, **short)

            async def take(received: Received) -> web.Response:
                if at == proxy.COMMIT and len(receiver.got) == 1:  # the next one notes what came of this
                    proxy.arm()
                return web.Response()

            receiver.answer = take
            await inside.call("createWebhook", {"url": receiver.url})
            await inside.call("createUser", {"email": JANE})
            await receiver.has(1)
            await inside.call("createUser", {"email": "later@example.com"})
            await eventually(lambda: proxy.commits >= 2)
            assert [one["state"] for one in await settled(inside, 2)] == ["delivered"] * 2


@pytest.mark.damages
async def test_a_backlog_needs_no_looks(
    serve: Serve, db: asyncpg.Connection, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes to an end makes room at once, and what is read goes on at once: no pace is that of POLL."""
    monkeypatch.setattr(worker_module, "POLL", 8.0)
    for path in ("/a", "/b"):
        await db.execute(
            "INSERT INTO webhooks (instance_id, id, url, description, types, secret)"
            " VALUES (1, (SELECT count(*) + 1 FROM webhooks), $1, '', '{}', $2)",
            receiver.url + path,
            outbound.new_secret(),
        )
    for start in range(0, 620, 20):  # as many transactions
        await db.execute(
            "INSERT INTO events (instance_id, place, type, user_id, method, key_id, key_name, request_id)"
            " SELECT 1, number, 'user.updated', $1 + number, 'x', 1, 'x', 'x' FROM generate_series(1, 20) AS number",
            start,
        )
    await serve(webhook_private_addresses=True)

    async def all_there() -> bool:
        return len(receiver.got) >= 1240

    await until(all_there)
    for path in ("/hook/a", "/hook/b"):
        seen = [one.said["data"]["userId"] for one in receiver.got if one.path == path]
        assert sorted(seen) == list(range(1, 621))


async def test_several_workers_do_not_do_it_twice(serve: Serve, receiver: Receiver) -> None:
    workers = [await serve(webhook_private_addresses=True) for _ in range(3)]
    await workers[0].call("createWebhook", {"url": receiver.url})
    for number in range(40):
        await workers[number % 3].call("createUser", {"email": f"{number}@example.com"})
    await settled(workers[0], 40)
    assert len(receiver.got) == len({one.id for one in receiver.got}) == 40


async def test_a_dead_receiver_does_not_keep_others_waiting(inside: Client, receiver: Receiver) -> None:
    async def hang_some(received: Received) -> web.StreamResponse:
        if received.path == "/hook/dead":
            await receiver.closing.wait()
        return web.Response()

    receiver.answer = hang_some
    await inside.call("createWebhook", {"url": receiver.url + "/dead"})
    await inside.call("createWebhook", {"url": receiver.url})
    for number in range(20):
        await inside.call("createUser", {"email": f"{number}@example.com"})
    assert [one["state"] for one in await settled(inside, 20, webhook_id=2)] == ["delivered"] * 20
    assert sum(one.path == "/hook/dead" for one in receiver.got) <= deliveries_module.EACH


@pytest.mark.parametrize("at_once", [16, deliveries_module.AT_ONCE])
async def test_a_tenant_whose_receivers_hang_leaves_room_for_others(
    at_once: int, serve: Serve, db: asyncpg.Connection, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty webhooks, whose deliveries are older than anybody else's and more than a worker can send at once."""
    monkeypatch.setattr(deliveries_module, "AT_ONCE", at_once)
    monkeypatch.setattr(worker_module, "POLL", 0.02)

    async def hang_some(received: Received) -> web.StreamResponse:
        if received.path == "/hook/dead":
            await receiver.closing.wait()
        return web.Response()

    receiver.answer = hang_some
    caller = await serve(run_jobs=False, webhook_private_addresses=True)
    operator = caller.using(await insert_key(db, operator=True))
    await operator.call("createInstance", {"name": "OTHER", "admin": {"email": "boss@other.example"}})
    other = caller.using(await insert_key(db, instances=("OTHER",)))
    for _ in range(50):
        await caller.call("createWebhook", {"url": receiver.url + "/dead"})
    await db.execute(
        "INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body, due_at)"
        " SELECT 1, id, gen_random_uuid(), 'user.created', '{}', now() - interval '1 hour'"
        " FROM webhooks CROSS JOIN generate_series(1, 10)"
    )
    await serve(webhook_private_addresses=True)
    await receiver.has(deliveries_module.PER_INSTANCE)
    await other.call("createWebhook", {"url": receiver.url})
    for number in range(10):
        await other.call("createUser", {"email": f"{number}@example.com"})
    assert [one["state"] for one in await settled(other, 10)] == ["delivered"] * 10
    assert sum(one.path == "/hook/dead" for one in receiver.got) == deliveries_module.PER_INSTANCE


async def claim(db: asyncpg.Connection, *sending: tuple[int, int], room: int = 100) -> list[tuple[int, int]]:
    """What a worker takes that is sending this already, in a transaction that is rolled back."""

    async def run(name: str, **values: Any) -> list[Any]:
        query = load_queries()[name]
        rows: list[Any] = await db.fetch(query.sql, *(values[param] for param in query.params))
        return rows

    windows = Windows(room + len(sending), Limits(8, 8, 8), Limits(4, 4, 4))
    for ref in sending:
        windows.begin(ref)
    found = await run("find_due_webhooks", after_instance=0, after_lane=0, looks=100)
    due = sorted((row for row in found if row["is_due"]), key=lambda row: row["due_at"])
    shares = windows.share_out((row["instance_id"], row["webhook_id"]) for row in due)
    transaction = db.transaction()
    await transaction.start()
    rows = await run(
        "claim_deliveries", lease=60.0, instance_ids=[ref[0] for ref in shares],
        lanes=[ref[1] for ref in shares], shares=list(shares.values()),
    )  # fmt: skip
    await transaction.rollback()
    return sorted((row["instance_id"], row["webhook_id"]) for row in rows)


@pytest.mark.damages
async def test_turns(serve: Serve, db: asyncpg.Connection) -> None:
    caller = await serve(run_jobs=False)
    operator = caller.using(await insert_key(db, operator=True))
    for number in (2, 3):
        await operator.call(
            "createInstance", {"name": f"I{number}", "admin": {"email": f"{number}@example.com"}}
        )
    # The older an instance, the longer it has waited.
    for instance, hooks in ((1, 5), (2, 1), (3, 2)):
        for webhook in range(1, hooks + 1):
            await db.execute(
                "INSERT INTO webhooks (instance_id, id, url, description, types, secret) VALUES ($1, $2, '', '', '{}', '')",
                instance,
                webhook,
            )
            await db.execute(
                "INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body, due_at)"
                " SELECT $1, $2, gen_random_uuid(), 'x', '', now() - make_interval(hours => 10 - $1::bigint::integer)"
                " FROM generate_series(1, 10)",
                instance,
                webhook,
            )
    assert [instance for instance, _ in await claim(db, room=3)] == [1, 2, 3]
    full = await claim(db)
    assert [sum(one[0] == instance for one in full) for instance in (1, 2, 3)] == [8, 4, 8]
    assert {full.count((1, webhook)) for webhook in range(1, 6)} == {
        1,
        2,
    }  # the webhooks of one have turns, too
    assert await claim(db, *[(2, 1)] * 3, *[(3, 1)] * 4, *[(1, 5)] * 8) == [(2, 1), *[(3, 2)] * 4]
    # Whoever has most under way comes last.
    assert {instance for instance, _ in await claim(db, (1, 1), (1, 2), room=2)} == {2, 3}
    await db.execute("UPDATE webhooks SET is_active = false WHERE instance_id = 1")
    await db.execute("UPDATE deliveries SET due_at = now() + interval '1 hour' WHERE instance_id = 2")
    await db.execute("UPDATE instances SET deleted_at = now() WHERE id = 3")
    assert await claim(db) == []


async def pages(db: asyncpg.Connection, name: str, **values: Any) -> int:
    """The pages that a query reads with the plan that the server's connections keep; it is rolled back."""
    query = load_queries()[name]
    types = [kind.name for kind in (await db.prepare(query.sql)).get_parameters()]
    literals = [
        await db.fetchval(f"SELECT quote_nullable($1::{kind}::text) || '::{kind}'", values[param])
        for kind, param in zip(types, query.params, strict=True)
    ]
    transaction = db.transaction()
    await transaction.start()
    await db.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    await db.execute(f"PREPARE explained AS {query.sql}")
    told = await db.fetchval(
        f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE explained({', '.join(literals)})"
    )
    await db.execute("DEALLOCATE explained")
    await transaction.rollback()
    plan = json.loads(told)[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.mark.damages
async def test_a_backlog_makes_no_statement_dearer(serve: Serve, db: asyncpg.Connection) -> None:
    await serve(run_jobs=False)
    await db.execute(
        "INSERT INTO webhooks (instance_id, id, url, description, types, secret) VALUES (1, 1, '', '', '{}', '')"
    )
    await db.execute(
        "INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body, attempts)"
        " SELECT 1, 1, gen_random_uuid(), 'x', '', 1 FROM generate_series(1, 5000)"
    )
    await db.execute("VACUUM ANALYZE deliveries, webhooks")
    (event,) = await db.fetchrow("SELECT event_id FROM deliveries ORDER BY event_id DESC LIMIT 1")
    one = {
        "instance_ids": [1], "webhook_ids": [1], "event_ids": [event], "attempts": [1], "states": ["delivered"],
        "due_ins": [0.0], "statuses": [200], "errors": [None],
    }  # fmt: skip
    assert await pages(db, "settle_deliveries", **one) < 50
    claimed = {"lease": 60.0, "instance_ids": [1], "lanes": [1], "shares": [4]}
    assert await pages(db, "claim_deliveries", **claimed) < 100


@pytest.mark.damages
async def test_dead_receivers_make_no_claim_dearer(serve: Serve, db: asyncpg.Connection) -> None:
    """A claim reads what it is told is due; a look steps over a bounded number of webhooks that wait."""
    await serve(run_jobs=False)
    dead = 1200
    await db.execute(
        "INSERT INTO webhooks (instance_id, id, url, description, types, secret)"
        " SELECT 1, number, 'https://dead.example/', '', '{}', '' FROM generate_series(1, $1::int) AS number",
        dead + 1,
    )
    await db.execute(
        "INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body, due_at) SELECT 1, number,"
        " gen_random_uuid(), 'x', '', now() + make_interval(hours => CASE WHEN number > $1::int THEN -1 ELSE 1 END)"
        " FROM generate_series(1, $1::int + 1) AS number",
        dead,
    )
    await db.execute("VACUUM ANALYZE deliveries, webhooks")

    claimed = {"lease": 60.0, "instance_ids": [1], "lanes": [dead + 1], "shares": [4]}
    assert await pages(db, "claim_deliveries", **claimed) < 100
    # Four pages of indexes a webhook at most.
    assert await pages(db, "find_due_webhooks", after_instance=0, after_lane=0, looks=500) < 500 * 12
    seen, after = 0, (0, 0)
    query = load_queries()["find_due_webhooks"]
    while rows := await db.fetch(query.sql, *after, 500):
        seen, after = seen + len(rows), (rows[-1]["instance_id"], rows[-1]["webhook_id"])
        assert [row["webhook_id"] for row in rows if row["is_due"]] in ([], [dead + 1])
    assert seen == dead + 1


@pytest.mark.damages
async def test_looks_go_round(
    serve: Serve, db: asyncpg.Connection, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More webhooks wait than one look steps over: each has its turn."""
    monkeypatch.setattr(worker_module, "LOOKS", 3)
    await db.execute(
        "INSERT INTO webhooks (instance_id, id, url, description, types, secret)"
        " SELECT 1, number, $1 || '/' || number, '', '{}', $2 FROM generate_series(1, 10) AS number",
        receiver.url,
        outbound.new_secret(),
    )
    await db.execute(
        "INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body, due_at) SELECT 1, number,"
        " gen_random_uuid(), 'x', '', now() + make_interval(hours => number % 2) FROM generate_series(1, 10) AS number"
    )
    await serve(webhook_private_addresses=True)
    assert {one.path for one in await receiver.has(5)} == {f"/hook/{number}" for number in (2, 4, 6, 8, 10)}
    await db.execute("UPDATE deliveries SET due_at = now() WHERE webhook_id = 1")
    assert (await receiver.has(6))[-1].path == "/hook/1"


@pytest.mark.damages
async def test_outcomes_are_noted_together_in_their_order(
    serve: Serve, db: asyncpg.Connection, database_url: str
) -> None:
    """Since when a webhook fails is what one after the other would have told."""
    await serve(run_jobs=False)
    database = Database(Settings(), database_url)
    await database.open()
    cases = {
        "took": [None],
        "failed": ["x"],
        "recovered": ["x", None],
        "fell": [None, "x"],
        "was failing": ["x"],
        "healed": [None],
    }
    tried = []
    for webhook, (name, errors) in enumerate(cases.items(), 1):
        await db.execute(
            "INSERT INTO webhooks (instance_id, id, url, description, types, secret, failing_since)"
            " VALUES (1, $1, '', '', '{}', '', CASE WHEN $2 THEN now() - interval '1 day' END)",
            webhook,
            name in ("was failing", "healed"),
        )
        for error in errors:
            event = await db.fetchval(
                "INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body, attempts)"
                " VALUES (1, $1, gen_random_uuid(), 'x', '', 1) RETURNING event_id",
                webhook,
            )
            row = {
                "instance_id": 1,
                "webhook_id": webhook,
                "event_id": event,
                "attempts": 1,
                "first_attempt": 0,
            }
            outcome = outbound.Outcome(200 if error is None else 500, error, 0.0)
            result = outcome if error is None else deliveries_module.NotTaken(outcome)
            tried.append(worker_module.Tried(row, "done" if error is None else "retried", 0.0, result))
    await deliveries_module.settle(database, tried)
    await database.close()
    since = await db.fetch(
        "SELECT CASE WHEN failing_since IS NULL THEN 'no' WHEN failing_since > now() - interval '1 hour' THEN 'now'"
        " ELSE 'before' END FROM webhooks ORDER BY id"
    )
    assert dict(zip(cases, (row[0] for row in since), strict=True)) == {
        "took": "no", "failed": "now", "recovered": "no", "fell": "now", "was failing": "before", "healed": "no",
    }  # fmt: skip
    states = await db.fetch("SELECT state, status, error FROM deliveries ORDER BY webhook_id, status DESC")
    assert [tuple(row) for row in states] == [
        ("delivered", 200, None) if error is None else ("pending", 500, "x")
        for errors in cases.values()
        for error in sorted(errors, key=lambda error: -500 if error else -200)
    ]


async def test_one_that_cannot_be_settled_does_not_keep_the_others_from_it(
    serve: Serve, db: asyncpg.Connection, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, logged: Log
) -> None:
    settle = deliveries_module.settle

    async def failing(database: Database, tried: list[Any]) -> None:
        if any(one.row["webhook_id"] == 1 for one in tried):
            raise KeyError("a bug")
        await settle(database, tried)

    monkeypatch.setattr(deliveries_module, "settle", failing)
    inside = await serve(webhook_private_addresses=True)
    for path in ("/bad", "/good"):
        await inside.call("createWebhook", {"url": receiver.url + path})
    for number in range(10):
        await inside.call("createUser", {"email": f"{number}@example.com"})
    assert [one["state"] for one in await settled(inside, 10, webhook_id=2)] == ["delivered"] * 10
    told = [line for line in logged.lines() if line["event"] == "delivery_not_noted"]
    assert {(line["webhook_id"], line["cause"]) for line in told} == {(1, "KeyError")}


async def test_one_that_cannot_be_read_on_keeps_nobody_waiting(
    inside: Client, other: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, logged: Log
) -> None:
    body_of = feed.body_of

    def failing(event: Any, instance: str) -> bytes:
        if instance == "MYINSTANCE":
            raise KeyError("a bug")
        return body_of(event, instance)

    monkeypatch.setattr(feed, "body_of", failing)
    other = inside.using(other.key)
    for client in (*[inside] * 5, other):
        await client.call("createWebhook", {"url": receiver.url})
    for client in (inside, other):
        await client.call("createUser", {"email": JANE})
    await settled(other, 1)
    assert [one.said["data"]["instance"] for one in receiver.got] == ["OTHER"]
    told = [line for line in logged.lines() if line["event"] == "webhook_not_read"]
    assert {(line["instance_id"], line["cause"]) for line in told} == {(1, "KeyError")}
    monkeypatch.setattr(feed, "body_of", body_of)
    await settled(inside, 1)


async def test_events_are_encoded_once_for_all_webhooks_of_a_tenant(
    serve: Serve, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = await serve(run_jobs=False, webhook_private_addresses=True)
    encoded: list[str] = []
    body_of = feed.body_of

    def counting(event: Any, instance: str) -> bytes:
        encoded.append(event["id"])
        return body_of(event, instance)

    monkeypatch.setattr(feed, "body_of", counting)
    for number in range(5):
        await caller.call("createWebhook", {"url": f"{receiver.url}/{number}"})
    for number in range(20):
        await caller.call("createUser", {"email": f"{number}@example.com"})
    await serve(webhook_private_addresses=True)
    await receiver.has(100)
    assert len(encoded) == len(set(encoded)) == 20


async def test_what_operators_see(
    serve: Serve,
    db: asyncpg.Connection,
    database_url: str,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    logged: Log,
) -> None:
    """Of whom a delivery was; how far behind sending and reading are, also where an open transaction holds it up."""
    monkeypatch.setattr(webhooks, "METER_EVERY", 0.05)
    inside = await serve(webhook_private_addresses=True)

    async def gauge(name: str) -> float:
        async with inside.http.get(inside.url + "/metrics") as response:
            return float((await response.text()).split(f"\nofficerpc_webhooks_{name}_seconds ")[1].split()[0])

    await inside.call("createWebhook", {"url": receiver.url})
    await inside.call("createUser", {"email": JANE})
    await settled(inside, 1)
    (line,) = [line for line in logged.lines() if line["event"] == "job" and line["kind"] == "webhook"]
    assert (line["instance"], line["webhook_id"], "job_id" in line) == ("MYINSTANCE", 1, False)

    async def nothing() -> bool:
        return await gauge("unread") == await gauge("due") == 0.0

    await until(nothing)
    slow = await asyncpg.connect(database_url)
    transaction = slow.transaction()
    await transaction.start()
    await slow.fetchval("SELECT pg_current_xact_id()")
    await db.execute(
        "INSERT INTO events (instance_id, place, type, method, key_id, key_name, request_id, created_at)"
        " VALUES (1, 1, 'user.updated', 'x', 1, 'x', 'x', now() - interval '1 hour')"
    )

    async def unread() -> bool:
        return await gauge("unread") > 3600

    await until(unread)
    assert len(receiver.got) == 1
    await transaction.rollback()
    await slow.close()
    await until(nothing)

    # More than may be sent at once of which none comes to an end.
    async def hang(received: Received) -> web.StreamResponse:
        await receiver.closing.wait()
        return web.Response()

    receiver.answer = hang
    await db.execute(
        "INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body, due_at)"
        " SELECT 1, 1, gen_random_uuid(), 'x', '{}', now() - interval '2 hours' FROM generate_series(1, 10)"
    )

    async def due() -> bool:
        return await gauge("due") > 7200

    await until(due)
    receiver.closing.set()
    await until(nothing)


# --- the feed -----------------------------------------------------------------------------------------


async def test_the_feed(client: Client) -> None:
    start = (await client.call("listChanges", {"begin": "now"}))["cursor"]
    await client.call("createUser", {"email": JANE}, headers={"X-Origin": "crm"})
    await client.call("createPlan", {"type": "recurring", "name": "in the audit alone"})
    await client.call("updateUserByEmail", {"email": JANE, "isActive": False})
    page = await client.call("listChanges", {"cursor": start})
    assert [event["type"] for event in page["events"]] == ["user.created", "user.suspended"]
    assert page["events"][0]["data"]["origin"] == "crm" and not page["more"]
    assert (await client.call("listChanges", {"cursor": page["cursor"]}))["events"] == []
    typed = await client.call("listChanges", {"cursor": start, "types": ["user.suspended"]})
    assert [event["type"] for event in typed["events"]] == ["user.suspended"]
    assert typed["cursor"] == page["cursor"]
    everything, cursor, more = [], None, True
    while more:
        page = await client.call("listChanges", {"cursor": cursor, "limit": 1})
        everything += page["events"]
        cursor, more = page["cursor"], page["more"]
    assert everything[-2:] == (await client.call("listChanges"))["events"][-2:]
    assert everything[0]["data"]["after"]["email"] == ADMIN


@pytest.mark.parametrize("cursor", ["x", "", "MS4y.", "LTEuMg", "OTk5OTk5OTk5OTk5OTk5OTk5OTkuMQ", "Äé"])
async def test_cursors_that_are_none(cursor: str, client: Client) -> None:
    assert await client.outcome("listChanges", {"cursor": cursor}) == (
        400,
        "cursor: is not what an answer gave as cursor",
    )


@pytest.mark.damages
async def test_the_feed_skips_nothing(serve: Serve, db: asyncpg.Connection, database_url: str) -> None:
    """Sixteen writers at once, whose transactions stay open for a while after their events are written, so that
    they commit in another order than they began in; a reader follows its cursor all the while."""
    client = await serve(run_jobs=False)
    each, writers = 12, 16
    cursor = (await client.call("listChanges", {"begin": "now"}))["cursor"]

    async def write(writer: int) -> None:
        connection = await asyncpg.connect(database_url)
        for number in range(each):
            async with connection.transaction():
                await connection.execute(
                    "INSERT INTO events (instance_id, place, type, user_id, method, key_id, key_name, request_id)"
                    " SELECT 1, place, 'user.updated', $1, 'x', 1, 'x', 'x' FROM generate_series(1, 2) AS place",
                    writer * 1000 + number,
                )
                await asyncio.sleep(random.uniform(0, 0.05))
        await connection.close()

    writing = [asyncio.create_task(write(writer)) for writer in range(writers)]
    seen: list[tuple[str, int]] = []

    async def read() -> None:
        nonlocal cursor
        page = await client.call("listChanges", {"cursor": cursor, "limit": 7})
        seen.extend((event["data"]["id"], event["data"]["userId"]) for event in page["events"])
        cursor = page["cursor"]

    while not all(writer.done() for writer in writing):
        await read()
    await asyncio.gather(*writing)

    async def all_read() -> bool:
        await read()
        return len(seen) >= writers * each * 2

    await until(all_read)
    await read()
    assert len({event_id for event_id, _ in seen}) == len(seen) == writers * each * 2
    stored = await db.fetch("SELECT id::text FROM events WHERE method = 'x' ORDER BY xid, place")
    assert [event_id for event_id, _ in seen] == [row["id"] for row in stored]


async def test_the_feed_skips_no_call(serve: Serve, db: asyncpg.Connection) -> None:
    """The same of calls by HTTP: createUser, whose one statement writes its event, and calls in transactions."""
    client = await serve(run_jobs=False)
    each, writers = 6, 16
    cursor = (await client.call("listChanges", {"begin": "now"}))["cursor"]

    async def write(writer: int) -> None:
        for number in range(each):
            one, *more = (f"{writer}-{number}-{name}@example.com" for name in "abc")
            await client.call("createUser", {"email": one})
            await client.call("createUsers", {"users": [{"email": email} for email in more]})
            await client.call("updateUserByEmail", {"email": one, "displayName": "J.", "isActive": False})

    writing = [asyncio.create_task(write(writer)) for writer in range(writers)]
    seen: list[tuple[str, str, int]] = []

    async def read() -> None:
        nonlocal cursor
        page = await client.call("listChanges", {"cursor": cursor, "limit": 7})
        seen.extend((event["data"]["id"], event["type"], event["data"]["userId"]) for event in page["events"])
        cursor = page["cursor"]

    while not all(writer.done() for writer in writing):
        await read()
    await asyncio.gather(*writing)

    async def all_read() -> bool:
        await read()
        return len(seen) >= writers * each * 5

    await until(all_read)
    await read()
    assert len({event_id for event_id, _, _ in seen}) == len(seen) == writers * each * 5
    stored = await db.fetch("SELECT id::text FROM events WHERE request_id <> 'test' ORDER BY xid, place")
    assert [event_id for event_id, _, _ in seen] == [row["id"] for row in stored]
    created: set[int] = set()
    for _, kind, user_id in seen:  # no call began before the one that it follows had committed
        assert (kind == "user.created") == (user_id not in created)
        created.add(user_id)


@pytest.mark.damages
async def test_transactions_are_ordered_by_their_number(client: Client, db: asyncpg.Connection) -> None:
    """10 comes after 9, in the feed and, where it is the same moment, in the audit."""
    numbers = (9, 10, 99, 100)
    await db.execute(
        "INSERT INTO events (instance_id, xid, place, type, user_id, method, key_id, key_name, request_id)"
        " SELECT 1, number::text::xid8, 1, 'user.updated', number, 'x', 1, 'x', 'x' FROM unnest($1::bigint[]) AS number",
        numbers,
    )
    seen: list[int] = []
    cursor = None
    for _ in numbers:
        page = await client.call("listChanges", {"cursor": cursor, "limit": 1})
        seen += [event["data"]["userId"] for event in page["events"]]
        cursor = page["cursor"]
    assert seen == list(numbers)
    events = (await client.call("listAuditEvents", {"method": "x"}))["events"]
    assert [event["userId"] for event in events] == list(reversed(numbers))
    for number in numbers:
        (event,) = (await client.call("listAuditEvents", {"userId": number, "method": "x"}))["events"]
        assert event["userId"] == number


@pytest.mark.damages
async def test_webhooks_skip_nothing_either(serve: Serve, receiver: Receiver, database_url: str) -> None:
    """The same by the relay of three workers, with a transaction that began first and ends last."""
    workers = [await serve(webhook_private_addresses=True) for _ in range(3)]
    await workers[0].call("createWebhook", {"url": receiver.url})
    slow = await asyncpg.connect(database_url)
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute(
        "INSERT INTO events (instance_id, place, type, user_id, method, key_id, key_name, request_id)"
        " VALUES (1, 1, 'user.updated', 4711, 'x', 1, 'x', 'x')"
    )
    await asyncio.gather(
        *(workers[number % 3].call("createUser", {"email": f"{number}@example.com"}) for number in range(16))
    )
    await asyncio.sleep(0.2)
    assert receiver.got == []  # they committed, but whatever the slow one writes must come before
    await transaction.commit()
    await slow.close()
    await settled(workers[0], 17)
    assert {one.said["data"]["userId"] for one in receiver.got} == {4711, *range(2, 18)}
