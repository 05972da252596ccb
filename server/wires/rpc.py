"""/rpc: the plain envelope of the OneOffice document (seeds/000) and JSON-RPC 2.0, on one URL."""

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

import orjson
import structlog
from aiohttp import web
from jsonrpcserver.async_dispatcher import dispatch_to_response_pure
from jsonrpcserver.exceptions import JsonRpcError
from jsonrpcserver.response import to_serializable
from jsonrpcserver.result import Success

from server.base.error_codes import ERROR_CODES
from server.base.errors import (
    BatchFull,
    FieldError,
    Forbidden,
    Invalid,
    Malformed,
    ServiceError,
    TooLarge,
    TooMany,
)
from server.base.logs import safe_traceback
from server.base.parsing import parse_long_json
from server.methods.registry import DRY_RUN
from server.rpc.openrpc import rpc_code
from server.tenants import access
from server.tenants.principals import Principal
from server.wires.http import (
    BEGINNING,
    BEGINNING_SIZE,
    CALLS,
    DISPATCHER,
    REQUEST_ID,
    SETTINGS,
    UNSENT,
    Handler,
    Wire,
    answer,
    authenticate,
    body_limit,
    count,
    read_body,
    require_json,
    run,
)  # fmt: skip

log = structlog.get_logger()

MAX_BATCH = 100

# --- the envelope ---------------------------------------------------------------------------------------
#
# A caller that sends JSON-RPC 2.0 gets every error in that form, also those that are answered before the
# body is read: a bad key, a body that is too large, another content type. For these the first 64 KiB of the
# body are looked at, and no more, since the request may come from anybody.

PATIENCE = 1.0
"""Seconds that the beginning of a body may take to arrive."""
MOST_MEMBERS = 20
"""Of an envelope, which are looked at; the documented ones are six."""


class Envelope(NamedTuple):
    """What an answer has to know of the envelope of its request."""

    is_jsonrpc: bool
    # The id of the request; None where it has none, or none that can be read.
    identifier: Any = None


PLAIN = Envelope(False)
BATCH = Envelope(True)


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= (number := int(digits)) < 2**63:
        raise ValueError
    return number


def _constant(name: str) -> Any:
    raise ValueError


_decoder = json.JSONDecoder(parse_int=_integer, parse_constant=_constant)
_BLANKS = re.compile(r"[ \t\r\n]*")


def envelope_of(beginning: bytes) -> Envelope:
    """The envelope that a JSON text seems to be, judged by its beginning alone.

    The members are read one by one, up to where the text ends or is broken, in time linear in its length.
    """
    text = beginning.decode(errors="replace")
    at = _after_blanks(text, 0)
    if text.startswith("[", at):
        return BATCH
    if not text.startswith("{", at):
        return PLAIN
    found: dict[str, Any] = {}
    with contextlib.suppress(ValueError, RecursionError):  # the end of what is here, or a fault
        for _ in range(MOST_MEMBERS):
            if not text.startswith(("{", ","), at):
                break
            name, at = _decoder.raw_decode(text, _after_blanks(text, at + 1))
            at = _after_blanks(text, at)
            if not isinstance(name, str) or not text.startswith(":", at):
                break
            found[name], at = _decoder.raw_decode(text, _after_blanks(text, at + 1))
            at = _after_blanks(text, at)
    is_whole = text.startswith("}", at)
    if "jsonrpc" not in found and (is_whole or '"jsonrpc"' not in text):
        return PLAIN
    return Envelope(True, identifier_of(found))


def identifier_of(request: dict[str, Any]) -> Any:
    """The id of a JSON-RPC 2.0 request where it is one: a text or a number, else None."""
    identifier = request.get("id")
    if isinstance(identifier, bool) or not isinstance(identifier, (str, int, float)):
        return None
    if isinstance(identifier, str) and not _is_unicode(identifier):
        return None
    return identifier


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which no answer can hold."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _after_blanks(text: str, at: int) -> int:
    blanks = _BLANKS.match(text, at)
    assert blanks is not None
    return blanks.end()


async def envelope(request: web.Request) -> Envelope:
    """The envelope of a request that is refused, by what has been read of its body or arrives in a moment.

    Raises:
        ConnectionError: the client is gone.
    """
    beginning = request.get(BEGINNING)
    if beginning is None:
        read = bytearray()
        with contextlib.suppress(TimeoutError, web.RequestPayloadError):
            async with asyncio.timeout(PATIENCE):
                async for chunk in request.content.iter_any():
                    read += chunk
                    if len(read) >= BEGINNING_SIZE:
                        break
        beginning = bytes(read[:BEGINNING_SIZE])
    return envelope_of(beginning)


