"""What users are called by: an e-mail, and a login, which may be the e-mail or a name of its own.

No two users of an instance share a name, whichever of the two it is to either. users.email holds the e-mail
or, for a user who has none, the login; a login of its own beside an e-mail stands in the table logins. Each
of the two has a unique constraint. What would be in one and in the other is refused to whoever comes
second: whoever writes into logins, or gives a user another e-mail, holds the row of instance_counters and
looks then. Creating a user holds that row too, and looks in its one statement (create_user).
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field, JsonValue

from server.errors import CONSTRAINTS, Conflict, FieldError
from server.methods._users import address, email_key, found, user_deleted
from server.registry import Call


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


def taken(member: str, *, is_deleted: bool = False) -> Conflict:
    """The error for a name that somebody has.

    Args:
        member: of the params, that holds it.
    """
    if is_deleted:
        return user_deleted(member)
    kind, code, message, _ = CONSTRAINTS["users_email"]
    return kind(message, code=code, fields=[FieldError(member, message)])  # type: ignore[return-value]


async def hold_free_names(
    call: Call, names: Names, *, login_member: str, email_member: str, user_id: int | None = None
) -> None:
    """Keep others from taking names until the transaction ends.

    Args:
        login_member, email_member: what the params call the two.
        user_id: who is to have them; None for a new user.

    Raises:
        Conflict: somebody else has one of them.
    """
    await call.db.one("hold_counters", instance_id=call.instance.id)
    rows = await call.db.all("find_names", instance_id=call.instance.id, keys=names.keys, user_id=user_id)
    if not rows:
        return
    of_login = email_key(names.login or names.email)
    row = min(rows, key=lambda row: row["key"] != of_login)
    raise taken(login_member if row["key"] == of_login else email_member, is_deleted=row["is_deleted"])


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
    held = found(await call.db.one("hold_names", instance_id=call.instance.id, user_id=user_id))
    before = Names(held["email"], held["login"])
    after = names_of_user(before.login or before.email, email)
    if after == before:
        return None
    await hold_free_names(call, after, login_member="login", email_member=member, user_id=user_id)
    return dict(await store_names(call, user_id, after)) | {"is_admin": held["is_admin"]}


async def settle_renamed(call: Call, renamed: Sequence[Mapping[str, Any]], member: str) -> dict[int, Any]:
    """After users got other e-mails: see to their logins, and that nobody else has such an e-mail as login.

    A login that is an e-mail goes with the old e-mail; another one stays.

    Args:
        renamed: id, before and after of users' states, who are held.
        member: of the params, that holds the new e-mail.

    Returns:
        by the id, the states of those whose login changed.

    Raises:
        Conflict: somebody else has such an e-mail as login.
    """
    states: dict[int, Any] = {}
    if not renamed:
        return states
    await call.db.one("hold_counters", instance_id=call.instance.id)
    wanted = {email_key(user["after"]["email"]): user["id"] for user in renamed}
    rows = await call.db.all("find_logins", instance_id=call.instance.id, login_keys=list(wanted))
    for row in rows:
        if row["user_id"] != wanted[row["login_key"]]:
            raise taken(member, is_deleted=row["is_deleted"])
    for user in renamed:
        email = user["after"]["email"]
        if (own := user["before"]["login"]) is not None:
            names = names_of_user(own if not has_email(own) else email, email)
            states[user["id"]] = (await store_names(call, user["id"], names))["after"]
    return states
