"""Failed logins are counted by account and by address, and each failure makes the next delay longer.

An attacker cannot lock an account: the delay is at most 15 minutes per account and address, and at most
4 seconds per account. Accounts that do not exist are counted too.
"""

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NamedTuple, NoReturn, TypeAlias

from pydantic import AfterValidator, Field

from server.base.errors import TooMany
from server.base.tokens import digest
from server.postgres.db import Row

Ask: TypeAlias = Callable[..., Awaitable[Row | None]]
"""Runs a named query and returns its first row."""


class Rule(NamedTuple):
    """When delays begin, and how long they become."""

    # The failure that starts a delay of one second. Each further failure doubles the delay.
    allowed: int
    # Seconds after which one failure is forgiven.
    forgiven_every: int
    # Longest delay in seconds.
    longest: int


ACCOUNT = Rule(allowed=5, forgiven_every=900, longest=4)
"""For an account, from all addresses."""
ACCOUNT_THERE = Rule(allowed=5, forgiven_every=900, longest=900)
"""For an account, from one end user's address."""
CLIENT = Rule(allowed=20, forgiven_every=60, longest=900)
"""For all accounts, from one end user's address."""


class Subject(NamedTuple):
    """An account or address that failures are counted for."""

    digest: bytes
    rule: Rule


def _ip_address(text: str) -> str:
    try:
        if len(text) > 50 or "%" in text:  # a zone (RFC 4007) has a meaning on one machine only
            raise ValueError
        ipaddress.ip_address(text)
    except ValueError as error:
        raise ValueError("is not an IP address") from error
    return text


ClientAddress = Annotated[
    str,
    Field(
        description="The end user's IP address, for the limit of failed logins; null: unknown.",
        json_schema_extra={"anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]},
    ),
    AfterValidator(_ip_address),
]


def of_account(key: str, client_address: str | None) -> list[Subject]:
    """The subjects of a login to an account. A right password forgives their failures.

    Args:
        key: of the account's e-mail, existing or not; see users.email_key.
        client_address: of the end user. The caller's own address does not serve: it is shared by all users
            of the caller's server, and a long delay would affect all of them.
    """
    subjects = [Subject(digest(f"account {key}"), ACCOUNT)]
    if client_address is not None:
        subjects.append(Subject(digest(f"account {key} from {_network(client_address)}"), ACCOUNT_THERE))
    return subjects


def of_address(client_address: str | None) -> list[Subject]:
    """The subjects of a login from an address, for all accounts."""
    if client_address is None:
        return []
    return [Subject(digest(f"client {_network(client_address)}"), CLIENT)]


def _network(address: str) -> str:
    ip = ipaddress.ip_address(address)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    # An end user with one IPv6 address usually has a whole /64.
    return str(ipaddress.ip_network((ip, 32 if ip.version == 4 else 64), strict=False))


def _refuse(seconds: int) -> NoReturn:
    raise TooMany(
        "too many failed logins, try again later", code="login_delayed", retry_after=max(1, seconds)
    )


async def check(ask: Ask, instance_id: int, subjects: list[Subject]) -> None:
    """Allow a login, before its password is checked.

    Args:
        ask: Connection.one, or Database.look_up without a connection. The queries may run twice without harm.

    Raises:
        TooMany: a delay has not ended; see retry_after.
    """
    await _ask_delay(ask, "get_login_delay", instance_id, subjects)


async def _ask_delay(ask: Ask, query: str, instance_id: int, subjects: list[Subject], **values: Any) -> None:
    digests = [subject.digest for subject in subjects]
    delay = await ask(query, instance_id=instance_id, subjects=digests, **values)
    if delay is not None and delay["seconds"] is not None:
        _refuse(delay["seconds"])


async def note_failure(ask: Ask, instance_id: int, subjects: list[Subject]) -> None:
    """Count a failed login.

    Raises:
        TooMany: a delay has begun since check, so the answer must not tell whether the password was right.
    """
    for subject in subjects:
        values = {"instance_id": instance_id, "subject": subject.digest, **subject.rule._asdict()}
        for _ in range(2):  # the second time finds the row if another login inserted it first
            if await ask("note_failed_login", **values) is not None:
                break
            await check(ask, instance_id, subjects)
        else:
            _refuse(1)


async def note_success(ask: Ask, instance_id: int, forgiven: list[Subject], subjects: list[Subject]) -> None:
    """Forget the failures of the account (of_account). The failures of the address are kept.

    Raises:
        TooMany: see note_failure. So parallel guesses are limited like guesses one by one.
    """
    digests = [subject.digest for subject in forgiven]
    await _ask_delay(ask, "forget_failed_logins", instance_id, subjects, forgiven=digests)
