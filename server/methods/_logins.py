"""Failed logins: counted by account and by address, and answered with a delay that grows with each.

Nobody is locked out for good: the longest delay is a quarter of an hour, and failures are forgiven one after
the other. An account that does not exist is counted like one that does.
"""

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Annotated, NamedTuple, NoReturn, TypeAlias

from pydantic import AfterValidator, Field

from server.auth import digest
from server.db import Row
from server.errors import TooMany
from server.registry import Call

Ask: TypeAlias = Callable[..., Awaitable[Row | None]]
"""Runs a named query and answers its first row."""

LONGEST = 900
"""Seconds of the longest delay."""


class Rule(NamedTuple):
    """When delays begin."""

    # The failure that begins a delay of a second; each after it doubles the delay.
    allowed: int
    # Seconds after which one failure is forgiven.
    forgiven_every: int


ACCOUNT = Rule(allowed=5, forgiven_every=900)
CLIENT = Rule(allowed=20, forgiven_every=60)
"""For an end user's address, as the caller gives it."""
SERVER = Rule(allowed=100, forgiven_every=2)
"""For the caller's own address, where it gives none: behind it are all the users that it logs in."""


class Subject(NamedTuple):
    """Whom failures are counted for."""

    digest: bytes
    rule: Rule


def _ip_address(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise ValueError("is not an IP address") from error
    return text


ClientAddress = Annotated[
    str,
    Field(
        max_length=50,
        description="The end user's IP address, which failed logins are limited by; null: the caller's own.",
    ),
    AfterValidator(_ip_address),
]


def account(key: str) -> Subject:
    """An account by its e-mail, existing or not.

    Args:
        key: as methods._users.email_key makes it.
    """
    return Subject(digest(f"account {key}"), ACCOUNT)


def address(call: Call, client_address: str | None) -> list[Subject]:
    """Where a login comes from, if that is known."""
    given = client_address or call.circumstances.address
    try:
        ip = ipaddress.ip_address(given or "")
    except ValueError:
        return []
    ip = getattr(ip, "ipv4_mapped", None) or ip
    # Whoever has one address of IPv6 has at least as many as a /64.
    network = ipaddress.ip_network((ip, 32 if ip.version == 4 else 64), strict=False)
    kind, rule = ("client", CLIENT) if client_address else ("server", SERVER)
    return [Subject(digest(f"{kind} {network}"), rule)]


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
        counted = await ask(
            "note_failed_login",
            instance_id=instance_id,
            subject=subject.digest,
            **subject.rule._asdict(),
            longest=LONGEST,
        )
        if counted is None:
            await check(ask, instance_id, subjects)
            _refuse(1)


async def note_success(ask: Ask, instance_id: int, subjects: list[Subject]) -> None:
    """Forget the failures of the account, which is the first of the subjects; those of the address stay.

    Raises:
        TooMany: as note_failure does, so that of many guesses sent at once no more count than one by one.
    """
    delay = await ask(
        "forget_failed_logins",
        instance_id=instance_id,
        account=subjects[0].digest,
        subjects=[subject.digest for subject in subjects],
    )
    if delay is not None and delay["seconds"] is not None:
        _refuse(delay["seconds"])
