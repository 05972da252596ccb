"""Codes in mails: password resets and confirmed registrations, once, in time, only for their user."""

import asyncio
import re
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from conftest import ADMIN, Client, Log, Serve, footprint, insert_key, until
from test_mail import bodies, kept

from server.base.errors import Invalid
from server.base.settings import Settings
from server.base.tokens import digest
from server.methods.codes import EXAMPLE_CODES, MAX_URL, checked_link, issue_code, mail_code
from server.postgres.db import Database
from server.tenants.instances import InstanceSettings

JANE = {"email": "jane@example.com"}
URL = "https://example.com/reset?code={{code}}"
WRONG = (400, "the code is not valid or has expired")


@pytest.fixture
async def database(database_url: str) -> Any:
    database = Database(Settings(), database_url)
    await database.open()
    yield database
    await database.close()


async def done(db: asyncpg.Connection) -> None:
    """The queue has nothing left to do."""

    async def empty() -> bool:
        return not await db.fetchval("SELECT count(*) FROM jobs")

    await until(empty)


def code_of(message: EmailMessage) -> str:
    """The code in a mail, the same in text and HTML."""
    text, html = bodies(message)
    (link,) = re.findall(r"^https://example\.com/\S*$", text, re.MULTILINE)
    assert f'<a href="{link.replace("&", "&amp;")}">' in html
    found = re.search(r"code=([0-9A-Za-z]{24})$", link)
    assert found
    return found[1]


async def reset_code(client: Client, db: asyncpg.Connection, folder: Path, **params: Any) -> str:
    """The code that Jane is mailed."""
    await client.call("requestPasswordReset", JANE | {"confirmationUrl": URL} | params)
    await done(db)
    return code_of(kept(folder)[-1])


# --- a forgotten password -------------------------------------------------------------------------------


async def test_a_forgotten_password(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection, tmp_path: Path
) -> None:
    code = await reset_code(client, db, tmp_path)
    (message,) = kept(tmp_path)
    assert (message["To"], message["Subject"]) == ("jane@example.com", "Set a new password – MYINSTANCE")
    assert "Hello Jane Doe," in bodies(message)[0]
    new = {"code": code, "newPassword": "onemoretime"}
    assert await client.call("resetPasswordWithCode", new) is True
    await client.call("login", JANE | {"password": "onemoretime"})
    assert (await client.outcome("login", JANE | {"password": "demo1234"}))[0] == 400
    assert await client.outcome("resetPasswordWithCode", new) == WRONG


async def test_a_reset_ends_sessions(client: Client, jane: dict[str, Any], db: asyncpg.Connection) -> None:
    code = EXAMPLE_CODES["reset"]
    await client.call("resetPasswordWithCode", {"code": code, "newPassword": "onemoretime"})
    assert await db.fetchval("SELECT count(*) FROM sessions") == 0


async def test_it_is_written_in_the_users_language(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection, tmp_path: Path
) -> None:
    await db.execute("UPDATE users SET language = 'ar' WHERE id = $1", jane["id"])
    await reset_code(client, db, tmp_path)
    assert kept(tmp_path)[0]["Subject"] == "إعادة تعيين كلمة المرور – MYINSTANCE"


async def test_known_and_unknown_are_answered_alike(
    serve: Serve, db: asyncpg.Connection, tmp_path: Path
) -> None:
    """The same bytes, for the same work: a row in the queue. Only the known one gets a mail."""
    client = await serve(run_jobs=False)
    for name in ("jane", "gone", "away"):
        await client.call("createUser", {"email": f"{name}@example.com"})
    await client.call("deleteUserByEmail", {"email": "gone@example.com"})
    await client.call("updateUserByEmail", {"email": "away@example.com", "isActive": False})
    answers = []
    for name in ("jane", "nobody", "gone", "away"):
        before = await footprint(db)
        params = {"email": f"{name}@example.com", "confirmationUrl": URL}
        async with await client.post({"method": "requestPasswordReset", "params": params}) as response:
            headers = set(response.headers) - {"X-Request-Id", "Date"}
            answers.append((response.status, await response.read(), headers))
        assert await footprint(db) == before | {name: before[name] + 1 for name in ("jobs", "events")}
    assert answers == [answers[0]] * 4 and answers[0][:2] == (200, b"true")
    await serve()
    await done(db)
    assert [message["To"] for message in kept(tmp_path)] == ["jane@example.com"]


