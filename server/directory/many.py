"""Calls about many users: their items, the errors of each, and the check of taken names."""

import contextlib
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
    NotFound,
    ServiceError,
)
from server.base.models import Failure, Result, TenantParams, validated
from server.base.pace import Pace
from server.base.settings import Settings
from server.directory.users import NewUser, email_key, keys_of, taken
from server.events.changes import Change
from server.postgres.db import Connection, translated
from server.tenants.call import Call

MOST = 1000
"""Most items of one call."""
M = TypeVar("M", bound=BaseModel)
Item = TypeVar("Item")
Items = Annotated[list[SkipValidation[Item]], Field(min_length=1, max_length=MOST)]
# Each item is validated during the call, by the rules of the method for one user.


class ManyParams(TenantParams):
    """Params of every call with many items."""

    mode: Literal["atomic", "each"] = Field(
        "atomic",
        description="atomic: all items or none, and the error names every bad item. each: good items are "
        "done, and each item has its own result or error.",
    )


class ItemError(Result):
    """The error of an item, as the method for one user would answer it."""

    code: str
    message: str
    fields: list[Failure] = Field(description="Members of the item.")


class ItemResult(Result):
    """The result of one item."""

    index: int = Field(description="From 0.")
    error: ItemError | None


class ManyResult(Result):
    """The results of all items."""

    succeeded: int
    failed: int


