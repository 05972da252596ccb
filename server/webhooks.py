"""Webhooks: events become deliveries, deliveries are signed and sent until somebody has taken them.

Signatures are those of Standard Webhooks (https://www.standardwebhooks.com). Events are read in the order in
which their transactions can be seen, deliveries are made in the transaction that notes how far was read, and
a delivery that its worker died with is taken by another one: none is lost, and some come twice, with the same
webhook-id.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import random
import secrets
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import orjson
import structlog
from aiohttp.abc import AbstractResolver, ResolveResult

from server.db import Connection, Database
from server.events import EVENTS, by_itself, payload
from server.metrics import JobFact, Metrics
from server.settings import Settings

log = structlog.get_logger()

PAUSES = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds between two tries, with a tenth of jitter: three days in all."""
TIME_LIMIT = 15.0
"""Seconds that one try may take."""
LEASE = 60.0
"""Seconds after which another worker takes a delivery over from one that died."""
POLL = 1.0
"""Seconds between two looks for events and for deliveries that are due."""
AT_ONCE = 32
"""Deliveries that a worker sends at the same time."""
EACH = 4
"""Of these, at most so many to one webhook."""
READ_AT_MOST = 4096
"""Bytes of an answer; whatever follows is not waited for."""
TOLD_BY = {"User-Agent": "officerpc", "Content-Type": "application/json", "Accept-Encoding": "identity"}

_BATCH = 500
_SECRET_BYTES = 32
# Reached from within a data centre alone, though it lies among public addresses.
_REFUSED = frozenset({ip_address("168.63.129.16")})

make_resolver: Callable[[], AbstractResolver] = aiohttp.ThreadedResolver
"""What looks names up; the tests have their own."""


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

    async def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> Outcome:
        """One try. Only a status from 200 to 299 is success; redirects are not followed."""
        began = time.perf_counter()
        status, error = await self._post(url, body, headers)
        return Outcome(status, error, time.perf_counter() - began)

    async def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int | None, str | None]:
        if url_problem(self._settings, url):  # the settings may have changed since it was stored
            return None, "forbidden_address"
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                left = READ_AT_MOST
                while left > 0 and (chunk := await response.content.read(left)):
                    left -= len(chunk)
                if left <= 0:
                    response.close()
                status = response.status
        except aiohttp.ClientConnectorError as failed:
            forbidden = isinstance(failed.os_error, ForbiddenAddress)
            return None, "forbidden_address" if forbidden else _CONNECTING.get(type(failed), "no_connection")
        except TimeoutError:
            return None, "timeout"
        except (aiohttp.ClientError, OSError, ValueError) as failed:
            return None, type(failed).__name__
        return status, None if 200 <= status < 300 else f"http_{status}"


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


async def relay(database: Database) -> int:
    """Make deliveries of all that webhooks have not read; how many events were looked at.

    What has been read is noted in the transaction that makes the deliveries. A webhook that another worker
    is at is left to it.
    """
    async with database.connection() as db:
        waiting = await db.all("find_waiting_webhooks", row_limit=_BATCH)
    seen = 0
    for webhook in waiting:
        async with database.transaction() as db:
            seen += await _read_on(db, webhook["instance_id"], webhook["id"])
    return seen


async def _read_on(db: Connection, instance_id: int, webhook_id: int) -> int:
    ref = {"instance_id": instance_id, "webhook_id": webhook_id}
    webhook = await db.one("take_webhook", **ref)
    if webhook is None:
        return 0
    # After the row is held: what was read before that might be what somebody else has just delivered.
    events = await db.all(
        "read_events", instance_id=instance_id, xid=webhook["xid"], place=webhook["place"], row_limit=_BATCH
    )
    if not events:
        return 0
    chosen = [event for event in events if wants(webhook["types"], webhook["skip_origin"], event)]
    if chosen:
        await db.run(
            "insert_deliveries",
            **ref,
            event_ids=[uuid.UUID(event["id"]) for event in chosen],
            types=[event["type"] for event in chosen],
            bodies=[body_of(event, webhook["instance"]) for event in chosen],
        )
    await db.run("advance_webhook", **ref, xid=events[-1]["xid"], place=events[-1]["place"])
    return len(events)


