"""HTTP for all wires: API keys, rate limits, bodies, answers and errors."""

import asyncio
import contextlib
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, TypeAlias

import structlog
from aiohttp import hdrs, web
from multidict import CIMultiDict

from server.base.errors import (
    BadExpectation,
    FieldError,
    Invalid,
    Malformed,
    NoRoute,
    ServiceError,
    TooLarge,
    TooMany,
    TooSlow,
    Unauthenticated,
    WrongType,
    WrongVerb,
)  # fmt: skip
from server.base.logs import safe_traceback
from server.base.metrics import Metrics, RefusalFact
from server.base.settings import Settings
from server.base.shares import Shares
from server.base.unsent import Unsent
from server.methods.registry import DRY_RUN, without_dry_run
from server.rpc.dispatch import Dispatcher
from server.rpc.idempotency import checked_key
from server.tenants.call import RequestContext
from server.tenants.keys import KeyCache
from server.tenants.limits import Allowance, RateLimiter
from server.tenants.principals import Principal

log = structlog.get_logger()

DISPATCHER = web.AppKey("DISPATCHER", Dispatcher)
KEYS = web.AppKey("KEYS", KeyCache)
SETTINGS = web.AppKey("SETTINGS", Settings)
LIMITER = web.AppKey("LIMITER", RateLimiter)
"""Calls of each key on all wires."""
INSTANCE_LIMITER = web.AppKey("INSTANCE_LIMITER", RateLimiter)
"""Calls of each instance on all wires, with any of its keys."""
UNSENT = web.AppKey("UNSENT", Unsent)
REQUEST_ID = web.RequestKey("REQUEST_ID", str)


@dataclass(slots=True)
class Calls:
    """The calls of a request, and the answer's headers about them."""

    # Id of the key's default instance; minus the key's id if it has none; 0 before the key is known.
    owner: int = 0
    begun: int = 0
    replayed: int = 0
    # Calls that write, and the dry runs among them.
    writing: int = 0
    dry: int = 0
    retry_after: int = 0
    # Missing scopes, where an error is in the body of a 200.
    scopes: set[str] = field(default_factory=set)
    # Limit's name -> what it leaves to the caller.
    allowances: dict[str, Allowance] = field(default_factory=dict)

    def headers(self) -> dict[str, str]:
        """Headers that hold for all calls: a batch with any new work is not marked as replayed."""
        headers: dict[str, str] = {}
        if rates := self.allowances.items():
            # draft-ietf-httpapi-ratelimit-headers-10: q calls in w seconds; r are left, for t seconds.
            headers["RateLimit-Policy"] = ", ".join(f'"{name}";q={a.limit};w={a.window}' for name, a in rates)
            headers["RateLimit"] = ", ".join(f'"{name}";r={a.remaining};t={a.resets_in}' for name, a in rates)
        if self.scopes:
            headers["X-Required-Scope"] = ", ".join(sorted(self.scopes))
        if self.begun and self.replayed == self.begun:
            headers["Idempotency-Replayed"] = "true"
        if self.dry and self.dry == self.writing:
            headers["Dry-Run"] = "true"
        if self.retry_after:
            headers["Retry-After"] = str(self.retry_after)
        return headers


CALLS = web.RequestKey("CALLS", Calls)

BEGINNING_SIZE = 65536
BEGINNING = web.RequestKey("BEGINNING", bytes)
"""The first BEGINNING_SIZE bytes of a body that read_body refused."""


CHALLENGE = 'ApiKey realm="officerpc", header="x-api-key"'
"""WWW-Authenticate of each 401, which RFC 9110, section 11.6.1, requires.

No scheme is registered for API keys in a header. A browser shows no login dialog for an unknown scheme.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire(ABC):
    """A wire: its routes and its errors."""

    name: str
    # The wire renders errors of all requests whose paths begin with one of these.
    prefixes: tuple[str, ...]
    # WWW-Authenticate of its 401s.
    challenge: str = CHALLENGE

    @abstractmethod
    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the wire's routes."""

    @abstractmethod
    def error_response(self, request: web.Request, error: ServiceError) -> web.Response:
        """The answer to an error."""


