"""Bulk calls: create, change or delete up to 1,000 users."""

from typing import Any, Literal

from pydantic import Field

from server.base.errors import CONSTRAINTS, DUPLICATES, MemberForbidden, NotFound
from server.base.models import Params
from server.directory import change
from server.directory.creation import create, prepare, refuse_plans, refuse_seats, refuse_taken
from server.directory.many import (
    MOST,
    Batch,
    Claims,
    ItemResult,
    Items,
    ManyParams,
    ManyResult,
    checked,
    find_same,
    hold_counters,
)
from server.directory.users import CREATED_USER, CreatedUser, Email, NewUser, UserChanges
from server.methods.registry import Example, method
from server.tenants import access
from server.tenants.call import Call


class CreateUsers(ManyParams):
    """Users to create."""

    users: Items[NewUser] = Field(description=f"1 to {MOST}, each as createUser takes one.")


class CreatedItem(ItemResult):
    """A created user, or the error."""

    result: CreatedUser | None


class CreatedUsers(ManyResult):
    """The result of each item, in order."""

    results: list[CreatedItem]


async def _prepare_creations(call: Call, params: CreateUsers) -> Batch[NewUser]:
    return await prepare(call, await checked(NewUser, params.mode, params.users, call.settings))


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
            "A new user and an existing one",
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

    Items and results are as for createUser, without the instance. For thousands of users a second, send
    passwordHash: hashing a password takes some hundredths of a second of one core, and 1,000 passwords may
    exceed the time limit of a call. isAdmin true needs the scope users:admin.
    """
    batch = prepared.again()
    seats = await hold_counters(call)
    await refuse_plans(call, batch, list(batch.items))
    await refuse_taken(batch, await Claims.of(await find_same(call.db, call, batch.items.values())))
    refuse_seats(batch, list(batch.items), seats)
    batch.settle()
    created = await create(call, batch, looked=True)
    batch.note_nothing(call, "createUsers")
    return batch.answer(created)


# --- changing -----------------------------------------------------------------------------------------


class UpdateUsers(ManyParams):
    """Users to change."""

    users: Items[UserChanges] = Field(description=f"1 to {MOST}, each as updateUserByEmail takes one.")


class DoneItem(ItemResult):
    """True, or the error."""

    result: Literal[True] | None


class DoneUsers(ManyResult):
    """The result of each item, in order."""

    results: list[DoneItem]


async def _prepare_changes(call: Call, params: UpdateUsers) -> Batch[UserChanges]:
    batch = await checked(UserChanges, params.mode, params.users, call.settings)
    for index, item in list(batch.items.items()):
        if refusal := access.member_refusal(call.caller, item):
            batch.fail(index, refusal)
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
            "Suspend one, change the location of another",
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

    Items are as for updateUserByEmail, without the instance. An externalId that another user has is refused,
    even if the same call removes it from that user. isAdmin and any change of an administrator need the scope
    users:admin; groups needs groups:write.
    """
    batch = prepared.again()
    await change.update(call, batch)
    batch.note_nothing(call, "updateUsers")
    return batch.answer(dict.fromkeys(batch.items, True))


# --- deleting -----------------------------------------------------------------------------------------


class DeletedUser(Params):
    """A user by e-mail."""

    email: Email


class DeleteUsers(ManyParams):
    """Users to delete."""

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
            "An existing user and an unknown one",
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

    A repeated e-mail is not found. Deleting an administrator needs the scope users:admin.
    """
    batch = prepared.again()
    await change.delete(call, batch)
    batch.note_nothing(call, "deleteUsers")
    return batch.answer(dict.fromkeys(batch.items, True))
