"""Mails in three languages, over a real SMTP server or as files, and SMTP errors."""

import asyncio
import email
import email.policy
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import aiosmtplib
import asyncpg
import jinja2
import pytest
from aiosmtpd.smtp import SMTP, AuthResult
from conftest import ADMIN, Client, Log, Serve, until
from processes import Command

from server.base.settings import Settings
from server.cli.serving import _greet
from server.jobs import queue
from server.outside import mail
from server.outside.mail import HEADERS, Mail, Refused, Unusable, compose, render, send

VALUES = {"name": "Jane Doe", "title": "Acme Inc.", "hours": 24, "link": "https://example.com/?a=1&code=c0de"}
RESET = {"email": "jane@example.com", "confirmationUrl": "https://example.com/reset?code={{code}}"}
HELLO = Mail("en", "Hello", "text", "<p>html</p>")


class Mailbox:
    """A mail server's inbox. It answers DATA and RCPT as it is told to, then with 250."""

    def __init__(self) -> None:
        self.port = 0
        self.mails: list[EmailMessage] = []
        self.recipients: list[list[str]] = []
        self.data_answers: list[str] = []
        self.rcpt_answers: list[str] = []
        self.logins: list[tuple[bytes, bytes]] = []
        self.encrypted: list[bool] = []
        self.hold: Callable[[], Awaitable[None]] | None = None

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if self.rcpt_answers:
            return self.rcpt_answers.pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.data_answers:
            return self.data_answers.pop(0)
        if self.hold is not None:
            await self.hold()
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        self.mails.append(message)
        self.recipients.append(envelope.rcpt_tos)
        self.encrypted.append(session.ssl is not None)
        return "250 OK"

    def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        self.logins.append((data.login, data.password))
        return AuthResult(success=True)

    async def count(self, wanted: int) -> bool:
        return len(self.mails) >= wanted


@asynccontextmanager
async def smtp_server(mailbox: Mailbox, **options: Any) -> AsyncIterator[None]:
    """A server for the mailbox on mailbox.port; implicit= is a TLS context for the port itself."""
    loop = asyncio.get_running_loop()
    implicit = options.pop("implicit", None)

    def connected() -> SMTP:
        return SMTP(
            mailbox, hostname="mx.test", loop=loop, enable_SMTPUTF8=True,
            authenticator=mailbox.authenticate, **options,
        )  # fmt: skip

    server = await loop.create_server(connected, "127.0.0.1", mailbox.port, ssl=implicit)
    mailbox.port = server.sockets[0].getsockname()[1]
    yield
    server.close()


@pytest.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    """Of a server without encryption."""
    box = Mailbox()
    async with smtp_server(box):
        yield box


def smtp(mailbox: Mailbox, **more: Any) -> dict[str, Any]:
    """The settings that lead to it."""
    return {"smtp_host": "127.0.0.1", "smtp_port": mailbox.port, "smtp_tls": "none"} | more


def bodies(message: EmailMessage) -> tuple[str, str]:
    """Text and HTML."""
    assert message.get_content_type() == "multipart/alternative"
    text, html = message.iter_parts()
    assert (text.get_content_type(), html.get_content_type()) == ("text/plain", "text/html")
    return text.get_content().replace("\r\n", "\n"), html.get_content().replace("\r\n", "\n")


def kept(data_dir: Path) -> list[EmailMessage]:
    """The mails of a server without mail server, the oldest first."""
    files = sorted((data_dir / "mail").glob("[!.]*.eml"), key=lambda file: file.stat().st_mtime_ns)
    return [email.message_from_bytes(file.read_bytes(), policy=email.policy.default) for file in files]


# --- words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "name", "subject", "phrase"),
    [
        ("en", "confirm", "Confirm your registration – Acme Inc.", "It works once, within 24 hours"),
        ("en", "reset", "Set a new password – Acme Inc.", "your password stays as it is"),
        ("ru", "confirm", "Подтвердите регистрацию – Acme Inc.", "Срок её действия в часах: 24"),
        ("ru", "reset", "Новый пароль – Acme Inc.", "ваш пароль останется прежним"),
        ("ar", "confirm", "تأكيد التسجيل – Acme Inc.", "ومدة صلاحيته بالساعات: 24"),
        ("ar", "reset", "إعادة تعيين كلمة المرور – Acme Inc.", "ستبقى كلمة مرورك كما هي"),
    ],
)
def test_languages(language: str, name: str, subject: str, phrase: str) -> None:
    made = render(name, language, VALUES)
    assert (made.language, made.subject) == (language, subject)
    for body in (made.text, made.html):
        assert phrase in body and "Jane Doe" in body and "Acme Inc." in body
    assert "\nhttps://example.com/?a=1&code=c0de\n" in made.text
    assert '<a href="https://example.com/?a=1&amp;code=c0de">' in made.html
    assert f'<html lang="{language}" dir="{"rtl" if language == "ar" else "ltr"}">' in made.html


