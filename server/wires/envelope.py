"""Which envelope a request to /rpc came in, told from the beginning of its body.

A caller that sends JSON-RPC 2.0 gets every error in that form, those included that are answered before the
body is read: a bad key, a body that is too large, another content type. For these the first 64 KiB of the
body are looked at, and no more, since the request may come from anybody.
"""

import asyncio
import contextlib
import json
import re
from typing import Any, NamedTuple

from aiohttp import web

from server.wires.http import BEGINNING, BEGINNING_SIZE

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
