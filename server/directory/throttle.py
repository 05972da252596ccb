"""Failed logins: counted by account and by address, and answered with a delay that grows with each.

An attacker cannot lock an account: the delay is per account and address, at most 15 minutes, and at most
4 seconds per account. An account that does not exist is counted like one that does.
"""

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Annotated, NamedTuple, NoReturn, TypeAlias

from pydantic import AfterValidator, Field

from server.base.errors import TooMany
from server.base.tokens import digest
from server.postgres.db import Row

Ask: TypeAlias = Callable[..., Awaitable[Row | None]]
"""Runs a named query and answers its first row."""


class Rule(NamedTuple):
    """When delays begin, and how long they become."""

    # The failure that begins a delay of a second; each after it doubles the delay.
    allowed: int
    # Seconds after which one failure is forgiven.
    forgiven_every: int
    # Seconds of the longest delay.
    longest: int


ACCOUNT = Rule(allowed=5, forgiven_every=900, longest=4)
"""From anywhere."""
ACCOUNT_THERE = Rule(allowed=5, forgiven_every=900, longest=900)
"""From one end user's address."""
CLIENT = Rule(allowed=20, forgiven_every=60, longest=900)
"""Of any account, from one end user's address."""


class Subject(NamedTuple):
    """Whom failures are counted for."""

    digest: bytes
    rule: Rule


def _ip_address(text: str) -> str:
    if len(text) > 50 or "%" in text:  # a zone, which means something on the machine alone that has it
        raise ValueError("is not an IP address")
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise ValueError("is not an IP address") from error
    return text


ClientAddress = Annotated[
    str,
    Field(
        description="The end user's IP address, which failed logins are limited by; null: it is not known.",
        json_schema_extra={"anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]},
    ),
    AfterValidator(_ip_address),
]


def of_account(key: str, client_address: str | None) -> list[Subject]:
    """What a login by an account counts for; the failures that a right password forgives.

    Args:
        key: the account's e-mail, existing or not, as users.email_key makes it.
        client_address: the end user's. The caller's own would not do in its place: behind it are all the
            users of a server, whom a long delay would keep out for what one of them does.
    """
    subjects = [Subject(digest(f"account {key}"), ACCOUNT)]
    if client_address is not None:
        subjects.append(Subject(digest(f"account {key} from {_network(client_address)}"), ACCOUNT_THERE))
    return subjects


def of_address(client_address: str | None) -> list[Subject]:
    """What a login from an address counts for, whatever the account is."""
    if client_address is None:
        return []
    return [Subject(digest(f"client {_network(client_address)}"), CLIENT)]


def _network(address: str) -> str:
    ip = ipaddress.ip_address(address)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    # Whoever has one address of IPv6 has at least as many as a /64.
    return str(ipaddress.ip_network((ip, 32 if ip.version == 4 else 64), strict=False))


def _refuse(seconds: int) -> NoReturn:
    raise TooMany(
        "too many failed logins, try again later", code="login_delayed", retry_after=max(1, seconds)
    )


async def check(ask: Ask, instance_id: int, subjects: list[Subject]) -> None:
    """Let a login be tried.

    Args:
        ask: Connection.one, or Database.look_up where no connection is held: it may ask twice, which harms
            none of these queries.

    Raises:
        TooMany: not yet, be the password right or wrong; retry_after says when.
    """
    digests = [subject.digest for subject in subjects]
    delay = await ask("get_login_delay", instance_id=instance_id, subjects=digests)
    if delay is not None and delay["seconds"] is not None:
        _refuse(delay["seconds"])


async def note_failure(ask: Ask, instance_id: int, subjects: list[Subject]) -> None:
    """Count a failed login.

    Raises:
        TooMany: a delay has begun since it was let through, so that nothing may be told of it.
    """
    for subject in subjects:
        values = {"instance_id": instance_id, "subject": subject.digest, **subject.rule._asdict()}
        for _ in range(2):  # where another one was the first to fail, the second time finds its row
            if await ask("note_failed_login", **values) is not None:
                break
            await check(ask, instance_id, subjects)
        else:
            _refuse(1)


async def note_success(ask: Ask, instance_id: int, forgiven: list[Subject], subjects: list[Subject]) -> None:
    """Forget the failures of the account, as of_account gives them; those of the address stay.

    Raises:
        TooMany: as note_failure does, so that of many guesses sent at once no more count than one by one.
    """
    delay = await ask(
        "forget_failed_logins",
        instance_id=instance_id,
        forgiven=[subject.digest for subject in forgiven],
        subjects=[subject.digest for subject in subjects],
    )
    if delay is not None and delay["seconds"] is not None:
        _refuse(delay["seconds"])