def test_a_language_without_translation_is_answered_in_english() -> None:
    assert render("reset", "de", VALUES) == render("reset", "en", VALUES)
    assert render("reset", "../en", VALUES) == render("reset", "en", VALUES)


def test_translations_are_whole() -> None:
    names = {"confirm", "reset"}
    for folder in mail._TEMPLATES.iterdir():
        if folder.is_dir():
            expected = {f"{name}.{part}.j2" for name in names for part in ("subject", "txt", "html")}
            assert {file.name for file in folder.iterdir()} == expected


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("reset", "en", {key: value for key, value in VALUES.items() if key != "link"})


def test_values_are_escaped_in_html() -> None:
    made = render("reset", "en", VALUES | {"name": '<script>"&'})
    assert "<script>" not in made.html and "&lt;script&gt;&#34;&amp;" in made.html
    assert '<script>"&' in made.text
    assert "{{ 7 * 7 }}" in render("reset", "en", VALUES | {"name": "{{ 7 * 7 }}"}).text


# --- messages -------------------------------------------------------------------------------------------


def test_the_message() -> None:
    settings = Settings(mail_from="Acme <no-reply@acme.example>")
    message = compose(settings, "jane@example.com", render("reset", "ru", VALUES))
    raw = message.as_bytes()
    assert raw.split(b"\r\n\r\n")[0].isascii()
    read = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(read, EmailMessage)
    assert (read["From"], read["To"]) == ("Acme <no-reply@acme.example>", "jane@example.com")
    assert read["Subject"] == "Новый пароль – Acme Inc."
    assert read["Auto-Submitted"] == "auto-generated" and read["Content-Language"] == "ru"
    assert read["Date"].datetime.tzinfo is not None
    assert read["Message-ID"].endswith("@acme.example>")
    assert compose(settings, "jane@example.com", HELLO)["Message-ID"] != read["Message-ID"]
    assert bodies(read) == bodies(message)
    assert "ваш пароль останется прежним" in bodies(read)[0]


def test_a_long_link_arrives_whole() -> None:
    link = "https://example.com/?" + "x" * 1900
    message = compose(Settings(), "jane@example.com", render("confirm", "ar", VALUES | {"link": link}))
    read = email.message_from_bytes(message.as_bytes(), policy=email.policy.default)
    assert isinstance(read, EmailMessage)
    assert all(link in body for body in bodies(read))
    assert max(len(line) for line in message.as_bytes().splitlines()) <= 998  # RFC 5322


def test_nothing_in_a_subject_begins_another_header() -> None:
    title = "Acme\r\nBcc: evil@example.com\n\tX: y\x00\u2028z"
    made = render("reset", "en", VALUES | {"title": title})
    assert made.subject == "Set a new password – Acme Bcc: evil@example.com X: y z"
    read = email.message_from_bytes(compose(Settings(), "jane@example.com", made).as_bytes())
    assert read["Bcc"] is None and read["X"] is None


@pytest.mark.parametrize(
    "to",
    [
        "jane@example.com\r\nBcc: evil@example.com",
        "jane@example.com, evil@example.com",
        "Jane <jane@example.com>",
        "jane@example.com>\r\nRCPT TO:<evil@example.com",
        "=?utf-8?q?a=0d=0aBcc=3a=20x=40evil.example=2c?=@trusted.example",
        "=?utf-8?b?YSxiQGV2aWwuZXhhbXBsZQ==?=@trusted.example",
        "a.=?us-ascii?q?=2c?=@trusted.example",
        "a@=?utf-8?q?evil.example=2c?=.example",
        '"a, b@evil.example"@trusted.example',
        "all: a@evil.example, b@evil.example;",
        "",
    ],
)
def test_a_recipient_is_one_address(to: str) -> None:
    with pytest.raises(Unusable):
        compose(Settings(), to, HELLO)


