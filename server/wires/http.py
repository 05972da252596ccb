"""What every wire needs of HTTP: bodies, JSON, keys, answers."""

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
from server.base.shares import SERVER, Shares
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
"""Of keys, on all wires together; a wire that has a limit of its own counts for itself too."""
INSTANCE_LIMITER = web.AppKey("INSTANCE_LIMITER", RateLimiter)
"""Of instances, on all wires and for all their keys together."""
UNSENT = web.AppKey("UNSENT", Unsent)
REQUEST_ID = web.RequestKey("REQUEST_ID", str)


@dataclass(slots=True)
class Calls:
    """The calls that a request has become, and what its answer has to say of them beside its body."""

    # Whose they are: the default instance of the key, or one number for each key without any; 0: nobody's.
    owner: int = 0
    begun: int = 0
    replayed: int = 0
    # Those that write, and those of them that were rehearsed.
    writing: int = 0
    dry: int = 0
    retry_after: int = 0
    # Those that calls lacked, where the body tells of errors and the status does not.
    scopes: set[str] = field(default_factory=set)
    # What is left to the caller by each limit that it is under, by the limit's name.
    allowances: dict[str, Allowance] = field(default_factory=dict)

    def headers(self) -> dict[str, str]:
        """What holds for all of them: a batch that did any new work does not say that it was replayed."""
        told = _limit_headers(self.allowances) if self.allowances else {}
        if self.scopes:
            told["X-Required-Scope"] = ", ".join(sorted(self.scopes))
        if not self.begun:
            return told
        if self.replayed == self.begun:
            told["Idempotency-Replayed"] = "true"
        if self.dry and self.dry == self.writing:
            told["Dry-Run"] = "true"
        if self.retry_after:
            told["Retry-After"] = str(self.retry_after)
        return told


CALLS = web.RequestKey("CALLS", Calls)

BEGINNING_SIZE = 65536
BEGINNING = web.RequestKey("BEGINNING", bytes)
"""The first bytes of a body that read_body refused, so many at most."""


CHALLENGE = 'ApiKey realm="officerpc", header="x-api-key"'
"""The challenge of a 401 (RFC 9110, section 11.6.1). Every wire takes this header beside its document's.
A browser shows no login dialog for a scheme that it does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire(ABC):
    """One wire: where it listens and how it words errors."""

    name: str
    # Errors of requests whose paths begin with one of these are in its form.
    prefixes: tuple[str, ...]
    challenge: str = CHALLENGE

    @abstractmethod
    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Have the wire served."""

    @abstractmethod
    def error_response(self, request: web.Request, error: ServiceError) -> web.Response:
        """The answer to an error, or to a bug of ours."""


class Answer(web.Response):
    """A response without the Server header, which aiohttp would add after every hook it offers."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall(hdrs.SERVER, None)


_HEADERS = CIMultiDict({"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})
_JSON_HEADERS = CIMultiDict(_HEADERS, **{"Content-Type": "application/json"})


_LARGE_ANSWER = 65536
"""Bytes from which headers and body are sent apart."""


def answer(status: int, body: bytes | None, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer in JSON, or without a body, with the headers that each has.

    Args:
        headers: more of them, or others.
    """
    response = Answer(status=status, body=body, headers=_HEADERS if body is None else _JSON_HEADERS)
    if headers:
        response.headers.update(headers)
    if body is not None and len(body) > _LARGE_ANSWER:
        # Headers and body in one piece would be a copy of the body, kept for as long as the client reads.
        response._send_headers_immediately = True
    return response


_GIVEN_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def request_id_of(given: str | None) -> str:
    """The id of a request: the caller's own where it is short and plain, else a fresh one."""
    if given and _GIVEN_ID.fullmatch(given):
        return given
    return f"{random.getrandbits(96):024x}"  # a name, no secret


