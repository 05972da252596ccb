"""Errors of SCIM requests (RFC 7644, 3.12), each about one attribute or path."""

from collections.abc import Callable

from server.base.errors import FieldError, Invalid


def bad_value(member: str, message: str) -> Invalid:
    """The attribute cannot have this value (invalidValue)."""
    return Invalid.of([_field(member, message)], code="invalid_value")


def bad_path(member: str, message: str) -> Invalid:
    """The path is not valid, or names no attribute (invalidPath)."""
    return Invalid.of([_field(member, message)], code="invalid_path")


def no_target(member: str, message: str) -> Invalid:
    """The operation has nothing to change (noTarget)."""
    return Invalid.of([_field(member, message)], code="no_target")


def not_writable(member: str, message: str) -> Invalid:
    """The attribute is read-only, or is required and cannot be removed (mutability)."""
    return Invalid.of([_field(member, message)], code="mutability")


BY_SCIM_TYPE: dict[str, Callable[[str, str], Invalid]] = {
    "invalidPath": bad_path,
    # The library reads filters only as parts of paths.
    "invalidFilter": bad_path,
    "noTarget": no_target,
    "mutability": not_writable,
}
"""scimType of a scim2-models error -> the function that makes our error; for all others, bad_value."""


def _field(member: str, message: str) -> FieldError:
    return FieldError(member[:200], message)
