"""What users are called by: an e-mail, and a login, which may be the e-mail or a name of its own.

No two users of an instance share a name, whichever of the two it is to either. users.email holds the e-mail
or, for a user who has none, the login; a login of its own beside an e-mail stands in the table logins. Each
of the two has a unique constraint. What would be in one and in the other is refused to whoever comes
second: whoever writes into logins, or gives a user another e-mail, holds the row of instance_counters and
looks then. Creating a user holds that row too, and looks in its one statement (create_users).
"""

import unicodedata
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, JsonValue

from server.directory.users import address, email_key, taken
from server.tenants.call import Call


def _login(text: str) -> str:
    if any(unicodedata.category(char) == "Cc" for char in text):
        raise ValueError("holds control characters")
    if text != text.strip():
        raise ValueError("must not begin or end with a space")
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
"""A name to log in with. One that holds an @ has to be an e-mail address."""


class Names(NamedTuple):
    """The names of a user as they are stored."""

    # The e-mail; the login of a user who has none.
    email: str
    # Another name to log in with than that.
    login: str | None = None

    @property
    def keys(self) -> list[str]:
        """What identity is decided by."""
        return [email_key(name) for name in self if name is not None]


def names_of_user(login: str, email: str | None) -> Names:
    """The names to store of a user.

    Args:
        login: as NewLogin validates it.
        email: None for none; a login that is an e-mail is then the e-mail too.
    """
    if email is None or email_key(email) == email_key(login):
        return Names(email or login)
    return Names(email, login)


def has_email(name: str) -> bool:
    """Whether what stands as e-mail of a user is one, and not the login of a user without."""
    return "@" in name


async def hold_free_names(call: Call, names: Names, *, login_member: str, email_member: str) -> None:
    """Keep others from taking names, which must be free for a new user, until the transaction ends.

    Args:
        login_member, email_member: what the params call the two.

    Raises:
        Conflict: somebody has one of them.
    """
    await call.db.one("hold_counters", instance_id=call.instance.id)
    rows = await call.db.all(
        "find_taken", instance_id=call.instance.id, email_keys=names.keys, external_ids=[]
    )
    if not rows:
        return
    of_login = email_key(names.login or names.email)
    row = min(rows, key=lambda row: row["email_key"] != of_login)
    member = login_member if row["email_key"] == of_login else email_member
    raise taken("users_email", member, is_deleted=row["deleted_at"] is not None)


def renamed(names: Names, email: str) -> Names:
    """The names under another e-mail: a login that is an e-mail goes with the old one, another one stays."""
    if email_key(email) == email_key(names.email):
        return Names(email, names.login)
    own = names.login or names.email
    return names_of_user(email if has_email(own) else own, email)