async def test_links_never_use_the_host_header(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection, tmp_path: Path
) -> None:
    lies = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}
    await client.call("requestPasswordReset", JANE | {"confirmationUrl": URL}, headers=lies)
    await done(db)
    (message,) = kept(tmp_path)
    assert "evil" not in message.as_string() and code_of(message)


async def test_a_password_that_is_refused_leaves_the_code(
    client: Client, operator: Client, jane: dict[str, Any]
) -> None:
    policy = {"instance": "MYINSTANCE", "settings": {"passwordPolicy": {"minLength": 12}}}
    await operator.call("updateInstance", policy)
    short = {"code": EXAMPLE_CODES["reset"], "newPassword": "short"}
    assert (await client.outcome("resetPasswordWithCode", short))[1] == (
        "newPassword: must have at least 12 characters"
    )
    await client.call("resetPasswordWithCode", short | {"newPassword": "long enough now"})


# --- codes ----------------------------------------------------------------------------------------------


async def test_of_fifty_who_redeem_a_code_one_wins(client: Client, jane: dict[str, Any]) -> None:
    answers = await asyncio.gather(
        *(
            client.outcome(
                "resetPasswordWithCode", {"code": EXAMPLE_CODES["reset"], "newPassword": f"password {number}"}
            )
            for number in range(50)
        )
    )
    winners = [number for number, answer in enumerate(answers) if answer == (200, True)]
    assert len(winners) == 1
    assert answers.count(WRONG) == 49
    await client.call("login", JANE | {"password": f"password {winners[0]}"})


async def test_codes_expire_by_the_databases_clock(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection, tmp_path: Path
) -> None:
    code = await reset_code(client, db, tmp_path)
    lifetime = "SELECT extract(EPOCH FROM expires_at - created_at)::int FROM codes WHERE digest = $1"
    assert await db.fetchval(lifetime, digest(code)) == 24 * 3600
    await db.execute("UPDATE codes SET expires_at = now() - interval '1 second'")
    new = {"code": code, "newPassword": "onemoretime"}
    assert await client.outcome("resetPasswordWithCode", new) == WRONG
    assert await client.outcome("confirmEmail", {"code": EXAMPLE_CODES["confirm"]}) == WRONG
    await db.execute("UPDATE codes SET expires_at = now() + interval '1 hour'")
    await client.call("resetPasswordWithCode", new)


async def test_a_new_code_ends_the_one_before(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection, tmp_path: Path
) -> None:
    first = await reset_code(client, db, tmp_path)
    second = await reset_code(client, db, tmp_path)
    assert first != second
    for code in (EXAMPLE_CODES["reset"], first):
        new = {"code": code, "newPassword": "onemoretime"}
        assert await client.outcome("resetPasswordWithCode", new) == WRONG
    await client.call("resetPasswordWithCode", {"code": second, "newPassword": "onemoretime"})
    await client.call("confirmEmail", {"code": EXAMPLE_CODES["confirm"]})  # of another purpose: untouched


