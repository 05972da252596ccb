"""Rules of passwords and names that several methods apply."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from server.base.errors import FieldError, Invalid
from server.base.passwords import is_common
from server.directory.users import NewUser, ReplaceUser
from server.tenants.call import Call
from server.tenants.instances import PasswordPolicy


def password_failures(member: str, password: str | None, policy: PasswordPolicy) -> list[FieldError]:
    """Why an instance's policy refuses a password; empty for None.

    Args:
        member: the param with the password.
    """
    if password is None:
        return []
    problem = None
    classes = {
        "lower" if char.islower() else "upper" if char.isupper() else "digit" if char.isdigit() else "other"
        for char in password
    }
    if len(password) < policy.minLength:
        problem = f"must have at least {policy.minLength} characters"
    elif len(classes) < policy.minClasses:
        problem = (
            f"must mix at least {policy.minClasses} of lower case, upper case, digits and other characters"
        )
    elif policy.refuseCommon and is_common(password):
        problem = "is one of the 10,000 most common passwords"
    return [FieldError(member, problem)] if problem else []


async def hash_password(call: Call, member: str, password: str | None, policy: PasswordPolicy) -> str | None:
    """The hash of a new password; None for None.

    Args:
        member: the param with the password.

    Raises:
        Invalid: the policy refuses it.
    """
    if failures := password_failures(member, password, policy):
        raise Invalid.of(failures)
    return None if password is None else await call.hasher.hash(password)


def hashed(member: str) -> Callable[[Call, Any], Awaitable[str | None]]:
    """A `prepare` of a method: hash_password of this param, with the policy of the instance."""

    async def prepare(call: Call, params: Any) -> str | None:
        policy = call.instance.settings.passwordPolicy
        return await hash_password(call, member, getattr(params, member), policy)

    return prepare


NAME_FIELDS = {"firstName": "firstname", "lastName": "lastname"}
"""Member of NewUser and ReplaceUser -> its profile field."""


def names_of(params: NewUser | ReplaceUser) -> dict[str, str | None]:
    """The profile fields of the given names; an empty name becomes None, which removes the field."""
    given = {alias: getattr(params, member) for member, alias in NAME_FIELDS.items()}
    return {alias: name if name.strip() else None for alias, name in given.items() if name is not None}


def full_name(fields: Mapping[str, Any]) -> str:
    """First and last name of these profile fields, cut to the length of a display name; may be empty."""
    return f"{fields.get('firstname') or ''} {fields.get('lastname') or ''}".strip()[:200]


def default_display_name(fields: Mapping[str, Any], email: str) -> str:
    """The display name if none was given: first and last name, or else the local part of the e-mail.

    Args:
        email: the login, of a user without an e-mail.
    """
    return full_name(fields) or email.rpartition("@")[0] or email
