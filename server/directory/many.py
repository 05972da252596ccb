"""What calls about many users share: items one by one, who is held, what is written at once."""

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field, SkipValidation

from server.base.errors import (
    Conflict,
    Contention,
    FieldError,
    Forbidden,
    Invalid,
    NotFound,
    ServiceError,
)
from server.base.models import Failure, Result, TenantParams, validated
from server.base.pace import Pace
from server.base.settings import Settings
from server.directory import office365
from server.directory.provisioning import creation, names_of, password_problem, shown_name
from server.directory.users import NewUser, email_key, taken
from server.events.emit import Change
from server.postgres.db import Connection, translated
from server.tenants.call import Call

MOST = 1000
"""Items of one call."""
M = TypeVar("M", bound=BaseModel)
Item = TypeVar("Item")
Items = Annotated[list[SkipValidation[Item]], Field(min_length=1, max_length=MOST)]
# Items are validated one by one in the course of the call, each by the rules of the method for one.


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

    @classmethod
    def of_one(cls, item: M) -> "Batch[M]":
        """The only item of a method for one."""
        return cls("one", {0: item}, {}, 1)

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


def bad(member: str, message: str) -> Invalid:
    return Invalid.of([FieldError(member, message)])


@contextlib.asynccontextmanager
async def alone() -> AsyncIterator[None]:
    """A name that was free when it was looked up, and no longer is: the transaction begins again."""
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


class Claims:
    """Which e-mails and external ids are spoken for, so that no two users, or items, get the same."""

    def __init__(self, users: Iterable[Mapping[str, Any]]) -> None:
        """
        Args:
            users: rows of find_taken or rows.hold.
        """
        users = list(users)
        self.deleted = {row["id"] for row in users if row["deleted_at"] is not None}
        self.emails = {row["email_key"]: row["id"] for row in users}
        self.external_ids = {row["external_id"]: row["id"] for row in users if row["external_id"] is not None}
        self.logins = {email_key(row["login"]): row["id"] for row in users if row.get("login") is not None}
        self.users: set[int] = set()
        self.keys: set[str] = set()
        self.names: set[str] = set()

    def holder(self, item: Any) -> int | None:
        """Whose an item's external id is, or else its e-mail."""
        user_id = None if item.externalId is None else self.external_ids.get(item.externalId)
        if user_id is None and item.email is not None:
            user_id = self.emails.get(email_key(item.email))
        return user_id

    def taken(self, constraint: str, holder: int | None, member: str | None = None) -> Conflict:
        """The error for what a user has, or another item of the call (None); see users.taken."""
        return taken(constraint, member, is_deleted=holder in self.deleted)

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

    def refusal(
        self, row: Mapping[str, Any], after: Mapping[str, Any], member: str | None = None
    ) -> ServiceError | None:
        """Why a user cannot become this, or None; then it is noted.

        Args:
            member: of the params, that holds the e-mail.
        """
        key, name = after["email_key"], after["external_id"]
        if row["id"] in self.users:
            return Conflict("another item of this call names the same user", code="named_twice")
        holder = self.emails.get(key, self.logins.get(key, row["id"]))
        if key in self.keys or holder != row["id"]:
            return self.taken("users_email", holder, member)
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
    async with alone():
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
        assigned = await call.db.all(
            "assign_plans",
            instance_id=call.instance.id,
            user_ids=[created[index]["id"] for index in with_plan],
            plan_ids=[batch.items[index].planId for index in with_plan],
            last_days=[day and date.fromisoformat(day) for day in days],
        )
        for row in assigned:
            call.record("user.updated", row["user_id"], before={"plan": None}, after={"plan": row["plan"]})
    for index in wanted:
        if batch.items[index].createInOffice365:
            await office365.begin(call, created[index]["id"])
    return created


def _array_text(numbers: Sequence[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"
