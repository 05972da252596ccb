"""Creating users: one function and one statement for 1 to 1,000, whichever method or wire asks.

The methods differ in what they know before. A call for one user leaves it to the statement to refuse what is
taken, which takes one round trip. A call for many has to say which of its items are refused: it holds the
counters, looks who is there (refuse_taken, refuse_plans, refuse_seats), and creates the others.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from pydantic import BaseModel

from server.base.errors import Contention, FieldError, Invalid, NotFound, ServiceError
from server.base.pace import Pace
from server.directory import office365
from server.directory.many import Batch, Claims, bad, find_same, find_taken, if_free
from server.directory.names import has_email
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
"""What every user is given: the roles of each kind, in the order of their ids."""
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
"""Members of CreatedUser, and what of the layout they are the ids of."""
_NUMBERS = {
    member: (kind, len(LAYOUT[kind]), LAYOUT[kind].index(role) + 1) for member, (kind, role) in _SHOWN.items()
}
"""By the member: the kind, how many of it a user has, and which of them it is, from 1."""


@dataclass(frozen=True, slots=True)
class Membership:
    """What createMember knows of a new user beside the members of NewUser."""

    # Profile fields by alias; the names of NewUser stand there too.
    fields: Mapping[str, Any] = field(default_factory=dict)
    # ISO 639-1.
    language: str = "en"
    # False until the code of its mail is redeemed.
    is_confirmed: bool = True
    # Another name to log in with than the e-mail, found free by hold_free_names.
    login: str | None = None
    # What SCIM knows of it beyond the columns.
    attributes: Mapping[str, Any] = field(default_factory=dict)


_NO_MEMBERSHIP = Membership()


# --- before the transaction ---------------------------------------------------------------------------


def early_failures(call: Call, password: str | None, in_office365: bool) -> list[FieldError]:
    """What is refused of a new user without a look at the database."""
    settings = call.instance.settings
    failures = password_failures("password", password, settings.passwordPolicy)
    if in_office365 and office365.credentials_of(settings) is None:
        failures.append(FieldError("createInOffice365", office365.NO_CREDENTIALS))
    return failures


async def prepare(call: Call, batch: Batch[Any], *, all_new: bool = True) -> Batch[Any]:
    """Leave out who is refused whatever the database holds, and hash the passwords of the others.

    Args:
        all_new: whether every item must be a new user; otherwise who is there already keeps its password.

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
    # Hashing takes a while: not for those who are there already. What decides is looked up later.
    async with call.database.connection() as db:
        claims = Claims(await find_same(db, call, batch.items.values()))
    new = [i for i in passwords if claims.holder(batch.items[i]) is None and batch.items[i].email is not None]
    if batch.mode == "atomic" and all_new:
        looked = batch.again()
        refuse_taken(looked, claims)
        looked.settle()
    hashes = await call.hasher.hash_all([passwords[index] for index in new])
    batch.hashes = dict(zip(new, hashes, strict=True))
    return batch


# --- who is refused, where the call looks before it writes ------------------------------------------------


async def hold_counters(call: Call) -> int | None:
    """Keep others from creating users in the instance; the seats that are left, None for any number."""
    held = await call.db.one("hold_counters", instance_id=call.instance.id)
    if held is None:
        raise NotFound
    seats: int | None = held["seats"]
    return seats


def refuse_taken(batch: Batch[NewUser], claims: Claims) -> None:
    """Leave out whose e-mail or external id is taken, by somebody or by an item before it."""
    for index, item in list(batch.items.items()):
        if refusal := claims.new(item):
            batch.fail(index, refusal)


def refuse_seats(batch: Batch[Any], wanted: Iterable[int], seats: int | None) -> None:
    """Leave out whom there is no seat for."""
    if seats is not None:
        for index in [index for index in wanted if index in batch.items][max(seats, 0) :]:
            batch.fail(index, taken("instance_counters_seats"))