@pytest.mark.parametrize(
    "title",
    [
        "=?utf-8?q?a=0d=0aBcc=3a=20x=40evil.example?=",
        "=?utf-8?q?a?= =?utf-8?q?b=0d=0aBcc:x@evil.example?=",
        "=\x00?utf-8?q?=0d=0aTo:x@evil.example?=",
        "=\r\n?utf-8?q?=0d=0aTo:x@evil.example?=",
        'Smith, Jones "and" <Sons>; (Ltd.)',
        "é" * 5000,
        "x" * 5000,
        "\u202e\ufeff\U0001f600",
    ],
)
async def test_a_title_is_text_in_the_subject_and_nothing_else(mailbox: Mailbox, title: str) -> None:
    await send(
        Settings(**smtp(mailbox)), "jane@example.com", render("reset", "en", VALUES | {"title": title})
    )
    (message,) = mailbox.mails
    assert tuple(message.keys()) == HEADERS
    assert mailbox.recipients == [["jane@example.com"]] and message["To"] == "jane@example.com"
    assert message["Subject"].startswith("Set a new password – ")
    assert "\r" not in message["Subject"] and "\n" not in message["Subject"]


def test_domains_beyond_ascii_go_through_every_server() -> None:
    assert compose(Settings(), "jane@müller.example", HELLO)["To"] == "jane@xn--mller-kva.example"


# --- delivery -------------------------------------------------------------------------------------------


async def test_delivery(mailbox: Mailbox) -> None:
    await send(Settings(**smtp(mailbox)), "jane@example.com", render("confirm", "ar", VALUES))
    (message,) = mailbox.mails
    assert mailbox.recipients == [["jane@example.com"]] and mailbox.encrypted == [False]
    assert message["Subject"] == "تأكيد التسجيل – Acme Inc."
    text, html = bodies(message)
    assert VALUES["link"] in text and 'dir="rtl"' in html


async def test_an_address_beyond_ascii(mailbox: Mailbox) -> None:
    await send(Settings(**smtp(mailbox)), "дж@почта.example", HELLO)
    assert mailbox.recipients == [["дж@xn--80a1acny.example"]]
    assert mailbox.mails[0]["To"] == "дж@xn--80a1acny.example"


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's, which this process trusts from now on."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=mx.test",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    return context


async def test_starttls_and_login(certificate: ssl.SSLContext) -> None:
    box = Mailbox()
    async with smtp_server(box, tls_context=certificate, require_starttls=True, auth_required=True):
        settings = Settings(**smtp(box, smtp_tls="starttls", smtp_user="me", smtp_password="hunter2"))
        await send(settings, "jane@example.com", HELLO)
    assert (box.encrypted, box.logins) == ([True], [(b"me", b"hunter2")])


async def test_implicit_tls(certificate: ssl.SSLContext) -> None:
    box = Mailbox()
    async with smtp_server(box, implicit=certificate):
        await send(Settings(**smtp(box, smtp_tls="implicit")), "jane@example.com", HELLO)
    assert len(box.mails) == 1


async def test_nothing_goes_out_in_clear_that_should_be_encrypted(mailbox: Mailbox) -> None:
    with pytest.raises(aiosmtplib.SMTPException):
        await send(Settings(**smtp(mailbox, smtp_tls="starttls")), "jane@example.com", HELLO)
    assert mailbox.mails == []