class Answer(web.Response):
    """A response without the Server header. aiohttp adds it after all of its hooks."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall(hdrs.SERVER, None)


_HEADERS = CIMultiDict({"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})
_JSON_HEADERS = CIMultiDict(_HEADERS, **{"Content-Type": "application/json"})
_LARGE_ANSWER = 65536
"""Bytes from which headers and body are sent separately."""


def answer(status: int, body: bytes | None, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer in JSON, or without a body, with the headers of every answer.

    Args:
        headers: more headers, or other values.
    """
    response = Answer(status=status, body=body, headers=_HEADERS if body is None else _JSON_HEADERS)
    if headers:
        response.headers.update(headers)
    if body is not None and len(body) > _LARGE_ANSWER:
        # Sent together, aiohttp would copy the body and keep the copy until the client has read it.
        response._send_headers_immediately = True
    return response


_CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def request_id_of(given: str | None) -> str:
    """The id of a request: the client's if it is valid, else a new one."""
    if given and _CLIENT_ID.fullmatch(given):
        return given
    return f"{random.getrandbits(96):024x}"  # not a secret


async def authenticate(request: web.Request, *headers: str) -> Principal:
    """Find the caller by its API key.

    Args:
        headers: the wire's headers for keys. In Authorization, the key is a bearer token (RFC 6750).

    Raises:
        Unauthenticated: no key, or one that is unknown, revoked or expired.
        Invalid: more than one key.
    """
    given = [value for header in headers for value in request.headers.getall(header, ())]
    if len(given) > 1:
        raise Invalid("send one API key", code="several_keys")
    key = given[0] if given else ""
    if hdrs.AUTHORIZATION in headers and " " in key:  # Okta's header authentication sends no scheme
        key = key[7:].strip() if key.lower().startswith("bearer ") else ""
    if not key:
        raise Unauthenticated
    caller = await request.app[KEYS].caller(key, address_of(request))
    request[CALLS].owner = caller.default_instance.id if caller.default_instance else -caller.id
    return caller


def count(request: web.Request, caller: Principal) -> None:
    """Count a call towards the rate limits of its key and of the key's default instance.

    Raises:
        TooMany: the key, or its instance, is over its limit.
    """
    enforce(request, "key", request.app[LIMITER].spend(caller.id, caller.rate_per_minute))
    if (instance := caller.default_instance) is not None:
        allowance = request.app[INSTANCE_LIMITER].spend(instance.id, instance.settings.ratePerMinute)
        enforce(request, "instance", allowance)


def enforce(request: web.Request, limit: str, allowance: Allowance | None) -> None:
    """Enforce a rate limit; the answer's headers show what it leaves.

    Args:
        limit: its name.
        allowance: what it leaves; None: there is no limit.

    Raises:
        TooMany: the call is over the limit.
    """
    if allowance is None:
        return
    request[CALLS].allowances[limit] = allowance
    if not allowance.granted:
        raise TooMany(retry_after=allowance.resets_in)


def address_of(request: web.Request) -> str | None:
    """The client's address: the last hop that is not a trusted proxy; None if it is not known."""
    address = request.remote
    proxies = request.app[SETTINGS].trusted_proxies
    if not proxies or address is None:
        return address
    hops = [
        hop.strip() for value in request.headers.getall("X-Forwarded-For", ()) for hop in value.split(",")
    ]
    try:
        while hops and any(ip_address(address) in network for network in proxies):
            address = hops.pop()
    except ValueError:
        return None
    return address


def origin_of(request: web.Request) -> str | None:
    """The client's name for itself (X-Origin). Its events have it, so it can recognize its own changes.

    Raises:
        Invalid: the name is not valid.
    """
    origin = request.headers.get("X-Origin")
    if origin and not _CLIENT_ID.fullmatch(origin):
        raise Invalid("X-Origin: must be 1 to 64 letters, digits, dots, colons, underscores or dashes")
    return origin or None