ENVELOPE = web.RequestKey("ENVELOPE", Envelope)
"""Set once it is known, and before an error of the request is rendered."""


def _enveloped(handler: Handler) -> Handler:
    """A handler whose errors are answered in the envelope that the request came in."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except ServiceError:
            if ENVELOPE not in request:
                request[ENVELOPE] = await envelope(request)
            raise

    return handle


# --- calls ----------------------------------------------------------------------------------------------


async def _answered(request: web.Request) -> web.Response:
    caller = await authenticate(request, "x-api-key", counted=False)
    over: TooMany | None = None
    try:
        count(request, caller)  # whatever comes of it
    except TooMany as error:
        over = error  # told as soon as the envelope is known
    require_json(request)
    body = await read_body(request, with_picture=access.may_send_pictures(caller), share=caller.share)
    usual = body_limit(request.app[SETTINGS], with_picture=False)
    with_picture: set[str] = set()
    if len(body) > usual:
        methods = request.app[DISPATCHER].methods.values()
        with_picture = {method.name for method in methods if method.with_picture}
        if not any(name.encode() in body for name in with_picture):
            request[BEGINNING] = body[:BEGINNING_SIZE]
            raise TooLarge
    try:
        parsed = await parse_long_json(body)
    except Malformed as error:
        request[ENVELOPE] = sent = envelope_of(body[:BEGINNING_SIZE])
        if over is not None:
            raise over from error
        if sent.is_jsonrpc:
            return _rendered(_error_object(request, error, None))
        raise
    if isinstance(parsed, list):
        request[ENVELOPE] = BATCH
    elif isinstance(parsed, dict) and "jsonrpc" in parsed:
        request[ENVELOPE] = Envelope(True, identifier_of(parsed))
    else:
        request[ENVELOPE] = PLAIN
    if over is not None:
        raise over
    if len(body) > usual and not (isinstance(parsed, dict) and str(parsed.get("method")) in with_picture):
        raise TooLarge
    if isinstance(parsed, list):
        return await _batch(request, caller, parsed)
    if not isinstance(parsed, dict):
        raise Invalid("the body must be an object with method and params, or a list of such")
    if "jsonrpc" in parsed:
        return _rendered(await _item(request, caller, parsed))
    result = await run(request, caller, parsed.get("method"), parsed.get("params"), **_beside(parsed))
    return answer(200, orjson.dumps(result))


async def _batch(request: web.Request, caller: Principal, items: list[Any]) -> web.Response:
    """In order, one at a time; an item that is no request is answered as such and harms no other.

    Each counts as a call: those beyond the rate of the key are refused one by one.
    Once the answers have more bytes than they may, nothing more is run, from the first item on that would add
    to them.
    """
    if not items or len(items) > MAX_BATCH:
        message = f"a batch has 1 to {MAX_BATCH} items"
        fields = [FieldError("batch", message)]
        return _rendered(
            _error_object(request, Invalid(message, code="invalid_request", fields=fields), None)
        )
    unsent, owner = request.app[UNSENT], request[CALLS].owner
    limit = request.app[SETTINGS].batch_answer_limit
    answers: list[orjson.Fragment] = []
    size, room, full = 0, True, False
    try:
        for place, item in enumerate(items):
            # A notification has no answer: it is refused only after an item whose answer says so.
            full = full or (not room and not (_is_request(item) and "id" not in item))
            try:
                if full:
                    raise BatchFull
                if place > 0:  # the first was counted as the request
                    count(request, caller)
            except (BatchFull, TooMany) as error:
                answered = _refusal(request, error, item)
            else:
                answered = await _item(request, caller, item, place)
            if answered is not None:
                rendered = orjson.dumps(answered)
                answers.append(orjson.Fragment(rendered))
                size += len(rendered)
                room = unsent.grow(owner, len(rendered)) and size <= limit
        return _rendered(answers or None)
    finally:
        unsent.shrink(owner, size)


def _refusal(request: web.Request, error: ServiceError, item: Any) -> Any:
    """The response object of an item that is not run; None for a notification."""
    if not _is_request(item):
        return _error_object(request, error, None)
    return _error_object(request, error, item["id"]) if "id" in item else None


def _beside(envelope: dict[str, Any]) -> dict[str, Any]:
    """What an envelope may have beside method and params; whatever else there is is ignored."""
    return {"idempotency_key": envelope.get("idempotencyKey"), "dry_run": envelope.get(DRY_RUN)}


async def _item(request: web.Request, caller: Principal, item: Any, place: int | None = None) -> Any:
    """The response object of one JSON-RPC 2.0 request; None for a notification."""
    if not _is_request(item):
        return _error_object(request, Invalid("Invalid Request", code="invalid_request"), None)
    return await dispatch_to_response_pure(
        deserializer=lambda parsed: parsed,
        validator=lambda parsed: parsed,  # checked above, a tenth of the time of its JSON Schema
        methods=_EveryMethod(),
        context=(request, caller, _beside(item), place),
        post_process=to_serializable,
        request=item,
    )


def _is_request(item: Any) -> bool:
    """Whether this is a request object (https://www.jsonrpc.org/specification, section 4)."""
    if not isinstance(item, dict) or item.get("jsonrpc") != "2.0" or not isinstance(item.get("method"), str):
        return False
    identifier = item.get("id")
    return isinstance(item.get("params", {}), (dict, list)) and (
        identifier is None or (isinstance(identifier, (str, int, float)) and not isinstance(identifier, bool))
    )


class _EveryMethod(dict[str, Callable[..., Awaitable[Any]]]):
    """What jsonrpcserver looks methods up in: dispatch alone knows which exist."""

    def __getitem__(self, name: str) -> Callable[..., Awaitable[Any]]:
        return partial(_invoke, name)


async def _invoke(
    name: str,
    context: tuple[web.Request, Principal, dict[str, Any], int | None],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    # Nothing but JsonRpcError leaves this function: jsonrpcserver would tell the caller str(exception).
    request, caller, beside, place = context
    try:
        result = await run(request, caller, name, list(args) or kwargs, place=place, **beside)
        return Success(orjson.Fragment(orjson.dumps(result)))
    except ServiceError as error:
        caught = error
    except Exception as bug:
        log.error("bug", request_id=request[REQUEST_ID], traceback=safe_traceback(bug))
        caught = ServiceError()
    described = _error_object(request, caught, None)["error"]
    raise JsonRpcError(described["code"], described["message"], described["data"])


_SPEC_MESSAGES = {-32700: "Parse error", -32600: "Invalid Request", -32601: "Method not found"}


def _error_object(request: web.Request, error: ServiceError, identifier: Any) -> dict[str, Any]:
    code = RPC_INVALID_REQUEST if error.code == "invalid_request" else rpc_code(error)
    if isinstance(error, Forbidden) and error.scope is not None:
        request[CALLS].scopes.add(error.scope)
    return {
        "jsonrpc": "2.0",
        "error": {
            "code": code,
            "message": _SPEC_MESSAGES.get(code) or error.message,
            "data": {
                "code": error.code,
                "requestId": request[REQUEST_ID],
                "retryable": error.retryable,
                "fields": [field._asdict() for field in error.told_fields()],
                **({"retryAfter": error.retry_after} if isinstance(error, TooMany) else {}),
            },
        },
        "id": identifier,
    }


RPC_INVALID_REQUEST = -32600


def _rendered(answered: Any) -> web.Response:
    if answered is None:
        return answer(204, None)
    code = answered["error"]["data"]["code"] if isinstance(answered, dict) and "error" in answered else None
    return answer(200, orjson.dumps(answered), {"X-Error-Code": code} if code else None)


class RpcWire(Wire):
    """The wire of /rpc."""

    def add_routes(self, router: web.UrlDispatcher, handler: Handler = _answered) -> None:
        """POST, and GET with a body, which the documented clients send.

        Args:
            handler: answers them; one that only refuses stands in while the database is being prepared.
        """
        handle = _enveloped(handler)
        for path in ("/rpc", "/rpc/"):
            router.add_route("GET", path, handle)
            router.add_route("POST", path, handle)

    def error_response(self, request: web.Request, error: ServiceError) -> web.Response:
        """A plain error is a bare JSON string of one line; a request in JSON-RPC 2.0 gets an error object."""
        status = ERROR_CODES[error.code].status
        sent = request.get(ENVELOPE, PLAIN)
        if sent.is_jsonrpc:
            return answer(status, orjson.dumps(_error_object(request, error, sent.identifier)))
        return answer(status, orjson.dumps(" ".join(error.message.split())))


WIRE = RpcWire(name="rpc", prefixes=("/rpc",))
