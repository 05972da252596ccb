"""Webhooks: events become deliveries, deliveries are signed and sent until somebody has taken them.

Signatures are those of Standard Webhooks (https://www.standardwebhooks.com). Events are read in the order in
which their transactions can be seen, deliveries are made in the transaction that notes how far was read, and
a delivery that its worker died with is taken by another one: none is lost, and some come twice, with the same
webhook-id.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import random
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary, WeakValueDictionary

import aiohttp
import orjson
import structlog
from aiohttp.abc import AbstractResolver, ResolveResult

from server.db import Connection, Database
from server.errors import Unavailable
from server.events import EVENTS, by_itself, payload
from server.metrics import JobFact, Metrics
from server.settings import Settings

log = structlog.get_logger()

PAUSES = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds between two tries: three days in all."""
JITTER = 0.1
"""By what part of it each of them is longer or shorter."""
TIME_LIMIT = 15.0
"""Seconds that one try may take."""
LEASE = 60.0
"""Seconds after which another worker takes a delivery over from one that died."""
POLL = 1.0
"""Seconds between two looks for events and for deliveries that are due."""
GATHER = 0.02
"""Seconds in which several that have come to an end make room for one look."""
AT_ONCE = 64
"""Deliveries that a worker sends at the same time."""
PER_INSTANCE = 8
"""Of these, at most so many of one instance: who answers slowly takes nobody else's places."""
EACH = 4
"""Of these, at most so many to one webhook."""
LOOKUPS = 64
"""Names that a worker looks up at the same time."""
LOOKUPS_EACH = 4
"""Of these, at most so many for one instance."""
LOOKUP_LIMIT = 5.0
"""Seconds to wait for a name's addresses, and for room to look them up."""
READ_AT_MOST = 4096
"""Bytes of an answer; whatever follows is not waited for."""
READ_FOR = 1.0
"""Seconds in which these may come: the status has said already what there is to know."""
METER_EVERY = 15.0
"""Seconds between two looks at how far behind all this is."""
TOLD_BY = {"User-Agent": "officerpc", "Content-Type": "application/json", "Accept-Encoding": "identity"}

# Events read at once: what the loop decodes and encodes without giving way.
_BATCH = 100
# Webhooks in a row for which the database is not there: the others need not be tried.
_FAILURES = 3
_SECRET_BYTES = 32
# Reached from within a data centre alone, though it lies among public addresses.
_REFUSED = frozenset({ip_address("168.63.129.16")})

_behalf_of: ContextVar[int] = ContextVar("behalf_of")
"""The instance whose webhook is being sent to."""


# --- signing ------------------------------------------------------------------------------------------


def new_secret() -> str:
    """A secret to sign with, as Standard Webhooks writes it."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """One signature, with its version.

    Args:
        secret: as new_secret made it.
        timestamp: Unix seconds of the try.

    Raises:
        ValueError: that is no secret.
    """
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise ValueError("not a secret of a webhook") from error
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def headers_of(
    message_id: str, body: bytes, secret: str, old_secret: str | None, timestamp: int
) -> dict[str, str]:
    """The headers of one try, signed with the secret and, during its overlap, with the one before."""
    signing = [secret] if old_secret is None else [secret, old_secret]
    return TOLD_BY | {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signature(one, message_id, timestamp, body) for one in signing),
    }


# --- where to -----------------------------------------------------------------------------------------


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is one that a stranger may have us connect to.

    Not private, loopback, link-local (the metadata of clouds among them), shared, reserved or multicast ones,
    and no address of IPv6 that stands for one of IPv4: mapped, translated or tunnelled.
    """
    if address in _REFUSED or address.is_multicast or address.is_reserved or not address.is_global:
        return False
    if isinstance(address, IPv6Address):
        unicast = int(address) >> 125 == 1  # 2000::/3, all that has been given out (RFC 4291)
        return unicast and address.sixtofour is None and address.teredo is None
    return True


