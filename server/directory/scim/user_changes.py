"""Reads, creates, changes and deletes one user for SCIM. Changes are stored as by every other method."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from server.base.errors import NotFound
from server.directory import change, creation
from server.directory.creation import Membership
from server.directory.many import Batch
from server.directory.names import hold_free_names
from server.directory.rows import Edit, Row
from server.directory.rules import hash_password
from server.directory.scim.errors import bad_value
from server.directory.scim.models import ENTERPRISE_SCHEMA, OFFICE_SCHEMA, User
from server.directory.scim.operations import (
    Operation,
    has_schema,
    patched,
    read_operations,
    take_passwords,
    validated_user,
)
from server.directory.scim.user_columns import (
    Columns,
    as_shown,
    changed,
    columns,
    new_user,
    patch_document,
    with_recomputed_names,
)
from server.directory.scim.users import Resource, id_of, require_version, resource, version_of
from server.directory.users import CreateUser
from server.tenants.call import Call


def parsed_id(text: str) -> int:
    """The id of a user or group.

    Raises:
        NotFound: no user or group can have it.
    """
    number = id_of(text)
    if number is None:
        raise NotFound
    return number


async def read(call: Call, user_id: int) -> Resource:
    """A user that is not deleted.

    Raises:
        NotFound: there is no such user.
    """
    row = await call.db.one("get_scim_user", instance_id=call.instance.id, user_id=user_id)
    if row is None:
        raise NotFound
    return resource(row, call.settings, call.instance)


# --- before the transaction ---------------------------------------------------------------------------------


class NewAccount(NamedTuple):
    """A validated new user, with the password hashed."""

    given: Columns
    membership: Membership
    batch: Batch[CreateUser]


class Replacement(NamedTuple):
    """The resource that replaces a user, and the hash of its password."""

    user: Resource
    password_hash: str | None


class Patch(NamedTuple):
    """Operations on a user, except on the password, and the hash of the new password."""

    operations: list[Operation]
    password_hash: str | None


async def prepare_new(call: Call, user: Mapping[str, Any]) -> NewAccount:
    """A new user, as sent.

    Raises:
        Invalid: attributes are not valid.
    """
    whole = validated_user(user)
    password = whole.pop("password", None)
    given = columns(whole, call.settings)
    item, membership = new_user(given, password)
    return NewAccount(given, membership, await creation.prepare(call, Batch.one(item)))


async def prepare_replacement(call: Call, user: Mapping[str, Any]) -> Replacement:
    """The resource that replaces a user, as sent. Errors as in prepare_new."""
    whole = validated_user(user)
    if has_schema(user, OFFICE_SCHEMA):
        whole.setdefault(OFFICE_SCHEMA, {})
    return Replacement(whole, await _hashed(call, whole.pop("password", None)))


async def prepare_patch(call: Call, operations: Sequence[Mapping[str, Any]]) -> Patch:
    """The operations of a PATCH, as sent.

    Raises:
        Invalid: see operations.read_operations.
    """
    others, password = take_passwords(read_operations(User, operations))
    return Patch(others, await _hashed(call, password))


async def _hashed(call: Call, password: str | None) -> str | None:
    return await hash_password(call, "password", password, call.instance.settings.passwordPolicy)


# --- in the transaction -------------------------------------------------------------------------------------


async def create(call: Call, new: NewAccount) -> Resource:
    """Create a user, with mailboxes, calendar and files (RFC 7644, 3.3).

    Raises:
        Conflict: the userName, e-mail or externalId is taken, or no seat is free.
        Invalid: the manager is not a user (invalid_value).
    """
    await _require_manager(call, new.given.attributes)
    names = new.given.names
    if names.login is not None or "@" not in names.email:
        await hold_free_names(call, names, login_member="userName", email_member="emails")
    created = await creation.create(call, new.batch.again(), membership=new.membership)
    return await read(call, created[0]["id"])


async def replace(call: Call, user_id: int, put: Replacement, version: str | None) -> Resource:
    """Replace all attributes of a user (RFC 7644, 3.5.1).

    If these are left out, they keep their values, because clients may not know them: the password, `active`,
    the language, a picture that was uploaded here, and, unless `schemas` contains our extension, the quotas.

    Raises:
        NotFound: there is no such user.
        PreconditionFailed: the user has another version.
        ServiceError: see change.change.
    """
    held = await _hold(call, user_id, version)
    row = held.row
    before = patch_document(row, call.settings)
    kept = {name: before[name] for name in (OFFICE_SCHEMA, "preferredLanguage") if name in before}
    keep_avatar = "photos" not in put.user and row["avatar"].startswith("/")
    after = changed(row, columns(kept | put.user, call.settings, row, keep_avatar=keep_avatar))
    return await _change(call, held, Edit(row, after, put.password_hash))


async def patch(call: Call, user_id: int, given: Patch, version: str | None) -> Resource:
    """Apply all operations or none (RFC 7644, 3.5.2).

    Raises:
        Invalid: an operation cannot be applied; see operations.patched.
        ServiceError: see replace.
    """
    held = await _hold(call, user_id, version)
    row = held.row
    before = patch_document(row, call.settings)
    if all(operation.is_simple for operation in given.operations):
        after = patched(before, given.operations)
    else:  # long lists of values take up to a second
        after = await asyncio.to_thread(patched, before, given.operations)
    changed_row = row if after == before else _after_patch(call, row, before, after)
    return await _change(call, held, Edit(row, changed_row, given.password_hash))


def _after_patch(call: Call, row: Row, before: Resource, after: Resource) -> Row:
    changed_names = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    if changed_names <= {"active"}:  # the most frequent change; no other column depends on it
        return row | {"is_active": after.get("active", row["is_active"])}
    whole = with_recomputed_names(before, after, row)
    return changed(row, columns(whole, call.settings, row, keep_avatar="photos" not in changed_names))


async def delete(call: Call, user_id: int, version: str | None) -> None:
    """Delete a user. restoreUserByEmail can restore it. Errors as in replace."""
    held = await _hold(call, user_id, version)
    await change.change(call, change.deletion(held.row))


class Held(NamedTuple):
    """A user that is locked until the transaction ends."""

    row: Row
    # The other columns of the view scim_users.
    other_columns: dict[str, Any]


_OTHER_COLUMNS = (
    "created_at", "memberships", "manager", "plans", "inbox", "spam", "sent", "trashEmail", "archive",
    "drafts", "mainCalendar", "rootFiles", "trashFiles",
)  # fmt: skip


async def _hold(call: Call, user_id: int, version: str | None) -> Held:
    found = await call.db.one("hold_scim_user", instance_id=call.instance.id, user_id=user_id)
    if found is None:
        raise NotFound
    call.subject = user_id
    row = dict(found)
    held = Held(row, {name: row.pop(name) for name in _OTHER_COLUMNS})
    require_version(version_of(row["updated_at"]), version)
    return held


async def _change(call: Call, held: Held, edit: Edit) -> Resource:
    """Store a change, and return the user after it.

    The user is not read again: data that other calls change, such as its groups, is as it was when the user
    was locked.
    """
    row, after = edit.before, edit.after
    manager_changes = after["attributes"].get("manager") != row["attributes"].get("manager")
    if manager_changes:
        await _require_manager(call, after["attributes"])
    await change.change(call, edit, member="userName")
    if manager_changes:
        return await read(call, row["id"])
    updated_at = row["moment"] if edit.differs else row["updated_at"]
    shown = as_shown(after) | held.other_columns | {"updated_at": updated_at}
    return resource(shown, call.settings, call.instance)


async def _require_manager(call: Call, attributes: Mapping[str, Any]) -> None:
    """Raise Invalid if the manager is not a user of the instance, or is deleted."""
    manager = attributes.get("manager")
    if manager is not None:
        living = await call.db.value("count_living", instance_id=call.instance.id, user_ids=[int(manager)])
        if not living:
            raise bad_value(f"{ENTERPRISE_SCHEMA}:manager.value", "is not a user of this instance")
