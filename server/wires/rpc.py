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
from server.rpc.openrpc import rpc_number
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
# JSON-RPC 2.0 clients get every error as a 2.0 object, also errors that are found before the body is read:
# a bad key, a body that is too large, another content type. For these errors only the first 64 KiB of the
# body are read, as an attacker may have sent it.

BEGINNING_TIMEOUT = 1.0
"""Seconds for the beginning of a body to arrive."""
MAX_MEMBERS = 20
"""Members of an envelope that are examined; the documented ones are six."""


class Envelope(NamedTuple):
    """The envelope of a request, as its errors need it."""

    is_jsonrpc: bool
    # The id of the request; None if it has none, or it cannot be read.
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
_WHITESPACE = re.compile(r"[ \t\r\n]*")


def envelope_of(beginning: bytes) -> Envelope:
    """Guess the envelope from the beginning of a JSON text.

    Parses member after member until the text ends or is not valid, in time linear in its length.
    """
    text = beginning.decode(errors="replace")
    at = _skip_whitespace(text, 0)
    if text.startswith("[", at):
        return BATCH
    if not text.startswith("{", at):
        return PLAIN
    found: dict[str, Any] = {}
    with contextlib.suppress(ValueError, RecursionError):  # the text ends, or is not valid
        for _ in range(MAX_MEMBERS):
            if not text.startswith(("{", ","), at):
                break
            name, at = _decoder.raw_decode(text, _skip_whitespace(text, at + 1))
            at = _skip_whitespace(text, at)
            if not isinstance(name, str) or not text.startswith(":", at):
                break
            found[name], at = _decoder.raw_decode(text, _skip_whitespace(text, at + 1))
            at = _skip_whitespace(text, at)
    is_whole = text.startswith("}", at)
    if "jsonrpc" not in found and (is_whole or '"jsonrpc"' not in text):
        return PLAIN
    return Envelope(True, identifier_of(found))


def identifier_of(request: dict[str, Any]) -> Any:
    """The id of a JSON-RPC 2.0 request; None if it is neither a text nor a number."""
    identifier = request.get("id")
    if isinstance(identifier, bool) or not isinstance(identifier, (str, int, float)):
        return None
    try:
        orjson.dumps(identifier)
    except TypeError:
        return None  # a lone surrogate, which no answer can contain
    return identifier


def _skip_whitespace(text: str, at: int) -> int:
    whitespace = _WHITESPACE.match(text, at)
    assert whitespace is not None
    return whitespace.end()


async def _read_beginning(request: web.Request) -> bytes:
    """The beginning of a body: what has been read of it, else what arrives in time.

    Raises:
        ConnectionError: the client has disconnected.
    """
    if BEGINNING in request:
        return request[BEGINNING]
    read = bytearray()
    with contextlib.suppress(TimeoutError, web.RequestPayloadError):
        async with asyncio.timeout(BEGINNING_TIMEOUT):
            async for chunk in request.content.iter_any():
                read += chunk
                if len(read) >= BEGINNING_SIZE:
                    break
    return bytes(read[:BEGINNING_SIZE])


ENVELOPE = web.RequestKey("ENVELOPE", Envelope)
"""Set before an error of the request is rendered."""