def url_problem(settings: Settings, url: str) -> str | None:
    """What is wrong with a webhook's address, as far as that shows without a look-up; or None."""
    anywhere = settings.webhook_private_addresses
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "is not an address"
    if parts.scheme != "https" and not (anywhere and parts.scheme == "http"):
        return "must be an https address"
    if (
        not host
        or "@" in parts.netloc
        or "%" in parts.netloc
        or parts.fragment
        or not url.isascii()
        or not url.isprintable()
    ):
        return "must be an address with a host, without a name, a password or a fragment"
    if any(char in url for char in " \\<>\"'`{}|^"):
        return "holds characters that do not belong into an address"
    if not anywhere and (address := _literal(host)) is not None and not is_public(address):
        return "leads to an address that is not public"
    return None


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


class _Lookups:
    """Looks names up in threads of its own, so many for each instance.

    The loop's own look-ups (those of Postgres, mail and Graph) share a few threads, which names that tenants
    choose could hold up for everybody: a look-up cannot be ended, not even by a time limit. So each keeps its
    room until it has ended, and those who gave it up do not get more of it. The threads are daemons, which
    nothing waits for at the end of the process.
    """

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(LOOKUPS)
        self._rooms: WeakValueDictionary[int, asyncio.Semaphore] = WeakValueDictionary()

    async def look_up(self, host: str, port: int, family: int) -> list[Any]:
        """The answer of socket.getaddrinfo.

        Raises:
            OSError: the name is not known.
            TimeoutError: there was no answer, or no room, in time.
        """
        own = self._rooms.setdefault(_behalf_of.get(), asyncio.Semaphore(LOOKUPS_EACH))
        async with asyncio.timeout(LOOKUP_LIMIT):
            await own.acquire()
            try:
                await self._room.acquire()
            except BaseException:
                own.release()
                raise
            return await self._begin(own, host, port, family)

    def _begin(
        self, own: asyncio.Semaphore, host: str, port: int, family: int
    ) -> "asyncio.Future[list[Any]]":
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[Any]] = loop.create_future()

        def end(result: list[Any], error: Exception | None) -> None:
            own.release()
            self._room.release()
            if found.done():  # it was given up
                return
            if error is None:
                found.set_result(result)
            else:
                found.set_exception(error)

        def look() -> None:
            result: list[Any] = []
            error: Exception | None = None
            try:
                result = socket.getaddrinfo(
                    host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
                )
            except (OSError, ValueError) as failed:  # ValueError: a label that is too long
                error = failed if isinstance(failed, OSError) else OSError(str(failed))
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(end, result, error)

        try:
            threading.Thread(target=look, name="webhook-lookup", daemon=True).start()
        except RuntimeError as error:  # no more threads
            end([], OSError(str(error)))
        return found


_lookups: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lookups] = WeakKeyDictionary()
"""Those of each loop: a process has one, the tests have many."""


class _Resolver(AbstractResolver):
    """What aiohttp asks for addresses."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        lookups = _lookups.setdefault(asyncio.get_running_loop(), _Lookups())
        return [
            ResolveResult(
                hostname=host, host=where[0], port=where[1], family=found, proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found, _, protocol, _, where in await lookups.look_up(host, port, family)
        ]  # fmt: skip

    async def close(self) -> None:
        pass


make_resolver: Callable[[], AbstractResolver] = _Resolver
"""What looks names up; the tests have their own."""


class ForbiddenAddress(OSError):
    """the name leads to an address that is not public"""


class _PublicResolver(AbstractResolver):
    """Looks names up for connecting at once, and refuses a name of which any address is not public."""

    def __init__(self) -> None:
        self._behind = make_resolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._behind.resolve(host, port, family)
        for result in found:
            address = _literal(result["host"])
            if address is None or not is_public(address):
                raise ForbiddenAddress
        return found

    async def close(self) -> None:
        await self._behind.close()


def _public_socket(
    info: tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, Any],
) -> socket.socket:
    """A socket for one address: the last gate, which addresses that were no names have to pass as well."""
    family, kind, protocol, _, where = info
    address = _literal(where[0])
    if address is None or not is_public(address):
        raise ForbiddenAddress
    return socket.socket(family, kind, protocol)


# --- sending ------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What a try came to."""

    status: int | None
    # None where it was taken.
    error: str | None
    seconds: float


