"""Many users in one call: created, changed, deleted, or ensured to be as they should."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field, SkipValidation, model_validator

from server.db import Connection, translated
from server.errors import (
    CONSTRAINTS,
    Conflict,
    Contention,
    FieldError,
    Invalid,
    MemberForbidden,
    NotFound,
    ServiceError,
)
from server.events import Change
from server.methods import _office365
from server.methods._groups import need_admin_scope
from server.methods.users import (
    ABSENT,
    CREATED_USER,
    USER,
    CreatedUser,
    Email,
    Failure,
    NewEmail,
    NewUser,
    User,
    UserChanges,
    creation,
    email_key,
    names_of,
    password_problem,
    set_quotas,
    shown_name,
)  # fmt: skip
from server.pictures import avatar_url
from server.registry import Call, Example, Params, Result, TenantParams, method, validated

MOST = 1000
"""Items of one call."""
M = TypeVar("M", bound=BaseModel)
Item = TypeVar("Item")
Items = Annotated[list[SkipValidation[Item]], Field(min_length=1, max_length=MOST)]
# Items are validated one by one in the course of the call, each by the rules of the method for one.

_SLICE = 0.004
"""Seconds of work after which the event loop gets a turn for others."""


class Pace:
    """Lets others have the event loop now and then in the course of long work."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = time.perf_counter()

    async def rest(self) -> None:
        """Between two steps: gives way where the last turn is long ago."""
        if time.perf_counter() - self._since > _SLICE:
            await asyncio.sleep(0)
            self._since = time.perf_counter()


class ManyParams(TenantParams):
    """What calls with many items have in common."""

    mode: Literal["atomic", "each"] = Field(
        "atomic",
        description="atomic: all of it or nothing, and the error names every bad item. each: what is good is "
        "done, and each item has its own result or error.",
    )


class ItemError(Result):
    """Why an item was refused: what the method for one would have answered."""

    code: str
    message: str
    fields: list[Failure] = Field(description="Members of the item.")


class ItemResult(Result):
    """What came of the item at this place."""

    index: int = Field(description="From 0.")
    error: ItemError | None


class ManyResult(Result):
    """What came of all items."""

    succeeded: int
    failed: int


@dataclass(slots=True)
class Batch(Generic[M]):
    """The items of a call on their way, and what is wrong with them."""

    # one: the only item of a method for one, whose error is that of the call.
    mode: Literal["atomic", "each", "one"]
    items: dict[int, M]
    errors: dict[int, ServiceError]
    size: int
    # By the index of the item.
    hashes: dict[int, str] = field(default_factory=dict)

    def again(self) -> "Batch[M]":
        """The same as before the transaction, which may run more than once."""
        return Batch(self.mode, dict(self.items), dict(self.errors), self.size, self.hashes)

    def fail(self, index: int, error: ServiceError) -> None:
        """Leave an item out."""
        del self.items[index]
        self.errors[index] = error

    def settle(self) -> None:
        """Go on only with what may go on.

        Raises:
            ServiceError: the mode is atomic and an item is bad; all bad ones are named.
        """
        if not self.errors or self.mode == "each":
            return
        if self.mode == "one":
            raise self.errors[0]
        fields = [
            FieldError(f"users.{index}.{bad.field}" if bad.field else f"users.{index}", bad.message)
            for index, error in sorted(self.errors.items())
            for bad in error.fields[:_FIELDS] or (FieldError("", error.message),)
        ]
        kinds = {(type(error), error.code) for error in self.errors.values()}
        kind, code = kinds.pop() if len(kinds) == 1 else (Invalid, None)
        raise kind(Invalid.of(fields).message, code=code, fields=fields)

    def answer(self, results: Mapping[int, Any]) -> dict[str, Any]:
        """The items' results and errors in their order."""
        return {
            "succeeded": len(results),
            "failed": len(self.errors),
            "results": [
                {
                    "index": index,
                    "result": results.get(index),
                    "error": _described(self.errors[index]) if index in self.errors else None,
                }
                for index in range(self.size)
            ],
        }

    def note_nothing(self, call: Call, name: str) -> None:
        """Where nothing changed, write down that it was asked; otherwise all of the params would be kept."""
        if not call.changes:
            call.changes.append(Change(name, None, None, {"users": self.size, "failed": len(self.errors)}))