async def deliver_one(database: Database, sender: Sender, metrics: Metrics, row: Any) -> None:
    """One try of a delivery that was claimed, and what came of it.

    Args:
        row: of claim_deliveries.
    """
    event_id, attempt = str(row["event_id"]), row["attempts"]
    if attempt > len(PAUSES) + 1:  # its workers died with it, again and again
        outcome = Outcome(None, "given_up", 0.0)
    else:
        headers = headers_of(event_id, row["body"], row["secret"], row["old_secret"], int(time.time()))
        outcome = await sender.send(row["url"], row["body"], headers)
    gone = outcome.status == 410
    if outcome.error is None:
        state, pause = "delivered", 0.0
    elif gone or attempt > len(PAUSES):
        state, pause = "failed", 0.0
    else:
        state, pause = "pending", PAUSES[attempt - 1] * random.uniform(0.9, 1.1)  # noqa: S311
    ref = {"instance_id": row["instance_id"], "webhook_id": row["webhook_id"]}
    async with database.transaction() as db:
        await db.run(
            "note_delivery",
            **ref,
            event_id=row["event_id"],
            attempt=attempt,
            state=state,
            due_in=pause,
            status=outcome.status,
            error=outcome.error,
        )
        if gone and await db.value("disable_webhook", **ref, because="410 Gone"):
            await db.run(
                "insert_events",
                instance_id=row["instance_id"],
                types=["disableWebhook"],
                user_ids=[None],
                befores=[{"id": row["webhook_id"], "isActive": True}],
                afters=[{"id": row["webhook_id"], "isActive": False, "disabledBecause": "410 Gone"}],
                **by_itself("disableWebhook", event_id),
            )
    said = {"delivered": "done", "pending": "retried", "failed": "parked"}[state]
    metrics.job(JobFact("webhook", said, outcome.seconds, row["webhook_id"], attempt, outcome.error))


async def keep_delivering(settings: Settings, database: Database, metrics: Metrics) -> None:
    """Relay and deliver until cancelled. What is being sent then is cut off, and is sent again."""
    sending: dict[asyncio.Task[None], tuple[int, int]] = {}
    away = False
    async with Sender(settings) as sender:
        try:
            while True:
                busy = False
                try:
                    seen = await relay(database)
                    rows = await _claim(database, sending)
                    busy, away = seen >= _BATCH or bool(rows), False
                    for row in rows:
                        sent = asyncio.create_task(_deliver(database, sender, metrics, row))
                        sending[sent] = (row["instance_id"], row["webhook_id"])
                        sent.add_done_callback(sending.pop)
                except Exception as error:  # whatever it was, the next look may go better
                    # A commit that is cancelled says that its outcome is unknown instead.
                    if (task := asyncio.current_task()) is not None and task.cancelling():
                        raise asyncio.CancelledError from error
                    if not away:
                        log.warning("webhooks_wait_for_database", cause=type(error).__name__)
                    away = True
                if busy and sending:  # more may be due already: on as soon as there is room
                    await asyncio.wait(tuple(sending), timeout=POLL, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(0 if busy else POLL)
        finally:
            for task in tuple(sending):
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)


async def _claim(database: Database, sending: Mapping[Any, tuple[int, int]]) -> list[Any]:
    room = AT_ONCE - len(sending)
    if room <= 0:
        return []
    busy = sorted(set(sending.values()))
    async with database.connection() as db:
        return await db.all(
            "claim_deliveries",
            lease=LEASE,
            each=EACH,
            row_limit=room,
            busy_instances=[instance_id for instance_id, _ in busy],
            busy_webhooks=[webhook_id for _, webhook_id in busy],
        )


async def _deliver(database: Database, sender: Sender, metrics: Metrics, row: Any) -> None:
    try:
        await deliver_one(database, sender, metrics, row)
    except Exception as error:  # what came of it is not noted: the lease ends, and it is sent again
        log.warning("delivery_not_noted", cause=type(error).__name__)
