"""The errors of SCIM requests (RFC 7644, 3.12), each about one attribute or path."""

from collections.abc import Callable

from server.base.errors import FieldError, Invalid


def bad_value(member: str, message: str) -> Invalid:
    """An attribute cannot have this value (invalidValue)."""
    return Invalid(_text(member, message), code="invalid_value", fields=[_field(member, message)])


def bad_path(message: str, member: str = "path") -> Invalid:
    """A path names no attribute, or is none (invalidPath)."""
    return Invalid(_text(member, message), code="invalid_path", fields=[_field(member, message)])


def no_target(member: str, message: str) -> Invalid:
    """There is nothing that an operation could change (noTarget)."""
    return Invalid(_text(member, message), code="no_target", fields=[_field(member, message)])


def not_writable(member: str, message: str) -> Invalid:
    """An attribute can only be read, or has to be there (mutability)."""
    return Invalid(_text(member, message), code="mutability", fields=[_field(member, message)])


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


def _text(member: str, message: str) -> str:
    return f"{member[:200]}: {message}"
