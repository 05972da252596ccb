"""How a wire names and writes the members of a body, a query and a path: what each is to the method."""

import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

from server.wires.rendering import unchanged
from server.wires.schemas import Schema, one_of


@dataclass(frozen=True, slots=True)
class Form:
    """How a wire writes a value, where that is not as the method takes it."""

    # From what is sent to what the method takes. A value that is not in this form is returned as it is, for
    # the method to refuse, or raises ValueError with what is wrong; in a path, where it can name nothing.
    read: Callable[[Any], Any] = unchanged
    # From the schema of the method's value to that of the value in a body.
    schema: Callable[[Schema], Schema] = unchanged


def _integer(value: Any) -> Any:
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value) else value


def or_digits(schema: Schema) -> Schema:
    """An integer, or the same as text."""
    number = {**schema.get("anyOf", [schema])[0]}
    number.pop("description", None)
    digits = len(str(number.get("maximum", number.get("exclusiveMaximum", 0)))) - 1
    least = "[1-9]" if number.get("minimum") else "0$|^[1-9]"
    text = {"type": "string", "pattern": f"^{least}[0-9]{{0,{digits - 1}}}$"}
    rest = {name: part for name, part in schema.items() if name == "description"}
    return rest | {"anyOf": [number, text]}


def _id(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,18}", text) or int(text) >= 2**63:
        raise ValueError
    return int(text)


def _flag(value: Any) -> Any:
    return bool(value) if isinstance(value, (int, float)) and value in (0, 1) else value


PLAIN = Form()
INTEGER = Form(_integer, or_digits)
"""Also as text, as every query has it."""
ID = Form(_id)
"""A positive integer in a path."""
FLAG = Form(_flag, lambda _: one_of(0, 1, False, True))
"""A boolean, also as 1 or 0."""


def _never(given: Container[str]) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Member:
    """What a body member, a query parameter or a part of a path is to the method."""

    # The method's name of it; "admin.email" is a member of a member. None: the method is not given it.
    param: str | None
    form: Form = PLAIN
    # Null, or an empty value where that stands for null, is not the same as leaving it out.
    nullable: bool = False
    # It limits a list to some user's rows: empty, which would list all rows, is refused.
    narrows: bool = False
    # Whether it must be given beside these members; only where `param` is None, else the method says it.
    needed: Callable[[Container[str]], bool] = _never


def same(*names: str, form: Form = PLAIN) -> dict[str, Member]:
    """Members that have the method's names."""
    return {name: Member(name, form) for name in names}
