"""The JSON parser with hostile texts: its limits and linear time."""

import asyncio
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.base import parsing
from server.base.errors import Malformed
from server.base.parsing import MAX_VALUES_ASIDE, parse_json
from server.base.settings import Settings

Shape = Callable[[int], bytes]


def filled(before: bytes, piece: bytes, after: bytes = b"") -> Shape:
    """Texts of about so many bytes, which repeat a piece."""
    return lambda size: before + piece * ((size - len(before) - len(after)) // len(piece)) + after


def numbered(before: bytes, piece: bytes, after: bytes) -> Shape:
    """The same, but with another number in each piece, where there is %d."""

    def shape(size: int) -> bytes:
        count = size // (len(piece) + 6)
        return before + b",".join(piece % number for number in range(count)) + after

    return shape


SHAPES: dict[str, Shape] = {
    "escaped quotes in a string without end": filled(b'"', rb"\""),
    "escaped backslashes in a string without end": filled(b'"', rb"\\"),
    "an escape that is cut off": filled(b'"', rb"\"", b"\\"),
    "escaped quotes": filled(b'"', rb"\"", b'"'),
    "escapes of all kinds": filled(b'["', rb"\"\\\/\b\f\n\r\t\u00e9", b'"]'),
    "quotes": filled(b"", b'"'),
    "quotes and backslashes in turn": filled(b"", b'"\\'),
    "strings without commas": filled(b"", b'"a"'),
    "brackets that open": filled(b"", b"["),
    "braces that open": filled(b"", b'{"a":'),
    "brackets that close": filled(b"[", b"]"),
    "empty arrays": filled(b"[[]", b",[]", b"]"),
    "empty objects": filled(b"[{}", b",{}", b"]"),
    "arrays of 30 levels": filled(b"[0", b"," + b"[" * 30 + b"]" * 30, b"]"),
    "nested objects": filled(b"[0", b',{"a":{"b":{"c":{}}}}', b"]"),
    "commas": filled(b"", b","),
    "zeros": filled(b"[0", b",0", b"]"),
    "colons": filled(b"{", b":", b"}"),
    "one integer": filled(b"", b"7"),
    "one negative integer": filled(b"-", b"7"),
    "one integer with a fraction": filled(b"", b"7", b".5"),
    "a fraction": filled(b"0.", b"7"),
    "zeros after the point": filled(b"0.", b"0", b"1"),
    "an exponent": filled(b"1e", b"7"),
    "integers of 18 digits": filled(b"[1", b",123456789012345678", b"]"),
    "integers of 19 digits": filled(b"[1", b",1234567890123456789", b"]"),
    "integers of 20 digits": filled(b"[1", b",12345678901234567890", b"]"),
    "integers of 4,000 digits": filled(b"[1", b"," + b"8" * 4000, b"]"),
    "18 digits and a letter": filled(b"[1", b",123456789012345678x", b"]"),
    "minus signs": filled(b"", b"-"),
    "exponents": filled(b"[1", b",1e9,1E-9", b"]"),
    "points": filled(b"1", b"."),
    "surrogates": filled(b'"', rb"\ud83d\ude00", b'"'),
    "lone surrogates": filled(b'"', rb"\ud83d", b'"'),
    "NUL": filled(b'"', rb"\u0000", b'"'),
    "nearly NUL": filled(b'"', rb"\u000", b'"'),
    "NUL behind a backslash": filled(b'"', rb"\\u0000", b'"'),
    "one long name": filled(b'{"', b"k", b'": 1}'),
    "long names": numbered(b"{", b'"' + b"k" * 1000 + b'%d":1', b"}"),
    "many names": numbered(b"{", b'"k%d":1', b"}"),
    "one name again and again": filled(b'{"k":1', b',"k":1', b"}"),
    "names with colons": numbered(b"{", b'":::%d":":::"', b"}"),
    "blanks": filled(b"", b" "),
    "blanks within": filled(b"[", b" \t\r\n", b"]"),
    "bytes that are no UTF-8": filled(b'"', b"\xff", b'"'),
    "half characters": filled(b'"', b"\xe4\xb8", b'"'),
    "characters of four bytes": filled(b'"', "\U0001f600".encode(), b'"'),
    "a string": filled(b'"', b"x", b'"'),
}
"""Each is parsed at the largest size that a body may have, and at two that are small enough to be traced."""


def outcome(text: bytes) -> str:
    try:
        parse_json(text, MAX_VALUES_ASIDE)
    except Malformed as error:
        return error.message
    return "valid"


def lines_run(text: bytes) -> int:
    """How many lines of Python parsing takes, the text's own bytes apart."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != parsing.__file__:
            return None
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        outcome(text)
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("name", SHAPES)
def test_twice_the_bytes_are_at_most_twice_the_steps(name: str) -> None:
    """Lines of Python are counted exactly. What is done in C is held by the next test."""
    small, large = (lines_run(SHAPES[name](size)) for size in (8_000, 16_000))
    assert 0 < large <= 2.1 * small + 20


CPU_SECONDS = 20
LIMITED = f"""
import resource
resource.setrlimit(resource.RLIMIT_CPU, ({CPU_SECONDS}, {CPU_SECONDS}))
"""
PARSE_ALL = f"""
from server.wires.rpc import envelope_of
from server.wires.http import BEGINNING_SIZE
from tests.test_json_limits import SHAPES, outcome
for name, shape in SHAPES.items():
    print(name, flush=True)
    assert outcome(shape({Settings().body_limit}))
    envelope_of(shape(BEGINNING_SIZE))
    envelope_of(b'{{"params":' + shape(BEGINNING_SIZE))
"""
NAME_ENVIRONMENTS = f"""
from server.wires.workspace365 import sanitized
marks = {Settings().body_limit} // 4
print(sanitized("Caf\\u00e9 One" + "\\u0315" * marks + "\\u0300" * marks))
"""


async def printed(script: str) -> list[str]:
    """What a script prints, whose process the kernel kills after 20 seconds of CPU time.

    No counter of instructions is available everywhere, and wall-clock times depend on the machine. Each of these
    scripts takes about a second of CPU time where every step is linear, and some minutes or hours where one step
    is quadratic: a limit between the two tells them apart on any machine, loaded or not.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LIMITED + script, cwd=Path(__file__).parents[1],
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    lines = out.decode().splitlines()
    assert process.returncode == 0, (lines[-1:], err.decode())
    return lines


@pytest.mark.slow
async def test_every_shape_is_parsed_at_its_largest_within_a_limit_of_cpu_time() -> None:
    """A body of 1 MiB, and the beginning of a body whose envelope is looked for."""
    assert await printed(PARSE_ALL) == list(SHAPES)


@pytest.mark.slow
async def test_a_long_name_of_an_environment_is_no_attack() -> None:
    """Marks out of their order are sorted one by one."""
    assert await printed(NAME_ENVIRONMENTS) == ["cafe-one"]


def accepts(text: bytes) -> Any:
    """What the standard library makes of a text, held to the same rules. NotImplemented: it is refused."""

    def unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(members) > len(found := dict(members)):
            raise ValueError
        return found

    def integer(digits: str) -> int:
        if not -(2**63) <= (number := int(digits)) < 2**63:
            raise ValueError
        return number

    def real(digits: str) -> float:
        if math.isinf(number := float(digits)):
            raise ValueError
        return number

    def constant(name: str) -> Any:
        raise ValueError

    try:
        value = json.loads(
            text.decode(),
            object_pairs_hook=unique,
            parse_int=integer,
            parse_float=real,
            parse_constant=constant,
        )
        written = json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates
    except ValueError:
        return NotImplemented
    return NotImplemented if rb"\u0000" in written.replace(rb"\\", b"") else value


PIECES = [
    '"', "\\", '\\"', "\\\\", "\\u0000", "\\u005c", "\\ud83d\\ude00", "\\ud83d", "\\u", "a", ":", ",", "[", "]", "{", "}",
    '"k":', '"k":1', "1", "-", "0", ".5", "e3", "9223372036854775807", "9223372036854775808", "-9223372036854775808",
    "-9223372036854775809", "12345678901234567890", "1234567890123456789.5", "true", "null", "NaN", " ", "\n", "\u4e2d", "\0",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(
    st.one_of(
        TEXTS,
        TEXTS.map('"{}"'.format),
        st.lists(st.sampled_from(PIECES), max_size=5).map(lambda pieces: f"[{','.join(pieces)}]"),
        st.lists(TEXTS, max_size=3).map(
            lambda names: "{" + ",".join(f'"{name}":[1]' for name in names) + "}"
        ),
    )
)
def test_it_takes_what_the_standard_library_takes_under_the_same_rules(text: str) -> None:
    expected = accepts(text.encode())
    try:
        parsed = parse_json(text.encode())
    except Malformed:
        parsed = NotImplemented
    assert parsed == expected, text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" + b"0," * 50_000 + b"0, 0]", "the JSON holds more than 50000 values"),
        (b"[0" + b",[[[[[0]]]]]" * 10_001 + b"]", "the JSON holds more than 50000 values"),
        (b'{"a": [' + b"[" * 31 + b"]" * 31 + b"]}", "the JSON is nested deeper than 32 levels"),
        (b"[9223372036854775808]", "the JSON holds an integer beyond 64 bits"),
        (b"[-9223372036854775809]", "the JSON holds an integer beyond 64 bits"),
        (b'{"a": 1, "a": 2}', "the JSON names a member twice"),
        (rb'["a\\\u0000"]', "the JSON holds a NUL character"),
        (b"[NaN]", "the body is not valid JSON"),
        (rb'["\ud800"]', "the body is not valid JSON"),
        (b"[" * 5000, "the body is not valid JSON"),
    ],
)
def test_each_rule_has_its_message(text: bytes, message: str) -> None:
    with pytest.raises(Malformed, match=f"^{message}$"):
        parse_json(text)
