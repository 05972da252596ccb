"""Users who are to be as they are told: created, or changed where they are there already."""

from typing import Any

from pydantic import Field, model_validator

from server.base.errors import DUPLICATES, Contention, MemberForbidden, ServiceError, UserDeleted
from server.base.models import Result, TenantParams
from server.base.pace import Pace
from server.directory import change
from server.directory.creation import create, hold_counters, prepare, refuse_plans, refuse_seats
from server.directory.lookups import read_users
from server.directory.many import (
    MOST,
    Batch,
    Claims,
    ItemResult,
    Items,
    ManyParams,
    ManyResult,
    bad,
    checked,
    external_ids_of,
    find_same,
)
from server.directory.rows import Edit, hold
from server.directory.users import ABSENT, USER, NewEmail, NewUser, User, email_key, taken
from server.methods.registry import Example, method
from server.tenants import access
from server.tenants.call import Call


class EnsuredUser(NewUser):
    """What a user is to be."""

    email: NewEmail = Field(
        ABSENT, description="Whose user this is, unless externalId says so; for a new user it is needed."
    )

    @model_validator(mode="after")
    def _somebody(self) -> "EnsuredUser":
        if self.email is None and self.externalId is None:
            raise ValueError("give email or externalId")
        return self


class EnsureUser(EnsuredUser, TenantParams):
    """What a user is to be."""


class Ensured(Result):
    """A user as it is now, and what was done to it."""

    created: bool = Field(description="False: it was there already.")
    changed: bool = Field(description="False: it was there already and as it should be.")
    user: User


class EnsureUsers(ManyParams):
    """What users are to be."""

    users: Items[EnsuredUser] = Field(description=f"1 to {MOST}, each as ensureUser takes one.")


class EnsuredItem(ItemResult):
    """What a user is now, or why it is not."""

    result: Ensured | None


class EnsuredUsers(ManyResult):
    """What came of each item, in their order."""

    results: list[EnsuredItem]


async def _prepare_one(call: Call, params: EnsureUser) -> Batch[EnsuredUser]:
    return await prepare(call, Batch.one(params), all_new=False)


async def _prepare_many(call: Call, params: EnsureUsers) -> Batch[EnsuredUser]:
    batch = await checked(EnsuredUser, params.mode, params.users, call.settings)
    return await prepare(call, batch, all_new=False)


async def _ensure(call: Call, batch: Batch[EnsuredUser]) -> dict[int, dict[str, Any]]:
    items = list(batch.items.values())
    keys = [email_key(item.email) for item in items if item.email is not None]
    held = await hold(call.db, call.instance.id, keys=keys, external_ids=external_ids_of(items))
    claims = Claims(held)
    users = {row["id"]: row for row in held}
    edits: dict[int, Edit] = {}
    unknown = [index for index, item in batch.items.items() if claims.holder(item) is None]
    await refuse_plans(call, batch, unknown)
    new: list[int] = []
    pace = Pace()
    for index, item in list(batch.items.items()):
        user_id = claims.holder(item)
        if user_id is None:
            refusal = _refused_new(call, item, claims)
            new += [] if refusal else [index]
        else:
            edit = Edit(users[user_id], change.ensured(users[user_id], item))
            refusal = _refused_change(call, item, edit) or claims.refusal(edit.before, edit.after)
            edits |= {} if refusal else {index: edit}
        if refusal:
            batch.fail(index, refusal)
        await pace.rest()
    if new:
        seats = await _hold_new(call, [batch.items[index] for index in new])
        refuse_seats(batch, new, seats)
    batch.settle()
    if await change.refusals(call, edits, held=held):
        raise Contention(retry_after=1)  # an e-mail was free when we looked
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


def _refused_change(call: Call, item: EnsuredUser, edit: Edit) -> ServiceError | None:
    """Why a user is not to become this."""
    row = edit.before
    if row["deleted_at"] is not None:
        return UserDeleted()
    if item.externalId is not None and row["external_id"] not in (None, item.externalId):
        # Found by its e-mail, but somebody else to the caller's system: two of its users share an address.
        return taken("users_email")
    return access.user_refusal(call.caller, row, edit.after) if edit.differs else None


def _refused_new(call: Call, item: EnsuredUser, claims: Claims) -> ServiceError | None:
    """Why a user cannot be created, or None; then it is noted."""
    if item.email is None:
        return bad("email", "is required: nobody has this externalId")
    return access.user_refusal(call.caller, {"is_admin": item.isAdmin}) or claims.new(item)


async def _hold_new(call: Call, items: list[EnsuredUser]) -> int | None:
    """Hold the counters for new users; whoever created one of them since we looked makes us look again.

    Raises:
        Contention: somebody did; the transaction begins anew, and finds that user.
    """
    seats = await hold_counters(call)
    if await find_same(call.db, call, items):
        raise Contention(retry_after=1)
    return seats


@method(
    "ensureUser",
    result=Ensured,
    scope="users:write",
    writes=True,
    prepare=_prepare_one,
    errors=(MemberForbidden, *DUPLICATES, "seats_exhausted", "user_deleted"),
    examples=(
        Example(
            "One who is there already and as it should be",
            {"email": "jane@example.com", "displayName": "Jane Doe"},
            {"created": False, "changed": False, "user": USER},
        ),
        Example(
            "One who is new",
            {"email": "ann@example.com", "externalId": "shop-17", "displayName": "Ann"},
            {"created": True, "changed": True,
             "user": USER | {"id": 6, "email": "ann@example.com", "displayName": "Ann"}},
        ),
    ),
)  # fmt: skip
async def ensure_user(call: Call, params: EnsureUser, prepared: Batch[EnsuredUser]) -> Any:
    """Create a user, or change the one who is there so that it is as told: however often it is called.

    Who has the externalId is meant, and if nobody has it, who has the e-mail, whom the externalId is then
    given. What createUser takes is for new users; of one who is there the members that are given are changed,
    as updateUserByEmail does, and firstName, lastName, and the e-mail where the externalId says who it is.
    password, passwordHash, planId and createInOffice365 count for new users alone. A deleted user is refused,
    and so is an e-mail whose user has another externalId. To make an administrator, or to change one,
    needs the scope users:admin.
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
            "One who is new, and one who is there already",
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
    """Create up to 1,000 users, or change those who are there, in one transaction, as ensureUser does one."""
    batch = prepared.again()
    ensured = await _ensure(call, batch)
    batch.note_nothing(call, "ensureUsers")
    return batch.answer(ensured)
