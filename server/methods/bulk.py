"""Many users in one call: created, changed or deleted."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from server.base.errors import CONSTRAINTS, DUPLICATES, MemberForbidden, NotFound, ServiceError
from server.base.models import Params
from server.directory.groups import chosen_groups, find_group_ids, groups_of, record_groups, replace_groups
from server.directory.many import (
    MOST,
    Batch,
    Claims,
    ItemResult,
    Items,
    ManyParams,
    ManyResult,
    Pace,
    changed,
    checked,
    external_ids_of,
    find_same,
    find_taken,
    hash_passwords,
    hold,
    hold_counters,
    insert,
    refuse_early,
    refuse_plans,
    refuse_seats,
    write,
)
from server.directory.users import (
    CREATED_USER,
    CreatedUser,
    Email,
    NewUser,
    UserChanges,
    email_key,
    end_access,
)
from server.events.changes import identity
from server.methods.registry import Example, method
from server.tenants import access
from server.tenants.call import Call


class CreateUsers(ManyParams):
    """Users to create."""

    users: Items[NewUser] = Field(description=f"1 to {MOST}, each as createUser takes one.")


class CreatedItem(ItemResult):
    """A created user, or why there is none."""

    result: CreatedUser | None


class CreatedUsers(ManyResult):
    """What came of each item, in their order."""

    results: list[CreatedItem]


async def _prepare_creations(call: Call, params: CreateUsers) -> Batch[NewUser]:
    batch = await checked(NewUser, params.mode, params.users, call.settings)
    _refuse_members(call, batch)
    await refuse_early(call, batch)
    batch.settle()
    if any(item.password is not None for item in batch.items.values()):
        # Hashing takes a while: not for those who are there already. What decides is looked up later.
        async with call.database.connection() as db:
            found = await find_same(db, call, batch.items.values())
        if batch.mode == "atomic":
            looked = batch.again()
            _refuse_taken(looked, found)
            looked.settle()
        await hash_passwords(call, batch, found)
    return batch


def _refuse_members(call: Call, batch: Batch[Any]) -> None:
    for index, item in list(batch.items.items()):
        if refusal := access.member_refusal(call.caller, item):
            batch.fail(index, refusal)


def _refuse_taken(batch: Batch[NewUser], found: Sequence[Mapping[str, Any]]) -> None:
    """Leave out whose e-mail or external id is taken, by somebody or by an item before it."""
    claims = Claims(found)
    for index, item in list(batch.items.items()):
        if (holder := claims.emails.get(email_key(item.email))) is not None:
            batch.fail(index, claims.taken("users_email", holder))
        elif (holder := claims.external_ids.get(item.externalId)) is not None:
            batch.fail(index, claims.taken("users_external_id", holder))
        elif refusal := claims.new(item):
            batch.fail(index, refusal)


_DUPLICATE = {
    "code": "duplicate_email",
    "message": CONSTRAINTS["users_email"][2],
    "fields": [{"field": "email", "message": CONSTRAINTS["users_email"][2]}],
}


@method(
    "createUsers",
    result=CreatedUsers,
    scope="users:write",
    writes=True,
    many=True,
    prepare=_prepare_creations,
    errors=(MemberForbidden, *DUPLICATES, "seats_exhausted"),
    examples=(
        Example(
            "One that is new, and one that is there already",
            {"users": [{"email": "test1@oneoffice.bh", "displayName": "TestUser", "password": "demo1234"},
                       {"email": "jane@example.com"}], "mode": "each"},
            {"succeeded": 1, "failed": 1, "results": [
                {"index": 0, "result": CREATED_USER | {"id": 6}, "error": None},
                {"index": 1, "result": None, "error": _DUPLICATE},
            ]},
        ),
    ),
)  # fmt: skip
async def create_users(call: Call, params: CreateUsers, prepared: Batch[NewUser]) -> Any:
    """Create up to 1,000 users, each with all its provisioning, in one transaction.

    Each item is what createUser takes, without the instance, and its result what createUser answers. Whoever
    wants thousands a second sends passwordHash: a password takes some hundredths of a second of a core, and
    1,000 of them may take longer than a call may. isAdmin true needs the scope users:admin.
    """
    batch = prepared.again()
    seats = await hold_counters(call)
    await refuse_plans(call, batch, list(batch.items))
    _refuse_taken(batch, await find_same(call.db, call, batch.items.values()))
    refuse_seats(batch, list(batch.items), seats)
    batch.settle()
    created = await insert(call, batch, list(batch.items))
    batch.note_nothing(call, "createUsers")
    return batch.answer(created)


# --- changing -----------------------------------------------------------------------------------------


class UpdateUsers(ManyParams):
    """What to change of whom."""

    users: Items[UserChanges] = Field(description=f"1 to {MOST}, each as updateUserByEmail takes one.")


class DoneItem(ItemResult):
    """Done, or why not."""

    result: Literal[True] | None


class DoneUsers(ManyResult):
    """What came of each item, in their order."""

    results: list[DoneItem]


async def _prepare_changes(call: Call, params: UpdateUsers) -> Batch[UserChanges]:
    batch = await checked(UserChanges, params.mode, params.users, call.settings)
    _refuse_members(call, batch)
    batch.settle()
    return batch


@method(
    "updateUsers",
    result=DoneUsers,
    scope="users:write",
    writes=True,
    many=True,
    prepare=_prepare_changes,
    errors=(NotFound, MemberForbidden, *DUPLICATES, "named_twice"),
    examples=(
        Example(
            "Suspend, and move",
            {"users": [{"email": "jane@example.com", "isActive": False},
                       {"email": "admin@example.com", "profile": {"location": "Manama"}}]},
            {"succeeded": 2, "failed": 0, "results": [
                {"index": 0, "result": True, "error": None}, {"index": 1, "result": True, "error": None},
            ]},
        ),
    ),
)  # fmt: skip
async def update_users(call: Call, params: UpdateUsers, prepared: Batch[UserChanges]) -> Any:
    """Change up to 1,000 users in one transaction.

    Each item is what updateUserByEmail takes, without the instance. An externalId that another user has now
    is taken, even where the same call takes it away from there. isAdmin needs the scope users:admin, and so
    does any change of an administrator; groups needs groups:write.
    """
    batch = prepared.again()
    keys = {index: email_key(item.email) for index, item in batch.items.items()}
    external_ids = external_ids_of(batch.items.values())
    held = await hold(call, await find_taken(call.db, call, list(keys.values()), external_ids))
    group_ids = await find_group_ids(
        call, {name for item in batch.items.values() for name in item.groups or ()}
    )
    claims = Claims(held)
    users = {row["email_key"]: row for row in held if not row["is_deleted"]}
    changes = []
    wanted: dict[int, list[int]] = {}
    pace = Pace()
    for index, item in list(batch.items.items()):
        try:
            row = users.get(keys[index])
            if row is None:
                raise NotFound
            after = changed(row, item)
            changes_it = after != row or item.groups is not None
            if changes_it and (forbidden := access.user_refusal(call.caller, row, after)):
                raise forbidden
            chosen = None if item.groups is None else chosen_groups(item.groups, group_ids)
            if refusal := claims.refusal(row, after):
                raise refusal
        except ServiceError as error:
            batch.fail(index, error)
        else:
            changes.append((row, after))
            if chosen is not None:
                wanted[row["id"]] = chosen
        await pace.rest()
    batch.settle()
    before = await groups_of(call, list(wanted)) if wanted else {}
    await write(call, changes)
    if wanted:
        await replace_groups(call, wanted)
        await record_groups(call, before)
    batch.note_nothing(call, "updateUsers")
    return batch.answer(dict.fromkeys(batch.items, True))


# --- deleting -----------------------------------------------------------------------------------------


class DeletedUser(Params):
    """A user by e-mail."""

    email: Email


class DeleteUsers(ManyParams):
    """Whom to delete."""

    users: Items[DeletedUser] = Field(description=f"1 to {MOST}, each as deleteUserByEmail takes one.")


async def _prepare_deletions(call: Call, params: DeleteUsers) -> Batch[DeletedUser]:
    batch = await checked(DeletedUser, params.mode, params.users, call.settings)
    batch.settle()
    return batch


@method(
    "deleteUsers",
    result=DoneUsers,
    scope="users:write",
    writes=True,
    many=True,
    prepare=_prepare_deletions,
    errors=(NotFound, MemberForbidden),
    examples=(
        Example(
            "One that is there, and one that is not",
            {"users": [{"email": "jane@example.com"}, {"email": "nobody@example.com"}], "mode": "each"},
            {"succeeded": 1, "failed": 1, "results": [
                {"index": 0, "result": True, "error": None},
                {"index": 1, "result": None,
                 "error": {"code": "not_found", "message": "not found", "fields": []}},
            ]},
        ),
    ),
)  # fmt: skip
async def delete_users(call: Call, params: DeleteUsers, prepared: Batch[DeletedUser]) -> Any:
    """Delete up to 1,000 users in one transaction, as deleteUserByEmail does one.

    Whom an item before has named is not found any more. Administrators need the scope users:admin.
    """
    batch = prepared.again()
    keys = {index: email_key(item.email) for index, item in batch.items.items()}
    held = await hold(call, await find_taken(call.db, call, list(keys.values())))
    users = {row["email_key"]: row for row in held if not row["is_deleted"]}
    gone = []
    for index, key in keys.items():
        user = users.pop(key, None)
        if user is None:
            batch.fail(index, NotFound())
        elif refusal := access.user_refusal(call.caller, user):
            batch.fail(index, refusal)
        else:
            gone.append(user)
    batch.settle()
    if gone:
        ids = [user["id"] for user in gone]
        await call.db.run("delete_users", instance_id=call.instance.id, ids=ids)
        for user in gone:
            call.emit("user.deleted", user["id"], before=identity(user["state"]))
        await end_access(call, ids)
    batch.note_nothing(call, "deleteUsers")
    return batch.answer(dict.fromkeys(batch.items, True))