async def test_a_stranger_with_a_certificate_gets_nothing(
    certificate: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    box = Mailbox()
    async with smtp_server(box, tls_context=certificate):
        with pytest.raises((aiosmtplib.SMTPException, OSError)):
            await send(Settings(**smtp(box, smtp_tls="starttls")), "jane@example.com", HELLO)
    assert box.mails == []


@pytest.mark.parametrize(
    ("where", "reply", "raised"),
    [
        ("rcpt_answers", "550 no such user", Refused),
        ("rcpt_answers", "450 try later", aiosmtplib.SMTPRecipientsRefused),
        ("data_answers", "554 spam", Refused),
        ("data_answers", "451 try later", aiosmtplib.SMTPDataError),
    ],
)
async def test_for_good_or_for_now(mailbox: Mailbox, where: str, reply: str, raised: type[Exception]) -> None:
    setattr(mailbox, where, [reply])
    with pytest.raises(raised):
        await send(Settings(**smtp(mailbox)), "jane@example.com", HELLO)


async def test_without_a_server_mails_become_files(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    await asyncio.gather(*(send(settings, f"user{n}@example.com", HELLO) for n in range(50)))
    mails = kept(settings.data_dir)
    assert {message["To"] for message in mails} == {f"user{n}@example.com" for n in range(50)}
    folder = mail.folder(settings)
    assert len(list(folder.iterdir())) == 50
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_greeting_says_where_mails_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _greet(Settings(data_dir=tmp_path), None)
    assert f"OFFICERPC_SMTP_HOST is not set: mails are written to {tmp_path}/mail" in capsys.readouterr().out
    _greet(Settings(data_dir=tmp_path, smtp_host="mx.test"), None)
    assert "mails" not in capsys.readouterr().out


# --- with the queue -------------------------------------------------------------------------------------


async def asked(client: Client) -> None:
    """Jane has asked for a new password."""
    await client.call("createUser", {"email": "jane@example.com", "displayName": "Jane Doe"})
    await client.call("requestPasswordReset", RESET)


async def _empty(db: asyncpg.Connection) -> bool:
    return not await db.fetchval("SELECT count(*) FROM jobs")


def outcomes(logged: Log) -> list[tuple[str, str]]:
    """How each try ended, and why."""
    return [(entry["outcome"], entry.get("cause", "")) for entry in logged.lines() if entry["event"] == "job"]


async def test_a_server_that_is_busy_is_asked_again(
    mailbox: Mailbox, serve: Serve, db: asyncpg.Connection, logged: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "FIRST_PAUSE", 0.01)
    mailbox.data_answers = ["451 jane@example.com has to wait"] * 2
    await asked(await serve(**smtp(mailbox)))
    await until(lambda: _empty(db))
    assert [message["To"] for message in mailbox.mails] == ["jane@example.com"]
    assert [outcome for outcome, _ in outcomes(logged)] == ["retried", "retried", "done"]
    assert outcomes(logged)[0][1].startswith("SMTPDataError 451 at ")
    assert b"jane@example.com" not in logged.text


async def test_a_mail_that_is_refused_for_good_is_parked(
    mailbox: Mailbox, serve: Serve, db: asyncpg.Connection, logged: Log
) -> None:
    mailbox.rcpt_answers = ["550 no jane@example.com here"]
    client = await serve(**smtp(mailbox))
    await asked(client)

    async def parked() -> Any:
        return await db.fetchval("SELECT state = 'parked' FROM jobs")

    await until(parked)
    assert [outcome for outcome, _ in outcomes(logged)] == ["parked"]
    assert b"jane@example.com" not in logged.text
    async with client.http.get(client.url + "/metrics") as response:
        assert 'officerpc_jobs_total{kind="mail-code",outcome="parked"} 1.0' in await response.text()


@asynccontextmanager
async def worker(mailbox: Mailbox, data_dir: Path, start: Callable[..., Command]) -> AsyncIterator[Command]:
    """officerpc work, as operators run it."""
    settings = smtp(mailbox) | {"data_dir": data_dir}
    command = start("work", **{f"OFFICERPC_{name.upper()}": str(value) for name, value in settings.items()})
    try:
        yield command
    finally:
        command.process.kill()
        await command.finished()


async def test_a_worker_killed_in_the_middle(
    mailbox: Mailbox, serve: Serve, db: asyncpg.Connection, officerpc_command: Any, tmp_path: Path
) -> None:
    """Its mail is delivered at least once, by the next worker."""
    holding, gate = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        holding.set()
        await gate.wait()

    mailbox.hold = hold
    await asked(await serve(run_jobs=False))
    async with worker(mailbox, tmp_path, officerpc_command) as first:
        await asyncio.wait_for(holding.wait(), 60)
        first.process.kill()
        await first.finished()
    gate.set()
    # What another worker would wait for: the lease of the dead one ends.
    await db.execute("UPDATE jobs SET due_at = now()")
    async with worker(mailbox, tmp_path, officerpc_command) as second:
        await until(lambda: _empty(db))
        assert mailbox.mails and {message["To"] for message in mailbox.mails} == {"jane@example.com"}
        second.process.send_signal(signal.SIGINT)
        assert (await second.finished()).status == 0


async def test_a_worker_that_is_told_to_stop_finishes(
    mailbox: Mailbox, serve: Serve, db: asyncpg.Connection, officerpc_command: Any, tmp_path: Path
) -> None:
    """On SIGTERM, with status 0, and nothing is lost or done twice."""
    holding, gate = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        holding.set()
        await gate.wait()

    mailbox.hold = hold
    await asked(await serve(run_jobs=False))
    async with worker(mailbox, tmp_path, officerpc_command) as told:
        await asyncio.wait_for(holding.wait(), 60)
        told.process.send_signal(signal.SIGTERM)
        gate.set()
        assert (await told.finished()).status == 0
    assert len(mailbox.mails) == 1 and await _empty(db)


# --- whatever is stored ---------------------------------------------------------------------------------

ENCODED = "=?utf-8?q?a=0d=0aBcc=3a=20x=40evil.example=2c?=@trusted.example"


@pytest.mark.parametrize(
    "email",
    [
        ENCODED,
        "=?UTF-8?B?YQ0KQmNjOiB4QGV2aWwuZXhhbXBsZSw=?=@trusted.example",
        "a.=?us-ascii?q?b?=@trusted.example",
        "a@=?utf-8?q?trusted?=.example",
        "a=?b@trusted.example",
    ],
)
async def test_encoded_words_are_no_part_of_an_address(client: Client, email: str) -> None:
    """On no wire: all of them take addresses by the same type."""
    calls: list[tuple[str, dict[str, Any], str]] = [
        ("createUser", {"email": email}, "email"),
        ("createUsers", {"users": [{"email": email}]}, "users.0.email"),
        ("ensureUser", {"email": email}, "email"),
        ("renameUserByEmail", {"email": ADMIN, "newEmail": email}, "newEmail"),
        ("replaceUserByEmail", {"email": ADMIN, "newEmail": email}, "newEmail"),
        ("createStoreUser", {"email": email, "externalId": "1"}, "email"),
        ("updateStoreUser", {"id": 1, "email": email, "externalId": "1", "onlySeesReadable": True}, "email"),
        ("createMember", {"login": email, "sponsorId": 1, "profile": {}}, "login"),
    ]
    for method, params, member in calls:
        status, answer = await client.outcome(method, params)
        assert status == 400 and f"{member}: is not a valid e-mail address" in answer, (method, answer)


async def test_a_stored_address_that_is_none_parks_its_mail_at_once(
    mailbox: Mailbox, serve: Serve, db: asyncpg.Connection, logged: Log
) -> None:
    """Rows that no validation has seen: one try, no mail to anybody, and the log says why."""
    client = await serve(**smtp(mailbox))
    await client.call("createUser", {"email": "jane@example.com", "displayName": "Jane Doe"})
    stored = [ENCODED, "jane@example.com, x@evil.example", "jane@example.com\r\nBcc: x@evil.example"]
    for number, address in enumerate(stored, 1):
        await db.execute("UPDATE users SET email = $1 WHERE email_key = 'jane@example.com'", address)
        await client.call("requestPasswordReset", RESET)

        async def parked(wanted: int = number) -> bool:
            return await db.fetchval("SELECT count(*) FROM jobs WHERE state = 'parked'") == wanted  # type: ignore[no-any-return]

        await until(parked)
    assert [outcome for outcome, _ in outcomes(logged)] == ["parked"] * len(stored)
    assert all(cause.startswith("Unusable unusable_address at ") for _, cause in outcomes(logged))
    assert mailbox.mails == [] and mailbox.recipients == []


@pytest.mark.parametrize(
    "text",
    [
        "=?utf-8?q?=0d=0aBcc=3a=20x=40evil.example?=",
        "Doe, Jane <x@evil.example>",
        'Jane "J." Doe',
        "Jane\r\nBcc: x@evil.example\r\n\r\nbody",
        "Йане 🎉",
        "n" * 20_000,
    ],
)
async def test_a_stored_name_or_title_adds_no_header_and_no_recipient(
    mailbox: Mailbox, serve: Serve, db: asyncpg.Connection, text: str
) -> None:
    client = await serve(**smtp(mailbox))
    await client.call("createUser", {"email": "jane@example.com"})
    await db.execute("UPDATE users SET display_name = $1 WHERE email_key = 'jane@example.com'", text)
    await db.execute("UPDATE instances SET title = $1", text)
    await client.call("requestPasswordReset", RESET)
    await until(lambda: _empty(db))
    (message,) = mailbox.mails
    assert mailbox.recipients == [["jane@example.com"]]
    assert tuple(message.keys()) == HEADERS
    assert [found.addr_spec for found in message["To"].addresses] == ["jane@example.com"]
    text_body, html_body = bodies(message)
    assert "https://example.com/reset?code=" in text_body and "https://example.com/reset?code=" in html_body
