"""SCIM's calls about one user: found and held, changed as a whole, stored as every change of a user is."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from server.base.errors import NotFound
from server.directory import change, creation
from server.directory.creation import Membership
from server.directory.many import Batch
from server.directory.names import hold_free_names
from server.directory.rows import Edit, Row
from server.directory.rules import hash_password
from server.directory.scim.models import ENTERPRISE_SCHEMA, User
from server.directory.scim.operations import (
    Operation,
    bad_value,
    patched,
    read_operations,
    take_passwords,
    validated,
)
from server.directory.scim.users import Resource, require_version, resource, version_of
from server.directory.scim.writing import Columns, changed, columns, document, new_user, settled
from server.directory.users import CreateUser
from server.tenants.call import Call


def parsed_id(text: str) -> int:
    """The id of a user or group.

    Raises:
        NotFound: nobody can have it.
    """
    if text.isascii() and text.isdigit() and len(text) < 20 and str(int(text)) == text and int(text) < 2**63:
        return int(text)
    raise NotFound


async def read(call: Call, user_id: int) -> Resource:
    """A living user.

    Raises:
        NotFound: there is none.
    """
    row = await call.db.one("get_scim_user", instance_id=call.instance.id, user_id=user_id)
    if row is None:
        raise NotFound
    return resource(row, call.settings, call.instance)


# --- before the transaction ---------------------------------------------------------------------------------


class NewAccount(NamedTuple):
    """A new user, checked, with its password hashed."""

    given: Columns
    membership: Membership
    batch: Batch[CreateUser]


class Replacement(NamedTuple):
    """What is to stand in the place of a user."""

    user: Resource
    password_hash: str | None


class Patch(NamedTuple):
    """Operations on a user, without those on its password."""

    operations: list[Operation]
    password_hash: str | None


async def prepare_new(call: Call, user: Mapping[str, Any]) -> NewAccount:
    """A user to create, as it was sent.

    Raises:
        Invalid: naming the bad attributes.
    """
    whole = validated(User, user)
    password = whole.pop("password", None)
    given = columns(whole, call.settings)
    item, membership = new_user(given, password)
    return NewAccount(given, membership, await creation.prepare(call, Batch.one(item)))


async def prepare_replacement(call: Call, user: Mapping[str, Any]) -> Replacement:
    """A user to replace one with, as it was sent; the same errors."""
    whole = validated(User, user)
    return Replacement(whole, await _hashed(call, whole.pop("password", None)))


async def prepare_patch(call: Call, operations: Sequence[Mapping[str, Any]]) -> Patch:
    """The operations of a PATCH, as they were sent.

    Raises:
        Invalid: see operations.read_operations.
    """
    others, password = take_passwords(read_operations(User, operations))
    return Patch(others, await _hashed(call, password))


async def _hashed(call: Call, password: str | None) -> str | None:
    return await hash_password(call, "password", password, call.instance.settings.passwordPolicy)


# --- in it --------------------------------------------------------------------------------------------------


async def create(call: Call, new: NewAccount) -> Resource:
    """Create a user with all that is provisioned for one (RFC 7644, 3.3).

    Raises:
        Conflict: the userName, e-mail or externalId is taken, or there is no seat.
        Invalid: there is no such manager (invalid_value).
    """
    await _require_manager(call, None, new.given.attributes)
    names = new.given.names
    if names.login is not None or "@" not in names.email:
        await hold_free_names(call, names, login_member="userName", email_member="emails")
    created = await creation.create(call, new.batch.again(), membership=new.membership)
    return await read(call, created[0]["id"])


async def replace(call: Call, user_id: int, put: Replacement, version: str | None) -> Resource:
    """Have nothing but these attributes (RFC 7644, 3.5.1), and what only we write.

    The password and `active` stay where they are left out, and so does a picture that was stored here, which
    no provisioning client knows.

    Raises:
        NotFound: there is no such user.
        PreconditionFailed: it has another version.
        ServiceError: see change.change.
    """
    row = await _hold(call, user_id, version)
    is_left_out = "photos" not in put.user and row["avatar"].startswith("/")
    after = changed(row, columns(put.user, call.settings, row, photos_stay=is_left_out))
    await _change(call, Edit(row, after, put.password_hash))
    return await read(call, user_id)


async def patch(call: Call, user_id: int, given: Patch, version: str | None) -> Resource:
    """Apply operations, all of them or none (RFC 7644, 3.5.2).

    Raises:
        Invalid: an operation cannot be applied; see operations.patched.
        ServiceError: see replace.
    """
    row = await _hold(call, user_id, version)
    before = document(row, call.settings)
    after = patched(before, given.operations)
    if after != before or given.password_hash is not None:
        await _change(call, Edit(row, _after_patch(call, row, before, after), given.password_hash))
    return await read(call, user_id)


def _after_patch(call: Call, row: Row, before: Resource, after: Resource) -> Row:
    touched = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    if touched <= {"active"}:  # what is sent most often needs no look at the others
        return row | {"is_active": after.get("active", row["is_active"])}
    whole = settled(before, after, row)
    return changed(row, columns(whole, call.settings, row, photos_stay="photos" not in touched))


async def delete(call: Call, user_id: int, version: str | None) -> None:
    """Delete a user, so that it can be restored by restoreUserByEmail; the same errors."""
    await _change(call, change.deletion(await _hold(call, user_id, version)))


async def _hold(call: Call, user_id: int, version: str | None) -> Row:
    row = await change.hold_user(call, user_id=user_id)
    call.subject = user_id
    require_version(version_of(row["updated_at"]), version)
    return row


async def _change(call: Call, edit: Edit) -> None:
    await _require_manager(call, edit.before["attributes"].get("manager"), edit.after["attributes"])
    await change.change(call, edit, member="userName")


async def _require_manager(call: Call, before: str | None, attributes: Mapping[str, Any]) -> None:
    """Raises Invalid for a new manager who is no living user of the instance."""
    manager = attributes.get("manager")
    if manager is not None and manager != before:
        living = await call.db.value("count_living", instance_id=call.instance.id, user_ids=[int(manager)])
        if not living:
            raise bad_value(f"{ENTERPRISE_SCHEMA}:manager.value", "is no user of this instance")
