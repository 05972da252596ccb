"""The attributes of a SCIM resource by name: which of them a caller asked for (RFC 7644, 3.4.2.5 and 3.9)."""

from collections.abc import Mapping, Sequence
from typing import Any

from server.directory.scim.errors import bad_value
from server.directory.scim.models import ENTERPRISE_SCHEMA, GROUP_SCHEMA, OFFICE_SCHEMA, USER_SCHEMA
from server.directory.scim.users import Resource

_CORE = tuple(f"{schema.lower()}:" for schema in (USER_SCHEMA, GROUP_SCHEMA))
_EXTENSIONS = tuple(schema.lower() for schema in (ENTERPRISE_SCHEMA, OFFICE_SCHEMA))
_ALWAYS = frozenset({"schemas", "id"})
"""What is returned whatever was asked for."""


def name_parts(name: str) -> tuple[str, ...]:
    """An attribute's name in small letters, as it is found in a resource: ("name", "familyname").

    Args:
        name: with or without the URN of its schema; the URN of an extension stands for all of it.
    """
    name = name.strip().lower()
    for urn in _EXTENSIONS:
        if name == urn:
            return (urn,)
        if name.startswith(f"{urn}:"):
            return (urn, *name[len(urn) + 1 :].split("."))
    for urn in _CORE:
        name = name.removeprefix(urn)
    return tuple(name.split("."))


def wants(name: str, attributes: Sequence[str] | None, excluded: Sequence[str] | None) -> bool:
    """Whether an attribute, or a part of it, is asked for.

    Args:
        name: as name_parts gives its first part.
    """
    if attributes:
        return any(name_parts(wanted)[0] == name for wanted in attributes)
    return not any(name_parts(left_out) == (name,) for left_out in excluded or ())


def selected(
    resource: Resource, attributes: Sequence[str] | None, excluded: Sequence[str] | None
) -> Resource:
    """The resource with what was asked for; `schemas` and `id` always.

    Args:
        attributes: the names of those to return, and no others; None or empty for all.
        excluded: the names of those to leave out.

    Raises:
        Invalid: both were given (invalid_value): they exclude one another.
    """
    if attributes and excluded:
        raise bad_value("excludedAttributes", "cannot be given together with attributes")
    if attributes:
        shown = _only(resource, [name_parts(name) for name in attributes])
        shown = {name: resource[name] for name in resource if name in _ALWAYS} | shown
    elif excluded:
        parts = [name_parts(name) for name in excluded]
        shown = _without(resource, [path for path in parts if path not in {(name,) for name in _ALWAYS}])
    else:
        return resource
    shown["schemas"] = [
        schema for schema in resource["schemas"] if schema.lower() not in _EXTENSIONS or schema in shown
    ]
    return shown


def _only(part: Mapping[str, Any], paths: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in part.items():
        own = [path[1:] for path in paths if path[0] == name.lower()]
        if not own:
            continue
        kept = value if () in own else _each(_only, value, own)
        if kept not in ({}, []):
            found[name] = kept
    return found


def _without(part: Mapping[str, Any], paths: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in part.items():
        own = [path[1:] for path in paths if path[0] == name.lower()]
        if () in own:
            continue
        found[name] = _each(_without, value, own) if own else value
    return found


def _each(select: Any, value: Any, paths: Sequence[tuple[str, ...]]) -> Any:
    """The same for the sub-attributes of a value, or of each of several."""
    if isinstance(value, list):
        return [part for part in (_each(select, one, paths) for one in value) if part != {}]
    return select(value, paths) if isinstance(value, Mapping) else {}