def _finding_envelope(handler: Handler) -> Handler:
    """Wrap a handler: if it fails, find the envelope for its error."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except ServiceError:
            if ENVELOPE not in request:
                request[ENVELOPE] = envelope_of(await _read_beginning(request))
            raise

    return handle


# --- calls ----------------------------------------------------------------------------------------------


async def _handle(request: web.Request) -> web.Response:
    caller = await authenticate(request, "x-api-key")
    over_limit: TooMany | None = None
    try:
        count(request, caller)
    except TooMany as error:
        over_limit = error  # raised once the envelope is known
    require_json(request)
    body = await read_body(request, with_picture=access.may_send_pictures(caller), share=caller.share)
    is_large = len(body) > body_limit(request.app[SETTINGS], with_picture=False)
    with_picture: set[str] = set()
    if is_large:
        methods = request.app[DISPATCHER].methods.values()
        with_picture = {method.name for method in methods if method.with_picture}
        if not any(name.encode() in body for name in with_picture):
            request[BEGINNING] = body[:BEGINNING_SIZE]
            raise TooLarge
    try:
        parsed = await parse_long_json(body)
    except Malformed as error:
        request[ENVELOPE] = envelope = envelope_of(body[:BEGINNING_SIZE])
        if over_limit is not None:
            raise over_limit from error
        if envelope.is_jsonrpc:
            return _response(_error_object(request, error, None))
        raise
    if isinstance(parsed, list):
        request[ENVELOPE] = BATCH
    elif isinstance(parsed, dict) and "jsonrpc" in parsed:
        request[ENVELOPE] = Envelope(True, identifier_of(parsed))
    else:
        request[ENVELOPE] = PLAIN
    if over_limit is not None:
        raise over_limit
    if is_large and not (isinstance(parsed, dict) and str(parsed.get("method")) in with_picture):
        raise TooLarge
    if isinstance(parsed, list):
        return await _batch(request, caller, parsed)
    if not isinstance(parsed, dict):
        raise Invalid("the body must be an object with method and params, or a list of such")
    if "jsonrpc" in parsed:
        return _response(await _run_item(request, caller, parsed))
    result = await run(request, caller, parsed.get("method"), parsed.get("params"), **_options(parsed))
    return answer(200, orjson.dumps(result))


async def _batch(request: web.Request, caller: Principal, items: list[Any]) -> web.Response:
    """Run the items in order, one at a time. An invalid item gets an error; the others run.

    Each item counts towards the rate limits; items over a limit get errors. Once the answers exceed their
    limit of bytes, the next item with an answer gets batch_full, and so do all items after it.
    """
    if not items or len(items) > MAX_BATCH:
        message = f"a batch has 1 to {MAX_BATCH} items"
        error = Invalid(message, code="invalid_request", fields=[FieldError("batch", message)])
        return _response(_error_object(request, error, None))
    unsent, owner = request.app[UNSENT], request[CALLS].owner
    limit = request.app[SETTINGS].batch_answer_limit
    answers: list[orjson.Fragment] = []
    size, has_room, is_full = 0, True, False
    try:
        for index, item in enumerate(items):
            is_notification = _is_request(item) and "id" not in item
            # A notification has no answer: without an item that gets batch_full before it, it runs.
            is_full = is_full or (not has_room and not is_notification)
            response: Any = None
            try:
                if is_full:
                    raise BatchFull
                if index > 0:  # the first item was counted as the request
                    count(request, caller)
                response = await _run_item(request, caller, item, index)
            except (BatchFull, TooMany) as error:
                if not is_notification:
                    response = _error_object(request, error, item["id"] if _is_request(item) else None)
            if response is not None:
                rendered = orjson.dumps(response)
                answers.append(orjson.Fragment(rendered))
                size += len(rendered)
                has_room = unsent.grow(owner, len(rendered)) and size <= limit
        return _response(answers or None)
    finally:
        unsent.shrink(owner, size)


def _options(envelope: dict[str, Any]) -> dict[str, Any]:
    """The options of a call that an envelope can have."""
    return {"idempotency_key": envelope.get("idempotencyKey"), "dry_run": envelope.get(DRY_RUN)}


async def _run_item(request: web.Request, caller: Principal, item: Any, index: int | None = None) -> Any:
    """The response object of a JSON-RPC 2.0 request; None for a notification."""
    if not _is_request(item):
        return _error_object(request, Invalid("Invalid Request", code="invalid_request"), None)
    return await dispatch_to_response_pure(
        deserializer=lambda parsed: parsed,
        validator=lambda parsed: parsed,  # _is_request takes a tenth of the time of its JSON Schema
        methods=_EveryMethod(),
        context=(request, caller, _options(item) | {"index": index}),
        post_process=to_serializable,
        request=item,
    )


def _is_request(item: Any) -> bool:
    """Whether this is a request object (https://www.jsonrpc.org/specification, section 4)."""
    if not isinstance(item, dict) or item.get("jsonrpc") != "2.0" or not isinstance(item.get("method"), str):
        return False
    has_valid_id = item.get("id") is None or identifier_of(item) is not None
    return has_valid_id and isinstance(item.get("params", {}), (dict, list))


class _EveryMethod(dict[str, Callable[..., Awaitable[Any]]]):
    """The methods for jsonrpcserver: every name, as the dispatcher answers unknown ones."""

    def __getitem__(self, name: str) -> Callable[..., Awaitable[Any]]:
        return partial(_invoke, name)


async def _invoke(
    name: str, context: tuple[web.Request, Principal, dict[str, Any]], /, *args: Any, **kwargs: Any
) -> Any:
    # Raises JsonRpcError only: of any other exception jsonrpcserver would send the text to the client.
    request, caller, options = context
    try:
        result = await run(request, caller, name, list(args) or kwargs, **options)
        return Success(orjson.Fragment(orjson.dumps(result)))
    except ServiceError as error:
        caught = error
    except Exception as bug:
        log.error("bug", request_id=request[REQUEST_ID], traceback=safe_traceback(bug))
        caught = ServiceError()
    raise JsonRpcError(**_error_object(request, caught, None)["error"])


_SPEC_MESSAGES = {-32700: "Parse error", -32600: "Invalid Request", -32601: "Method not found"}


def _error_object(request: web.Request, error: ServiceError, identifier: Any) -> dict[str, Any]:
    code = rpc_number(error.code)
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


def _response(answered: Any) -> web.Response:
    """The HTTP response with a response object, or a list of them; None: there is none."""
    if answered is None:
        return answer(204, None)
    is_error = isinstance(answered, dict) and "error" in answered
    headers = {"X-Error-Code": answered["error"]["data"]["code"]} if is_error else None
    return answer(200, orjson.dumps(answered), headers)


class RpcWire(Wire):
    """The wire of /rpc."""

    def add_routes(self, router: web.UrlDispatcher, handler: Handler = _handle) -> None:
        """Add POST, and GET with a body, which the documented clients send. No HEAD: a GET may write.

        Args:
            handler: another one for the time when the database is being prepared.
        """
        handle = _finding_envelope(handler)
        for path in ("/rpc", "/rpc/"):
            router.add_route("GET", path, handle)
            router.add_route("POST", path, handle)

    def error_response(self, request: web.Request, error: ServiceError) -> web.Response:
        """An error object for JSON-RPC 2.0, else a bare JSON string of one line."""
        status = ERROR_CODES[error.code].status
        envelope = request.get(ENVELOPE, PLAIN)
        if envelope.is_jsonrpc:
            return answer(status, orjson.dumps(_error_object(request, error, envelope.identifier)))
        return answer(status, orjson.dumps(" ".join(error.message.split())))


WIRE = RpcWire(name="rpc", prefixes=("/rpc",))