async def refuse_plans(call: Call, batch: Batch[Any], wanted: Iterable[int]) -> None:
    """Leave out who is to have a plan that there is not, or one that ended."""
    with_plan = {index: batch.items[index] for index in wanted if batch.items[index].planId is not None}
    if not with_plan:
        return
    plan_ids = list({item.planId for item in with_plan.values()})
    rows = await call.db.all("find_plans", instance_id=call.instance.id, plan_ids=plan_ids)
    days = {row["id"]: row["today"] for row in rows}
    for index, item in with_plan.items():
        if item.planId not in days:
            batch.fail(index, bad("planId", "is no plan of this instance"))
        elif item.planValidTo is not None and date.fromisoformat(item.planValidTo) < days[item.planId]:
            batch.fail(index, bad("planValidTo", "must not lie in the past"))


# --- creating -----------------------------------------------------------------------------------------


async def create(
    call: Call,
    batch: Batch[Any],
    wanted: Sequence[int] | None = None,
    *,
    looked: bool = False,
    membership: Membership = _NO_MEMBERSHIP,
) -> dict[int, dict[str, Any]]:
    """Create and provision users in one statement, give them their plans, and note what happened.

    Args:
        batch: prepared. An email that is none is the login of a user without an e-mail.
        wanted: indexes of the items to create; all by default.
        looked: whether the caller holds the counters and found that nobody has the names. Somebody who took
            one since makes the transaction begin again; otherwise that is the caller's error.
        membership: the same for all.

    Returns:
        by the index of the item, what createUser answers.

    Raises:
        Conflict: a name is taken, or there is no seat.
        Invalid: there is no such plan, or it ended.
        Contention: the transaction has to begin again.
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
            # It was taken when the passwords were hashed, and no longer is.
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
            **call.actor().columns(),
        )
    if last is None:
        raise await _why_none(call, [row["email_key"] for row in rows])
    created: dict[int, dict[str, Any]] = {}
    for index, row, event in zip(wanted, rows, events, strict=True):
        created[index] = _shown(row, last)
        if not call.single:
            call.emit("user.created", created[index]["id"], after=event)
        await pace.rest()
    await _assign_plans(call, batch, created, looked=looked)
    for index in wanted:
        if batch.items[index].createInOffice365:
            await office365.begin(call, created[index]["id"])
    return created


def _row(item: NewUser, membership: Membership) -> dict[str, Any]:
    """A user as create_users takes it."""
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
    # Secrets, what other events tell, and what the event of a creation always tells.
    "instance", "password", "passwordHash", "planId", "planValidTo", "firstName", "lastName", "email",
    "displayName", "isActive", "isAdmin",
}  # fmt: skip


def _event(item: NewUser, row: Mapping[str, Any], membership: Membership) -> dict[str, Any]:
    """What is told of a new user: what was given, and these members always, whatever their defaults are."""
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
    """Why create_users made nobody: an e-mail is somebody's login, or logins were written meanwhile."""
    holders = await find_taken(call.db, call, email_keys)
    if holders:
        return taken("users_email", is_deleted=holders[0]["deleted_at"] is not None)
    return Contention(retry_after=1)


def _shown(row: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    """A new user as CreatedUser has it.

    Args:
        row: as create_users took it.
        last: the row that create_users gave.
    """
    before = row["number"] - 1
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
        **{
            member: last[kind] + before * of_each + place
            for member, (kind, of_each, place) in _NUMBERS.items()
        },
    }


def _array_text(numbers: Sequence[int]) -> str:
    """The text form of a Postgres array."""
    return "{" + ",".join(map(str, numbers)) + "}"


async def _assign_plans(
    call: Call, batch: Batch[Any], created: Mapping[int, Mapping[str, Any]], *, looked: bool
) -> None:
    """Give those of the new users a plan who are to have one."""
    wanted = {index: batch.items[index] for index in created if batch.items[index].planId is not None}
    if not wanted:
        return
    if not looked:
        await refuse_plans(call, batch, list(wanted))
        batch.settle()
    days = [item.planValidTo for item in wanted.values()]
    assigned = await call.db.all(
        "assign_plans",
        instance_id=call.instance.id,
        user_ids=[created[index]["id"] for index in wanted],
        plan_ids=[item.planId for item in wanted.values()],
        last_days=[day and date.fromisoformat(day) for day in days],
    )
    for row in assigned:
        call.emit("user.updated", row["user_id"], before={"plan": None}, after={"plan": row["plan"]})