_FIELDS = 10
"""Bad members of one item that are named in atomic mode."""


def _described(error: ServiceError) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": error.message,
        "fields": [bad._asdict() for bad in error.fields],
    }


async def _checked(model: type[M], mode: Literal["atomic", "each"], given: Sequence[Any]) -> Batch[M]:
    """The items, validated without keeping others from the event loop."""
    batch: Batch[M] = Batch(mode, {}, {}, len(given))
    pace = Pace()
    for index, item in enumerate(given):
        try:
            if not isinstance(item, dict):
                raise Invalid("must be an object")
            batch.items[index] = validated(model, item)
        except Invalid as error:
            batch.errors[index] = error
        await pace.rest()
    return batch


def _taken(name: str) -> Conflict:
    kind, code, message, member = CONSTRAINTS[name]
    return kind(message, code=code, fields=[FieldError(member, message)])  # type: ignore[return-value]


def _bad(member: str, message: str) -> Invalid:
    return Invalid.of([FieldError(member, message)])


@contextlib.asynccontextmanager
async def _alone() -> AsyncIterator[None]:
    """What was looked up a moment ago decides: whoever came in between makes the transaction begin again."""
    try:
        yield
    except Exception as error:
        known = translated(error)
        if isinstance(known, Conflict):
            raise Contention(retry_after=1) from error
        raise


# --- creating -----------------------------------------------------------------------------------------


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
    batch = await _checked(NewUser, params.mode, params.users)
    if any(item.isAdmin for item in batch.items.values()):
        need_admin_scope(call)
    _refuse_early(call, batch)
    batch.settle()
    if any(item.password is not None for item in batch.items.values()):
        # Hashing takes a while: not for those who are there already. What decides is looked up later.
        looked = batch.again()
        async with call.database.connection() as db:
            await _refuse_taken(db, call.instance.id, looked)
        looked.settle()
        await _hash(call, batch, looked.items)
    return batch


def _refuse_early(call: Call, batch: Batch[Any]) -> None:
    """What needs no look at the database."""
    policy = call.instance.settings.passwordPolicy
    without_office = _office365.credentials_of(call.instance.settings) is None
    for index, item in list(batch.items.items()):
        problem = item.password is not None and password_problem(item.password, policy)
        if problem:
            batch.fail(index, _bad("password", problem))
        elif item.createInOffice365 and without_office:
            batch.fail(index, _bad("createInOffice365", _office365.NO_CREDENTIALS))


async def _hash(call: Call, batch: Batch[Any], wanted: Mapping[int, Any]) -> None:
    places = [index for index, item in wanted.items() if item.password is not None]
    hashes = await call.hasher.hash_all([wanted[index].password for index in places])
    batch.hashes = dict(zip(places, hashes, strict=True))


async def _refuse_taken(db: Connection, instance_id: int, batch: Batch[NewUser]) -> None:
    """Leave out whose e-mail or external id is taken, by somebody or by an item before it."""
    taken = await db.all(
        "find_taken",
        instance_id=instance_id,
        email_keys=[item.email.lower() for item in batch.items.values()],
        external_ids=_external_ids(batch),
    )
    emails = {row["email_key"] for row in taken}
    external_ids = {row["external_id"] for row in taken} - {None}
    for index, item in list(batch.items.items()):
        if item.email.lower() in emails:
            batch.fail(index, _taken("users_email"))
        elif item.externalId in external_ids:
            batch.fail(index, _taken("users_external_id"))
        else:
            emails.add(item.email.lower())
            external_ids |= {item.externalId} - {None}


def _external_ids(batch: Batch[Any]) -> list[str]:
    return [item.externalId for item in batch.items.values() if item.externalId is not None]


async def _refuse_plans(call: Call, batch: Batch[Any], wanted: Sequence[int]) -> None:
    """Leave out who is to have a plan that there is not, or one that ended."""
    plan_ids = {batch.items[index].planId for index in wanted} - {None}
    if not plan_ids:
        return
    rows = await call.db.all("find_plans", instance_id=call.instance.id, plan_ids=list(plan_ids))
    days = {row["id"]: row["today"] for row in rows}
    for index in wanted:
        item = batch.items[index]
        if item.planId is None:
            continue
        if item.planId not in days:
            batch.fail(index, _bad("planId", "is no plan of this instance"))
        elif item.planValidTo is not None and date.fromisoformat(item.planValidTo) < days[item.planId]:
            batch.fail(index, _bad("planValidTo", "must not lie in the past"))