async def run(
    request: web.Request,
    caller: Principal,
    name: object,
    params: object,
    *,
    idempotency_key: object = None,
    dry_run: object = None,
    index: int | None = None,
) -> Any:
    """Run a method.

    Args:
        idempotency_key, dry_run: from the envelope; None: not given there.
        index: of the call in a batch; None: no batch.

    Raises:
        Invalid: a bad value in the headers Idempotency-Key, Dry-Run or X-Origin.
        ServiceError: see Dispatcher.answer.
    """
    key = _idempotency_key(request, idempotency_key, index)
    dry = is_dry_run(request, dry_run)
    context = RequestContext(request[REQUEST_ID], address_of(request), key, origin_of(request), dry_run=dry)
    calls = request[CALLS]
    calls.begun += 1
    dispatcher = request.app[DISPATCHER]
    method = dispatcher.methods.get(name) if isinstance(name, str) else None
    if method is not None and method.writes:
        calls.writing += 1
        calls.dry += dry or without_dry_run(params)[1] is True
    try:
        result, is_replayed = await dispatcher.answer(caller, name, params, context)
    except ServiceError as error:
        calls.retry_after = max(calls.retry_after, error.retry_after or 0)
        raise
    calls.replayed += is_replayed
    return result


def _idempotency_key(request: web.Request, given: object, index: int | None) -> str | None:
    if given is None and "Idempotency-Key" not in request.headers:
        return None
    sent = request.headers.getall("Idempotency-Key", ())
    keys = {checked_key(key) for key in (given, *sent) if key is not None}
    if given is not None and index is not None:
        return checked_key(given)  # in a batch the header is for calls without their own key
    if len(keys) > 1 or len(sent) > 1:
        raise Invalid("send one idempotency key", code="bad_idempotency_key")
    # The calls of a batch share the header. A line feed, which no key contains, separates key and index.
    return keys.pop() if index is None else f"{keys.pop()}\n{index}"


def is_dry_run(request: web.Request, given: object = None) -> bool:
    """Whether a call only checks what it would do.

    Args:
        given: dryRun of the envelope; None: not given there.

    Raises:
        Invalid: it, or the header Dry-Run, is neither true nor false.
    """
    if given is not None and not isinstance(given, bool):
        raise Invalid.of([FieldError(DRY_RUN, "must be true or false")])
    values = {value.lower() for value in request.headers.getall("Dry-Run", ())}
    if not values <= {"true", "false"}:
        raise Invalid("the header Dry-Run must be true or false", code="bad_dry_run")
    return given is True or "true" in values


def body_limit(settings: Settings, *, with_picture: bool) -> int:
    """Bytes of a body at most. A picture in base64 is a third longer than the picture."""
    return settings.body_limit + (settings.picture_limit * 4 // 3 if with_picture else 0)


LARGE_BODIES = web.AppKey("LARGE_BODIES", Shares)
"""Slots for reading bodies larger than body_limit. Bodies without a slot stay in the network."""


async def read_body(request: web.Request, *, with_picture: bool, share: int) -> bytes:
    """The body of a request, decompressed, within the limits of size and time.

    Args:
        with_picture: whether it may contain a picture.
        share: the caller's, see Shares.

    Raises:
        TooLarge: more bytes than allowed, before or after decompression.
        TooSlow: it did not arrive in time.
        Unavailable: too many large bodies of the same instance are waiting.
        Malformed: it cannot be decompressed.
    """
    settings = request.app[SETTINGS]
    limit = body_limit(settings, with_picture=with_picture)
    if (request.content_length or 0) > limit:
        raise TooLarge
    if request.content.is_eof() and not request.content.exception():
        body = request.content.read_nowait()  # it came with its headers, as most do
        if len(body) > limit:
            request[BEGINNING] = body[:BEGINNING_SIZE]
            raise TooLarge
        return body
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.body_timeout) as running, contextlib.AsyncExitStack() as held:
            async for chunk in request.content.iter_any():
                if size <= settings.body_limit < size + len(chunk):
                    await held.enter_async_context(request.app[LARGE_BODIES].turn(share))
                    running.reschedule(asyncio.get_running_loop().time() + settings.body_timeout)
                size += len(chunk)
                chunks.append(chunk)
                if size > limit:
                    raise TooLarge
    except (TooLarge, TimeoutError, web.RequestPayloadError) as error:
        request[BEGINNING] = b"".join(chunks)[:BEGINNING_SIZE]
        if isinstance(error, web.RequestPayloadError):
            raise Malformed("the body cannot be read as its headers say") from error
        if isinstance(error, TimeoutError) and request.transport is not None:
            raise TooSlow from error
        raise
    return b"".join(chunks)


