"""Authorization: the rules, and the only functions that apply them.

RULES is printed in server/methods/README.md. The functions below return or raise the error of a rule.

One rule protects every member of an administrator: a new password or e-mail takes the account over, and a
suspension, deletion or logout locks the administrator out. login, logout, confirmEmail and
resetPasswordWithCode have other proofs: the password, token or code of the user.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel

from server.base.errors import (
    Forbidden,
    InstanceSuspended,
    MemberForbidden,
    MissingScope,
    NotHeld,
    OperatorsOnly,
)  # fmt: skip
from server.tenants.instances import Instance
from server.tenants.principals import Principal

ADMINISTRATE = "users:admin"
"""The scope for changing administrators."""
MEMBER_SCOPES = {"isAdmin": ADMINISTRATE, "groups": "groups:write"}
"""Members of a user that need their own scope, unless they have the default value."""


class Rule(NamedTuple):
    """What a call asks for, what it needs, and the error without it."""

    asked: str
    needs: str
    error: Forbidden

    def refusal(self, scope: str | None = None) -> Forbidden:
        """A new error, with the missing scope if there is one."""
        return type(self.error)(code=self.error.code, scope=scope)


METHOD = Rule("Call a method", "the scope of the method", MissingScope())
OPERATORS = Rule(
    "Call an operator's method; create an operator's key, or a key for several instances",
    "an operator's key", OperatorsOnly(),
)  # fmt: skip
INSTANCE = Rule("Name an instance", "a key that holds it; an operator's key holds all", NotHeld())
SUSPENDED = Rule(
    "Call a method about a suspended instance", "an operator's key, and a method that reads or manages",
    InstanceSuspended(),
)  # fmt: skip
MEMBER = Rule(
    "Set a member of a user that needs its own scope",
    ", ".join(f"`{scope}` for {member}" for member, scope in MEMBER_SCOPES.items()), MemberForbidden(),
)  # fmt: skip
ADMINISTRATOR = Rule(
    "Create or change an administrator: members, e-mail, password, avatar, groups, plans, sessions, "
    "suspension, deletion, restoration, purge. A call that changes nothing is allowed",
    f"`{ADMINISTRATE}`", MemberForbidden(),
)  # fmt: skip
KEY_SCOPES = Rule(
    "Create, change, rotate or revoke an API key; give it a scope", "every scope that the key has or gets",
    Forbidden(code="scope_not_held"),
)  # fmt: skip
OPERATORS_KEY = Rule("Change, rotate or revoke an operator's key", "an operator's key", Forbidden())
KEY_NETWORKS = Rule(
    "Create or rotate a key, or give it a scope that it lacks",
    "a key that is valid in all networks of that key; to rotate: or an operator's key",
    Forbidden(code="network_not_held"),
)  # fmt: skip
KEY_LIFETIME = Rule(
    "Rotate a key, or give it a scope that it lacks",
    "a key that expires no earlier, or an operator's key", Forbidden(code="lifetime_not_held"),
)  # fmt: skip
KEY_RATE = Rule(
    "Create or rotate a key, raise its calls a minute, or give it a scope that it lacks",
    "a key that may make as many calls a minute, or an operator's key", Forbidden(code="rate_not_held"),
)  # fmt: skip
RULES = (
    METHOD, OPERATORS, INSTANCE, SUSPENDED, MEMBER, ADMINISTRATOR, KEY_SCOPES, OPERATORS_KEY, KEY_NETWORKS,
    KEY_LIFETIME, KEY_RATE,
)  # fmt: skip


# --- methods and instances --------------------------------------------------------------------------------


class Scoped(Protocol):
    """The access attributes of a method."""

    @property
    def scope(self) -> str: ...

    @property
    def operator(self) -> bool: ...


def method_refusal(principal: Principal, method: Scoped) -> Forbidden | None:
    """Why a principal may not call a method, or None."""
    if method.scope not in principal.scopes:
        return METHOD.refusal(method.scope)
    if method.operator and not principal.is_operator:
        return OPERATORS.refusal()
    return None


def member_refusal(
    principal: Principal, params: BaseModel, scopes: Mapping[str, str] = MEMBER_SCOPES
) -> Forbidden | None:
    """Why a principal may not set the members in its params, or None.

    Args:
        scopes: member -> the scope that it needs.
    """
    fields = type(params).model_fields
    for member, scope in scopes.items():
        if (
            scope not in principal.scopes
            and member in fields
            and getattr(params, member) != fields[member].default
        ):
            return MEMBER.refusal(scope)
    return None


def may_send_pictures(principal: Principal) -> bool:
    """Whether a principal may send bodies of the size of a picture."""
    return "users:write" in principal.scopes


def require_operator(principal: Principal) -> None:
    """Raise OperatorsOnly for a principal that is no operator."""
    if not principal.is_operator:
        raise OPERATORS.refusal()


def require_active(principal: Principal, instance: Instance, *, while_suspended: bool) -> None:
    """Raise InstanceSuspended for a suspended instance.

    Args:
        while_suspended: operators may make the call anyway.
    """
    if not instance.is_active and not (principal.is_operator and while_suspended):
        raise SUSPENDED.refusal()


# --- users ------------------------------------------------------------------------------------------------


def may_administrate(principal: Principal) -> bool:
    """Whether a principal may create and change administrators."""
    return ADMINISTRATE in principal.scopes


def may_change_user(principal: Principal, *users: Mapping[str, Any]) -> bool:
    """Whether a principal may change a user.

    Args:
        users: the row before, and after; with is_admin.
    """
    return may_administrate(principal) or not any(user["is_admin"] for user in users)


def user_refusal(principal: Principal, *users: Mapping[str, Any]) -> Forbidden | None:
    """Why a principal may not change a user, or None; see may_change_user."""
    return None if may_change_user(principal, *users) else ADMINISTRATOR.refusal(ADMINISTRATE)


def require_user(principal: Principal, row: Mapping[str, Any]) -> None:
    """Raise MemberForbidden for an administrator if the key lacks users:admin.

    Args:
        row: of the locked user, with is_admin.
    """
    if refusal := user_refusal(principal, row):
        raise refusal


_KEPT = "may_administrate"


def kept(principal: Principal) -> dict[str, bool]:
    """The rights of a principal that a job stores, for require_user_of_job."""
    return {_KEPT: may_administrate(principal)}


def require_user_of_job(asked_by: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """require_user for a job. The user may have become an administrator since the request.

    Args:
        asked_by: the stored caller, with the result of kept().
        row: of the locked user, with is_admin.
    """
    if row["is_admin"] and not asked_by.get(_KEPT):
        raise ADMINISTRATOR.refusal(ADMINISTRATE)


# --- API keys ---------------------------------------------------------------------------------------------


def require_scopes(principal: Principal, scopes: Sequence[str]) -> None:
    """Raise Forbidden if the principal lacks one of the scopes."""
    if not set(scopes) <= principal.scopes:
        raise KEY_SCOPES.refusal()


def require_key(principal: Principal, row: Mapping[str, Any]) -> None:
    """Raise Forbidden for a key with a scope that the principal lacks, or an operator's key.

    Args:
        row: of lock_key, which returns to tenants only keys of their own instance.
    """
    require_scopes(principal, row["scopes"])
    if row["is_operator"] and not principal.is_operator:
        raise OPERATORS_KEY.refusal()


def require_networks(principal: Principal, networks: Sequence[str]) -> None:
    """Raise Forbidden if a network is outside the networks of the principal's key."""
    bound = [ipaddress.ip_network(network) for network in principal.networks]
    for network in map(ipaddress.ip_network, networks) if bound else ():
        if not any(network.version == own.version and network.subnet_of(own) for own in bound):  # type: ignore[arg-type]
            raise KEY_NETWORKS.refusal()


