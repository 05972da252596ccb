"""Users who are to be as they are told: created, or changed where they are there already."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from server.base.errors import DUPLICATES, Contention, MemberForbidden, ServiceError, UserDeleted
from server.base.models import Result, TenantParams
from server.directory.creation import create, hold_counters, prepare, refuse_plans, refuse_seats
from server.directory.many import (
    MOST,
    Batch,
    Claims,
    ItemResult,
    Items,
    ManyParams,
    ManyResult,
    Pace,
    bad,
    changed,
    checked,
    find_same,
    hold,
    write,
)
from server.directory.users import ABSENT, USER, NewEmail, NewUser, User, taken
from server.methods.registry import Example, method
from server.outside.pictures import avatar_url
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
    found = await find_same(call.db, call, batch.items.values())
    held = await hold(call, found)
    claims = Claims(held, found)
    users = {row["id"]: row for row in held}
    changes: dict[int, tuple[Mapping[str, Any], dict[str, Any]]] = {}
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
            row = users[user_id]
            after = changed(row, item)
            refusal = _refused_change(call, item, row, after) or claims.refusal(row, after)
            changes |= {} if refusal else {index: (row, after)}
        if refusal:
            batch.fail(index, refusal)
        await pace.rest()
    if new:
        seats = await hold_counters(call)
        if await find_same(call.db, call, [batch.items[index] for index in new]):
            # One of them was created since we looked: the transaction begins again, and finds that user.
            raise Contention(retry_after=1)
        refuse_seats(batch, new, seats)
    batch.settle()
    created = await create(call, batch, [index for index in new if index in batch.items], looked=True)
    await write(call, list(changes.values()))
    ids = {index: before["id"] for index, (before, _) in changes.items()}
    ids |= {index: row["id"] for index, row in created.items()}
    rows = await call.db.all(
        "read_users", instance_id=call.instance.id, instance_name=call.instance.name, ids=list(ids.values())
    )
    shown = {row["id"]: dict(row) | {"avatar": avatar_url(call.settings, row["avatar"])} for row in rows}
    return {
        index: {
            "created": index in created,
            "changed": index in created or changes[index][0] != changes[index][1],
            "user": shown[ids[index]],
        }
        for index in batch.items
    }


def _refused_change(
    call: Call, item: EnsuredUser, row: Mapping[str, Any], after: Mapping[str, Any]
) -> ServiceError | None:
    """Why a user is not to become this."""
    if row["is_deleted"]:
        return UserDeleted()
    if item.externalId is not None and row["external_id"] not in (None, item.externalId):
        # Found by its e-mail, but somebody else to the caller's system: two of its users share an address.
        return taken("users_email")
    if after != row and not access.may_change_user(call.caller, row, after):
        return MemberForbidden()
    return None


def _refused_new(call: Call, item: EnsuredUser, claims: Claims) -> ServiceError | None:
    """Why a user cannot be created, or None; then it is noted."""
    if item.email is None:
        return bad("email", "is required: nobody has this externalId")
    if item.isAdmin and not access.may_administrate(call.caller):
        return MemberForbidden()
    return claims.new(item)


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
