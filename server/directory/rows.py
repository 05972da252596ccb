"""Rows of users: locked, changed by pure functions, and stored by the one statement that changes users."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from server.directory.names import Names, has_email
from server.directory.rules import full_name
from server.directory.users import email_key, keys_of
from server.events.changes import Change, identity, same_json
from server.postgres.db import Connection
from server.postgres.queries import load_columns

EMAIL_KEYS = "emailKeys"
"""Key in `attributes` with the email_key of each address in `emails`, for searches."""
Row: TypeAlias = dict[str, Any]
"""A user as hold returns it: every column that can change, and the database's time as moment."""


async def hold(
    db: Connection,
    instance_id: int,
    *,
    ids: Iterable[int] = (),
    keys: Iterable[str] = (),
    external_ids: Iterable[str] = (),
) -> list[Row]:
    """Lock users, deleted or not, against changes and logins until the transaction ends.

    A user who was renamed while this waited is returned with the new names: compare the row.

    Args:
        keys: of e-mails or logins; see users.email_key.
    """
    rows = await db.all(
        "hold_users",
        instance_id=instance_id,
        ids=list(ids),
        keys=list(keys),
        external_ids=list(external_ids),
    )
    return [dict(row) for row in rows]


def told_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """E-mail and login as in events; the column email holds the login of a user without an e-mail."""
    with_email = has_email(row["email"])
    return {
        "email": row["email"] if with_email else None,
        "login": row["login"] if with_email else row["email"],
    }


@functools.cache
def members() -> dict[str, str]:
    """Member of the models -> the column that holds it, of those that are stored as they are given."""
    by_column = {"app_values": "values"}
    return {
        by_column.get(column) or re.sub("_(.)", lambda match: match[1].upper(), column): column
        for column in load_columns()["user_columns"]
        if column not in _APART
    }


_APART = {"email", "email_key", "login", "mail_quota", "files_quota"}
"""Names follow rules of their own, and quotas are one member."""


def state(row: Mapping[str, Any]) -> dict[str, Any]:
    """A user as in events."""
    return {
        **told_names(row),
        **{member: row[column] for member, column in members().items()},
        "isConfirmed": row["confirmed_at"] is not None,
        "quotas": quotas(row),
        "attributes": shown_attributes(row["attributes"]),
    }


def shown_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The column `attributes` without what is there for searches alone."""
    return {name: value for name, value in attributes.items() if name != EMAIL_KEYS}


def quotas(row: Mapping[str, Any]) -> dict[str, int | None]:
    """What a user may store, in MiB; None is the instance's default."""
    return {"mail": row["mail_quota"], "files": row["files_quota"]}


# --- pure changes -----------------------------------------------------------------------------------------


def with_names(row: Row, names: Names) -> Row:
    """The user with other names. What SCIM says of the e-mail, such as its type, goes with it."""
    after = row | {"email": names.email, "email_key": email_key(names.email), "login": names.login}
    emails = row["attributes"].get("emails")
    if emails and has_email(names.email) and row["email_key"] != after["email_key"]:
        emails = renamed_entries(emails, row["email"], names.email)
        after["attributes"] = with_email_keys(row["attributes"] | {"emails": emails})
    return after


def renamed_entries(entries: Sequence[Mapping[str, Any]], old: str, new: str) -> list[Mapping[str, Any]]:
    """Replace the user's old e-mail in `emails`; if the new one is listed already, drop the old entry."""
    old_key, keys = email_key(old), [email_key(entry["value"]) for entry in entries]
    there = email_key(new) in keys
    return [
        entry | {"value": new} if key == old_key else entry  # type: ignore[operator]
        for entry, key in zip(entries, keys, strict=True)
        if not (there and key == old_key)
    ]


