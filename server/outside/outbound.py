"""Signed requests to addresses that tenants name, and to public ones alone.

Signatures are those of Standard Webhooks (https://www.standardwebhooks.com). Names are looked up apart from
all others' and for each connection anew: neither a slow name server nor one that changes its mind does harm.
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
"""Seconds that one try may take."""
AT_ONCE = 512
"""Deliveries that a worker sends at the same time."""
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
BASE_HEADERS = {"User-Agent": "officerpc", "Content-Type": "application/json", "Accept-Encoding": "identity"}
KEPT_ALIVE = 4.0
"""Seconds that an idle connection is kept: less than the five after which many servers close theirs."""
_SECRET_BYTES = 32
_behalf_of: ContextVar[int] = ContextVar("behalf_of")
"""The instance whose webhook is being sent to."""


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
    return BASE_HEADERS | {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signature(one, message_id, timestamp, body) for one in signing),
    }


def url_problem(settings: Settings, url: str) -> str | None:
    """What is wrong with a webhook's address, as far as that shows without a look-up; or None."""
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