@dataclass(slots=True)
class Batch(Generic[M]):
    """The items of a call that have not failed, and the errors of the others."""

    # one: the item of a method for one user; its error is the error of the call.
    mode: Literal["atomic", "each", "one"]
    items: dict[int, M]
    errors: dict[int, ServiceError]
    size: int
    # By the index of the item.
    hashes: dict[int, str] = field(default_factory=dict)

    @classmethod
    def one(cls, item: M, password_hash: str | None = None) -> "Batch[M]":
        """The item of a method for one user."""
        return cls("one", {0: item}, {}, 1, {} if password_hash is None else {0: password_hash})

    def again(self) -> "Batch[M]":
        """A copy for one run of the transaction, which may run more than once."""
        return Batch(self.mode, dict(self.items), dict(self.errors), self.size, self.hashes)

    def fail(self, index: int, error: ServiceError) -> None:
        """Move an item to the errors."""
        del self.items[index]
        self.errors[index] = error

    def settle(self) -> None:
        """Raise the errors unless the mode is each.

        Raises:
            ServiceError: naming all bad items; or Forbidden for the first item that the key may not change.
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
        """The results and errors in the order of the items."""
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
        """Audit a call that changed nothing by its counts; otherwise the audit would keep all its params."""
        if not call.changes:
            call.changes.append(Change(name, None, None, {"users": self.size, "failed": len(self.errors)}))


_FIELDS = 10
"""Most bad members of one item that are named in atomic mode."""


def _described(error: ServiceError) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": error.message,
        "fields": [bad._asdict() for bad in error.told_fields()],
    }


async def checked(
    model: type[M], mode: Literal["atomic", "each"], given: Sequence[Any], settings: Settings
) -> Batch[M]:
    """Validate items (models.validated), and let other tasks run in between."""
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


@contextlib.asynccontextmanager
async def if_free() -> AsyncIterator[None]:
    """Map a late unique violation to Contention: the names were free, so the transaction begins again."""
    try:
        yield
    except Exception as error:
        known = translated(error)
        if isinstance(known, Conflict) and known.code in ("duplicate_email", "duplicate_external_id"):
            raise Contention(retry_after=1) from error
        raise


# --- taken names ----------------------------------------------------------------------------------------


async def hold_counters(call: Call) -> int | None:
    """Lock the counters of the instance until the transaction ends: nobody else creates or renames a user.

    Returns:
        the free seats; None: unlimited.

    Raises:
        NotFound: there is no such instance.
    """
    held = await call.db.one("hold_counters", instance_id=call.instance.id)
    if held is None:
        raise NotFound
    seats: int | None = held["seats"]
    return seats


async def find_taken(
    db: Connection, call: Call, email_keys: Sequence[str], external_ids: Sequence[str] = ()
) -> list[Any]:
    """Existing users, deleted or not, with one of these e-mails or external ids."""
    found: list[Any] = await db.all(
        "find_taken", instance_id=call.instance.id, email_keys=email_keys, external_ids=external_ids
    )
    return found


async def find_same(db: Connection, call: Call, items: Iterable[NewUser]) -> list[Any]:
    """Existing users, deleted or not, with the e-mail or external id of an item."""
    items = list(items)
    email_keys = list((await keys_of_items(dict(enumerate(items)))).values())
    return await find_taken(db, call, email_keys, external_ids_of(items))


async def keys_of_items(items: Mapping[int, Any]) -> dict[int, str]:
    """email_key of each item with an e-mail, by its index. Other tasks run in between."""
    keys: dict[int, str] = {}
    pace = Pace()
    for index, item in items.items():
        if item.email is not None:
            keys[index] = email_key(item.email)
        await pace.rest()
    return keys


def external_ids_of(items: Iterable[Any]) -> list[str]:
    """The external ids of items."""
    return [item.externalId for item in items if item.externalId is not None]


class Claims:
    """Taken e-mails and external ids: of existing users, and of earlier items of the call."""

    def __init__(self, users: Sequence[Mapping[str, Any]], logins: Mapping[str, int]) -> None:
        """
        Args:
            users: see of.
            logins: email_key of a login -> id of the user.
        """
        self.deleted = {row["id"] for row in users if row["deleted_at"] is not None}
        self.emails = {row["email_key"]: row["id"] for row in users}
        self.external_ids = {row["external_id"]: row["id"] for row in users if row["external_id"] is not None}
        self.logins = logins
        self.users: set[int] = set()
        self.keys: set[str] = set()
        self.names: set[str] = set()

    @classmethod
    async def of(cls, users: Sequence[Mapping[str, Any]]) -> "Claims":
        """The names that users have. Other tasks run in between.

        Args:
            users: rows of find_taken or rows.hold.
        """
        logins: dict[str, int] = {}
        pace = Pace()
        for row in users:
            if row.get("login") is not None:
                logins[email_key(row["login"])] = row["id"]
            await pace.rest()
        return cls(users, logins)

    def holder(self, item: Any) -> int | None:
        """The id of the user with an item's external id, or else with its e-mail."""
        user_id = None if item.externalId is None else self.external_ids.get(item.externalId)
        if user_id is None and item.email is not None:
            user_id = self.emails.get(email_key(item.email))
        return user_id

    def taken(self, constraint: str, holder: int | None, member: str | None = None) -> Conflict:
        """The error for a name of a user, or of another item (holder None); see users.taken."""
        return taken(constraint, member, is_deleted=holder in self.deleted)

    def new(self, item: Any) -> ServiceError | None:
        """Why a user cannot be created; None: it can, and its names are taken from now on."""
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

    def refusal(
        self, row: Mapping[str, Any], after: Mapping[str, Any], member: str | None = None
    ) -> ServiceError | None:
        """Why a user cannot be changed; None: it can, and its names are taken from now on.

        Args:
            member: the param with the e-mail.
        """
        keys, name = keys_of(after), after["external_id"]
        if row["id"] in self.users:
            return Conflict("another item of this call names the same user", code="named_twice")
        for key in keys:
            holder = self.emails.get(key, self.logins.get(key, row["id"]))
            if key in self.keys or holder != row["id"]:
                return self.taken("users_email", holder, member)
        if name is not None and (name in self.names or self.external_ids.get(name, row["id"]) != row["id"]):
            return self.taken("users_external_id", self.external_ids.get(name))
        self.users.add(row["id"])
        self.keys.update(keys)
        self.names |= {name} - {None}
        return None
