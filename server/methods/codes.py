"""Single-use codes that go out by mail: made when their mail is sent, stored as SHA-256 alone."""

import ipaddress
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from pydantic import JsonValue

from server.base.errors import FieldError, Invalid
from server.base.tokens import digest, new_secret
from server.directory.users import Purpose
from server.jobs.queue import Services, enqueue, job
from server.jobs.worker import Hopeless
from server.outside import mail
from server.postgres.db import Connection
from server.tenants.instances import InstanceSettings

CODE_LENGTH = 24
"""Base62 characters: 142 bits."""
MAX_URL = 2000

EXAMPLE_CODES: dict[Purpose, str] = {
    "confirm": "ExampleConfirmationCode1",
    "reset": "ExamplePasswordResetCod1",
}
"""Those of the examples' world, which tests/conftest.py puts there."""

# The characters of a URL (RFC 3986) but @, which would make a userinfo. No backslash, no white space, no
# control characters: browsers and urllib disagree about what they mean.
_URL = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]!$&'()*+,;=%]*")
# {{code}}, or {code}} as the document of the member platform (seeds/001) has it once.
_PLACEHOLDER = re.compile(r"\{?\{code\}\}")
# Of what checked_link takes, as a pattern: whose host it may be is the instance's matter.
LINK_SCHEMA: dict[str, JsonValue] = {
    "pattern": r"^https?://[A-Za-z0-9.-]+(:[1-9][0-9]{0,3})?[/?#]"
    r"[A-Za-z0-9._~:/?#\[\]!$&'()*+,;=%-]*\{?\{code\}\}[A-Za-z0-9._~:/?#\[\]!$&'()*+,;=%-]*$"
}


class WrongCode(Invalid):
    """the code is not valid or has expired"""

    code = "wrong_code"


def checked_link(confirmation_url: str, settings: InstanceSettings) -> str:
    """The address that a mail's link is made of, with {{code}} where the code goes.

    Args:
        confirmation_url: as the caller sent it.
        settings: the instance's. It may lead to confirmationHosts by https, or by http to this machine in
            development; and to httpConfirmationHosts by http too.

    Raises:
        Invalid: naming confirmationUrl, for anything else.
    """
    if problem := _link_problem(confirmation_url, settings.confirmationHosts, settings.httpConfirmationHosts):
        raise Invalid.of([FieldError("confirmationUrl", problem)])
    return _PLACEHOLDER.sub("{{code}}", confirmation_url)


def _link_problem(url: str, hosts: Sequence[str], http_hosts: Sequence[str]) -> str | None:
    if len(url) > MAX_URL:
        return f"must have at most {MAX_URL} characters"
    address, placeholders = _PLACEHOLDER.subn("", url)
    if placeholders != 1:
        return "must hold {{code}} once"
    if not _URL.fullmatch(address):
        return "holds characters that do not belong into such an address"
    try:
        # With its braces: a placeholder within host or port makes them no host and no port of anyone's.
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "is not an address"
    by_http = parts.scheme == "http" and (host in http_hosts or _is_local(host))
    if parts.scheme != "https" and not by_http:
        return "must be an https address"
    bare = f"[{host}]" if ":" in host else host
    if not host or parts.netloc.lower() not in (bare, f"{bare}:{port}") or host not in (*hosts, *http_hosts):
        return "leads to a host that is not on the instance's list (confirmationHosts)"
    return None


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def mail_code(
    db: Connection, *, instance_id: int, email_key: str, purpose: Purpose, confirmation_url: str
) -> None:
    """Have a mail with a fresh code sent once this transaction commits.

    Who the user is, if anyone, is looked up when the mail is sent: here a known and an unknown address are
    the same row in the queue. The code is made then too, so that it is nowhere in clear but in the mail.

    Args:
        email_key: as directory.users.email_key makes it.
        confirmation_url: as checked_link returned it.
    """
    payload = {
        "instance_id": instance_id, "email_key": email_key, "purpose": purpose,
        "confirmation_url": confirmation_url,
    }  # fmt: skip
    await enqueue(db, "mail-code", payload)


@job("mail-code")
async def send_code(services: Services, payload: dict[str, Any]) -> None:
    """Make a code and mail it. Done again, it makes another one, which ends the one before."""
    settings, purpose = services.settings, payload["purpose"]
    lifetime = settings.code_hours * 3600
    async with services.database.transaction() as db:
        issued = await issue_code(db, payload["instance_id"], payload["email_key"], purpose, lifetime)
    if issued is None:
        return
    code, recipient = issued
    values = {
        "name": recipient["name"], "title": recipient["title"], "hours": settings.code_hours,
        "link": payload["confirmation_url"].replace("{{code}}", code),
    }  # fmt: skip
    try:
        await mail.send(settings, recipient["email"], mail.render(purpose, recipient["language"], values))
    except mail.Refused as error:
        raise Hopeless from error


async def issue_code(
    db: Connection, instance_id: int, email_key: str, purpose: Purpose, lifetime: int
) -> tuple[str, Any] | None:
    """A fresh code instead of those the user had for the purpose.

    Args:
        lifetime: seconds, by the database's clock.

    Returns:
        the code in clear and the row of who is to get it (email, name, language, title); None where there
        is nobody: no such user, suspended, deleted, or confirmed already, or the instance is suspended.
    """
    code = new_secret(CODE_LENGTH)
    recipient = await db.one(
        "issue_code",
        instance_id=instance_id,
        email_key=email_key,
        purpose=purpose,
        digest=digest(code),
        lifetime=lifetime,
    )
    return (code, recipient) if recipient is not None else None


async def redeem(db: Connection, instance_id: int, code: str, purpose: Purpose) -> int:
    """Take a code, which is then gone.

    Returns:
        the id of its user, who is held.

    Raises:
        WrongCode: unknown, used, expired, of another purpose or another instance, or its user is suspended or
            deleted.
    """
    row = await db.one("redeem_code", instance_id=instance_id, digest=digest(code), purpose=purpose)
    if row is None:
        raise WrongCode(fields=[FieldError("code", WrongCode.__doc__ or "")])
    user_id: int = row["user_id"]
    return user_id
