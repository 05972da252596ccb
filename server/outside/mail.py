"""Mails: rendered from server/templates/<language>/, sent over SMTP or, without a server, kept as files.

A translation is a folder named by its ISO 639-1 code with three files for each mail: <name>.subject.j2,
<name>.txt.j2 and <name>.html.j2. A mail that a language lacks goes out in English.
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
"""Seconds that the mail server has for each of its answers."""
ENCODED_WORD = "=?"
"""How an encoded word (RFC 2047) begins. Python's header parser decodes encoded words in addresses too, and
writes the decoded text, line breaks included, into the message."""
LONGEST_SUBJECT = 300
"""Characters: more than any title with the words around it has."""
HEADERS = (
    "From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type",
    "Content-Language",
)  # fmt: skip
"""The header fields of every mail, in their order: no more and no fewer."""

_TEMPLATES = Path(__file__).parent / "templates"


class Refused(Exception):
    """the mail server will not take this mail, now or later"""


class Unusable(Refused):
    """the recipient's address cannot be written into a header as one address"""

    code = "unusable_address"


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
    """A subject that cannot begin another header field, neither as it is nor decoded as encoded words."""
    line = " ".join(text.split())
    line = "".join(char for char in line if unicodedata.category(char) != "Cc")
    return line.replace(ENCODED_WORD, "= ?")[:LONGEST_SUBJECT]


def compose(settings: Settings, to: str, mail: Mail) -> EmailMessage:
    """The message as it goes out (RFC 5322, text and HTML as alternatives).

    Args:
        to: one address, without a name.

    Raises:
        Unusable: to is no address, or the finished message would have another recipient or header field.
    """
    found = _parsed(to)
    sender = settings.mail_from
    # A domain in ASCII goes through every server; a local part beyond ASCII needs one with SMTPUTF8.
    policy = email.policy.SMTP if (found.local_part + sender).isascii() else email.policy.SMTPUTF8
    # Bodies in seven bits, so that the bytes go through every server as they are.
    message = EmailMessage(policy=policy.clone(cte_type="7bit"))
    message["From"] = sender
    message["To"] = Address(username=found.local_part, domain=found.ascii_domain)
    message["Subject"] = _one_line(mail.subject)
    message["Date"] = datetime.now(UTC)
    message["Message-ID"] = make_msgid(domain=_domain(message["From"]))
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office replies, please
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
        raise Unusable from None  # its text quotes the address


def recipient_of(address: ValidatedEmail) -> str:
    """The address as it stands in the envelope and in the header To."""
    return f"{address.local_part}@{address.ascii_domain}"


def _check(raw: bytes, recipient: str) -> None:
    """Hold the finished bytes against what they must say, whatever the library made of the values.

    Raises:
        Unusable: there is another header field, or To is not this one address.
    """
    message = email.message_from_string(raw.decode(), policy=email.policy.default)
    to = message["To"]
    if tuple(message.keys()) != HEADERS or [found.addr_spec for found in to.addresses] != [recipient]:
        raise Unusable


def _domain(sender: AddressHeader) -> str:
    return sender.addresses[0].domain if sender.addresses else "localhost"


async def send(settings: Settings, to: str, mail: Mail) -> None:
    """Hand a mail to the mail server, or write it into the data directory where there is none.

    Raises:
        Refused: the server says that it never will take it, or the address cannot be used.
        aiosmtplib.SMTPException, OSError: another try may succeed.
    """
    message = compose(settings, to, mail)
    if not settings.smtp_host:
        await asyncio.to_thread(_keep, folder(settings), message)
        return
    password = settings.smtp_password and settings.smtp_password.get_secret_value()
    # Envelope and bytes are given apart, so that no header decides who gets the mail.
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