def with_email_keys(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The column `attributes` with the keys of the addresses in its `emails`."""
    keys = sorted({email_key(entry["value"]) for entry in attributes.get("emails", ())})
    return shown_attributes(attributes) | ({EMAIL_KEYS: keys} if keys else {})


def with_fields(row: Row, fields: Mapping[str, Any]) -> Row:
    """The user with other values of profile fields. A new first or last name also changes the display name.

    Args:
        fields: alias -> value; None removes a value.
    """
    merged = {alias: value for alias, value in (row["fields"] | fields).items() if value is not None}
    after, new_name = row | {"fields": merged}, full_name(merged)
    if new_name == full_name(row["fields"]):
        return after
    after["display_name"] = new_name or row["display_name"]
    name = row["attributes"].get("name", {})
    if "formatted" in name:
        # The formatted name belonged to the old name.
        name = {member: value for member, value in name.items() if member != "formatted"}
        others = {member: value for member, value in row["attributes"].items() if member != "name"}
        after["attributes"] = others | ({"name": name} if name else {})
    return after


# --- storing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """A change of a locked user: its row before and after."""

    before: Row
    after: Row
    password_hash: str | None = None
    # Ends every session in any case.
    logs_out: bool = False
    # The deletion also deletes the account.
    closes_account: bool = False
    # The ids of all groups after the change, without Admins; None: unchanged. groups: the names before it.
    group_ids: Sequence[int] | None = None
    groups: Sequence[str] = ()

    @cached_property
    def differs(self) -> bool:
        """Whether a column changes."""
        return not same_json(self.before, self.after)

    @property
    def has_effect(self) -> bool:
        """Whether it changes anything of the user."""
        changes_else = self.password_hash is not None or self.logs_out or self.group_ids is not None
        return changes_else or self.differs

    @property
    def is_deletion(self) -> bool:
        """Whether it deletes the user."""
        return self.before["deleted_at"] is None and self.after["deleted_at"] is not None

    @property
    def is_return(self) -> bool:
        """Whether it restores the user."""
        return self.before["deleted_at"] is not None and self.after["deleted_at"] is None

    @property
    def comes_or_goes(self) -> bool:
        """Whether the user's groups show it after the change and not before, or the other way."""
        return self.is_deletion or self.is_return

    @property
    def renames(self) -> bool:
        """Whether the e-mail changes, or the login of a user without an e-mail."""
        return bool(self.before["email_key"] != self.after["email_key"])

    @property
    def new_keys(self) -> list[str]:
        """The keys (email_key) that the change adds."""
        before, after = (keys_of(row) for row in (self.before, self.after))
        return [key for key in after if key not in before]

    @property
    def has_new_login(self) -> bool:
        """Whether the login other than the e-mail changes."""
        return bool(self.before["login"] != self.after["login"])

    def columns(self) -> Row:
        """The row for the statement write_users."""
        suspended_at = (
            None if self.after["is_active"] else self.before["suspended_at"] or self.before["moment"]
        )
        return self.after | {"suspended_at": suspended_at}

    def effects(self) -> Row | None:
        """The row for the statement write_effects; None: the change has no effect on other tables."""
        before, after = self.before, self.after
        loses_access = _may_log_in(before) and not _may_log_in(after)
        ended_codes = {
            "confirm": loses_access or self.renames or before["confirmed_at"] != after["confirmed_at"],
            "reset": loses_access or self.renames or self.password_hash is not None,
        }
        row = {
            "password_hash": self.password_hash,
            "has_new_login": self.has_new_login,
            "has_new_avatar": before["avatar"] != after["avatar"],
            "moves_account": self.closes_account or self.is_return,
            "ends_sessions": loses_access or self.logs_out or self.password_hash is not None,
            "ended_codes": [purpose for purpose, ends in ended_codes.items() if ends],
        }
        if not (any(row.values()) or self.comes_or_goes):
            return None
        return row | {
            "id": after["id"],
            "login_key": after["login"] and email_key(after["login"]),
            "avatar": after["avatar"],
            "deleted_at": after["deleted_at"],
            "moment": before["moment"],
        }


async def purge(db: Connection, instance_id: int, users: Mapping[int, Mapping[str, Any]]) -> list[Change]:
    """Remove deleted users with all their data, and return the changes for events.

    Args:
        users: by id: rows of hold or hold_retained_users; at least one.
    """
    moment = next(iter(users.values()))["moment"]
    await db.run("purge_users", instance_id=instance_id, ids=list(users), moment=moment)
    return [
        Change(
            "user.purged",
            user_id,
            identity(
                told_names(row) | {"displayName": row["display_name"], "externalId": row["external_id"]}
            ),
            None,
        )
        for user_id, row in users.items()
    ]


def _may_log_in(row: Row) -> bool:
    return row["is_active"] and row["deleted_at"] is None


async def store(db: Connection, instance_id: int, edits: Sequence[Edit]) -> list[Any]:
    """Store edits in at most two statements: the columns of the users, and the effects on other tables.

    Most changes have no such effects, and a statement for ten tables takes more time than the change itself.

    Args:
        edits: of users that an earlier statement locked. If names change, the counters are locked too.

    Returns:
        of each user with effects: user_id; ended, the number of living sessions that ended; and had_password,
        whether the new password replaced another one.
    """
    if columns := [edit.columns() for edit in edits if edit.differs]:
        await db.run(
            "write_users", instance_id=instance_id, ids=[row["id"] for row in columns], users=columns
        )
    effects = [row for edit in edits if (row := edit.effects())]
    if not effects:
        return []
    rows: list[Any] = await db.all(
        "write_effects",
        instance_id=instance_id,
        ids=[row["id"] for row in effects],
        users=effects,
        logins=sum(edit.has_new_login and edit.after["login"] is not None for edit in edits),
        living=sum(edit.is_return - edit.is_deletion for edit in edits),
    )
    return rows
