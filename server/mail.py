"""Mails: rendered from server/templates/<language>/, sent over SMTP or, without a server, kept as files.

A translation is a folder named by its ISO 639-1 code with three files for each mail: <name>.subject.j2,
<name>.txt.j2 and <name>.html.j2. A mail that a language lacks goes out in English.
"""

import asyncio
import functools
import os
import secrets
import time
import unicodedata
from datetime import UTC, datetime
from email.headerregistry import Address, AddressHeader
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import make_msgid
from pathlib import Path
from typing import Any, NamedTuple

import aiosmtplib
from email_validator import validate_email
from jinja2 import FileSystemLoader, StrictUndefined, select_autoescape
from jinja2.sandbox import SandboxedEnvironment

from server.settings import Settings

FALLBACK = "en"
RIGHT_TO_LEFT = frozenset({"ar", "dv", "fa", "he", "ps", "sd", "ug", "ur", "yi"})
TIMEOUT = 30.0
"""Seconds that the mail server has for each of its answers."""

_TEMPLATES = Path(__file__).parent / "templates"


class Refused(Exception):
    """the mail server will not take this mail, now or later"""


class Mail(NamedTuple):
    """What a mail says."""

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
        name: of its templates.
        language: ISO 639-1; English where there is no translation.
        values: what the templates name, all of it.

    Raises:
        jinja2.UndefinedError: a template names something else.
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
    """Nothing in a subject may begin another header."""
    line = " ".join(text.split())
    return "".join(char for char in line if unicodedata.category(char) != "Cc")


def compose(settings: Settings, to: str, mail: Mail) -> EmailMessage:
    """The message as it goes out (RFC 5322, text and HTML as alternatives).

    Args:
        to: one address, without a name.

    Raises:
        email_validator.EmailNotValidError: to is no address.
    """
    found = validate_email(to, check_deliverability=False, globally_deliverable=False)
    # A domain in ASCII goes through every server; a local part beyond ASCII needs one with SMTPUTF8.
    message = EmailMessage(policy=SMTP if found.local_part.isascii() else SMTPUTF8)
    message["From"] = settings.mail_from
    message["To"] = Address(username=found.local_part, domain=found.ascii_domain)
    message["Subject"] = mail.subject
    message["Date"] = datetime.now(UTC)
    message["Message-ID"] = make_msgid(domain=_domain(message["From"]))
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office replies, please
    message.set_content(mail.text)
    message.add_alternative(mail.html, subtype="html")
    message["Content-Language"] = mail.language
    return message


def _domain(sender: AddressHeader) -> str:
    return sender.addresses[0].domain if sender.addresses else "localhost"


async def send(settings: Settings, to: str, mail: Mail) -> None:
    """Hand a mail to the mail server, or write it into the data directory where there is none.

    Raises:
        Refused: the server says that it never will take it.
        aiosmtplib.SMTPException, OSError: another try may succeed.
    """
    message = compose(settings, to, mail)
    if not settings.smtp_host:
        await asyncio.to_thread(_keep, folder(settings), message)
        return
    password = settings.smtp_password and settings.smtp_password.get_secret_value()
    try:
        await aiosmtplib.send(
            message,
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
    """Where mails are kept while there is no mail server."""
    return settings.data_dir / "mail"


def _keep(target: Path, message: EmailMessage) -> None:
    # The codes within are secrets. Under its name a file is whole: it is written beside and renamed.
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(6)}.eml"
    unfinished = target / f".{name}"
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(message.as_bytes())
    unfinished.replace(target / name)
