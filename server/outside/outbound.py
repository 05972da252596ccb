"""Signed requests to addresses that tenants choose, which must be public.

Signatures follow Standard Webhooks (https://www.standardwebhooks.com). DNS look-ups have their own threads,
against slow name servers, and are made for each connection, against DNS rebinding.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary, WeakValueDictionary

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from server.base.settings import Settings
from server.outside.addresses import is_public

TIME_LIMIT = 15.0
"""Seconds for one try."""
AT_ONCE = 512
"""Deliveries that a worker sends at the same time."""
LOOKUPS = 64
"""DNS look-ups of a worker at the same time."""
LOOKUPS_EACH = 4
"""Of these, for one instance at most."""
LOOKUP_LIMIT = 5.0
"""Seconds for a look-up, including the wait for its turn."""
READ_AT_MOST = 4096
"""Bytes of an answer that are read; the rest is not waited for."""
READ_FOR = 1.0
"""Seconds for reading them: the status alone decides."""
BASE_HEADERS = {"User-Agent": "officerpc", "Content-Type": "application/json", "Accept-Encoding": "identity"}
KEPT_ALIVE = 4.0
"""Seconds that an idle connection is kept: less than the five of many servers."""
_SECRET_BYTES = 32
_behalf_of: ContextVar[int] = ContextVar("behalf_of")
"""The instance whose webhook is being sent to."""


def new_secret() -> str:
    """A signing secret in the format of Standard Webhooks."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """One signature, with its version.

    Args:
        secret: from new_secret.
        timestamp: Unix seconds of the try.

    Raises:
        ValueError: it is not such a secret.
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
    """The headers of one try, signed with the secret and, during the overlap, with the old one."""
    signing = [secret] if old_secret is None else [secret, old_secret]
    return BASE_HEADERS | {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signature(one, message_id, timestamp, body) for one in signing),
    }


def url_problem(settings: Settings, url: str) -> str | None:
    """What is wrong with a webhook's address, as far as it can be seen without DNS; or None."""
    anywhere = settings.webhook_private_addresses
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
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
    ports = settings.webhook_ports
    if not anywhere and (443 if port is None else port) not in ports:
        return f"must have the port {' or '.join(map(str, ports))}"
    return None


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


class _Lookups:
    """DNS look-ups in their own threads, with a limit for each instance.

    The event loop's look-ups (of Postgres, mail and Graph) share a few threads, which names chosen by tenants
    could block: a look-up cannot be cancelled, not even by a time limit. So each keeps its slot until it has
    ended, also after its caller gave up. The threads are daemons: the process does not wait for them.
    """

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(LOOKUPS)
        self._slots_each: WeakValueDictionary[int, asyncio.Semaphore] = WeakValueDictionary()

    async def look_up(self, host: str, port: int, family: int) -> list[Any]:
        """The answer of socket.getaddrinfo.

        Raises:
            OSError: the name is unknown.
            TimeoutError: there was no answer, or no free slot, in time.
        """
        own = self._slots_each.setdefault(_behalf_of.get(), asyncio.Semaphore(LOOKUPS_EACH))
        async with asyncio.timeout(LOOKUP_LIMIT):
            await own.acquire()
            try:
                await self._slots.acquire()
            except BaseException:
                own.release()
                raise
            return await self._begin(own, host, port, family)

    def _begin(
        self, own: asyncio.Semaphore, host: str, port: int, family: int
    ) -> "asyncio.Future[list[Any]]":
        loop = asyncio.get_running_loop()
        found: Future[list[Any]] = Future()
        found.set_running_or_notify_cancel()  # a caller who gives up does not end it

        def release() -> None:
            own.release()
            self._slots.release()

        def ended(_: "Future[list[Any]]") -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(release)

        def look() -> None:
            try:
                kind, flags = socket.SOCK_STREAM, socket.AI_ADDRCONFIG
                found.set_result(socket.getaddrinfo(host, port, family, kind, flags=flags))
            except (OSError, ValueError) as error:  # ValueError: a label that is too long
                found.set_exception(error if isinstance(error, OSError) else OSError(str(error)))

        found.add_done_callback(ended)
        try:
            threading.Thread(target=look, name="webhook-lookup", daemon=True).start()
        except RuntimeError as error:  # no more threads
            found.set_exception(OSError(str(error)))
        return asyncio.wrap_future(found)


_lookups: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lookups] = WeakKeyDictionary()
"""By event loop: a process has one, the tests have many."""


class _Resolver(AbstractResolver):
    """A resolver for aiohttp."""

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
"""Replaced by tests."""


class ForbiddenAddress(OSError):
    """the name leads to an address that is not public"""


def _require_public(host: str) -> None:
    address = _literal(host)
    if address is None or not is_public(address):
        raise ForbiddenAddress


class _PublicResolver(AbstractResolver):
    """Refuses names with an address that is not public."""

    def __init__(self) -> None:
        self._behind = make_resolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._behind.resolve(host, port, family)
        for result in found:
            _require_public(result["host"])
        return found

    async def close(self) -> None:
        await self._behind.close()


def _public_socket(
    info: tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, Any],
) -> socket.socket:
    """A socket for one address: the last check, also for addresses in URLs, which no resolver sees."""
    family, kind, protocol, _, where = info
    _require_public(where[0])
    return socket.socket(family, kind, protocol)


class Outcome(NamedTuple):
    """The result of a try."""

    status: int | None
    # None after success.
    error: str | None
    seconds: float


class Sender:
    """Posts signed deliveries. `async with Sender(settings) as sender`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> "Sender":
        anywhere = self._settings.webhook_private_addresses
        # No DNS cache: each connection goes to the addresses that were checked for it.
        connector = aiohttp.TCPConnector(
            resolver=make_resolver() if anywhere else _PublicResolver(),
            socket_factory=None if anywhere else _public_socket,
            use_dns_cache=False,
            limit=2 * AT_ONCE,
            keepalive_timeout=KEPT_ALIVE,
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
        """One try for an instance. Only 200 to 299 is success; redirects are not followed."""
        began = time.perf_counter()
        _behalf_of.set(instance_id)
        status, error = await self._post(url, body, headers)
        return Outcome(status, error, time.perf_counter() - began)

    async def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int | None, str | None]:
        if url_problem(self._settings, url):  # the settings may have changed
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
    """Read a short answer, so that its connection can be used again."""
    left = READ_AT_MOST
    async with asyncio.timeout(READ_FOR):
        while left > 0 and (chunk := await response.content.read(left)):
            left -= len(chunk)
    if left <= 0:
        response.close()


def _failure(failed: Exception) -> str:
    """The code of an error without an answer. Raises errors that are bugs of ours."""
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