# The last two are from the draft of 2008 on JSON-RPC over HTTP.
_JSON_TYPES = frozenset(("application/json", "application/json-rpc", "application/jsonrequest"))


def require_json(request: web.Request) -> None:
    """Check that Content-Type is JSON in UTF-8.

    Types with the suffix +json are JSON too (RFC 6839, section 3.1).

    Raises:
        WrongType: it is missing, or another type.
    """
    if request.headers.get(hdrs.CONTENT_TYPE) == "application/json":
        return  # the usual case, fast
    is_json = request.content_type in _JSON_TYPES or request.content_type.endswith("+json")
    if not is_json or (request.charset or "utf-8").lower() not in ("utf-8", "utf8"):
        raise WrongType


Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _wire_of(path: str, wires: Sequence[Wire]) -> Wire:
    """The wire with the longest matching prefix; the first wire if none matches."""
    lengths = {len(prefix): wire for wire in wires for prefix in wire.prefixes if path.startswith(prefix)}
    return lengths[max(lengths)] if lengths else wires[0]


def error_boundary(handler: Handler, wires: Sequence[Wire], metrics: Metrics) -> Handler:
    """Wrap an application: each request gets an id, and the path's wire renders its errors.

    Args:
        handler: the application's.
        wires: see _wire_of.
    """

    async def handle(request: web.Request) -> web.StreamResponse:
        request_id = request[REQUEST_ID] = request_id_of(request.headers.get("X-Request-Id"))
        calls = request[CALLS] = Calls()
        error: ServiceError | None = None
        response: web.StreamResponse
        try:
            response = await handler(request)
        except ServiceError as refused:
            error = refused
        except web.HTTPMethodNotAllowed as refused:
            error = WrongVerb(headers={"Allow": ", ".join(sorted(refused.allowed_methods))})
        except web.HTTPExpectationFailed:
            error = BadExpectation()
        except web.HTTPException:
            error = NoRoute()
        except Exception as bug:
            if isinstance(bug, OSError) and request.transport is None:
                # The client disconnected while sending its body.
                log.info("client_gone", request_id=request_id)
                raise ConnectionResetError("the client is gone") from bug
            log.error("bug", request_id=request_id, traceback=safe_traceback(bug))
            error = ServiceError()
        if error is not None:
            wire = _wire_of(request.path, wires)
            response = wire.error_response(request, error)
            response.headers["X-Error-Code"] = error.code
            response.headers.update(error.headers)
            if error.retry_after is not None:
                response.headers["Retry-After"] = str(error.retry_after)
            if isinstance(error, (TooLarge, TooSlow)):
                response.force_close()  # instead of reading the rest of the body
            if not calls.begun:  # else the dispatcher has reported it
                metrics.refusal(
                    RefusalFact(wire.name, error.code, response.status, request_id, error.cause())
                )
        if response.status == 401:
            response.headers[hdrs.WWW_AUTHENTICATE] = _wire_of(request.path, wires).challenge
        response.headers.update(calls.headers())
        response.headers["X-Request-Id"] = request_id
        return response

    return handle
