"""Who may change what, beyond the scope that a method itself needs.

What is changed, and what the calling key needs for it:

- A user who is not an administrator and does not become one: nothing more.
- Anything of an administrator, or of a user who becomes one (members, e-mail, password, avatar, groups,
  plans, sessions; suspension, deletion, restoration, purge): the scope `users:admin`.
- An API key's name or rate, or its end: every scope that this key has; for an operator's key, an operator's.
- An API key that is made or rotated: the same; and a key that is not an operator's gives no more networks, no
  longer life and no more calls a minute than its own.

Whoever sets an administrator's password or e-mail can become it, and whoever suspends, deletes or logs it out
can lock it out. So the rule for users is the same for every member. A call that says what is so already
changes nothing, and is let through where that is known.

Users prove who they are by their own password, token or code: login, logout, confirmEmail and
resetPasswordWithCode ask for those, and not for `users:admin`.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from server.base.errors import Forbidden, MemberForbidden
from server.tenants.keys import Caller

ADMINISTRATE = "users:admin"
"""The scope for changing administrators."""


# --- users ------------------------------------------------------------------------------------------------


def may_administrate(caller: Caller) -> bool:
    """Whether a caller may change administrators, and make some."""
    return ADMINISTRATE in caller.scopes


def may_change_user(caller: Caller, *users: Mapping[str, Any]) -> bool:
    """Whether a caller may change a user.

    Args:
        users: what it was and is to be: rows with is_admin.
    """
    return may_administrate(caller) or not any(user["is_admin"] for user in users)


def require_user(caller: Caller, row: Mapping[str, Any]) -> None:
    """Refuse a change of a user that the caller may not make. To say what is so already is no change.

    Args:
        row: of a statement that holds or has written the user, in the transaction that the error undoes: with
            is_admin, or with its states (the SQL function user_state) as before and after, or as state.

    Raises:
        MemberForbidden: it is an administrator, or was one before, and the key lacks users:admin.
    """
    if may_administrate(caller):
        return
    if "before" in row:
        before, after = row["before"], row["after"]
        is_administrator = before != after and (before["isAdmin"] or after["isAdmin"])
    else:
        is_administrator = row["state"]["isAdmin"] if "state" in row else row["is_admin"]
    if is_administrator:
        raise MemberForbidden(scope=ADMINISTRATE)


# --- API keys ---------------------------------------------------------------------------------------------


def require_scopes(caller: Caller, scopes: Sequence[str]) -> None:
    """Raises Forbidden where one of the scopes is not the caller's own."""
    if not set(scopes) <= caller.scopes:
        raise Forbidden("not-allowed", code="scope_not_held")


def require_key(caller: Caller, row: Mapping[str, Any]) -> None:
    """Refuse to change or end a key that is stronger than the caller's.

    Args:
        row: of lock_key, which gives a key that is not an operator's only those of its own instance.

    Raises:
        Forbidden: it has a scope that the caller lacks, or is an operator's.
    """
    require_scopes(caller, row["scopes"])
    if row["is_operator"] and not caller.is_operator:
        raise Forbidden


def require_networks(caller: Caller, networks: Sequence[str]) -> None:
    """Raises Forbidden where one of them is not within those that the caller's key is bound to."""
    bound = [ipaddress.ip_network(network) for network in caller.networks]
    for network in map(ipaddress.ip_network, networks) if bound else ():
        if not any(network.version == own.version and network.subnet_of(own) for own in bound):  # type: ignore[arg-type]
            raise Forbidden("not-allowed", code="network_not_held")


def permitted_rate(caller: Caller, default: int, rate: int | None, *others: int | None) -> int | None:
    """The rate that the caller may give a key.

    Args:
        default: calls a minute of a key without a rate of its own (the server's setting); 0: any.
        rate: the one asked for; None for what the caller's own key has.
        others: more rates that it must not exceed.

    Raises:
        Forbidden: it would be higher than that of the caller's key, or than one of the others, and the caller
            is no operator.
    """
    if caller.is_operator:
        return rate
    own = caller.rate_per_minute
    rate = own if rate is None else rate
    if _calls(rate, default) > min(_calls(limit, default) for limit in (own, *others)):
        raise Forbidden("not-allowed", code="rate_not_held")
    return rate


def _calls(rate: int | None, default: int) -> float:
    """Calls a minute, as a number that compares."""
    return (default if rate is None else rate) or float("inf")


def require_whole_key(caller: Caller, default_rate: int, row: Mapping[str, Any]) -> None:
    """Refuse to hand out a key that holds more than the caller's.

    Args:
        default_rate: see permitted_rate.
        row: of lock_key.

    Raises:
        Forbidden: it has a scope that the caller lacks or is an operator's; or, for a caller that is no
            operator, works from other networks, lives longer or may make more calls a minute.
    """
    require_key(caller, row)
    if caller.is_operator:
        return
    require_networks(caller, row["networks"] or ["0.0.0.0/0", "::/0"])
    if caller.seconds_left is not None and (
        row["seconds_left"] is None or row["seconds_left"] > caller.seconds_left
    ):
        raise Forbidden("not-allowed", code="lifetime_not_held")
    if _calls(row["rate_per_minute"], default_rate) > _calls(caller.rate_per_minute, default_rate):
        raise Forbidden("not-allowed", code="rate_not_held")
