"""Mails: rendered from templates/<language>/, sent by SMTP or, without a server, stored as files.

A translation is a folder named by its ISO 639-1 code with three files for each mail: <name>.subject.j2,
<name>.txt.j2 and <name>.html.j2. A mail without a translation is sent in English.
"""

import asyncio
import email
import email.policy
import functools
import os
import secrets
import time
import unicodedata
from datetime import UTC, datetime
from email.headerregistry import Address, AddressHeader
from email.message import EmailMessage
from email.utils import make_msgid
from pathlib import Path
from typing import Any, NamedTuple

import aiosmtplib
from email_validator import EmailNotValidError, ValidatedEmail, validate_email
from jinja2 import FileSystemLoader, StrictUndefined, select_autoescape
from jinja2.sandbox import SandboxedEnvironment

from server.base.settings import Settings

FALLBACK = "en"
RIGHT_TO_LEFT = frozenset({"ar", "dv", "fa", "he", "ps", "sd", "ug", "ur", "yi"})
TIMEOUT = 30.0
"""Seconds for each answer of the mail server."""
ENCODED_WORD = "=?"
"""The beginning of an encoded word (RFC 2047). Python's header parser decodes encoded words in addresses too,
and writes the decoded text with its line breaks into the message."""
LONGEST_SUBJECT = 300
"""Characters; no subject needs so many."""
HEADERS = (
    "From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type",
    "Content-Language",
)  # fmt: skip
"""All header fields of every mail, in order."""

_TEMPLATES = Path(__file__).parent / "templates"


class Refused(Exception):
    """the mail server refuses this mail permanently"""


class Unusable(Refused):
    """the recipient's address cannot be written into a header as one address"""

    code = "unusable_address"


class Mail(NamedTuple):
    """The content of a mail."""

    language: str
    subject: str
    text: str
    html: str


@functools.cache
def _environment() -> SandboxedEnvironment:
    return SandboxedEnvironment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(name: str, language: str, values: dict[str, Any]) -> Mail:
    """A mail in a user's language.

    Args:
        name: the name of its templates.
        language: ISO 639-1; English if there is no translation.
        values: all variables of the templates.

    Raises:
        jinja2.UndefinedError: a template uses another variable.
    """
    environment = _environment()
    parts = ("subject.j2", "txt.j2", "html.j2")
    known = environment.list_templates()
    if not all(f"{language}/{name}.{part}" in known for part in parts):
        language = FALLBACK
    direction = "rtl" if language in RIGHT_TO_LEFT else "ltr"
    subject, text, html = (
        environment.get_template(f"{language}/{name}.{part}").render(
            values, language=language, direction=direction
        )
        for part in parts
    )
    return Mail(language, _one_line(subject), text, html)


def _one_line(text: str) -> str:
    """A subject without line breaks or encoded words, which could add header fields."""
    line = " ".join(text.split())
    line = "".join(char for char in line if unicodedata.category(char) != "Cc")
    return line.replace(ENCODED_WORD, "= ?")[:LONGEST_SUBJECT]


def compose(settings: Settings, to: str, mail: Mail) -> EmailMessage:
    """The message that is sent (RFC 5322, text and HTML as alternatives).

    Args:
        to: one address, without a display name.

    Raises:
        Unusable: to is not an address, or the message would have another recipient or header field.
    """
    found = _parsed(to)
    sender = settings.mail_from
    # All servers accept an ASCII domain; a local part beyond ASCII needs SMTPUTF8.
    policy = email.policy.SMTP if (found.local_part + sender).isascii() else email.policy.SMTPUTF8
    # 7-bit bodies, which no server changes.
    message = EmailMessage(policy=policy.clone(cte_type="7bit"))
    message["From"] = sender
    message["To"] = Address(username=found.local_part, domain=found.ascii_domain)
    message["Subject"] = _one_line(mail.subject)
    message["Date"] = datetime.now(UTC)
    message["Message-ID"] = make_msgid(domain=_domain(message["From"]))
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office replies
    message.set_content(mail.text)
    message.add_alternative(mail.html, subtype="html")
    message["Content-Language"] = mail.language
    _check(message.as_bytes(), recipient_of(found))
    return message


def _parsed(to: str) -> ValidatedEmail:
    if ENCODED_WORD in to:
        raise Unusable
    try:
        return validate_email(to, check_deliverability=False, globally_deliverable=False)
    except EmailNotValidError:
        raise Unusable from None  # its text contains the address


def recipient_of(address: ValidatedEmail) -> str:
    """The address in the envelope and in the header To."""
    return f"{address.local_part}@{address.ascii_domain}"


def _check(raw: bytes, recipient: str) -> None:
    """Check the bytes of the message, whatever the library made of the values.

    Raises:
        Unusable: there is another header field, or To is not this address alone.
    """
    message = email.message_from_string(raw.decode(), policy=email.policy.default)
    to = message["To"]
    if tuple(message.keys()) != HEADERS or [found.addr_spec for found in to.addresses] != [recipient]:
        raise Unusable


def _domain(sender: AddressHeader) -> str:
    return sender.addresses[0].domain if sender.addresses else "localhost"


async def send(settings: Settings, to: str, mail: Mail) -> None:
    """Send a mail to the mail server, or write it into the data directory if there is none.

    Raises:
        Refused: the server refuses it permanently, or the address is unusable.
        aiosmtplib.SMTPException, OSError: another try may succeed.
    """
    message = compose(settings, to, mail)
    if not settings.smtp_host:
        await asyncio.to_thread(_keep, folder(settings), message)
        return
    password = settings.smtp_password and settings.smtp_password.get_secret_value()
    # The envelope is given separately, so that no header decides about the recipient.
    sender, recipient = message["From"].addresses[0].addr_spec, recipient_of(_parsed(to))
    try:
        await aiosmtplib.send(
            message.as_bytes(),
            sender=sender,
            recipients=[recipient],
            mail_options=[] if (sender + recipient).isascii() else ["SMTPUTF8"],
            hostname=settings.smtp_host,
            port=settings.smtp_port,
            username=settings.smtp_user or None,
            password=password or None,
            use_tls=settings.smtp_tls == "implicit",
            start_tls=settings.smtp_tls == "starttls",
            timeout=TIMEOUT,
        )
    except aiosmtplib.SMTPRecipientsRefused as error:
        if all(refused.code >= 500 for refused in error.recipients):
            raise Refused from error
        raise
    except aiosmtplib.SMTPDataError as error:
        if error.code >= 500:
            raise Refused from error
        raise


def folder(settings: Settings) -> Path:
    """The folder of mails without a mail server."""
    return settings.data_dir / "mail"


def _keep(target: Path, message: EmailMessage) -> None:
    # Mails contain secret codes. A file is written under another name and renamed when it is complete.
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(6)}.eml"
    unfinished = target / f".{name}"
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(message.as_bytes())
    unfinished.replace(target / name)
