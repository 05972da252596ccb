"""The one way to change users, 1 to 1,000 of them, whatever the method.

Users are found and held (hold_user, rows.hold). A pure function makes of each what it is to be. refusals says
what stands against that: access, and names that others have. write stores all of it in one statement and
records the events.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from server.base.errors import NotFound, ServiceError
from server.base.models import HIDDEN
from server.base.pace import Pace
from server.directory.groups import (
    chosen_groups,
    find_group_ids,
    group_key,
    groups_of,
    record_groups,
    replace_groups,
)  # fmt: skip
from server.directory.many import Batch, Claims, external_ids_of, find_taken, if_free
from server.directory.names import Names, renamed
from server.directory.rows import Edit, Row, hold, members, state, store, with_fields, with_names
from server.directory.rules import names_of
from server.directory.users import NewUser, ReplaceUser, UserChanges, email_key
from server.events.changes import identity
from server.tenants import access
from server.tenants.call import Call


async def hold_user(call: Call, *, user_id: int | None = None, email: str | None = None) -> Row:
    """A living user by its id or e-mail, whom nobody else can change until the transaction ends.

    Args:
        email: of the user, or the login of one without an e-mail.

    Raises:
        NotFound: there is no such user.
    """
    key = None if email is None else email_key(email)
    ids, keys = [user_id] if user_id is not None else [], [key] if key is not None else []
    for row in await hold(call.db, call.instance.id, ids=ids, keys=keys):
        if row["deleted_at"] is None and (row["id"] == user_id or row["email_key"] == key):
            return row
    raise NotFound


async def hold_named(call: Call, name: str) -> Row:
    """The user, deleted or not, who has an e-mail or login, kept from others.

    Raises:
        NotFound: there is no such user.
    """
    key = email_key(name)
    for row in await hold(call.db, call.instance.id, keys=[key]):
        if key in (row["email_key"], row["login"] and email_key(row["login"])):
            return row
    raise NotFound


# --- what users become ------------------------------------------------------------------------------------

_MERGED = {"profile", "values"}


def changed(row: Row, given: Mapping[str, Any]) -> Row:
    """The user with these members.

    Args:
        given: members of UserChanges or NewUser that were sent; others are left alone.
    """
    after = dict(row)
    for member, value in given.items():
        if member == "quotas":
            after |= {f"{kind}_quota": quota for kind, quota in value.items()}
        elif column := members().get(member):
            after[column] = row[column] | value if member in _MERGED else value
    return after


def updated(row: Row, item: UserChanges) -> Row:
    """The user after updateUserByEmail."""
    after = changed(row, item.model_dump(exclude_unset=True))
    return after if item.groups is None else after | {"is_admin": item.in_admins()}


def ensured(row: Row, item: NewUser) -> Row:
    """The user after ensureUser; an e-mail in another spelling stays as it is."""
    if names := names_of(item):
        row = with_fields(row, names)
    if item.email is not None and email_key(item.email) != row["email_key"]:
        row = with_email(row, item.email)
    return changed(row, item.model_dump(exclude_unset=True))


def replaced(row: Row, params: ReplaceUser) -> Row:
    """The user after replaceUserByEmail."""
    if names := names_of(params):
        row = with_fields(row, names)
    if params.newEmail is not None:
        row = with_email(row, params.newEmail)
    return row if params.isAdmin is None else row | {"is_admin": params.isAdmin}


def with_email(row: Row, email: str) -> Row:
    """The user under another e-mail; a login that is an e-mail goes with the old one, another one stays."""
    return with_names(row, renamed(Names(row["email"], row["login"]), email))


# --- making it so -----------------------------------------------------------------------------------------


async def refusals(
    call: Call, edits: Mapping[int, Edit], *, held: Sequence[Row] | None = None, member: str = "email"
) -> dict[int, ServiceError]:
    """Why edits cannot be made, by their keys. Names that are free stay so until the transaction ends.

    Args:
        held: users, among them all who have an externalId of the edits; None to look those up.
        member: of the params, that holds the e-mail.

    Returns:
        MemberForbidden for a change that the caller may not make (tenants/access.py); Conflict for an e-mail
        or externalId that another user has, and for an edit of a user who has one already.
    """
    keys = [key for edit in edits.values() for key in edit.new_keys]
    external_ids = [
        edit.after["external_id"]
        for edit in edits.values()
        if held is None and edit.after["external_id"] not in (None, edit.before["external_id"])
    ]
    if keys:
        await call.db.one("hold_counters", instance_id=call.instance.id)
    having = await find_taken(call.db, call, keys, external_ids) if keys or external_ids else []
    claims = Claims([*(held or ()), *having])
    found: dict[int, ServiceError] = {}
    pace = Pace()
    for index, edit in edits.items():
        if edit.has_effect and (forbidden := access.user_refusal(call.caller, edit.before, edit.after)):
            found[index] = forbidden
        elif refusal := claims.refusal(edit.before, edit.after, member):
            found[index] = refusal
        await pace.rest()
    return found


async def write(call: Call, edits: Sequence[Edit]) -> None:
    """Store what refusals let through, and record what changed. Who stays the same is left alone."""
    edits = [edit for edit in edits if edit.has_effect]
    if not edits:
        return
    async with if_free():
        ended = await store(call.db, call.instance.id, edits)
    pace = Pace()
    for edit in edits:
        _record(call, edit)
        await pace.rest()
    moved = {edit.before["id"]: edit for edit in edits if edit.group_ids is not None}
    if moved:
        await replace_groups(call, {user_id: edit.group_ids or () for user_id, edit in moved.items()})
        await record_groups(call, {user_id: list(edit.groups) for user_id, edit in moved.items()})
    for row in ended:
        call.emit("session.revoked", row["user_id"], before={"sessions": row["ended"]}, after={"sessions": 0})


def _record(call: Call, edit: Edit) -> None:
    user_id, before, after = edit.before["id"], state(edit.before), state(edit.after)
    if edit.is_deletion:
        closed = {"accountClosed": True} if edit.closes_account else None
        call.emit("user.deleted", user_id, before=identity(before), after=closed)
    elif edit.is_return:
        call.emit("user.restored", user_id, after=identity(after))
    else:
        call.emit_user_changes(user_id, before, after)
    if edit.password_hash is not None:
        had = {"password": HIDDEN if edit.before["has_password"] else None}
        call.emit("user.password_changed", user_id, before=had, after={"password": HIDDEN})


async def change(call: Call, edit: Edit, *, member: str = "email") -> None:
    """Change one user.

    Args:
        member: of the params, that holds the e-mail.

    Raises:
        ServiceError: see refusals.
    """
    call.subject = edit.before["id"]
    if refused := await refusals(call, {0: edit}, member=member):
        raise refused[0]
    await write(call, [edit])


async def update(call: Call, batch: Batch[UserChanges]) -> None:
    """Change users, found by their e-mails, as updateUserByEmail and updateUsers have it.

    Raises:
        ServiceError: see Batch.settle.
    """
    keys = {index: email_key(item.email) for index, item in batch.items.items()}
    external_ids = external_ids_of(batch.items.values())
    held = await hold(call.db, call.instance.id, keys=keys.values(), external_ids=external_ids)
    users = _living(held)
    named = {name for item in batch.items.values() for name in item.groups or ()}
    regrouped = [
        users[key]["id"]
        for index, key in keys.items()
        if key in users and batch.items[index].groups is not None
    ]
    group_ids = await find_group_ids(call, named) if named else {}
    groups = await groups_of(call, regrouped) if regrouped else {}
    edits: dict[int, Edit] = {}
    pace = Pace()
    for index, item in list(batch.items.items()):
        try:
            if (row := users.get(keys[index])) is None:
                raise NotFound
            call.subject = row["id"]
            chosen = None if item.groups is None else chosen_groups(item.groups, group_ids)
            before = groups.get(row["id"], [])
            stays = set(map(group_key, before)) == set(map(group_key, item.groups or ()))
            edits[index] = Edit(row, updated(row, item), group_ids=None if stays else chosen, groups=before)
        except ServiceError as error:
            batch.fail(index, error)
        await pace.rest()
    await _settle(call, batch, edits, held)
    await write(call, [edits[index] for index in batch.items])


async def delete(call: Call, batch: Batch[Any]) -> None:
    """Delete users, found by their e-mails, as deleteUserByEmail and deleteUsers have it.

    Raises:
        ServiceError: see Batch.settle.
    """
    keys = {index: email_key(item.email) for index, item in batch.items.items()}
    held = await hold(call.db, call.instance.id, keys=keys.values())
    users = _living(held)
    edits: dict[int, Edit] = {}
    for index, key in keys.items():
        if row := users.pop(key, None):
            edits[index] = deletion(row)
        else:
            batch.fail(index, NotFound())
    await _settle(call, batch, edits, held)
    await write(call, [edits[index] for index in batch.items])


def deletion(row: Row, *, closes_account: bool = False) -> Edit:
    """The edit that deletes a user, so that it can be restored."""
    return Edit(row, row | {"deleted_at": row["moment"]}, closes_account=closes_account)


def _living(held: Iterable[Row]) -> dict[str, Row]:
    return {row["email_key"]: row for row in held if row["deleted_at"] is None}


async def _settle(call: Call, batch: Batch[Any], edits: Mapping[int, Edit], held: Sequence[Row]) -> None:
    """Leave out what is refused."""
    for index, refusal in (await refusals(call, edits, held=held)).items():
        batch.fail(index, refusal)
    batch.settle()
