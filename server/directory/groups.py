"""Groups of users, for the methods about users and about groups."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from server.base.errors import Conflict, FieldError, Invalid
from server.base.models import without_controls
from server.tenants import access
from server.tenants.call import Call

ADMINS = "Admins"
"""The reserved group. Its members are the users with isAdmin."""
ADMINS_ID = 0
"""Its id; no other group has it."""


def trimmed(name: str) -> str:
    """A validator of one line without spaces around it."""
    if without_controls(name) != name.strip():
        raise ValueError("must not begin or end with a space")
    return name


def group_key(name: str) -> str:
    """The key of a group: equal for names that differ in case or Unicode form."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


MAX_KEY = 1000
"""Bytes of a group_key at most: it must fit into an index of Postgres, and into a cursor of listGroups."""


def _with_short_key(name: str) -> str:
    # NFKC replaces some characters by up to 18; 200 others have at most 800 bytes.
    if len(group_key(name).encode()) > MAX_KEY:
        raise ValueError(f"is too long: more than {MAX_KEY} bytes in the Unicode form NFKC")
    return name


GroupName = Annotated[
    str,
    Field(min_length=1, max_length=200, description="The group's name, in any case."),
    AfterValidator(trimmed),
    AfterValidator(_with_short_key),
]
GroupNames = Annotated[list[GroupName], Field(max_length=1000)]


ADMINS_KEY = group_key(ADMINS)


RESERVED = "Admins is a group of every instance: it stays as it is"


def own_key(name: str, *, member: str = "name") -> str:
    """The key of a group that may be made or changed.

    Args:
        member: of the params, that holds the name.

    Raises:
        Conflict: it is the reserved one.
    """
    if is_admins(name):
        raise reserved(member)
    return group_key(name)


def reserved(member: str) -> Conflict:
    """The error for a change of the group Admins itself."""
    return Conflict(RESERVED, code="reserved_group", fields=[FieldError(member, RESERVED)])


def is_admins(name: str) -> bool:
    """Whether this is a name of the reserved group."""
    return group_key(name) == ADMINS_KEY


async def find_group_ids(call: Call, names: Iterable[str]) -> dict[str, int]:
    """Existing groups: key -> id. They cannot be deleted until the transaction ends."""
    keys = sorted({group_key(name) for name in names} - {ADMINS_KEY})
    rows = await call.db.all("find_groups", instance_id=call.instance.id, name_keys=keys)
    return {row["name_key"]: row["id"] for row in rows}


def chosen_groups(names: Sequence[str], ids: Mapping[str, int]) -> list[int]:
    """The ids of groups, without Admins.

    Raises:
        Invalid: naming the groups that do not exist.
    """
    keys = {group_key(name): index for index, name in enumerate(names)}
    keys.pop(ADMINS_KEY, None)
    missing = sorted(index for key, index in keys.items() if key not in ids)
    if missing:
        raise Invalid.of([FieldError(f"groups.{index}", "is no group of this instance") for index in missing])
    return [ids[key] for key in keys]


async def groups_of(call: Call, user_ids: Sequence[int]) -> dict[int, list[str]]:
    """The groups of locked users, as getUserByEmail shows them."""
    rows = await call.db.all("groups_of", instance_id=call.instance.id, user_ids=user_ids)
    return {row["id"]: row["names"] for row in rows}


async def replace_groups(call: Call, wanted: Mapping[int, Sequence[int]], shown: Sequence[int]) -> None:
    """Set the groups of locked users, without Admins, which follows isAdmin.

    Args:
        wanted: user id -> group ids.
        shown: ids of users that were deleted or restored, which changes their groups too.
    """
    pairs = [(user_id, group_id) for user_id, ids in wanted.items() for group_id in ids]
    await call.db.run(
        "replace_groups",
        instance_id=call.instance.id,
        user_ids=list(wanted),
        member_ids=[user_id for user_id, _ in pairs],
        group_ids=[group_id for _, group_id in pairs],
        shown_ids=shown,
    )


def group_state(group: Mapping[str, Any]) -> dict[str, Any]:
    """What events tell of a group.

    Args:
        group: its name, description and external_id.
    """
    state = {"name": group["name"], "description": group["description"]}
    return state if group["external_id"] is None else state | {"externalId": group["external_id"]}


async def record_groups(call: Call, before: Mapping[int, list[str]]) -> None:
    """Emit the changes of locked users' groups.

    Raises:
        MemberForbidden: an administrator's groups changed, and the key may not change administrators.
    """
    if not before:
        return
    after = await groups_of(call, list(before))
    for user_id, names in before.items():
        if names != after[user_id]:
            access.require_user(call.caller, {"is_admin": ADMINS in (*names, *after[user_id])})
            call.emit("user.updated", user_id, before={"groups": names}, after={"groups": after[user_id]})