def permitted_rate(principal: Principal, default: int, rate: int | None, *others: int | None) -> int | None:
    """The rate that a principal may give a key.

    Args:
        default: calls a minute of a key without its own rate (the server's setting); 0: unlimited.
        rate: the requested one; None for the principal's own.
        others: further upper bounds.

    Raises:
        Forbidden: the principal is no operator, and the rate is above its own or above one of the others.
    """
    if principal.is_operator:
        return rate
    own = principal.rate_per_minute
    rate = own if rate is None else rate
    if _calls(rate, default) > min(_calls(limit, default) for limit in (own, *others)):
        raise KEY_RATE.refusal()
    return rate


def _calls(rate: int | None, default: int) -> float:
    """Calls a minute; infinite if unlimited."""
    return (default if rate is None else rate) or float("inf")


def require_whole_key(principal: Principal, default_rate: int, row: Mapping[str, Any]) -> None:
    """Raise Forbidden for a key with more rights than the principal: see require_key; and, unless the
    principal is an operator, for one with other networks, a later expiry or a higher rate.

    Args:
        default_rate: see permitted_rate.
        row: of lock_key.
    """
    require_key(principal, row)
    if principal.is_operator:
        return
    require_networks(principal, row["networks"] or ["0.0.0.0/0", "::/0"])
    if principal.seconds_left is not None and (
        row["seconds_left"] is None or row["seconds_left"] > principal.seconds_left
    ):
        raise KEY_LIFETIME.refusal()
    if _calls(row["rate_per_minute"], default_rate) > _calls(principal.rate_per_minute, default_rate):
        raise KEY_RATE.refusal()
