"""The errors of SCIM requests (RFC 7644, 3.12), each about one attribute or path."""

from collections.abc import Callable

from server.base.errors import FieldError, Invalid


def bad_value(member: str, message: str) -> Invalid:
    """An attribute cannot have this value (invalidValue)."""
    return Invalid.of([_field(member, message)], code="invalid_value")


def bad_path(message: str, member: str = "path") -> Invalid:
    """A path names no attribute, or is none (invalidPath)."""
    return Invalid.of([_field(member, message)], code="invalid_path")


def no_target(member: str, message: str) -> Invalid:
    """There is nothing that an operation could change (noTarget)."""
    return Invalid.of([_field(member, message)], code="no_target")


def not_writable(member: str, message: str) -> Invalid:
    """An attribute can only be read, or has to be there (mutability)."""
    return Invalid.of([_field(member, message)], code="mutability")


BY_SCIM_TYPE: dict[str, Callable[[str, str], Invalid]] = {
    "invalidPath": lambda member, message: bad_path(message, member),
    # In what is read here, a filter is part of a path.
    "invalidFilter": lambda member, message: bad_path(message, member),
    "noTarget": no_target,
    "mutability": not_writable,
}
"""What makes the error for a scimType of scim2-models; bad_value makes any other."""


def _field(member: str, message: str) -> FieldError:
    return FieldError(member[:200], message)