async def _insert(call: Call, batch: Batch[Any], wanted: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Create and provision users in one statement.

    Returns:
        by the index of the item, what createUser answers.
    """
    if not wanted:
        return {}
    pace, rows = Pace(), []
    for index in wanted:
        item = batch.items[index]
        profile, values = item.profile.model_dump(), item.values.model_dump()
        names = {alias: name for alias, name in names_of(item).items() if name is not None}
        password_hash = batch.hashes.get(index) or item.passwordHash
        if item.password is not None and password_hash is None:
            # It was taken when the passwords were hashed, and no longer is.
            raise Contention(retry_after=1)
        rows.append(
            {
                "email": item.email,
                "email_key": item.email.lower(),
                "display_name": shown_name(item),
                "is_active": item.isActive,
                "is_admin": item.isAdmin,
                "profile": profile,
                "app_values": values,
                "settings": item.settings,
                "apps": item.apps,
                "avatar": item.avatar,
                "fields": names,
                "external_id": item.externalId,
                "sessions_limit": item.sessionsLimit,
                "is_plan_admin": item.isPlanAdmin,
                "only_sees_readable": item.onlySeesReadable,
                "password_hash": password_hash,
            }
        )
        await pace.rest()
    async with _alone():
        last = await call.db.one(
            "create_users", instance_id=call.instance.id, user_count=len(rows), users=rows
        )
    if last is None:
        raise NotFound
    created: dict[int, dict[str, Any]] = {}
    for place, (index, row) in enumerate(zip(wanted, rows, strict=True)):
        user_id = last["users"] + place + 1
        mailbox, folder = last["mailboxes"] + 6 * place, last["file_folders"] + 2 * place
        call.record("user.created", user_id, after=creation(batch.items[index]))
        created[index] = {
            "email": row["email"],
            "displayName": row["display_name"],
            "profile": row["profile"],
            "isAdmin": row["is_admin"],
            "apps": _array_text(row["apps"]),
            "createdAt": last["createdAt"],
            "settings": _array_text(row["settings"]),
            "values": row["app_values"],
            "id": user_id,
            "mainCalendar": last["calendars"] + place + 1,
            "inbox": mailbox + 1,
            "spam": mailbox + 2,
            "sent": mailbox + 3,
            "trashEmail": mailbox + 4,
            "drafts": mailbox + 6,
            "rootFiles": folder + 1,
            "trashFiles": folder + 2,
        }
        await pace.rest()
    with_plan = [index for index in wanted if batch.items[index].planId is not None]
    if with_plan:
        days = [batch.items[index].planValidTo for index in with_plan]
        await call.db.run(
            "assign_plans",
            instance_id=call.instance.id,
            user_ids=[created[index]["id"] for index in with_plan],
            plan_ids=[batch.items[index].planId for index in with_plan],
            last_days=[day and date.fromisoformat(day) for day in days],
        )
    for index in wanted:
        item, user_id = batch.items[index], created[index]["id"]
        if item.createInOffice365:
            await _office365.begin(call, user_id)
        if item.quotas is not None and (item.quotas.mail, item.quotas.files) != (None, None):
            await set_quotas(call, call.instance.id, user_id, item.quotas)
    return created


def _array_text(numbers: Sequence[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"


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
    prepare=_prepare_creations,
    errors=(Conflict,),
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
    1,000 of them may take longer than a call may. isAdmin true in any item needs the scope users:admin.
    """
    batch = prepared.again()
    await call.db.value("hold_counters", instance_id=call.instance.id)
    await _refuse_plans(call, batch, list(batch.items))
    await _refuse_taken(call.db, call.instance.id, batch)
    batch.settle()
    created = await _insert(call, batch, list(batch.items))
    batch.note_nothing(call, "createUsers")
    return batch.answer(created)


# --- changing -----------------------------------------------------------------------------------------

_COLUMNS = {
    "email": "email",
    "displayName": "display_name",
    "isActive": "is_active",
    "isAdmin": "is_admin",
    "profile": "profile",
    "values": "app_values",
    "settings": "settings",
    "apps": "apps",
    "avatar": "avatar",
    "names": "fields",
    "externalId": "external_id",
    "sessionsLimit": "sessions_limit",
    "isPlanAdmin": "is_plan_admin",
    "onlySeesReadable": "only_sees_readable",
}
"""Member -> where it is stored."""
_MERGED = {"profile", "values"}


async def _hold(call: Call, email_keys: list[str], external_ids: list[str]) -> list[dict[str, Any]]:
    """Whoever has one of these, as it is once nobody else can change it."""
    found = await call.db.all(
        "find_taken", instance_id=call.instance.id, email_keys=email_keys, external_ids=external_ids
    )
    ids = [row["id"] for row in found]
    rows = await call.db.all("hold_users", instance_id=call.instance.id, ids=ids)
    return [dict(row) for row in rows]


def _after(row: Mapping[str, Any], item: NewUser | UserChanges) -> dict[str, Any]:
    """What a stored user is with the members that were given."""
    after = dict(row)
    given = item.model_dump(exclude_unset=True, include=set(_COLUMNS))
    for member, value in given.items():
        column = _COLUMNS[member]
        after[column] = row[column] | value if member in _MERGED else value
    if after["email"].lower() == row["email_key"] or not isinstance(item, NewUser):
        after["email"] = row["email"]  # the same in another spelling, or what the user is called by
    after["email_key"] = after["email"].lower()
    if isinstance(item, NewUser) and (names := names_of(item)):
        fields = row["fields"] | names
        after["fields"] = {alias: value for alias, value in fields.items() if value is not None}
        if "displayName" not in given:
            whole = f"{fields.get('firstname') or ''} {fields.get('lastname') or ''}".strip()
            after["display_name"] = whole[:200] or row["display_name"]
    return after


class _Claims:
    """Which e-mails and external ids are spoken for, so that no two users, or items, get the same."""

    def __init__(self, held: Sequence[Mapping[str, Any]]) -> None:
        self.emails = {row["email_key"]: row["id"] for row in held}
        self.external_ids = {row["external_id"]: row["id"] for row in held if row["external_id"] is not None}
        self.users: set[int] = set()
        self.keys: set[str] = set()
        self.names: set[str] = set()

    def refusal(self, row: Mapping[str, Any], after: Mapping[str, Any]) -> ServiceError | None:
        """Why a user cannot become this, or None; then it is noted."""
        key, name = after["email_key"], after["external_id"]
        if row["id"] in self.users:
            return Conflict("another item of this call names the same user", code="named_twice")
        if key in self.keys or self.emails.get(key, row["id"]) != row["id"]:
            return _taken("users_email")
        if name is not None and (name in self.names or self.external_ids.get(name, row["id"]) != row["id"]):
            return _taken("users_external_id")
        self.users.add(row["id"])
        self.keys.add(key)
        self.names |= {name} - {None}
        return None


def _protected_admin(
    call: Call, row: Mapping[str, Any], after: Mapping[str, Any] | None = None
) -> ServiceError | None:
    """Why the key may not make this of an administrator; without after: may not delete it."""
    if not row["is_admin"] or "users:admin" in call.caller.scopes:
        return None
    if after is not None and all(row[column] == after[column] for column in ("email_key", "is_active")):
        return None
    return MemberForbidden()


async def _write(call: Call, changes: Sequence[tuple[Mapping[str, Any], dict[str, Any]]]) -> None:
    """Store what users are to be, and write down what changed; who stays the same is left alone.

    Args:
        changes: before and after of users who are held.
    """
    pace, rows = Pace(), []
    for before, after in changes:
        if after == before:
            continue
        if after["is_admin"] != before["is_admin"]:
            need_admin_scope(call)
        rows.append(
            after
            | {
                "is_renamed": after["email_key"] != before["email_key"],
                "has_new_avatar": after["avatar"] != before["avatar"],
            }
        )
        _note_change(call, before, after)
        await pace.rest()
    if rows:
        async with _alone():
            await call.db.run("write_users", instance_id=call.instance.id, users=rows)


def _note_change(call: Call, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    changed = {member: column for member, column in _COLUMNS.items() if before[column] != after[column]}
    if changed.pop("isActive", None):
        call.record(
            "user.reactivated" if after["is_active"] else "user.suspended",
            before["id"],
            before={"isActive": before["is_active"]},
            after={"isActive": after["is_active"]},
        )
    if changed:
        call.record(
            "user.updated",
            before["id"],
            before={member: before[column] for member, column in changed.items()},
            after={member: after[column] for member, column in changed.items()},
        )


class UpdateUsers(ManyParams):
    """What to change of whom."""

    users: Items[UserChanges] = Field(
        description=f"1 to {MOST}, each as updateUserByEmail takes one, but for groups and quotas."
    )


class DoneItem(ItemResult):
    """Done, or why not."""

    result: Literal[True] | None


class DoneUsers(ManyResult):
    """What came of each item, in their order."""

    results: list[DoneItem]


async def _prepare_changes(call: Call, params: UpdateUsers) -> Batch[UserChanges]:
    batch = await _checked(UserChanges, params.mode, params.users)
    if any(item.isAdmin is not None for item in batch.items.values()):
        need_admin_scope(call)
    batch.settle()
    return batch


@method(
    "updateUsers",
    result=DoneUsers,
    scope="users:write",
    writes=True,
    prepare=_prepare_changes,
    errors=(NotFound, Conflict),
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

    Each item is what updateUserByEmail takes, without instance, groups and quotas. An externalId that
    another user has now is taken, even where the same call takes it away from there. isAdmin in any item
    needs the scope users:admin, and so does isActive that an administrator has not.
    """
    batch = prepared.again()
    keys = {index: email_key(item.email) for index, item in batch.items.items()}
    held = await _hold(call, list(keys.values()), _external_ids(batch))
    claims = _Claims(held)
    users = {row["email_key"]: row for row in held if not row["is_deleted"]}
    changes = []
    pace = Pace()
    for index, item in list(batch.items.items()):
        row = users.get(keys[index])
        after = row and _after(row, item)
        if row is None or after is None:
            refusal: ServiceError | None = NotFound()
        else:
            refusal = _protected_admin(call, row, after) or claims.refusal(row, after)
        if refusal:
            batch.fail(index, refusal)
        else:
            changes.append((row, after))
        await pace.rest()
    batch.settle()
    await _write(call, changes)  # type: ignore[arg-type]
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
    batch = await _checked(DeletedUser, params.mode, params.users)
    batch.settle()
    return batch


@method(
    "deleteUsers",
    result=DoneUsers,
    scope="users:write",
    writes=True,
    prepare=_prepare_deletions,
    errors=(NotFound,),
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
    held = await _hold(call, list(keys.values()), [])
    users = {row["email_key"]: row for row in held if not row["is_deleted"]}
    ids: list[int] = []
    for index, key in keys.items():
        user = users.pop(key, None)
        refusal = NotFound() if user is None else _protected_admin(call, user)
        if user is None or refusal is not None:
            batch.fail(index, refusal or NotFound())
        else:
            ids.append(user["id"])
            call.record("user.deleted", user["id"], before={"email": batch.items[index].email})
    batch.settle()
    if ids:
        await call.db.run("delete_users", instance_id=call.instance.id, ids=ids)
    batch.note_nothing(call, "deleteUsers")
    return batch.answer(dict.fromkeys(batch.items, True))


# --- ensuring -----------------------------------------------------------------------------------------


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


async def _prepare_ensured(call: Call, batch: Batch[EnsuredUser]) -> Batch[EnsuredUser]:
    _refuse_early(call, batch)
    batch.settle()
    if any(item.password is not None for item in batch.items.values()):
        # Only who is new gets a password.
        async with call.database.connection() as db:
            rows = await db.all(
                "find_taken",
                instance_id=call.instance.id,
                email_keys=_email_keys(batch),
                external_ids=_external_ids(batch),
            )
        claims = _Claims(rows)
        new = {
            index: item
            for index, item in batch.items.items()
            if item.email is not None
            and item.email.lower() not in claims.emails
            and item.externalId not in claims.external_ids
        }
        await _hash(call, batch, new)
    return batch


async def _prepare_one(call: Call, params: EnsureUser) -> Batch[EnsuredUser]:
    return await _prepare_ensured(call, Batch("one", {0: params}, {}, 1))


async def _prepare_many(call: Call, params: EnsureUsers) -> Batch[EnsuredUser]:
    return await _prepare_ensured(call, await _checked(EnsuredUser, params.mode, params.users))


def _email_keys(batch: Batch[EnsuredUser]) -> list[str]:
    return [item.email.lower() for item in batch.items.values() if item.email is not None]


async def _ensure(call: Call, batch: Batch[EnsuredUser]) -> dict[int, dict[str, Any]]:
    held = await _hold(call, _email_keys(batch), _external_ids(batch))
    claims = _Claims(held)
    users = {row["id"]: row for row in held}
    changes: dict[int, tuple[Mapping[str, Any], dict[str, Any]]] = {}
    new: list[int] = []
    pace = Pace()
    for index, item in list(batch.items.items()):
        row = _whose(item, claims, users)
        if row is None:
            refusal = _claim_new(item, claims)
            new += [] if refusal else [index]
        else:
            after = _after(row, item)
            refusal = (
                _protected(item, row) or _protected_admin(call, row, after) or claims.refusal(row, after)
            )
            changes |= {} if refusal else {index: (row, after)}
        if refusal:
            batch.fail(index, refusal)
        await pace.rest()
    if any(batch.items[index].isAdmin for index in new):
        need_admin_scope(call)
    if new:
        await _hold_new(call, [batch.items[index] for index in new])
    await _refuse_plans(call, batch, new)
    batch.settle()
    created = await _insert(call, batch, [index for index in new if index in batch.items])
    await _write(call, list(changes.values()))
    ids = {index: before["id"] for index, (before, _) in changes.items()}
    for index, user_id in ids.items():
        await set_quotas(call, call.instance.id, user_id, batch.items[index].quotas)
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


def _whose(item: EnsuredUser, claims: _Claims, users: Mapping[int, Any]) -> Mapping[str, Any] | None:
    """The user that an item is about: by external id, or else by e-mail."""
    user_id = claims.external_ids.get(item.externalId) if item.externalId is not None else None
    if user_id is None and item.email is not None:
        user_id = claims.emails.get(item.email.lower())
    return None if user_id is None else users[user_id]


def _protected(item: EnsuredUser, row: Mapping[str, Any]) -> ServiceError | None:
    """Why a user is not to be touched by this item."""
    if row["is_deleted"]:
        return Conflict("this user is deleted: restore or purge it first", code="user_deleted")
    if item.externalId is not None and row["external_id"] not in (None, item.externalId):
        # Found by its e-mail, but somebody else to the caller's system: two of its users share an address.
        return _taken("users_email")
    return None


def _claim_new(item: EnsuredUser, claims: _Claims) -> ServiceError | None:
    """Why a user cannot be created, or None; then it is noted."""
    if item.email is None:
        return _bad("email", "is required: nobody has this externalId")
    if item.email.lower() in claims.keys:
        return _taken("users_email")
    if item.externalId in claims.names:
        return _taken("users_external_id")
    claims.keys.add(item.email.lower())
    claims.names |= {item.externalId} - {None}  # type: ignore[arg-type]
    return None


async def _hold_new(call: Call, items: Sequence[EnsuredUser]) -> None:
    """From here on nobody else creates users; whoever did so since we looked makes us look again.

    Raises:
        Contention: somebody did; the transaction begins anew, and finds that user.
    """
    await call.db.value("hold_counters", instance_id=call.instance.id)
    found = await call.db.all(
        "find_taken",
        instance_id=call.instance.id,
        email_keys=[item.email.lower() for item in items],
        external_ids=[item.externalId for item in items if item.externalId is not None],
    )
    if found:
        raise Contention(retry_after=1)


@method(
    "ensureUser",
    result=Ensured,
    scope="users:write",
    writes=True,
    prepare=_prepare_one,
    errors=(Conflict,),
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
    and so is an e-mail whose user has another externalId. To make or unmake an administrator, or to give one
    another e-mail or isActive, needs the scope users:admin.
    """
    return (await _ensure(call, prepared.again()))[0]


@method(
    "ensureUsers",
    result=EnsuredUsers,
    scope="users:write",
    writes=True,
    prepare=_prepare_many,
    errors=(Conflict,),
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
