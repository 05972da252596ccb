"""Creating users: one function and one statement for 1 to 1,000, for every method and wire.

For one user the statement itself refuses taken names, which takes one round trip. A call for many must name
the refused items: it holds the counters, looks for conflicts (refuse_taken, refuse_plans, refuse_seats), and
creates the other items.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from pydantic import BaseModel

from server.base.errors import Contention, FieldError, Invalid, ServiceError
from server.base.pace import Pace
from server.directory import office365
from server.directory.many import Batch, Claims, find_same, find_taken, if_free
from server.directory.names import has_email
from server.directory.plans import NO_PLAN, PLAN_IS_OVER, assign_plans
from server.directory.rows import members, shown_attributes
from server.directory.rules import default_display_name, names_of, password_failures
from server.directory.users import NewUser, email_key, explain_taken, taken
from server.tenants import access
from server.tenants.call import Call

LAYOUT = {
    "mailboxes": ("inbox", "spam", "sent", "trash", "archive", "drafts"),
    "calendars": ("main",),
    "folders": ("root", "trash"),
}
"""The roles of each kind that every user gets, in the order of their ids."""
_SHOWN = {
    "mainCalendar": ("calendars", "main"),
    "inbox": ("mailboxes", "inbox"),
    "spam": ("mailboxes", "spam"),
    "sent": ("mailboxes", "sent"),
    "trashEmail": ("mailboxes", "trash"),
    "drafts": ("mailboxes", "drafts"),
    "rootFiles": ("folders", "root"),
    "trashFiles": ("folders", "trash"),
}
"""Member of CreatedUser with an id of the layout -> kind and role."""


@dataclass(frozen=True, slots=True)
class Membership:
    """What createMember sets in addition to the members of NewUser."""

    # Profile fields by alias, with the names of NewUser.
    fields: Mapping[str, Any] = field(default_factory=dict)
    # ISO 639-1.
    language: str = "en"
    # False until the mailed code is redeemed.
    is_confirmed: bool = True
    # A login other than the e-mail; free, see hold_free_names.
    login: str | None = None
    # The column `attributes`.
    attributes: Mapping[str, Any] = field(default_factory=dict)


_NO_MEMBERSHIP = Membership()


# --- before the transaction ---------------------------------------------------------------------------


def early_failures(call: Call, password: str | None, in_office365: bool) -> list[FieldError]:
    """What is wrong with a new user, as far as it can be checked without the database."""
    settings = call.instance.settings
    failures = password_failures("password", password, settings.passwordPolicy)
    if in_office365 and office365.credentials_of(settings) is None:
        failures.append(FieldError("createInOffice365", office365.NO_CREDENTIALS))
    return failures


async def prepare(call: Call, batch: Batch[Any], *, all_new: bool = True) -> Batch[Any]:
    """Fail items that can be refused without the database, and hash the passwords of the others.

    Args:
        all_new: whether every item must be a new user; if not, existing users keep their passwords.

    Raises:
        ServiceError: see Batch.settle.
    """
    pace = Pace()
    for index, item in list(batch.items.items()):
        if all_new and (refusal := access.member_refusal(call.caller, item)):
            batch.fail(index, refusal)
        elif failures := early_failures(call, item.password, item.createInOffice365):
            batch.fail(index, Invalid.of(failures[:1]))
        await pace.rest()
    batch.settle()
    passwords = {index: item.password for index, item in batch.items.items() if item.password is not None}
    if not passwords:
        return batch
    if batch.mode == "one" and all_new:
        batch.hashes = {0: await call.hasher.hash(passwords[0])}
        return batch
    # Hashing is slow, so existing users are left out. The transaction looks again.
    async with call.database.connection() as db:
        same = await find_same(db, call, batch.items.values())
    claims = await Claims.of(same)
    new = [i for i in passwords if claims.holder(batch.items[i]) is None and batch.items[i].email is not None]
    if batch.mode == "atomic" and all_new:
        looked = batch.again()
        await refuse_taken(looked, claims)
        looked.settle()
    hashes = await call.hasher.hash_all([passwords[index] for index in new])
    batch.hashes = dict(zip(new, hashes, strict=True))
    return batch


# --- refusing before the write ----------------------------------------------------------------------------


async def refuse_taken(batch: Batch[NewUser], claims: Claims) -> None:
    """Fail items whose e-mail or external id is taken by a user or by an earlier item."""
    pace = Pace()
    for index, item in list(batch.items.items()):
        if refusal := claims.new(item):
            batch.fail(index, refusal)
        await pace.rest()


def refuse_seats(batch: Batch[Any], wanted: Iterable[int], seats: int | None) -> None:
    """Fail items for which no seat is left."""
    if seats is not None:
        for index in [index for index in wanted if index in batch.items][max(seats, 0) :]:
            batch.fail(index, taken("instance_counters_seats"))


async def refuse_plans(call: Call, batch: Batch[Any], wanted: Iterable[int]) -> None:
    """Fail items whose plan does not exist or whose planValidTo is over."""
    with_plan = {index: batch.items[index] for index in wanted if batch.items[index].planId is not None}
    if not with_plan:
        return
    plan_ids = list({item.planId for item in with_plan.values()})
    rows = await call.db.all("find_plans", instance_id=call.instance.id, plan_ids=plan_ids)
    days = {row["id"]: row["today"] for row in rows}
    for index, item in with_plan.items():
        if item.planId not in days:
            batch.fail(index, Invalid.of([NO_PLAN]))
        elif item.planValidTo is not None and date.fromisoformat(item.planValidTo) < days[item.planId]:
            batch.fail(index, Invalid.of([PLAN_IS_OVER]))


# --- creating -----------------------------------------------------------------------------------------


async def create(
    call: Call,
    batch: Batch[Any],
    wanted: Sequence[int] | None = None,
    *,
    looked: bool = False,
    membership: Membership = _NO_MEMBERSHIP,
) -> dict[int, dict[str, Any]]:
    """Create and provision users in one statement, assign their plans, and emit the events.

    Args:
        batch: prepared. An email without @ is the login of a user without an e-mail.
        wanted: indexes of the items to create; all by default.
        looked: the caller holds the counters and found the names free. A name that is taken all the same
            makes the transaction begin again; otherwise it is the caller's error.
        membership: the same for all.

    Returns:
        by the index of the item: the answer of createUser.

    Raises:
        Conflict: a name is taken, or no seat is left.
        Invalid: the plan does not exist, or its last day is over.
        Contention: the transaction must begin again.
    """
    wanted = list(batch.items) if wanted is None else wanted
    if not wanted:
        return {}
    pace, rows, events = Pace(), [], []
    for number, index in enumerate(wanted, 1 - len(wanted)):
        item = batch.items[index]
        row = _row(item, membership) | {"number": number}
        row["password_hash"] = batch.hashes.get(index) or item.passwordHash
        if item.password is not None and row["password_hash"] is None:
            # prepare did not hash it, because the name was taken then.
            raise Contention(retry_after=1)
        events.append(_event(item, row, membership))
        if call.single:
            row["event"] = events[-1]
        rows.append(row)
        await pace.rest()
    if not looked:
        item = batch.items[wanted[0]]
        explain_taken(call, item.email, item.externalId)
    async with if_free() if looked else contextlib.nullcontext():
        last = await call.db.one(
            "create_users",
            instance_id=call.instance.id,
            users=rows,
            login_count=sum(row["login"] is not None for row in rows),
            layout=LAYOUT,
            **call.actor()._asdict(),
        )
    if last is None:
        raise await _why_none(call, [row["email_key"] for row in rows])
    created: dict[int, dict[str, Any]] = {}
    for index, row, event in zip(wanted, rows, events, strict=True):
        created[index] = _shown(row, last)
        if not call.single:
            call.emit("user.created", created[index]["id"], after=event)
        await pace.rest()
    plans = {
        created[index]["id"]: (batch.items[index].planId, batch.items[index].planValidTo)
        for index in wanted
        if batch.items[index].planId is not None
    }
    if plans:
        await assign_plans(call, plans)
    for index in wanted:
        if batch.items[index].createInOffice365:
            await office365.begin(call, created[index]["id"])
    return created


def _row(item: NewUser, membership: Membership) -> dict[str, Any]:
    """A row for create_users."""
    names = {alias: name for alias, name in names_of(item).items() if name is not None}
    stored = {column: _plain(getattr(item, member, None)) for member, column in members().items()}
    return stored | {
        "email": item.email,
        "email_key": email_key(item.email),
        "login": membership.login,
        "login_key": membership.login and email_key(membership.login),
        "display_name": item.displayName or default_display_name(names, item.email),
        "is_confirmed": membership.is_confirmed,
        "fields": names | dict(membership.fields),
        "language": membership.language,
        "attributes": dict(membership.attributes),
        "mail_quota": item.quotas and item.quotas.mail,
        "files_quota": item.quotas and item.quotas.files,
    }


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


_NOT_IN_EVENTS = {
    # Secrets, members of other events, and members that are always in this event.
    "instance", "password", "passwordHash", "planId", "planValidTo", "firstName", "lastName", "email",
    "displayName", "isActive", "isAdmin",
}  # fmt: skip


def _event(item: NewUser, row: Mapping[str, Any], membership: Membership) -> dict[str, Any]:
    """The event of a new user: the members that were given, and some members always."""
    always = {
        "email": item.email, "displayName": row["display_name"], "isActive": item.isActive,
        "isAdmin": item.isAdmin, "isConfirmed": membership.is_confirmed, "language": membership.language,
        "fields": row["fields"],
    }  # fmt: skip
    if not has_email(item.email):
        always |= {"email": None, "login": item.email}
    elif membership.login is not None:
        always["login"] = membership.login
    if membership.attributes:
        always["attributes"] = shown_attributes(membership.attributes)
    given = item.model_fields_set - _NOT_IN_EVENTS
    return always | (item.model_dump(include=given, exclude_defaults=True) if given else {})


async def _why_none(call: Call, email_keys: Sequence[str]) -> ServiceError:
    """Why create_users returned no row: an e-mail is a user's login, or logins were written meanwhile."""
    holders = await find_taken(call.db, call, email_keys)
    if holders:
        return taken("users_email", is_deleted=holders[0]["deleted_at"] is not None)
    return Contention(retry_after=1)


def _shown(row: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    """The members of CreatedUser.

    Args:
        row: of the user, given to create_users.
        last: the row that create_users returned, with the last ids.
    """
    ids = {}
    for member, (kind, role) in _SHOWN.items():
        roles = LAYOUT[kind]
        ids[member] = last[kind] + (row["number"] - 1) * len(roles) + roles.index(role) + 1
    return {
        "email": row["email"],
        "displayName": row["display_name"],
        "profile": row["profile"],
        "isAdmin": row["is_admin"],
        "apps": _array_text(row["apps"]),
        "createdAt": last["createdAt"],
        "settings": _array_text(row["settings"]),
        "values": row["app_values"],
        "id": last["users"] + row["number"],
        **ids,
    }


def _array_text(numbers: Sequence[int]) -> str:
    """The text form of a Postgres array."""
    return "{" + ",".join(map(str, numbers)) + "}"
