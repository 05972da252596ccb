"""The one way to change users, 1 to 1,000 of them, for every method.

hold_user or rows.hold locks the users. A pure function computes each new row. refusals checks access and
taken names. write stores all rows in one statement and emits the events. change_of_job is for jobs.
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
from server.directory.many import (
    Batch,
    Claims,
    external_ids_of,
    find_taken,
    hold_counters,
    if_free,
    keys_of_items,
)
from server.directory.names import Names, renamed
from server.directory.rows import Edit, Row, hold, members, state, store, with_fields, with_names
from server.directory.rules import names_of
from server.directory.users import NewUser, ReplaceUser, UserChanges, email_key
from server.events.changes import Change, identity, user_changes
from server.events.emit import Actor, emit
from server.postgres.db import Connection
from server.tenants import access
from server.tenants.call import Call


async def hold_user(call: Call, *, user_id: int | None = None, email: str | None = None) -> Row:
    """A user that is not deleted, by id or e-mail; locked until the transaction ends, and named in the audit.

    Args:
        email: of the user, or the login of a user without an e-mail.

    Raises:
        NotFound: there is no such user.
    """
    key = None if email is None else email_key(email)
    ids, keys = [user_id] if user_id is not None else [], [key] if key is not None else []
    for row in await hold(call.db, call.instance.id, ids=ids, keys=keys):
        if row["deleted_at"] is None and (row["id"] == user_id or row["email_key"] == key):
            call.subject = row["id"]
            return row
    raise NotFound


async def hold_named(call: Call, name: str) -> Row:
    """A user, deleted or not, by e-mail or login; locked until the transaction ends, and named in the audit.

    Raises:
        NotFound: there is no such user.
    """
    key = email_key(name)
    for row in await hold(call.db, call.instance.id, keys=[key]):
        if key in (row["email_key"], row["login"] and email_key(row["login"])):
            call.subject = row["id"]
            return row
    raise NotFound


# --- computing the new row --------------------------------------------------------------------------------


def changed(row: Row, given: Mapping[str, Any]) -> Row:
    """The user with the members of UserChanges or NewUser that were sent."""
    after = dict(row)
    for member, value in given.items():
        if member == "quotas":
            after |= {f"{kind}_quota": quota for kind, quota in value.items()}
        elif column := members().get(member):
            after[column] = row[column] | value if member in ("profile", "values") else value
    return after


def updated(row: Row, item: UserChanges) -> Row:
    """The user after updateUserByEmail."""
    after = changed(row, item.model_dump(exclude_unset=True))
    return after if item.groups is None else after | {"is_admin": item.in_admins()}


def ensured(row: Row, item: NewUser) -> Row:
    """The user after ensureUser. The stored spelling of an equal e-mail is kept."""
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
    """The user with another e-mail; see renamed for the login."""
    return with_names(row, renamed(Names(row["email"], row["login"]), email))


# --- checking and storing ---------------------------------------------------------------------------------


async def refusals(
    call: Call, edits: Mapping[int, Edit], *, held: Sequence[Row] | None = None, member: str = "email"
) -> dict[int, ServiceError]:
    """The errors of edits that are refused, by their keys. Free names stay free until the transaction ends.

    Args:
        held: users, with all that have an externalId of the edits; None: look them up.
        member: the param with the e-mail.

    Returns:
        MemberForbidden: the caller may not make the change (tenants/access.py). Conflict: another user has
        the e-mail or externalId, or an edit before changes the same user.
    """
    keys: list[str] = []
    pace = Pace()
    for edit in edits.values():
        keys += edit.new_keys
        await pace.rest()
    external_ids = [
        edit.after["external_id"]
        for edit in edits.values()
        if held is None and edit.after["external_id"] not in (None, edit.before["external_id"])
    ]
    if keys:
        await hold_counters(call)
    having = await find_taken(call.db, call, keys, external_ids) if keys or external_ids else []
    claims = await Claims.of([*(held or ()), *having])
    found: dict[int, ServiceError] = {}
    for index, edit in edits.items():
        if edit.has_effect and (forbidden := access.user_refusal(call.caller, edit.before, edit.after)):
            found[index] = forbidden
        elif refusal := claims.refusal(edit.before, edit.after, member):
            found[index] = refusal
        await pace.rest()
    return found


async def write(call: Call, edits: Sequence[Edit]) -> None:
    """Store edits that refusals accepted, and emit their events. Edits without effect are skipped."""
    edits = [edit for edit in edits if edit.has_effect]
    if not edits:
        return
    async with if_free():
        stored = await store(call.db, call.instance.id, edits)
    having_password = {row["user_id"] for row in stored if row["had_password"]}
    pace = Pace()
    for edit in edits:
        call.changes += _changes(edit, had_password=edit.before["id"] in having_password)
        await pace.rest()
    moved = {edit.before["id"]: edit for edit in edits if edit.group_ids is not None}
    shown = [edit.before["id"] for edit in edits if edit.comes_or_goes]
    if moved or shown:
        # One statement, after the others: every transaction locks groups in the order of their ids.
        wanted = {user_id: edit.group_ids or () for user_id, edit in moved.items()}
        await replace_groups(call, wanted, shown)
    if moved:
        await record_groups(call, {user_id: list(edit.groups) for user_id, edit in moved.items()})
    for row in stored:
        if row["ended"]:
            before = {"sessions": row["ended"]}
            call.emit("session.revoked", row["user_id"], before=before, after={"sessions": 0})


def _changes(edit: Edit, *, had_password: bool = False) -> list[Change]:
    """The changes of an edit for events, without groups and sessions."""
    user_id, before, after = edit.before["id"], state(edit.before), state(edit.after)
    if edit.is_deletion:
        closed = {"accountClosed": True} if edit.closes_account else None
        changes = [Change("user.deleted", user_id, identity(before), closed)]
    elif edit.is_return:
        changes = [Change("user.restored", user_id, None, identity(after))]
    else:
        changes = user_changes(user_id, before, after)
    if edit.password_hash is not None:
        old, new = {"password": HIDDEN if had_password else None}, {"password": HIDDEN}
        changes.append(Change("user.password_changed", user_id, old, new))
    return changes


async def change_of_job(
    db: Connection, instance_id: int, edit: Edit, asked_by: Mapping[str, Any], method: str, *, after: int
) -> int:
    """Check and write one edit of a job, in the name of its caller. Names and groups stay as they are.

    Args:
        asked_by, method: the stored caller with access.kept, and its method: the actor of the events.
        after: the number of events of the instance that this transaction has stored already.

    Returns:
        the number of events of this edit.

    Raises:
        MemberForbidden: the user became an administrator, whom the caller may not change.
    """
    if not edit.has_effect:
        return 0
    access.require_user_of_job(asked_by, edit.before)
    await store(db, instance_id, [edit])
    changes = _changes(edit)
    await emit(db, instance_id, Actor.of(asked_by, method), changes, after=after)
    return len(changes)


async def change(call: Call, edit: Edit, *, member: str = "email") -> None:
    """Check and write one edit; see refusals for the param and the errors."""
    if refused := await refusals(call, {0: edit}, member=member):
        raise refused[0]
    await write(call, [edit])


async def update(call: Call, batch: Batch[UserChanges]) -> None:
    """updateUserByEmail and updateUsers; see Batch.settle for the errors."""
    keys = await keys_of_items(batch.items)
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
    await _write_batch(call, batch, edits, held)


async def delete(call: Call, batch: Batch[Any]) -> None:
    """deleteUserByEmail and deleteUsers; see Batch.settle for the errors."""
    keys = await keys_of_items(batch.items)
    held = await hold(call.db, call.instance.id, keys=keys.values())
    users = _living(held)
    edits: dict[int, Edit] = {}
    for index, key in keys.items():
        if row := users.pop(key, None):
            edits[index] = deletion(row)
        else:
            batch.fail(index, NotFound())
    await _write_batch(call, batch, edits, held)


def deletion(row: Row, *, closes_account: bool = False) -> Edit:
    """The edit that deletes a user. A deleted user can be restored."""
    return Edit(row, row | {"deleted_at": row["moment"]}, closes_account=closes_account)


def _living(held: Iterable[Row]) -> dict[str, Row]:
    return {row["email_key"]: row for row in held if row["deleted_at"] is None}


async def _write_batch(call: Call, batch: Batch[Any], edits: Mapping[int, Edit], held: Sequence[Row]) -> None:
    """Fail the items whose edits are refused, and write the others."""
    for index, refusal in (await refusals(call, edits, held=held)).items():
        batch.fail(index, refusal)
    batch.settle()
    await write(call, [edits[index] for index in batch.items])