class Sender:
    """Posts what is signed already. `async with Sender(settings) as sender`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> "Sender":
        anywhere = self._settings.webhook_private_addresses
        # Nothing is remembered of names: each connection is made to what was checked for it.
        connector = aiohttp.TCPConnector(
            resolver=make_resolver() if anywhere else _PublicResolver(),
            socket_factory=None if anywhere else _public_socket,
            use_dns_cache=False,
            limit=2 * AT_ONCE,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=TIME_LIMIT, sock_connect=5),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(self, instance_id: int, url: str, body: bytes, headers: Mapping[str, str]) -> Outcome:
        """One try for an instance. Only a status from 200 to 299 is success; redirects are not followed."""
        began = time.perf_counter()
        _behalf_of.set(instance_id)
        status, error = await self._post(url, body, headers)
        return Outcome(status, error, time.perf_counter() - began)

    async def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int | None, str | None]:
        if url_problem(self._settings, url):  # the settings may have changed since it was stored
            return None, "forbidden_address"
        status: int | None = None
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                status = response.status
                await _read_a_little(response)
        except Exception as failed:
            if status is None:
                return None, _failure(failed)
        assert status is not None
        return status, None if 200 <= status < 300 else f"http_{status}"


async def _read_a_little(response: aiohttp.ClientResponse) -> None:
    """What comes of an answer at once, so that its connection can be used again."""
    left = READ_AT_MOST
    async with asyncio.timeout(READ_FOR):
        while left > 0 and (chunk := await response.content.read(left)):
            left -= len(chunk)
    if left <= 0:
        response.close()


def _failure(failed: Exception) -> str:
    """What kept a try from its answer. Raises whatever is a bug of ours."""
    match failed:
        case aiohttp.ClientConnectorError():
            forbidden = isinstance(failed.os_error, ForbiddenAddress)
            return "forbidden_address" if forbidden else _CONNECTING.get(type(failed), "no_connection")
        case TimeoutError():
            return "timeout"
        case aiohttp.ClientError() | OSError() | ValueError():
            return type(failed).__name__
    raise failed


_CONNECTING: dict[type[Exception], str] = {
    aiohttp.ClientConnectorDNSError: "unknown_host",
    aiohttp.ClientConnectorCertificateError: "bad_certificate",
    aiohttp.ClientConnectorSSLError: "no_tls",
}


# --- from events to deliveries ------------------------------------------------------------------------


def wants(types: list[str], skip_origin: str | None, event: Any) -> bool:
    """Whether an event is for a webhook."""
    if event["type"] not in (types or EVENTS):
        return False
    return skip_origin is None or event["origin"] != skip_origin


def body_of(event: Any, instance: str) -> bytes:
    """The bytes that tell of an event; see events.payload."""
    return orjson.dumps(payload(event, instance))


class _Page(NamedTuple):
    """Events read for a webhook, kept for the next one of its instance."""

    instance_id: int
    xid: str
    place: int
    events: list[Any]
    # Of all events of the instance that a webhook wanted so far, by their id.
    bodies: dict[str, bytes]


async def relay(database: Database, waiting: Iterable[Any]) -> tuple[bool, bool]:
    """Make deliveries of what webhooks have not read, _BATCH events of each at most.

    What has been read is noted in the transaction that makes the deliveries. A webhook that another worker
    is at is left to it, and one that fails keeps no other one waiting.

    Args:
        waiting: rows of find_waiting_webhooks, in their order.

    Returns:
        whether deliveries were made, and whether there may be more to read.

    Raises:
        Unavailable: the database was not there for several in a row.
    """
    made, more, failures = False, False, 0
    page: _Page | None = None
    for webhook in waiting:
        try:
            async with database.transaction() as db:
                page, chosen = await _read_on(db, webhook["instance_id"], webhook["id"], page)
        except Exception as error:
            _pass_on_cancelling(error)
            failures = failures + 1 if isinstance(error, Unavailable) else 0
            log.warning(
                "webhook_not_read",
                instance_id=webhook["instance_id"],
                webhook_id=webhook["id"],
                cause=type(error).__name__,
            )
            if failures == _FAILURES:
                raise
            continue
        failures = 0
        made = made or chosen > 0
        more = more or (page is not None and len(page.events) == _BATCH)
    return made, more


async def _read_on(
    db: Connection, instance_id: int, webhook_id: int, page: _Page | None
) -> tuple[_Page | None, int]:
    ref = {"instance_id": instance_id, "webhook_id": webhook_id}
    webhook = await db.one("take_webhook", **ref)
    if webhook is None:
        return None, 0
    start = instance_id, webhook["xid"], webhook["place"]
    if page is None or page[:3] != start:
        # After the row is held: what was read before that might be what somebody else has just delivered.
        events = await db.all(
            "read_events",
            instance_id=instance_id,
            xid=webhook["xid"],
            place=webhook["place"],
            row_limit=_BATCH,
        )
        page = _Page(*start, events, page.bodies if page and page.instance_id == instance_id else {})
    if not page.events:
        return page, 0
    chosen = [event for event in page.events if wants(webhook["types"], webhook["skip_origin"], event)]
    if chosen:
        for event in chosen:
            if event["id"] not in page.bodies:
                page.bodies[event["id"]] = body_of(event, webhook["instance"])
        await db.run(
            "insert_deliveries",
            **ref,
            event_ids=[uuid.UUID(event["id"]) for event in chosen],
            types=[event["type"] for event in chosen],
            bodies=[page.bodies[event["id"]] for event in chosen],
        )
    await db.run("advance_webhook", **ref, xid=page.events[-1]["xid"], place=page.events[-1]["place"])
    return page, len(chosen)


# --- delivering ---------------------------------------------------------------------------------------


async def deliver_one(database: Database, sender: Sender, metrics: Metrics, row: Any) -> None:
    """One try of a delivery that was claimed, and what came of it.

    Args:
        row: of claim_deliveries.
    """
    event_id, tries = str(row["event_id"]), row["attempts"] - row["first_attempt"]
    if tries > len(PAUSES) + 1:  # its workers died with it, again and again
        outcome = Outcome(None, "given_up", 0.0)
    else:
        headers = headers_of(event_id, row["body"], row["secret"], row["old_secret"], row["moment"])
        outcome = await sender.send(row["instance_id"], row["url"], row["body"], headers)
    because = None
    if outcome.error is None:
        state, pause = "delivered", 0.0
    elif outcome.status == 410 or tries > len(PAUSES):
        state, pause = "failed", 0.0
        if outcome.status == 410:
            because, failing_for = "410 Gone", 0.0
        elif tries == len(PAUSES) + 1:
            because, failing_for = "nothing was taken for three days", sum(PAUSES) * (1 - JITTER)
    else:
        state = "pending"
        pause = PAUSES[tries - 1] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311
    ref = {"instance_id": row["instance_id"], "webhook_id": row["webhook_id"]}
    async with database.transaction() as db:
        # The webhook before its delivery, in the order in which redeliverWebhook holds them.
        await db.run("note_success" if outcome.error is None else "note_failure", **ref)
        if because and await db.value("disable_webhook", **ref, because=because, failing_for=failing_for):
            await db.run(
                "insert_events",
                instance_id=row["instance_id"],
                types=["disableWebhook"],
                user_ids=[None],
                befores=[{"id": row["webhook_id"], "isActive": True}],
                afters=[{"id": row["webhook_id"], "isActive": False, "disabledBecause": because}],
                **by_itself("disableWebhook", event_id),
            )
        await db.run(
            "note_delivery",
            **ref,
            event_id=row["event_id"],
            attempt=row["attempts"],
            state=state,
            due_in=pause,
            status=outcome.status,
            error=outcome.error,
        )
    said = {"delivered": "done", "pending": "retried", "failed": "parked"}[state]
    fact = JobFact("webhook", said, outcome.seconds, row["webhook_id"], tries, outcome.error, row["instance"])
    metrics.job(fact)


async def keep_delivering(settings: Settings, database: Database, metrics: Metrics) -> None:
    """Relay and deliver until cancelled. What is being sent then is cut off, and is sent again."""
    news = asyncio.Event()
    beside = [
        asyncio.create_task(_keep_relaying(database, metrics, news)),
        asyncio.create_task(_keep_metering(database, metrics)),
    ]
    try:
        await _keep_sending(settings, database, metrics, news)
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)


async def _keep_relaying(database: Database, metrics: Metrics, news: asyncio.Event) -> None:
    away = False
    while True:
        more = False
        try:
            async with database.connection() as db:
                waiting = await db.all("find_waiting_webhooks")
            metrics.webhooks_unread(max((webhook["age"] for webhook in waiting), default=0.0))
            ready = [webhook for webhook in waiting if webhook["ready"]]
            # Each worker begins somewhere else, so that they do not follow one another.
            start = random.randrange(len(ready)) if ready else 0  # noqa: S311
            made, more = await relay(database, ready[start:] + ready[:start])
            if made:
                news.set()
            away = False
        except Exception as error:  # whatever it was, the next look may go better
            _pass_on_cancelling(error)
            if not away:
                log.warning("webhooks_wait_for_database", cause=type(error).__name__)
            away = True
        await asyncio.sleep(0 if more else POLL)


async def _keep_sending(
    settings: Settings, database: Database, metrics: Metrics, news: asyncio.Event
) -> None:
    """Send what is due.

    Args:
        news: set when there may be more to send.
    """
    sending: dict[asyncio.Task[None], tuple[int, int]] = {}
    away = False

    def ended(task: asyncio.Task[None]) -> None:
        del sending[task]
        news.set()

    async with Sender(settings) as sender:
        try:
            while True:
                news.clear()
                try:
                    for row in await _claim(database, sending.values()):
                        sent = asyncio.create_task(_deliver(database, sender, metrics, row))
                        sending[sent] = (row["instance_id"], row["webhook_id"])
                        sent.add_done_callback(ended)
                    away = False
                except Exception as error:  # whatever it was, the next look may go better
                    _pass_on_cancelling(error)
                    if not away:
                        log.warning("deliveries_wait_for_database", cause=type(error).__name__)
                    away = True
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL):
                        await news.wait()
                        await asyncio.sleep(GATHER)
        finally:
            for task in tuple(sending):
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)


async def _keep_metering(database: Database, metrics: Metrics) -> None:
    while True:
        try:
            async with database.connection() as db:
                metrics.webhooks_due(await db.value("find_oldest_due") or 0.0)
        except Exception as error:  # those who need the database more say that it is away
            _pass_on_cancelling(error)
        await asyncio.sleep(METER_EVERY)


def _pass_on_cancelling(error: Exception) -> None:
    """Stop if this task is to stop: a commit that is cancelled says that its outcome is unknown instead."""
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError from error


async def _claim(database: Database, sending: Iterable[tuple[int, int]]) -> list[Any]:
    busy = list(sending)
    if len(busy) >= AT_ONCE:
        return []
    async with database.connection() as db:
        return await db.all(
            "claim_deliveries",
            lease=LEASE,
            each=EACH,
            per_instance=PER_INSTANCE,
            row_limit=AT_ONCE - len(busy),
            busy_instances=[instance_id for instance_id, _ in busy],
            busy_webhooks=[webhook_id for _, webhook_id in busy],
        )


async def _deliver(database: Database, sender: Sender, metrics: Metrics, row: Any) -> None:
    try:
        await deliver_one(database, sender, metrics, row)
    except Exception as error:  # what came of it is not noted: the lease ends, and it is sent again
        log.warning(
            "delivery_not_noted",
            instance_id=row["instance_id"],
            webhook_id=row["webhook_id"],
            cause=type(error).__name__,
        )
