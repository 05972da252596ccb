"""Members of requests: how values in body, query, path and headers map to the method's params."""

import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

from server.wires.rendering import unchanged
from server.wires.schemas import Schema, either, one_of


@dataclass(frozen=True, slots=True)
class Format:
    """The format of a value on a wire, if it differs from the method's."""

    # Wire's value -> method's value. Returns a value in another format unchanged, so that the method refuses
    # it, or raises ValueError with the message; in a path, ValueError means NotFound.
    parse: Callable[[Any], Any] = unchanged
    # Schema of the method's value -> schema of the value in a body.
    schema: Callable[[Schema], Schema] = unchanged


def _integer(value: Any) -> Any:
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value) else value


def or_digits(schema: Schema) -> Schema:
    """The schema of an integer as a number or as text."""
    number = schema.get("anyOf", [schema])[0]
    digits = len(str(number.get("maximum", number.get("exclusiveMaximum", 0)))) - 1
    least = "[1-9]" if number.get("minimum") else "0$|^[1-9]"
    text = {"type": "string", "pattern": f"^{least}[0-9]{{0,{digits - 1}}}$"}
    described = {name: part for name, part in schema.items() if name == "description"}
    return either(number | described, text)


def _id(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,18}", text) or int(text) >= 2**63:
        raise ValueError
    return int(text)


def _flag(value: Any) -> Any:
    return bool(value) if isinstance(value, (int, float)) and value in (0, 1) else value


PLAIN = Format()
INTEGER = Format(_integer, or_digits)
"""An integer, also as text (in a query always)."""
ID = Format(_id)
"""A positive integer in a path."""
FLAG = Format(_flag, lambda _: one_of(0, 1, False, True))
"""A boolean, also as 1 or 0."""


@dataclass(frozen=True, slots=True)
class Member:
    """How a body member, a query parameter, a header or a part of a path maps to a param."""

    # The method's name; "admin.email" is the member email of the param admin. None: not for the method.
    param: str | None
    format: Format = PLAIN
    # Whether null (or an empty value that means null) differs from an omitted member.
    nullable: bool = False
    # Whether it filters a list by user: empty is refused, as it would list all rows.
    narrows: bool = False
    # Whether it is required, given the names of the other members. Only if `param` is None.
    needed: Callable[[Container[str]], bool] = lambda given: False


def same(*names: str) -> dict[str, Member]:
    """Members with the method's names."""
    return {name: Member(name) for name in names}
