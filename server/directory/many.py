"""What calls about many users share: items one by one, who is held, what is written at once."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field, SkipValidation

from server.base.errors import (
    CONSTRAINTS,
    Conflict,
    Contention,
    FieldError,
    Forbidden,
    Invalid,
    NotFound,
    ServiceError,
)
from server.base.models import Failure, Result, TenantParams, validated
from server.base.settings import Settings
from server.directory import office365
from server.directory.names import Names, hold_names, renamed, store_names
from server.directory.provisioning import creation, names_of, password_problem, shown_name
from server.directory.users import NewUser, UserChanges, email_key, end_access, user_deleted
from server.events.changes import Change
from server.postgres.db import Connection, translated
from server.tenants.call import Call

MOST = 1000
"""Items of one call."""
M = TypeVar("M", bound=BaseModel)
Item = TypeVar("Item")
Items = Annotated[list[SkipValidation[Item]], Field(min_length=1, max_length=MOST)]
# Items are validated one by one in the course of the call, each by the rules of the method for one.

_SLICE = 0.001
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
            ServiceError: the mode is atomic and an item is bad; all bad ones are named, unless the key
                lacks a scope for one.
        """
        if not self.errors or self.mode == "each":
            return
        if self.mode == "one":
            raise self.errors[0]
        for error in self.errors.values():
            if isinstance(error, Forbidden):
                raise error
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
        "fields": [bad._asdict() for bad in error.told_fields()],
    }


async def checked(
    model: type[M], mode: Literal["atomic", "each"], given: Sequence[Any], settings: Settings
) -> Batch[M]:
    """The items, validated without keeping others from the event loop; see registry.validated."""
    batch: Batch[M] = Batch(mode, {}, {}, len(given))
    pace = Pace()
    for index, item in enumerate(given):
        try:
            if not isinstance(item, dict):
                raise Invalid("must be an object")
            batch.items[index] = validated(model, item, settings=settings)
        except Invalid as error:
            batch.errors[index] = error
        await pace.rest()
    return batch


def taken(name: str) -> Conflict:
    kind, code, message, member = CONSTRAINTS[name]
    return kind(message, code=code, fields=[FieldError(member, message)])  # type: ignore[return-value]


def bad(member: str, message: str) -> Invalid:
    return Invalid.of([FieldError(member, message)])


@contextlib.asynccontextmanager
async def _alone() -> AsyncIterator[None]:
    """What was looked up a moment ago decides: whoever came in between makes the transaction begin again."""
    try:
        yield
    except Exception as error:
        known = translated(error)
        if isinstance(known, Conflict) and known.code in ("duplicate_email", "duplicate_external_id"):
            raise Contention(retry_after=1) from error
        raise


# --- who is there -------------------------------------------------------------------------------------


async def find_taken(
    db: Connection, call: Call, email_keys: Sequence[str], external_ids: Sequence[str] = ()
) -> list[Any]:
    """Whoever has one of these e-mails or external ids, deleted or not."""
    found: list[Any] = await db.all(
        "find_taken", instance_id=call.instance.id, email_keys=email_keys, external_ids=external_ids
    )
    return found


async def find_same(db: Connection, call: Call, items: Iterable[NewUser]) -> list[Any]:
    """Whoever has an e-mail or external id of these, deleted or not."""
    items = list(items)
    email_keys = [email_key(item.email) for item in items if item.email is not None]
    return await find_taken(db, call, email_keys, external_ids_of(items))


def external_ids_of(items: Iterable[Any]) -> list[str]:
    """Those that are given."""
    return [item.externalId for item in items if item.externalId is not None]


