"""Create or update users (upsert)."""

from typing import Any

from pydantic import Field, model_validator

from server.base.errors import (
    DUPLICATES,
    Contention,
    FieldError,
    Invalid,
    MemberForbidden,
    ServiceError,
    UserDeleted,
)
from server.base.models import Result, TenantParams
from server.base.pace import Pace
from server.directory import change
from server.directory.creation import create, prepare, refuse_plans, refuse_seats
from server.directory.lookups import read_users
from server.directory.many import (
    MOST,
    Batch,
    Claims,
    ItemResult,
    Items,
    ManyParams,
    ManyResult,
    checked,
    external_ids_of,
    find_same,
    hold_counters,
    keys_of_items,
)
from server.directory.rows import Edit, hold
from server.directory.users import ABSENT, USER, NewEmail, NewUser, User, taken
from server.methods.registry import Example, method
from server.tenants import access
from server.tenants.call import Call


class EnsuredUser(NewUser):
    """The wanted state of a user."""

    email: NewEmail = Field(
        ABSENT, description="Finds the user if externalId finds none; required for a new user."
    )

    @model_validator(mode="after")
    def _identified(self) -> "EnsuredUser":
        if self.email is None and self.externalId is None:
            raise ValueError("give email or externalId")
        return self


class EnsureUser(EnsuredUser, TenantParams):
    """The wanted state of a user."""


class Ensured(Result):
    """The user after the call, and what was done."""

    created: bool = Field(description="False: the user existed.")
    changed: bool = Field(description="False: the user existed in the wanted state.")
    user: User


class EnsureUsers(ManyParams):
    """The wanted states of users."""

    users: Items[EnsuredUser] = Field(description=f"1 to {MOST}, each as ensureUser takes one.")


class EnsuredItem(ItemResult):
    """The user, or the error."""

    result: Ensured | None


class EnsuredUsers(ManyResult):
    """The result of each item, in order."""

    results: list[EnsuredItem]


async def _prepare_one(call: Call, params: EnsureUser) -> Batch[EnsuredUser]:
    return await prepare(call, Batch.one(params), all_new=False)


async def _prepare_many(call: Call, params: EnsureUsers) -> Batch[EnsuredUser]:
    batch = await checked(EnsuredUser, params.mode, params.users, call.settings)
    return await prepare(call, batch, all_new=False)


async def _ensure(call: Call, batch: Batch[EnsuredUser]) -> dict[int, dict[str, Any]]:
    keys = await keys_of_items(batch.items)
    external_ids = external_ids_of(batch.items.values())
    held = await hold(call.db, call.instance.id, keys=keys.values(), external_ids=external_ids)
    claims = await Claims.of(held)
    users = {row["id"]: row for row in held}
    edits: dict[int, Edit] = {}
    unknown = [index for index, item in batch.items.items() if claims.holder(item) is None]
    await refuse_plans(call, batch, unknown)
    new: list[int] = []
    pace = Pace()
    for index, item in list(batch.items.items()):
        row = users.get(claims.holder(item) or -1)
        edit = Edit(row, change.ensured(row, item)) if row else None
        refusal = _refused_change(call, item, edit, claims) if edit else _refused_new(call, item, claims)
        if refusal:
            batch.fail(index, refusal)
        elif edit:
            edits[index] = edit
        else:
            new.append(index)
        await pace.rest()
    if new:
        seats = await hold_counters(call)
        if await find_same(call.db, call, [batch.items[index] for index in new]):
            raise Contention(retry_after=1)  # created concurrently; the retried transaction finds them
        refuse_seats(batch, new, seats)
    batch.settle()
    if await change.refusals(call, edits, held=held):
        raise Contention(retry_after=1)  # names that were free are now taken
    created = await create(call, batch, [index for index in new if index in batch.items], looked=True)
    await change.write(call, list(edits.values()))
    ids = {index: edit.before["id"] for index, edit in edits.items()}
    ids |= {index: row["id"] for index, row in created.items()}
    shown = await read_users(call, list(ids.values()))
    return {
        index: {
            "created": index in created,
            "changed": index in created or edits[index].differs,
            "user": shown[ids[index]],
        }
        for index in batch.items
    }


