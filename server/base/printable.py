"""Text that others wrote, made safe for terminals, logs and spreadsheets.

A terminal takes C0 and C1 control characters as commands, and bidirectional controls (UAX 9) change the order
in which a line is read. A spreadsheet takes a cell that begins with =, +, -, @, tab or CR as a formula
(OWASP, CSV injection).
"""

import re
from typing import Any

import orjson

_UNSAFE = r"\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE_TEXT = re.compile(rf"[\x00-\x1f{_UNSAFE}]")
# JSON has escaped the C0 controls already. The others stand in strings alone, where an escape means the same.
_UNSAFE_JSON = re.compile(f"[{_UNSAFE}]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    r"""The text with an escape, such as \x1b, for each character that a terminal could act on."""
    if text.isascii() and text.isprintable():
        return text
    return _UNSAFE_TEXT.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_json(value: Any, **options: Any) -> bytes:
    """A value as JSON (orjson.dumps with its options) without a character that a terminal could act on."""
    return printable_json_bytes(orjson.dumps(value, **options))


def printable_json_bytes(data: bytes) -> bytes:
    """The same for JSON that is rendered already."""
    if data.isascii() and b"\x7f" not in data:
        return data
    return _UNSAFE_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", data.decode()).encode()


def spreadsheet_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: an apostrophe goes before what looks like one.

    One more goes before a text that looks like such a cell, so that every text can be read back.
    """
    return f"'{text}" if _is_like_a_formula(text) else text


def from_spreadsheet_cell(cell: str) -> str:
    """The text of a cell in a file that spreadsheet_cell made the cells of.

    A cell of any other file has no such apostrophe: one before = is part of its text.
    """
    return cell[1:] if cell.startswith("'") and _is_like_a_formula(cell) else cell


def _is_like_a_formula(text: str) -> bool:
    return text.lstrip("'").startswith(_FORMULA)
