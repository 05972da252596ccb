"""Who may do what: the rules, and the only place that applies them.

RULES is printed in server/methods/README.md. Each function below applies some of them, and returns or raises
the error that the rule names.

Whoever sets an administrator's password or e-mail can become it, and whoever suspends, deletes or logs it
out can lock it out. So one rule holds for every member of an administrator. Users themselves prove who they
are by password, token or code: login, logout, confirmEmail and resetPasswordWithCode ask for those instead.
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
"""Members of a user that need a scope of their own where they are given another value than their default."""


class Rule(NamedTuple):
    """What is asked, what it needs, and the error without it."""

    asked: str
    needs: str
    error: Forbidden

    def refusal(self, scope: str | None = None) -> Forbidden:
        """A new error, naming the scope that is missing where there is one."""
        return type(self.error)(code=self.error.code, scope=scope)


METHOD = Rule("Call a method", "the scope of the method", MissingScope())
OPERATORS = Rule(
    "Call an operator's method; make an operator's key, or a key for several instances",
    "an operator's key", OperatorsOnly(),
)  # fmt: skip
INSTANCE = Rule("Name an instance", "a key that holds it; an operator's key holds all", NotHeld())
SUSPENDED = Rule(
    "Anything about a suspended instance", "an operator's key, and a method that reads or manages",
    InstanceSuspended(),
)  # fmt: skip
MEMBER = Rule(
    "Give a member of a user that needs a scope of its own",
    ", ".join(f"`{scope}` for {member}" for member, scope in MEMBER_SCOPES.items()), MemberForbidden(),
)  # fmt: skip
ADMINISTRATOR = Rule(
    "Change an administrator, or make one, in whatever: members, e-mail, password, avatar, groups, plans, "
    "sessions, suspension, deletion, restoration, purge. A call that changes nothing is allowed",
    f"`{ADMINISTRATE}`", MemberForbidden(),
)  # fmt: skip
KEY_SCOPES = Rule(
    "Make, change, rotate or end an API key; give it a scope", "every scope that the key has or gets",
    Forbidden(code="scope_not_held"),
)  # fmt: skip
OPERATORS_KEY = Rule("Change, rotate or end an operator's key", "an operator's key", Forbidden())
KEY_NETWORKS = Rule(
    "Make or rotate a key, or give it a scope that it lacks",
    "a key that is valid in all networks of that key; rotating: or an operator's key",
    Forbidden(code="network_not_held"),
)  # fmt: skip
KEY_LIFETIME = Rule(
    "Rotate a key, or give it a scope that it lacks",
    "a key that lives at least as long, or an operator's key", Forbidden(code="lifetime_not_held"),
)  # fmt: skip
KEY_RATE = Rule(
    "Make or rotate a key, raise its calls a minute, or give it a scope that it lacks",
    "a key that may make as many calls a minute, or an operator's key", Forbidden(code="rate_not_held"),
)  # fmt: skip
RULES = (
    METHOD, OPERATORS, INSTANCE, SUSPENDED, MEMBER, ADMINISTRATOR, KEY_SCOPES, OPERATORS_KEY, KEY_NETWORKS,
    KEY_LIFETIME, KEY_RATE,
)  # fmt: skip


# --- methods and instances --------------------------------------------------------------------------------


class Scoped(Protocol):
    """What access needs to know of a method."""

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
    """Why a principal may not give the members that it gave, or None.

    Args:
        scopes: by member, those that have one.
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
    """Whether a principal may send bodies that are long enough for a picture."""
    return "users:write" in principal.scopes


def require_operator(principal: Principal) -> None:
    """Raises OperatorsOnly for a principal that is no operator."""
    if not principal.is_operator:
        raise OPERATORS.refusal()


def require_active(principal: Principal, instance: Instance, *, while_suspended: bool) -> None:
    """Refuse a call about a suspended instance.

    Args:
        while_suspended: whether operators may make the call all the same.

    Raises:
        InstanceSuspended: the instance is suspended.
    """
    if not instance.is_active and not (principal.is_operator and while_suspended):
        raise SUSPENDED.refusal()


