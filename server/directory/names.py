"""What users are called by: an e-mail, and a login, which may be the e-mail or a name of its own.

No two users of an instance share a name, whichever of the two it is to either. users.email holds the e-mail
or, for a user who has none, the login; a login of its own beside an e-mail stands in the table logins. Each
of the two has a unique constraint. What would be in one and in the other is refused to whoever comes
second: whoever writes into logins, or gives a user another e-mail, holds the row of instance_counters and
looks then. Creating a user holds that row too, and looks in its one statement (create_users).
"""

import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field, JsonValue

from server.directory.users import address, email_key, found, taken
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


async def hold_names(call: Call, wanted: Mapping[str, int | None]) -> list[Any]:
    """Keep others from taking names until the transaction ends.

    Whoever gives a user other names holds the user first, then calls this, and writes last. A creation holds
    the counters too before it writes names: in another order the two could wait for each other.

    Args:
        wanted: by the keys of the names, the id of who is to have each; None for a new user.

    Returns:
        user_id, key and is_deleted of everybody else who has one of them.
    """
    await call.db.one("hold_counters", instance_id=call.instance.id)
    rows = await call.db.all("find_names", instance_id=call.instance.id, keys=list(wanted))
    return [row for row in rows if row["user_id"] != wanted[row["key"]]]


async def hold_free_names(
    call: Call, names: Names, *, login_member: str, email_member: str, user_id: int | None = None
) -> None:
    """As hold_names does, for names that must be free.

    Args:
        login_member, email_member: what the params call the two.
        user_id: who is to have them; None for a new user.

    Raises:
        Conflict: somebody else has one of them.
    """
    rows = await hold_names(call, dict.fromkeys(names.keys, user_id))
    if not rows:
        return
    of_login = email_key(names.login or names.email)
    row = min(rows, key=lambda row: row["key"] != of_login)
    member = login_member if row["key"] == of_login else email_member
    raise taken("users_email", member, is_deleted=row["is_deleted"])


async def store_names(call: Call, user_id: int, names: Names) -> Any:
    """Give a user, who is held, names that hold_free_names found free; id, before and after of its state."""
    return found(
        await call.db.one(
            "set_names",
            instance_id=call.instance.id,
            user_id=user_id,
            email=names.email,
            email_key=email_key(names.email),
            login=names.login,
            login_key=names.login and email_key(names.login),
        )
    )


async def hold_user(call: Call, *, user_id: int | None = None, key: str | None = None) -> Any:
    """A living user, kept from others: id, email, login and is_admin; see hold_names for what comes after.

    Args:
        user_id, key: its id, or the key of its e-mail.

    Raises:
        NotFound: there is no such user.
    """
    ref = {"instance_id": call.instance.id, "user_id": user_id, "email_key": key}
    return found(await call.db.one("hold_names", **ref))


async def change_email(call: Call, user_id: int, email: str | None, member: str) -> Any:
    """Give a user another e-mail, or none, without another login.

    Args:
        email: None takes it away; a login that is an e-mail is then the e-mail again.
        member: of the params, that holds the e-mail.

    Returns:
        id, before and after of the user's state, and is_admin; None where nothing changes.

    Raises:
        NotFound: there is no such user.
        Conflict: somebody else has the e-mail.
    """
    held = await hold_user(call, user_id=user_id)
    return await _give(call, held, names_of_user(held["login"] or held["email"], email), member)


async def rename(call: Call, held: Any, email: str, member: str) -> Any:
    """Give a user another e-mail; a login that is an e-mail goes with the old one, another one stays.

    Args:
        held: the row of hold_user.
        member: of the params, that holds the e-mail.

    Returns:
        as change_email.

    Raises:
        Conflict: somebody else has the e-mail.
    """
    return await _give(call, held, renamed(Names(held["email"], held["login"]), email), member)


def renamed(names: Names, email: str) -> Names:
    """The names of a user after rename."""
    if email_key(email) == email_key(names.email):
        return Names(email, names.login)
    own = names.login or names.email
    return names_of_user(email if has_email(own) else own, email)


async def _give(call: Call, held: Any, names: Names, member: str) -> Any:
    if names == Names(held["email"], held["login"]):
        return None
    await hold_free_names(call, names, login_member=member, email_member=member, user_id=held["id"])
    return dict(await store_names(call, held["id"], names)) | {"is_admin": held["is_admin"]}
