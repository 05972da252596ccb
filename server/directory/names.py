"""The names of a user: an e-mail, and a login, which may be the e-mail or another name.

No two users of an instance share a name: an e-mail of one user cannot be the login of another. users.email
holds the e-mail, or the login of a user without an e-mail. The table logins holds a login that differs from
the e-mail. Each has a unique constraint. For a name in both tables, every statement that writes a login or
changes an e-mail first locks the row of instance_counters and then looks. create_users does both itself.
"""

import unicodedata
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, JsonValue

from server.directory.groups import trimmed
from server.directory.many import find_taken, hold_counters
from server.directory.users import address, email_key, taken
from server.tenants.call import Call


def _login(text: str) -> str:
    trimmed(text)
    return address(text) if "@" in text else unicodedata.normalize("NFC", text)


_SCHEMA: dict[str, JsonValue] = {
    "anyOf": [
        {"format": "email"},
        {
            "pattern": r"^[^@\s\u0000-\u001f\u007f-\u009f]"
            r"([^@\u0000-\u001f\u007f-\u009f]*[^@\s\u0000-\u001f\u007f-\u009f])?$"
        },
    ]
}
NewLogin = Annotated[
    str, Field(min_length=1, max_length=100, json_schema_extra=_SCHEMA), AfterValidator(_login)
]
"""A login. One with an @ must be an e-mail address."""


class Names(NamedTuple):
    """The stored names of a user."""

    # The e-mail, or the login of a user without an e-mail.
    email: str
    # A login other than email.
    login: str | None = None

    @property
    def keys(self) -> list[str]:
        """See email_key."""
        return [email_key(name) for name in self if name is not None]


def names_of_user(login: str, email: str | None) -> Names:
    """The names to store.

    Args:
        login: a NewLogin.
        email: None: a login that is an e-mail is also the e-mail; another login stands alone.
    """
    if email is None or email_key(email) == email_key(login):
        return Names(email or login)
    return Names(email, login)


def has_email(name: str) -> bool:
    """Whether a stored e-mail is one, and not the login of a user without an e-mail."""
    return "@" in name


async def hold_free_names(call: Call, names: Names, *, login_member: str, email_member: str) -> None:
    """Reserve names for a new user until the transaction ends.

    Args:
        login_member, email_member: the params with the names.

    Raises:
        Conflict: a name is taken.
    """
    await hold_counters(call)
    rows = await find_taken(call.db, call, names.keys)
    if not rows:
        return
    of_login = email_key(names.login or names.email)
    row = min(rows, key=lambda row: row["email_key"] != of_login)
    member = login_member if row["email_key"] == of_login else email_member
    raise taken("users_email", member, is_deleted=row["deleted_at"] is not None)


def renamed(names: Names, email: str) -> Names:
    """The names with another e-mail. A login that is an e-mail is dropped; another login is kept."""
    if email_key(email) == email_key(names.email):
        return Names(email, names.login)
    own = names.login or names.email
    return names_of_user(email if has_email(own) else own, email)
