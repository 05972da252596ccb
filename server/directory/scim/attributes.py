"""Selects attributes of a SCIM resource: attributes and excludedAttributes (RFC 7644, 3.4.2.5 and 3.9)."""

from collections.abc import Mapping, Sequence
from typing import Any

from server.directory.scim.errors import bad_value
from server.directory.scim.models import ENTERPRISE_SCHEMA, GROUP_SCHEMA, OFFICE_SCHEMA, USER_SCHEMA
from server.directory.scim.users import Resource

_CORE = tuple(f"{schema.lower()}:" for schema in (USER_SCHEMA, GROUP_SCHEMA))
_EXTENSIONS = tuple(schema.lower() for schema in (ENTERPRISE_SCHEMA, OFFICE_SCHEMA))
_ALWAYS = frozenset({"schemas", "id"})
"""Attributes that are always returned."""


def name_parts(name: str) -> tuple[str, ...]:
    """The parts of an attribute's name in lower case, as in a resource: ("name", "familyname").

    Args:
        name: with or without the URN of its schema; the URN of an extension means the whole extension.
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


def is_requested(name: str, attributes: Sequence[str] | None, excluded: Sequence[str] | None) -> bool:
    """Whether an attribute, or a sub-attribute of it, is requested.

    Args:
        name: the first part that name_parts returns.
    """
    if attributes:
        return any(name_parts(requested)[0] == name for requested in attributes)
    return not any(name_parts(one) == (name,) for one in excluded or ())


def selected(
    resource: Resource, attributes: Sequence[str] | None, excluded: Sequence[str] | None
) -> Resource:
    """The resource with the requested attributes, and always with `schemas` and `id`.

    Args:
        attributes: names of the only attributes to return; None or empty: all.
        excluded: names of attributes to leave out.

    Raises:
        Invalid: both are given (invalid_value).
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
    """The attributes that the paths name."""
    kept: dict[str, Any] = {}
    for name, value in part.items():
        rest = [path[1:] for path in paths if path[0] == name.lower()]
        if not rest:
            continue
        selection = value if () in rest else _each(_only, value, rest)
        if selection not in ({}, []):
            kept[name] = selection
    return kept


def _without(part: Mapping[str, Any], paths: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """The attributes, except those that the paths name."""
    kept: dict[str, Any] = {}
    for name, value in part.items():
        rest = [path[1:] for path in paths if path[0] == name.lower()]
        if () not in rest:
            kept[name] = _each(_without, value, rest) if rest else value
    return kept


def _each(select: Any, value: Any, paths: Sequence[tuple[str, ...]]) -> Any:
    """Apply _only or _without to a complex value, or to each item of a list."""
    if isinstance(value, list):
        return [part for part in (_each(select, one, paths) for one in value) if part != {}]
    return select(value, paths) if isinstance(value, Mapping) else {}