# --- users ------------------------------------------------------------------------------------------------


def may_administrate(principal: Principal) -> bool:
    """Whether a principal may change administrators, and make some."""
    return ADMINISTRATE in principal.scopes


def may_change_user(principal: Principal, *users: Mapping[str, Any]) -> bool:
    """Whether a principal may change a user.

    Args:
        users: what it was and is to be: rows with is_admin.
    """
    return may_administrate(principal) or not any(user["is_admin"] for user in users)


def user_refusal(principal: Principal, *users: Mapping[str, Any]) -> Forbidden | None:
    """Why a principal may not change a user, or None; see may_change_user."""
    return None if may_change_user(principal, *users) else ADMINISTRATOR.refusal(ADMINISTRATE)


def require_user(principal: Principal, row: Mapping[str, Any]) -> None:
    """Refuse a change of a user that the principal may not make. A call that changes nothing is allowed.

    Args:
        row: of the user, who is held, with is_admin.

    Raises:
        MemberForbidden: it is an administrator, and the key lacks users:admin.
    """
    if refusal := user_refusal(principal, row):
        raise refusal


_KEPT = "may_administrate"


def kept(principal: Principal) -> dict[str, bool]:
    """What the queue keeps of a principal's rights, for may_still_change_user."""
    return {_KEPT: may_administrate(principal)}


def may_still_change_user(asked_by: Mapping[str, Any], user: Mapping[str, Any]) -> bool:
    """may_change_user when the queue makes the change. The user may have become an administrator meanwhile.

    Args:
        asked_by: with what kept() gave when the change was asked for.
    """
    return bool(asked_by.get(_KEPT)) or not user["is_admin"]


# --- API keys ---------------------------------------------------------------------------------------------


def require_scopes(principal: Principal, scopes: Sequence[str]) -> None:
    """Raises Forbidden where one of the scopes is not the principal's own."""
    if not set(scopes) <= principal.scopes:
        raise KEY_SCOPES.refusal()


def require_key(principal: Principal, row: Mapping[str, Any]) -> None:
    """Refuse to change or end a key that is stronger than the principal.

    Args:
        row: of lock_key, which gives a key that is not an operator's only those of its own instance.

    Raises:
        Forbidden: it has a scope that the principal lacks, or is an operator's.
    """
    require_scopes(principal, row["scopes"])
    if row["is_operator"] and not principal.is_operator:
        raise OPERATORS_KEY.refusal()


def require_networks(principal: Principal, networks: Sequence[str]) -> None:
    """Raises Forbidden where one of them is not within those that the principal is bound to."""
    bound = [ipaddress.ip_network(network) for network in principal.networks]
    for network in map(ipaddress.ip_network, networks) if bound else ():
        if not any(network.version == own.version and network.subnet_of(own) for own in bound):  # type: ignore[arg-type]
            raise KEY_NETWORKS.refusal()


def permitted_rate(principal: Principal, default: int, rate: int | None, *others: int | None) -> int | None:
    """The rate that a principal may give a key.

    Args:
        default: calls a minute of a key without a rate of its own (the server's setting); 0: any.
        rate: the one asked for; None for the principal's own.
        others: more rates that it must not exceed.

    Raises:
        Forbidden: it would be higher than the principal's own, or than one of the others, and the principal
            is no operator.
    """
    if principal.is_operator:
        return rate
    own = principal.rate_per_minute
    rate = own if rate is None else rate
    if _calls(rate, default) > min(_calls(limit, default) for limit in (own, *others)):
        raise KEY_RATE.refusal()
    return rate


def _calls(rate: int | None, default: int) -> float:
    """Calls a minute, as a number that compares."""
    return (default if rate is None else rate) or float("inf")


def require_whole_key(principal: Principal, default_rate: int, row: Mapping[str, Any]) -> None:
    """Refuse to hand out a key that holds more than the principal.

    Args:
        default_rate: see permitted_rate.
        row: of lock_key.

    Raises:
        Forbidden: it has a scope that the principal lacks or is an operator's; or, for a principal that is no
            operator, works from other networks, lives longer or may make more calls a minute.
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
