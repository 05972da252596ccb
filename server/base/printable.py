"""Text of users, made safe for terminals, logs and spreadsheets.

C0 and C1 control characters are commands for a terminal, and bidirectional controls (UAX 9) reorder a line. A
spreadsheet takes a cell that begins with =, +, -, @, tab or CR for a formula (OWASP, CSV injection).
"""

import re
from typing import Any

import orjson

_UNSAFE = r"\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE_TEXT = re.compile(rf"[\x00-\x1f{_UNSAFE}]")
# JSON has the C0 controls escaped already. The others are only in strings, where an escape means the same.
_UNSAFE_JSON = re.compile(f"[{_UNSAFE}]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    r"""The text with an escape, such as \x1b, for each unsafe character."""
    if text.isascii() and text.isprintable():
        return text
    return _UNSAFE_TEXT.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_json(value: Any, **options: Any) -> bytes:
    """A value as JSON (orjson.dumps with its options) with unsafe characters escaped."""
    return printable_json_bytes(orjson.dumps(value, **options))


def printable_json_bytes(data: bytes) -> bytes:
    """JSON with unsafe characters escaped."""
    if data.isascii() and b"\x7f" not in data:
        return data
    return _UNSAFE_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", data.decode()).encode()


def spreadsheet_cell(text: str) -> str:
    """A cell that is no formula: an apostrophe goes before a text that looks like one.

    A text that looks like such a cell gets one more apostrophe, so that every text can be read back.
    """
    return f"'{text}" if _is_like_a_formula(text) else text


def from_spreadsheet_cell(cell: str) -> str:
    """The text of a cell of spreadsheet_cell. In other files an apostrophe before = is part of the text."""
    return cell[1:] if cell.startswith("'") and _is_like_a_formula(cell) else cell


def _is_like_a_formula(text: str) -> bool:
    return text.lstrip("'").startswith(_FORMULA)
