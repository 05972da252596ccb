"""Look-ups of users (sql/queries/lookups.sql), in the form of each wire."""

from collections.abc import Sequence
from typing import Any

from server.base.settings import Settings
from server.directory.fields import EMAIL
from server.directory.names import has_email
from server.directory.users import email_key
from server.outside.pictures import avatar_url
from server.postgres.db import Connection
from server.tenants.call import Call


def named(
    user_id: int | None = None, login: str | None = None, external_id: str | None = None
) -> dict[str, Any]:
    """The parameters of a statement that finds one user; login: an e-mail or login, in any case."""
    return {
        "user_id": user_id, "key": None if login is None else email_key(login), "external_id": external_id
    }  # fmt: skip


async def read_user(call: Call, key: str) -> dict[str, Any] | None:
    """A user that is not deleted, as getUserByEmail shows it, by the key of its e-mail."""
    row = await call.db.one(
        "get_user", instance_id=call.instance.id, instance_name=call.instance.name, email_key=key
    )
    return _documented(row, call.settings) if row else None


async def read_users(call: Call, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Users that are not deleted, as getUserByEmail shows them, by their ids."""
    rows = await call.db.all(
        "read_users", instance_id=call.instance.id, instance_name=call.instance.name, ids=ids
    )
    return {row["id"]: _documented(row, call.settings) for row in rows}


def _documented(row: Any, settings: Settings) -> dict[str, Any]:
    user = dict(row)
    del user["email_key"]
    user["avatar"] = avatar_url(settings, user["avatar"])
    return user


async def read_member(
    db: Connection, settings: Settings, instance_id: int, user_id: int | None = None, login: str | None = None
) -> dict[str, Any] | None:
    """A user that is not deleted, as the member platform shows it, by id, or by e-mail or login."""
    row = await db.one("get_member", instance_id=instance_id, **named(user_id, login))
    if row is None:
        return None
    email = {EMAIL: row["email"]} if has_email(row["email"]) else {}
    return {
        "id": row["id"], "login": row["login"] or row["email"], "language": row["language"],
        "isActive": row["isActive"], "isConfirmed": row["isConfirmed"], "fullname": row["fullName"],
        "avatar": avatar_url(settings, row["avatar"]), "profile": email | row["fields"],
        "account": row["account"],
    }  # fmt: skip
