"""The JSON parser of all wires: RFC 8259 with limits, in linear time."""

import asyncio
from typing import Any

import orjson

from server.base.errors import Malformed

MAX_DEPTH = 32
"""Levels of objects and arrays."""
MAX_VALUES = 50_000
"""Members and items of a body that the event loop parses."""
MAX_VALUES_ASIDE = 100_000
"""Members and items of a body that a thread parses. 1,000 complete users have half as many."""
_LONG_BODY = 65536
"""Bytes from which a thread parses."""

_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**63 - 1
_DIGITS = len(str(_MAX_INTEGER))
"""An integer with fewer digits is within 64 bits."""
_AS_ZERO = bytes.maketrans(b"123456789", b"000000000")
_AS_SPACE = bytes.maketrans(b"[]{}:,", b"      ")


async def parse_long_json(body: bytes) -> Any:
    """parse_json, in a thread if the body is long, so that the event loop stays free."""
    if len(body) < _LONG_BODY:
        return parse_json(body)
    return await asyncio.to_thread(parse_json, body, MAX_VALUES_ASIDE)


def parse_json(body: bytes, max_values: int = MAX_VALUES) -> Any:
    """Parse a JSON text.

    The text may come from an attacker, so each step takes linear time. A regular expression for strings would
    be quadratic for a text of many quotes whose last string has no end.

    Args:
        max_values: members and items at most.

    Raises:
        Malformed: broken JSON, NaN, lone surrogates, NUL, duplicate members, more than 32 levels, or an
            integer beyond 64 bits.
    """
    # In valid JSON, backslashes are only in strings. Without the escaped backslashes every \" is an escaped
    # quote. Without those too, each quote begins or ends a string, and outside of strings there are brackets,
    # colons, commas, numbers and literals.
    unescaped = body.replace(rb"\\", b"")
    structure = b"".join(unescaped.replace(rb"\"", b"").split(b'"')[::2])
    colons = structure.count(b":")
    # Before the parser builds the values. For invalid JSON the count is wrong, but that is refused anyway.
    containers = structure.count(b"[") + structure.count(b"{")
    if structure.count(b",") + colons > max_values or containers > max_values:
        raise Malformed(f"the JSON holds more than {max_values} values")
    try:
        value = orjson.loads(body)  # refuses NaN, lone surrogates and what is not UTF-8
    except orjson.JSONDecodeError as error:
        raise Malformed from error
    members = _members(value, 1) if isinstance(value, (dict, list)) else 0
    if len(structure) >= _DIGITS and b"0" * _DIGITS in structure.translate(_AS_ZERO):
        _check_integers(structure)
    if members != colons:
        raise Malformed("the JSON names a member twice")
    if rb"\u0000" in unescaped:
        raise Malformed("the JSON holds a NUL character")
    return value


def _members(value: dict[str, Any] | list[Any], level: int) -> int:
    """Count the members of all objects in a value.

    Raises:
        Malformed: the value is nested too deeply.
    """
    if level > MAX_DEPTH:
        raise Malformed(f"the JSON is nested deeper than {MAX_DEPTH} levels")
    members, inner = (len(value), value.values()) if isinstance(value, dict) else (0, value)
    for item in inner:
        if isinstance(item, (dict, list)):
            members += _members(item, level + 1)
    return members


def _check_integers(structure: bytes) -> None:
    """Raise Malformed for an integer beyond 64 bits, which orjson would make a float."""
    for token in structure.translate(_AS_SPACE).split():
        if len(token) < _DIGITS or not token.removeprefix(b"-").isdigit():
            continue  # short, or with a fraction or an exponent
        # The length first: int() takes quadratic time. JSON has no leading zeros.
        if len(token) > _DIGITS + 1 or not _MIN_INTEGER <= int(token) <= _MAX_INTEGER:
            raise Malformed("the JSON holds an integer beyond 64 bits")