def _refused_change(call: Call, item: EnsuredUser, edit: Edit, claims: Claims) -> ServiceError | None:
    """The error that refuses a change, or None; then its names are claimed."""
    row = edit.before
    if row["deleted_at"] is not None:
        return UserDeleted()
    if item.externalId is not None and row["external_id"] not in (None, item.externalId):
        # Found by e-mail, but it belongs to another externalId: two of the caller's users share an address.
        return taken("users_email")
    forbidden = access.user_refusal(call.caller, row, edit.after) if edit.differs else None
    return forbidden or claims.refusal(row, edit.after)


def _refused_new(call: Call, item: EnsuredUser, claims: Claims) -> ServiceError | None:
    """The error that refuses a new user, or None; then its names are claimed."""
    if item.email is None:
        return Invalid.of([FieldError("email", "is required: nobody has this externalId")])
    return access.user_refusal(call.caller, {"is_admin": item.isAdmin}) or claims.new(item)


@method(
    "ensureUser",
    result=Ensured,
    scope="users:write",
    writes=True,
    prepare=_prepare_one,
    errors=(MemberForbidden, *DUPLICATES, "seats_exhausted", "user_deleted"),
    examples=(
        Example(
            "An existing user in the wanted state",
            {"email": "jane@example.com", "displayName": "Jane Doe"},
            {"created": False, "changed": False, "user": USER},
        ),
        Example(
            "A new user",
            {"email": "ann@example.com", "externalId": "shop-17", "displayName": "Ann"},
            {"created": True, "changed": True,
             "user": USER | {"id": 6, "email": "ann@example.com", "displayName": "Ann"}},
        ),
    ),
)  # fmt: skip
async def ensure_user(call: Call, params: EnsureUser, prepared: Batch[EnsuredUser]) -> Any:
    """Create a user, or update an existing one. The call can be repeated.

    Finds the user by externalId, then by e-mail; a user found by e-mail gets the externalId. A new user is
    created as by createUser. Of an existing user the given members are changed, as by updateUserByEmail, also
    firstName, lastName, and the e-mail if the externalId found the user. password, passwordHash, planId and
    createInOffice365 apply only to new users. A deleted user is refused, and so is an e-mail of a user with
    another externalId. Making or changing an administrator needs the scope users:admin.
    """
    return (await _ensure(call, prepared.again()))[0]


@method(
    "ensureUsers",
    result=EnsuredUsers,
    scope="users:write",
    writes=True,
    many=True,
    prepare=_prepare_many,
    errors=(MemberForbidden, *DUPLICATES, "named_twice", "seats_exhausted", "user_deleted"),
    examples=(
        Example(
            "A new user and an existing one",
            {"users": [{"email": "ann@example.com", "externalId": "shop-17", "displayName": "Ann"},
                       {"email": "jane@example.com", "displayName": "Jane Roe"}]},
            {"succeeded": 2, "failed": 0, "results": [
                {"index": 0, "error": None, "result": {
                    "created": True, "changed": True,
                    "user": USER | {"id": 6, "email": "ann@example.com", "displayName": "Ann"}}},
                {"index": 1, "error": None, "result": {
                    "created": False, "changed": True, "user": USER | {"displayName": "Jane Roe"}}},
            ]},
        ),
    ),
)  # fmt: skip
async def ensure_users(call: Call, params: EnsureUsers, prepared: Batch[EnsuredUser]) -> Any:
    """Create or update up to 1,000 users in one transaction, each as ensureUser does."""
    batch = prepared.again()
    ensured = await _ensure(call, batch)
    batch.note_nothing(call, "ensureUsers")
    return batch.answer(ensured)
