"""Groups of users, as the methods about users and those about groups share them."""

import unicodedata
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from server.errors import FieldError, Invalid, MemberForbidden, NotFound
from server.registry import Call

ADMINS = "Admins"
"""The reserved group, whose members are those with isAdmin."""


def _plain(name: str) -> str:
    if any(unicodedata.category(char) == "Cc" for char in name):
        raise ValueError("holds control characters")
    if name != name.strip():
        raise ValueError("must not begin or end with a space")
    return name


GroupName = Annotated[
    str,
    Field(min_length=1, max_length=200, description="The group's name, in any case."),
    AfterValidator(_plain),
]
GroupNames = Annotated[list[GroupName], Field(max_length=1000)]


def group_key(name: str) -> str:
    """What a group's identity is decided by."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


ADMINS_KEY = group_key(ADMINS)


def is_admins(name: str) -> bool:
    """Whether a name is that of the reserved group."""
    return group_key(name) == ADMINS_KEY


def shown(member: Any) -> list[str]:
    """The groups of a row of hold_member, as getUserByEmail shows them."""
    return ([ADMINS] if member["is_admin"] else []) + list(member["names"])


async def hold_member(call: Call, key: str) -> Any:
    """A living user with its groups, held until the transaction ends.

    Raises:
        NotFound: there is none.
    """
    member = await call.db.one("hold_member", instance_id=call.instance.id, email_key=key)
    if member is None:
        raise NotFound
    return member


def may_administrate(call: Call, member: Any, is_admin: bool) -> None:
    """Raises Forbidden where a user would begin or cease to be an administrator, and the key may not."""
    if member["is_admin"] != is_admin:
        need_admin_scope(call)


def need_admin_scope(call: Call) -> None:
    """Raises Forbidden where the key may not touch administrators.

    Whoever sets an administrator's password or e-mail can become one, and whoever suspends or deletes one can
    lock the others out: so this is asked wherever that is done, of a row that the transaction holds.
    """
    if "users:admin" not in call.caller.scopes:
        raise MemberForbidden


async def group_ids(call: Call, names: Sequence[str]) -> list[int]:
    """The ids of groups other than Admins, which stay until the transaction ends.

    Raises:
        Invalid: naming those that do not exist.
    """
    keys = {group_key(name): place for place, name in enumerate(names)}
    keys.pop(ADMINS_KEY, None)
    rows = await call.db.all("find_groups", instance_id=call.instance.id, name_keys=list(keys))
    missing = keys.keys() - {row["name_key"] for row in rows}
    if missing:
        places = sorted(keys[key] for key in missing)
        raise Invalid.of([FieldError(f"groups.{place}", "is no group of this instance") for place in places])
    return [row["id"] for row in rows]


async def replace_groups(call: Call, member: Any, ids: list[int]) -> None:
    """Have a held user in these groups and no others, Admins aside."""
    user = {"instance_id": call.instance.id, "user_id": member["id"]}
    await call.db.run("leave_groups", **user, kept_ids=ids)
    await call.db.run("join_groups", **user, group_ids=ids)


async def record_groups(call: Call, key: str, before: Any) -> None:
    """Note the change of a held user's groups, if there is any."""
    after = await hold_member(call, key)
    if shown(before) != shown(after):
        call.record(
            "user.updated", before["id"], before={"groups": shown(before)}, after={"groups": shown(after)}
        )