async def hold(call: Call, found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of find_taken, as their users are once nobody else can change them."""
    ids = [row["id"] for row in found]
    return [dict(row) for row in await call.db.all("hold_users", instance_id=call.instance.id, ids=ids)]


class Claims:
    """Which e-mails and external ids are spoken for, so that no two users, or items, get the same."""

    def __init__(self, held: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]] = ()) -> None:
        """
        Args:
            held: users by their e-mails; rows of find_taken, or the users themselves.
            found: the rows of find_taken for users who are held, among them those who have an e-mail of an
                item as login.
        """
        self.deleted = {row["id"] for row in held if row["is_deleted"]}
        self.emails = {row["email_key"]: row["id"] for row in held}
        self.external_ids = {row["external_id"]: row["id"] for row in held if row["external_id"] is not None}
        self.logins = {row["email_key"]: row["id"] for row in found if row["email_key"] not in self.emails}
        self.users: set[int] = set()
        self.keys: set[str] = set()
        self.names: set[str] = set()

    def holder(self, item: Any) -> int | None:
        """Whose an item's external id is, or else its e-mail."""
        user_id = None if item.externalId is None else self.external_ids.get(item.externalId)
        if user_id is None and item.email is not None:
            user_id = self.emails.get(email_key(item.email))
        return user_id

    def taken(self, name: str, holder: int | None) -> Conflict:
        """The error for an e-mail or external id that somebody has.

        Args:
            name: of the constraint.
            holder: the user's id; None for another item of the call.
        """
        return user_deleted(CONSTRAINTS[name][3]) if holder in self.deleted else taken(name)

    def new(self, item: Any) -> ServiceError | None:
        """Why a user cannot be created, or None; then it is noted."""
        key = email_key(item.email)
        if key in self.keys or key in self.logins:
            return self.taken("users_email", self.logins.get(key))
        if item.externalId in self.names:
            return taken("users_external_id")
        self.keys.add(key)
        self.names |= {item.externalId} - {None}
        return None

    def refusal(self, row: Mapping[str, Any], after: Mapping[str, Any]) -> ServiceError | None:
        """Why a user cannot become this, or None; then it is noted."""
        key, name = after["email_key"], after["external_id"]
        if row["id"] in self.users:
            return Conflict("another item of this call names the same user", code="named_twice")
        holder = self.emails.get(key, self.logins.get(key, row["id"]))
        if key in self.keys or holder != row["id"]:
            return self.taken("users_email", holder)
        if name is not None and (name in self.names or self.external_ids.get(name, row["id"]) != row["id"]):
            return self.taken("users_external_id", self.external_ids.get(name))
        self.users.add(row["id"])
        self.keys.add(key)
        self.names |= {name} - {None}
        return None


# --- new users ----------------------------------------------------------------------------------------


async def refuse_early(call: Call, batch: Batch[Any]) -> None:
    """Leave out new users that need no look at the database to be refused."""
    policy = call.instance.settings.passwordPolicy
    without_office = office365.credentials_of(call.instance.settings) is None
    pace = Pace()
    for index, item in list(batch.items.items()):
        problem = item.password is not None and password_problem(item.password, policy)
        if problem:
            batch.fail(index, bad("password", problem))
        elif item.createInOffice365 and without_office:
            batch.fail(index, bad("createInOffice365", office365.NO_CREDENTIALS))
        await pace.rest()


async def hash_passwords(call: Call, batch: Batch[Any], found: Sequence[Mapping[str, Any]]) -> None:
    """Hash the passwords of who is not there already, as far as is known before the transaction.

    Args:
        found: rows of find_taken for the items.
    """
    claims = Claims(found)
    new = {
        index: item
        for index, item in batch.items.items()
        if item.password is not None and claims.holder(item) is None and item.email is not None
    }
    hashes = await call.hasher.hash_all([item.password for item in new.values()])
    batch.hashes = dict(zip(new, hashes, strict=True))


async def hold_counters(call: Call) -> int | None:
    """Keep others from creating users in the instance; the seats that are left, None for any number."""
    held = await call.db.one("hold_counters", instance_id=call.instance.id)
    if held is None:
        raise NotFound
    seats: int | None = held["seats"]
    return seats


def refuse_seats(batch: Batch[Any], wanted: Sequence[int], seats: int | None) -> None:
    """Leave out whom there is no seat for."""
    if seats is not None:
        for index in [index for index in wanted if index in batch.items][max(seats, 0) :]:
            batch.fail(index, taken("instance_counters_seats"))


async def refuse_plans(call: Call, batch: Batch[Any], wanted: Sequence[int]) -> None:
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
            batch.fail(index, bad("planId", "is no plan of this instance"))
        elif item.planValidTo is not None and date.fromisoformat(item.planValidTo) < days[item.planId]:
            batch.fail(index, bad("planValidTo", "must not lie in the past"))


async def insert(call: Call, batch: Batch[Any], wanted: Sequence[int]) -> dict[int, dict[str, Any]]:
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
                "email_key": email_key(item.email),
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
                "mail_quota": item.quotas and item.quotas.mail,
                "files_quota": item.quotas and item.quotas.files,
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
        call.emit("user.created", user_id, after=creation(batch.items[index]))
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
        assigned = await call.db.all(
            "assign_plans",
            instance_id=call.instance.id,
            user_ids=[created[index]["id"] for index in with_plan],
            plan_ids=[batch.items[index].planId for index in with_plan],
            last_days=[day and date.fromisoformat(day) for day in days],
        )
        for row in assigned:
            call.emit("user.updated", row["user_id"], before={"plan": None}, after={"plan": row["plan"]})
    for index in wanted:
        if batch.items[index].createInOffice365:
            await office365.begin(call, created[index]["id"])
    return created


def _array_text(numbers: Sequence[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"


# --- users who change -----------------------------------------------------------------------------------

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


def changed(row: Mapping[str, Any], item: NewUser | UserChanges) -> dict[str, Any]:
    """What a stored user is with the members that were given."""
    after = dict(row)
    given = item.model_dump(exclude_unset=True, include={*_COLUMNS, "quotas"})
    for name, quota in (given.pop("quotas", None) or {}).items():
        after[f"{name}_quota"] = quota
    for member, value in given.items():
        column = _COLUMNS[member]
        after[column] = row[column] | value if member in _MERGED else value
    if email_key(after["email"]) == row["email_key"] or not isinstance(item, NewUser):
        after["email"] = row["email"]  # the same in another spelling, or what the user is called by
    after["email_key"] = email_key(after["email"])
    if isinstance(item, UserChanges) and item.groups is not None:
        after["is_admin"] = item.in_admins()
    if isinstance(item, NewUser) and (names := names_of(item)):
        fields = row["fields"] | names
        after["fields"] = {alias: value for alias, value in fields.items() if value is not None}
        if "displayName" not in given:
            whole = f"{fields.get('firstname') or ''} {fields.get('lastname') or ''}".strip()
            after["display_name"] = whole[:200] or row["display_name"]
    return after


async def write(call: Call, changes: Sequence[tuple[Mapping[str, Any], dict[str, Any]]]) -> None:
    """Store what users are to be, and write down what changed; who stays the same is left alone.

    Args:
        changes: before and after of users who are held.
    """
    pace = Pace()
    changes = [(before, after) for before, after in changes if after != before]
    if not changes:
        return
    rows = [
        after
        | {
            "state": None,  # what it was is known here
            "has_new_avatar": after["avatar"] != before["avatar"],
        }
        for before, after in changes
    ]
    moved = [(before, after) for before, after in changes if before["email_key"] != after["email_key"]]
    wanted = {after["email_key"]: before["id"] for before, after in moved}
    if wanted and await hold_names(call, wanted):
        raise Contention(retry_after=1)  # it was free when we looked
    async with _alone():
        written = await call.db.all("write_users", instance_id=call.instance.id, users=rows)
    states = {row["id"]: row["state"] for row in written}
    for before, after in moved:
        if (login := before["state"]["login"]) is not None:
            names = renamed(Names(before["email"], login), after["email"])
            states[before["id"]] = (await store_names(call, before["id"], names))["after"]
    for before, _ in changes:
        call.emit_user_changes(before["id"], before["state"], states[before["id"]])
        await pace.rest()
    await end_access(call, [row["id"] for row in rows if not row["is_active"]])
    if wanted:
        await call.db.run("end_codes_of", instance_id=call.instance.id, user_ids=list(wanted.values()))
