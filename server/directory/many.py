"""What calls about many users share: items one by one, who is held, what is written at once."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field, SkipValidation

from server.base.errors import (
    Conflict,
    Contention,
    FieldError,
    Forbidden,
    Invalid,
    ServiceError,
)
from server.base.models import Failure, Result, TenantParams, validated
from server.base.settings import Settings
from server.directory.names import Names, hold_names, renamed, store_names
from server.directory.rules import full_name, names_of
from server.directory.users import NewUser, UserChanges, email_key, end_access, taken
from server.events.emit import Change
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

    @classmethod
    def one(cls, item: M, password_hash: str | None = None) -> "Batch[M]":
        """The item of a method for one."""
        return cls("one", {0: item}, {}, 1, {} if password_hash is None else {0: password_hash})

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
async def if_free() -> AsyncIterator[None]:
    """Map a unique violation to Contention: the names were found free, so the transaction begins again."""
    try:
        yield
    except Exception as error:
        known = translated(error)
        if isinstance(known, Conflict) and known.code in ("duplicate_email", "duplicate_external_id"):
            raise Contention(retry_after=1) from error
        raise


# --- who is there -------------------------------------------------------------------------------------


async def find_taken(
    db: Connection, call: Call, email_keys: Sequence[str] = (), external_ids: Sequence[str] = ()
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

    def taken(self, name: str, holder: int | None) -> ServiceError:
        """The error for an e-mail or external id that somebody has.

        Args:
            name: of the constraint.
            holder: the user's id; None for another item of the call.
        """
        return taken(name, is_deleted=holder in self.deleted)

    def new(self, item: Any) -> ServiceError | None:
        """Why a user cannot be created, or None; then it is noted."""
        key = email_key(item.email)
        if key in self.emails:
            return self.taken("users_email", self.emails[key])
        if item.externalId in self.external_ids:
            return self.taken("users_external_id", self.external_ids[item.externalId])
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


# --- users who change -----------------------------------------------------------------------------------

COLUMNS = {
    "email": "email",
    "displayName": "display_name",
    "isActive": "is_active",
    "isAdmin": "is_admin",
    "profile": "profile",
    "values": "app_values",
    "settings": "settings",
    "apps": "apps",
    "avatar": "avatar",
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
    given = item.model_dump(exclude_unset=True, include={*COLUMNS, "quotas"})
    for name, quota in (given.pop("quotas", None) or {}).items():
        after[f"{name}_quota"] = quota
    for member, value in given.items():
        column = COLUMNS[member]
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
            after["display_name"] = full_name(fields) or row["display_name"]
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
    async with if_free():
        written = await call.db.all("write_users", instance_id=call.instance.id, users=rows)
    states = {row["id"]: row["state"] for row in written}
    for before, after in moved:
        if (login := before["state"]["login"]) is not None:
            names = renamed(Names(before["email"], login), after["email"])
            states[before["id"]] = (await store_names(call, before["id"], names))["after"]
    for before, _ in changes:
        call.record_user(before["id"], before["state"], states[before["id"]])
        await pace.rest()
    await end_access(call, [row["id"] for row in rows if not row["is_active"]])
    if wanted:
        await call.db.run("end_codes_of", instance_id=call.instance.id, user_ids=list(wanted.values()))