async def test_a_code_is_bound_to_its_purpose_user_and_instance(
    client: Client, other: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    await client.call("createUser", {"email": "tom@example.com", "password": "demo1234"})
    confirm, reset = EXAMPLE_CODES["confirm"], EXAMPLE_CODES["reset"]
    new = {"newPassword": "onemoretime"}
    assert await client.outcome("resetPasswordWithCode", new | {"code": confirm}) == WRONG
    assert await client.outcome("confirmEmail", {"code": reset}) == WRONG
    assert await other.outcome("resetPasswordWithCode", new | {"code": reset}) == WRONG
    assert await client.outcome("resetPasswordWithCode", new | {"code": reset.swapcase()}) == WRONG
    await client.call("resetPasswordWithCode", new | {"code": reset})
    await client.call("login", {"email": "tom@example.com", "password": "demo1234"})
    await client.call("login", JANE | {"password": "onemoretime"})


async def test_a_deleted_users_code_is_worth_nothing(client: Client, jane: dict[str, Any]) -> None:
    await client.call("deleteUserByEmail", JANE)
    new = {"code": EXAMPLE_CODES["reset"], "newPassword": "onemoretime"}
    assert await client.outcome("resetPasswordWithCode", new) == WRONG
    assert await client.outcome("confirmEmail", {"code": EXAMPLE_CODES["confirm"]}) == WRONG


async def test_a_code_is_in_clear_in_its_mail_alone(
    serve: Serve, db: asyncpg.Connection, tmp_path: Path, logged: Log
) -> None:
    """Not in the queue, not in any table, not in the log."""
    client = await serve(run_jobs=False)
    await client.call("createUser", JANE)
    await client.call("requestPasswordReset", JANE | {"confirmationUrl": URL})
    assert await db.fetchval("SELECT count(*) FROM codes") == 0  # it is made when it is sent
    await serve()
    await done(db)
    code = code_of(kept(tmp_path)[0])
    assert await db.fetchval("SELECT digest FROM codes") == digest(code)
    for (table,) in await db.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        dump = await db.fetchval(f"SELECT string_agg(t::text, ' ') FROM {table} AS t") or ""
        assert code not in dump and code.encode().hex() not in dump, table
    assert code.encode() not in logged.text and b"jane@example.com" not in logged.text
    await client.call("resetPasswordWithCode", {"code": code, "newPassword": "onemoretime"})
    assert code.encode() not in logged.text


async def test_codes_are_long_and_random(database: Database, db: asyncpg.Connection) -> None:
    codes = set()
    for _ in range(20):
        async with database.transaction() as connection:
            issued = await issue_code(connection, 1, ADMIN, "reset", 3600)
        assert issued is not None
        codes.add(issued[0])
    assert len(codes) == 20 and all(re.fullmatch(r"[0-9A-Za-z]{24}", code) for code in codes)
    assert await db.fetchval("SELECT count(*) FROM codes") == 1


# --- a registration -------------------------------------------------------------------------------------


async def unconfirmed(database: Database, db: asyncpg.Connection, jane: dict[str, Any]) -> None:
    """Jane as a registration that waits for the code in its mail."""
    await db.execute("UPDATE users SET confirmed_at = NULL WHERE id = $1", jane["id"])
    async with database.transaction() as connection:
        await mail_code(
            connection,
            instance_id=1,
            email_key="jane@example.com",
            purpose="confirm",
            confirmation_url=checked_link(
                "https://example.com/hello?a=b&code={code}}",
                InstanceSettings(confirmationHosts=["example.com"]),
            ),
        )


async def is_confirmed(db: asyncpg.Connection) -> bool:
    return bool(
        await db.fetchval("SELECT confirmed_at IS NOT NULL FROM users WHERE email = 'jane@example.com'")
    )


async def test_a_registration_is_confirmed_by_its_code(
    client: Client, database: Database, jane: dict[str, Any], db: asyncpg.Connection, tmp_path: Path
) -> None:
    await unconfirmed(database, db, jane)
    await done(db)
    (message,) = kept(tmp_path)
    assert message["Subject"] == "Confirm your registration – MYINSTANCE"
    assert not await is_confirmed(db)
    code = code_of(message)
    assert await client.call("confirmEmail", {"code": code}) is True
    assert await is_confirmed(db)
    assert await client.outcome("confirmEmail", {"code": code}) == WRONG


async def test_a_registration_is_confirmed_by_force(
    client: Client, database: Database, jane: dict[str, Any], db: asyncpg.Connection, tmp_path: Path
) -> None:
    """Without a code, even after it has expired; a code on its way is not sent any more."""
    await db.execute("UPDATE codes SET expires_at = now() - interval '1 day'")
    await db.execute("UPDATE users SET confirmed_at = NULL WHERE id = $1", jane["id"])
    assert await client.call("forceConfirmEmail", {"email": "JANE@example.com"}) is True
    assert await is_confirmed(db)
    confirmed_at = await db.fetchval("SELECT confirmed_at FROM users WHERE id = $1", jane["id"])
    await client.call("forceConfirmEmail", JANE)
    assert await db.fetchval("SELECT confirmed_at FROM users WHERE id = $1", jane["id"]) == confirmed_at
    assert await db.fetchval("SELECT count(*) FROM codes WHERE purpose = 'confirm'") == 0
    assert (await client.outcome("forceConfirmEmail", {"email": "nobody@example.com"}))[0] == 400
    without = client.using(await insert_key(db, scopes=("users:write",)))
    assert await without.outcome("forceConfirmEmail", JANE) == (403, "not-allowed")
    async with database.transaction() as connection:
        await mail_code(
            connection, instance_id=1, email_key="jane@example.com", purpose="confirm", confirmation_url=URL
        )
    await done(db)
    assert kept(tmp_path) == []


async def test_a_transaction_that_rolls_back_mails_nothing(
    database: Database, client: Client, jane: dict[str, Any], db: asyncpg.Connection, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="no"):
        async with database.transaction() as connection:
            await mail_code(
                connection, instance_id=1, email_key="jane@example.com", purpose="reset", confirmation_url=URL
            )
            raise RuntimeError("no")
    await reset_code(client, db, tmp_path)
    assert len(kept(tmp_path)) == 1


# --- where links lead -----------------------------------------------------------------------------------

HOSTS = ["example.com", "xn--mller-kva.example", "localhost", "127.0.0.1", "127.8.9.1", "::1"]


@pytest.mark.parametrize(
    ("url", "link"),
    [
        ("https://example.com/?c={{code}}", "https://example.com/?c=C0de"),
        (
            "https://example.com/register-confirmation?code={code}}",
            "https://example.com/register-confirmation?code=C0de",
        ),
        ("https://example.com/{{code}}/x", "https://example.com/C0de/x"),
        ("https://example.com/#/reset/{{code}}", "https://example.com/#/reset/C0de"),
        ("https://example.com?{{code}}", "https://example.com?C0de"),
        ("HTTPS://EXAMPLE.com/{{code}}", "HTTPS://EXAMPLE.com/C0de"),
        ("https://example.com:8443/{{code}}", "https://example.com:8443/C0de"),
        (
            "https://example.com/%D0%96?a=b&c={{code}}&d='(e)'",
            "https://example.com/%D0%96?a=b&c=C0de&d='(e)'",
        ),
        ("https://xn--mller-kva.example/{{code}}", "https://xn--mller-kva.example/C0de"),
        ("http://localhost:3000/{{code}}", "http://localhost:3000/C0de"),
        ("http://127.0.0.1/{{code}}", "http://127.0.0.1/C0de"),
        ("http://127.8.9.1:80/{{code}}", "http://127.8.9.1:80/C0de"),
        ("http://[::1]:3000/{{code}}", "http://[::1]:3000/C0de"),
        ("https://localhost/{{code}}", "https://localhost/C0de"),
    ],
)
def test_good_links(url: str, link: str) -> None:
    assert checked_link(url, InstanceSettings(confirmationHosts=HOSTS)).replace("{{code}}", "C0de") == link


BAD_LINKS = {
    "": "must hold {{code}} once",
    "https://example.com/": "must hold {{code}} once",
    "https://example.com/{{code}}{{code}}": "must hold {{code}} once",
    "https://example.com/{{code}}?{code}}": "must hold {{code}} once",
    "https://example.com/{{ code }}": "must hold {{code}} once",
    "https://example.com/{code}": "must hold {{code}} once",
    "https://example.com/{{{code}}": "characters",
    "https://example.com/{{code}}}": "characters",
    "https://example.com/{{code}}?{x}": "characters",
    "http://example.com/{{code}}": "https",
    "//example.com/{{code}}": "https",
    "/reset?{{code}}": "https",
    "example.com/{{code}}": "https",
    "ftp://example.com/{{code}}": "https",
    "javascript:alert('{{code}}')//example.com": "https",
    "data:text/html,{{code}}": "https",
    "{{code}}": "https",
    "https:{{code}}": "host",
    "https:/example.com/{{code}}": "host",
    "https:///example.com/{{code}}": "host",
    "https://?{{code}}": "host",
    "https://evil.example/{{code}}": "host",
    "https://evil.example/?example.com={{code}}": "host",
    "https://example.com.evil.example/{{code}}": "host",
    "https://sub.example.com/{{code}}": "host",
    "https://notexample.com/{{code}}": "host",
    "https://example.com./{{code}}": "host",
    "https://example.com%2eevil.example/{{code}}": "host",
    "https://example.com{{code}}/": "host",
    "https://{{code}}.example.com/": "host",
    "https://{{code}}/": "host",
    "https://example.com:/{{code}}": "host",
    "https://example.com:0443/{{code}}": "host",
    "https://example.com:{{code}}/": "address",
    "https://example.com:99999/{{code}}": "address",
    "https://example.com:80:80/{{code}}": "address",
    "https://[example.com/{{code}}": "address",
    "https://[::2]/{{code}}": "host",
    "http://[::1/{{code}}": "address",
    "http://192.168.0.1/{{code}}": "https",
    "http://127.0.0.2/{{code}}": "host",
    "https://127.0.0.2/{{code}}": "host",
    "http://0.0.0.0/{{code}}": "https",
    "http://localhost.evil.example/{{code}}": "https",
    "http://127.0.0.1.evil.example/{{code}}": "https",
    "https://user@example.com/{{code}}": "characters",
    "https://example.com@evil.example/{{code}}": "characters",
    "https://user:secret@example.com/{{code}}": "characters",
    "https://evil.example\\@example.com/{{code}}": "characters",
    "https://example.com\\.evil.example/{{code}}": "characters",
    "https://example.com/\\{{code}}": "characters",
    "https://example.com/{{code}}\r\nBcc: evil@example.com": "characters",
    "https://example.com/{{code}}\n": "characters",
    "https://exam\tple.com/{{code}}": "characters",
    " https://example.com/{{code}}": "characters",
    "https://example.com/a b{{code}}": "characters",
    "https://example.com/\x00{{code}}": "characters",
    "https://example.com/\x7f{{code}}": "characters",
    "https://example.com/\u2028{{code}}": "characters",
    "https://ex\u00e4mple.com/{{code}}": "characters",
    "https://example\u3002com/{{code}}": "characters",
    "https://example.com/<b>{{code}}": "characters",
    'https://example.com/"{{code}}': "characters",
    "https://example.com/" + "x" * MAX_URL + "{{code}}": "must have at most",
}


@pytest.mark.parametrize("url", BAD_LINKS)
def test_bad_links(url: str) -> None:
    with pytest.raises(Invalid, match=r"^confirmationUrl: ") as refused:
        checked_link(url, InstanceSettings(confirmationHosts=HOSTS))
    assert BAD_LINKS[url] in refused.value.message
    assert "evil" not in refused.value.message


def test_a_list_with_an_empty_host_opens_nothing() -> None:
    with pytest.raises(Invalid):
        settings = InstanceSettings.model_construct(confirmationHosts=[""], httpConfirmationHosts=[""])
        checked_link("https:///evil.example/{{code}}", settings)


async def test_a_bad_link_is_refused_by_name(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    before = await footprint(db)
    for url in ("https://evil.example/{{code}}", "x" * (MAX_URL + 1), 7, None):
        status, message = await client.outcome("requestPasswordReset", JANE | {"confirmationUrl": url})
        assert status == 400 and message.startswith("confirmationUrl: ")
    assert (await client.outcome("requestPasswordReset", JANE))[1] == "confirmationUrl: is required"
    assert await footprint(db) == before