async def authenticate(request: web.Request, *headers: str, counted: bool = True) -> Principal:
    """Who calls; the call counts towards the rates of its key and of the key's instance.

    Args:
        headers: where this wire looks for the key; in Authorization it is a bearer token (RFC 6750).
        counted: False where the wire calls count itself.

    Raises:
        Unauthenticated: no key, or one that is unknown, revoked or expired.
        Invalid: more than one key.
        TooMany: the key, or its instance, has made as many calls as it may.
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
    if counted:
        count(request, caller)
    return caller


def count(request: web.Request, caller: Principal) -> None:
    """Count a call towards the rates of its key and of the key's (default) instance, where it has one.

    Raises:
        TooMany: the key, or its instance, has made as many calls as it may.
    """
    allowance = request.app[LIMITER].spend(caller.id, caller.rate_per_minute)
    if allowance is not None:
        abide(request, "key", allowance)
    if (instance := caller.default_instance) is not None:
        allowance = request.app[INSTANCE_LIMITER].spend(instance.id, instance.settings.ratePerMinute)
        if allowance is not None:
            abide(request, "instance", allowance)


def abide(request: web.Request, limit: str, allowance: Allowance) -> None:
    """Have the answer tell what a limit leaves.

    Raises:
        TooMany: nothing any more.
    """
    request[CALLS].allowances[limit] = allowance
    if not allowance.granted:
        raise TooMany(retry_after=allowance.resets_in)


def _limit_headers(allowances: Mapping[str, Allowance]) -> dict[str, str]:
    # draft-ietf-httpapi-ratelimit-headers-10: q calls in a window of w seconds; r are left, for t seconds.
    return {
        "RateLimit-Policy": ", ".join(f'"{name}";q={a.limit};w={a.window}' for name, a in allowances.items()),
        "RateLimit": ", ".join(f'"{name}";r={a.remaining};t={a.resets_in}' for name, a in allowances.items()),
    }


def address_of(request: web.Request) -> str | None:
    """Where a request comes from: the first address, seen from here, that is no proxy of ours."""
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
    """What the caller calls itself, by which it knows its own changes again among events.

    Raises:
        Invalid: no short, plain name.
    """
    origin = request.headers.get("X-Origin")
    if origin and not _GIVEN_ID.fullmatch(origin):
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
    place: int | None = None,
) -> Any:
    """Hand a call to the dispatcher, which observes it from here on.

    Args:
        idempotency_key, dry_run: as the envelope has them, where it can; null is none.
        place: which of several calls in one request it is.

    Raises:
        Invalid: what the headers Idempotency-Key, Dry-Run and X-Origin say cannot be; beside all that
            dispatch raises.
    """
    key = _idempotency_key(request, idempotency_key, place)
    dry = _dry_run(request, dry_run)
    context = RequestContext(request[REQUEST_ID], address_of(request), key, origin_of(request), dry_run=dry)
    calls = request[CALLS]
    calls.begun += 1
    dispatcher = request.app[DISPATCHER]
    method = dispatcher.methods.get(name) if isinstance(name, str) else None
    if method is not None and method.writes:
        calls.writing += 1
        calls.dry += dry or without_dry_run(params)[1] is True
    try:
        answered = await dispatcher.answer(caller, name, params, context)
    except ServiceError as error:
        calls.retry_after = max(calls.retry_after, error.retry_after or 0)
        raise
    calls.replayed += answered.replayed
    return answered.result


def _idempotency_key(request: web.Request, given: object, place: int | None) -> str | None:
    if given is None and "Idempotency-Key" not in request.headers:
        return None
    sent = request.headers.getall("Idempotency-Key", ())
    keys = {checked_key(key) for key in (given, *sent) if key is not None}
    if given is not None and place is not None:
        return checked_key(given)  # in a batch the header is for those without their own
    if len(keys) > 1 or len(sent) > 1:
        raise Invalid("send one idempotency key", code="bad_idempotency_key")
    # The calls of a batch share the header: each is told from the others by its place, behind a character
    # that no key has.
    return keys.pop() if place is None else f"{keys.pop()}\n{place}"


def _dry_run(request: web.Request, given: object) -> bool:
    if given is not None and not isinstance(given, bool):
        raise Invalid.of([FieldError(DRY_RUN, "must be true or false")])
    values = {value.lower() for value in request.headers.getall("Dry-Run", ())}
    if not values <= {"true", "false"}:
        raise Invalid("the header Dry-Run must be true or false", code="bad_dry_run")
    return given is True or "true" in values


def body_limit(settings: Settings, *, with_picture: bool) -> int:
    """Bytes that a body may have: more where it holds a picture, which base64 makes a third longer."""
    return settings.body_limit + (settings.picture_limit * 4 // 3 if with_picture else 0)


LARGE_BODIES = web.AppKey("LARGE_BODIES", Shares)
"""Bodies larger than usual, which hold pictures, while they are read. The others stay with their senders."""


def large_bodies() -> Shares:
    """So many at once, and few of any one instance."""
    return Shares(size=16, of_one=2, waiting=100, refusal="too many large bodies are being sent, try again")


async def read_body(request: web.Request, *, with_picture: bool = False, share: int = SERVER) -> bytes:
    """The body of a request, inflated, within the limits of size and time.

    Args:
        with_picture: whether it may hold one.
        share: whose it is.

    Raises:
        TooLarge: more bytes than allowed, before or after inflating.
        TooSlow: it did not arrive in time.
        Unavailable: too many large ones of the same instance are waiting.
        Malformed: it cannot be inflated.
    """
    settings = request.app[SETTINGS]
    limit = body_limit(settings, with_picture=with_picture)
    if (request.content_length or 0) > limit:
        raise TooLarge
    if request.content.is_eof() and not request.content.exception():
        body = request.content.read_nowait()  # it came with its headers, as nearly all do
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


# The last two are of the draft of 2008 on JSON-RPC over HTTP.
_JSON_TYPES = frozenset(("application/json", "application/json-rpc", "application/jsonrequest"))


def require_json(request: web.Request) -> None:
    """Check that the body is declared to be JSON in UTF-8.

    Types with the suffix +json are JSON too (RFC 6839, section 3.1).

    Raises:
        WrongType: it is declared to be something else, or nothing.
    """
    if request.headers.get(hdrs.CONTENT_TYPE) == "application/json":
        return  # as nearly always
    is_json = request.content_type in _JSON_TYPES or request.content_type.endswith("+json")
    if not is_json or (request.charset or "utf-8").lower() not in ("utf-8", "utf8"):
        raise WrongType


Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _wire_of(path: str, wires: Sequence[Wire]) -> Wire:
    """The wire with the longest prefix of a path; the first for a path that is none's."""
    known = {len(prefix): wire for wire in wires for prefix in wire.prefixes if path.startswith(prefix)}
    return known[max(known)] if known else wires[0]


def within_boundary(handler: Handler, wires: Sequence[Wire], metrics: Metrics) -> Handler:
    """Around all that aiohttp does with a request: gives each its id, and each error its wire's form.

    Args:
        handler: of the whole application.
        wires: the longest prefix of the path decides; the first is for every other path.
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
                # The client went away and left its body unfinished: no fault of ours, and nobody to answer.
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
                response.force_close()  # the rest of the body is not worth waiting for
            if not calls.begun:  # else dispatch has observed it
                metrics.refusal(
                    RefusalFact(wire.name, error.code, response.status, request_id, error.cause())
                )
        if response.status == 401:
            response.headers[hdrs.WWW_AUTHENTICATE] = _wire_of(request.path, wires).challenge
        if told := calls.headers():
            response.headers.update(told)
        response.headers["X-Request-Id"] = request_id
        return response

    return handle
