"""Single-use codes, sent by mail: generated when the mail is sent, stored only as SHA-256."""

import ipaddress
import re
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, JsonValue

from server.base.errors import FieldError, Invalid
from server.base.tokens import digest, new_secret
from server.directory import change
from server.directory.rows import Row
from server.directory.users import Purpose
from server.jobs.queue import Services, enqueue, job
from server.jobs.worker import Hopeless
from server.outside import mail
from server.postgres.db import Connection
from server.tenants.call import Call
from server.tenants.instances import InstanceSettings

CODE_LENGTH = 24
"""Base62 characters: 142 bits."""
MAX_URL = 2000
"""Characters of a confirmationUrl."""

EXAMPLE_CODES: dict[Purpose, str] = {
    "confirm": "ExampleConfirmationCode1",
    "reset": "ExamplePasswordResetCod1",
}
"""Codes of the examples; tests/conftest.py stores them."""

# The characters of a URL (RFC 3986) except @, which would start a userinfo. No backslashes, white space or
# control characters: browsers and urllib parse them differently.
_URL = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]!$&'()*+,;=%]*")
# {{code}}, or {code}}, which the document of the member platform (seeds/001) has in one place.
_PLACEHOLDER = re.compile(r"\{?\{code\}\}")
# checked_link as a pattern, without the allowed hosts, which the instance's settings list.
_LINK_SCHEMA: dict[str, JsonValue] = {
    "pattern": r"^https?://[A-Za-z0-9.-]+(:[1-9][0-9]{0,3})?[/?#]"
    r"[A-Za-z0-9._~:/?#\[\]!$&'()*+,;=%-]*\{?\{code\}\}[A-Za-z0-9._~:/?#\[\]!$&'()*+,;=%-]*$"
}
ConfirmationUrl = Annotated[str, Field(max_length=MAX_URL, json_schema_extra=_LINK_SCHEMA)]


class WrongCode(Invalid):
    """the code is not valid or has expired"""

    code = "wrong_code"


def checked_link(confirmation_url: str, settings: InstanceSettings) -> str:
    """Check the address for the link in a mail; {{code}} is the placeholder of the code.

    Args:
        confirmation_url: as the caller sent it. Allowed are https to confirmationHosts, https and http to
            httpConfirmationHosts, and http to a loopback address of confirmationHosts, for development.

    Raises:
        Invalid: names confirmationUrl.
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
        # With the placeholder: within host or port it makes them invalid.
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
    """Queue a mail with a new code. It is sent after this transaction commits.

    The job looks up the user, so this call does the same for unknown addresses as for known ones. The job
    also generates the code, which is in clear only in the mail.

    Args:
        email_key: from directory.users.email_key.
        confirmation_url: from checked_link.
    """
    await enqueue(db, "mail-code", {
        "instance_id": instance_id, "email_key": email_key, "purpose": purpose,
        "confirmation_url": confirmation_url,
    })  # fmt: skip


@job("mail-code")
async def send_code(services: Services, payload: dict[str, Any]) -> None:
    """Generate a code and mail it. A retry generates a new code, which replaces the old one."""
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
    """Generate a code, which replaces the user's other codes for this purpose.

    Args:
        lifetime: seconds, by the database's clock.

    Returns:
        the code in clear and its recipient (email, name, language, title); None if the user does not exist,
        is suspended, deleted or already confirmed, or if the instance is suspended.
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
    return None if recipient is None else (code, recipient)


async def redeem(call: Call, code: str, purpose: Purpose) -> Row:
    """Use up a code.

    Returns:
        its user, held.

    Raises:
        WrongCode: the code is unknown, used, expired, or of another purpose or instance, or its user is
            suspended or deleted.
    """
    row = await call.db.one("redeem_code", instance_id=call.instance.id, digest=digest(code), purpose=purpose)
    if row is None:
        raise WrongCode(fields=[FieldError("code", WrongCode.__doc__ or "")])
    return await change.hold_user(call, user_id=row["user_id"])
