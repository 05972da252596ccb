"""Builds the SCIM resource of a user from its row (RFC 7643, sections 4.1 and 4.3)."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from server.base.errors import PreconditionFailed
from server.base.settings import Settings
from server.directory.groups import ADMINS, ADMINS_ID
from server.directory.languages import language_of
from server.directory.names import has_email
from server.directory.rules import full_name
from server.directory.scim.models import ENTERPRISE_SCHEMA, OFFICE_SCHEMA, USER_SCHEMA
from server.directory.users import email_key
from server.outside.pictures import avatar_url
from server.tenants.instances import Instance

Resource = dict[str, Any]
"""A SCIM resource, ready for JSON."""

NAMES = {"givenName": "firstname", "familyName": "lastname", "middleName": "middlename"}
"""Sub-attribute of `name` -> the profile field that stores it."""
STORED_AS_SENT = (
    "nickName", "profileUrl", "userType", "locale", "ims", "addresses", "entitlements", "roles",
    "x509Certificates",
)  # fmt: skip
"""Attributes of the core schema that are stored as sent, in the column `attributes`."""
STORED_OF_ENTERPRISE = ("employeeNumber", "costCenter", "organization", "division")
"""The same for the enterprise extension."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def id_of(text: str) -> int | None:
    """The id in a text; None: no user or group can have it. 0 is the id of the group Admins."""
    # A bigint. The length is limited because Python refuses to parse thousands of digits.
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        return None
    number = int(text)
    return number if str(number) == text and number < 2**63 else None


def base_address(settings: Settings, instance: Instance) -> str:
    """The base URL of an instance's resources, without a slash at the end."""
    return f"{settings.own_address()}/scim/v2/{_quoted(instance.name)}"


@functools.lru_cache(1024)
def _quoted(name: str) -> str:
    return quote(name, safe="")


def version_of(updated_at: datetime, *more: object) -> str:
    """The weak ETag for a time of change (RFC 7232, 2.3): microseconds since 1970 and `more`, in hex."""
    return f'W/"{"-".join(f"{part:x}" for part in ((updated_at - _EPOCH) // _MICROSECOND, *more))}"'


def require_version(current: str, given: str | None) -> None:
    """Check If-Match: the resource was not changed since it was read (RFC 7232, 3.1; RFC 7644, 3.14).

    Args:
        given: an ETag, or several separated by commas, weak or strong; *: any version; None: no condition.

    Raises:
        PreconditionFailed: none of them is the current version.
    """
    if given is None or given.strip() == "*":
        return
    if current.removeprefix("W/") not in (tag.strip().removeprefix("W/") for tag in given.split(",")):
        raise PreconditionFailed


def meta(
    kind: str, location: str, created_at: datetime, updated_at: datetime, version: str
) -> dict[str, Any]:
    """The attribute `meta` (RFC 7643, 3.1)."""
    return {
        "resourceType": kind, "created": _timestamp(created_at), "lastModified": _timestamp(updated_at),
        "location": location, "version": version,
    }  # fmt: skip


def _timestamp(at: datetime) -> str:
    """RFC 3339 in UTC, with microseconds."""
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def resource(row: Mapping[str, Any], settings: Settings, instance: Instance) -> Resource:
    """A user as a SCIM resource; attributes without a value are left out.

    Args:
        row: of the view scim_users.
        instance: of the user.
    """
    user_id = str(row["id"])
    user: Resource = {"schemas": [USER_SCHEMA, OFFICE_SCHEMA], "id": user_id, **writable(row, settings)}
    if row["isAdmin"] or row["memberships"]:
        user["groups"] = _groups(row)
    if enterprise := user.get(ENTERPRISE_SCHEMA):
        if "manager" in enterprise:
            if row["manager"] is None:  # deleted
                del enterprise["manager"]
            else:
                enterprise["manager"] |= {
                    "$ref": f"../Users/{enterprise['manager']['value']}", "displayName": row["manager"],
                }  # fmt: skip
        if enterprise:
            user["schemas"].insert(1, ENTERPRISE_SCHEMA)
        else:
            del user[ENTERPRISE_SCHEMA]
    user[OFFICE_SCHEMA] = _provisioned(row) | user.get(OFFICE_SCHEMA, {})
    location = f"{base_address(settings, instance)}/Users/{user_id}"
    version = version_of(row["updated_at"])
    user["meta"] = meta("User", location, row["created_at"], row["updated_at"], version)
    return user


def writable(row: Mapping[str, Any], settings: Settings) -> Resource:
    """The writable attributes of a user, except the password.

    Args:
        row: with the columns of the view shown_users.
    """
    attributes, profile = row["attributes"], row["profile"]
    user: Resource = {
        "externalId": row["externalId"],
        "userName": row["login"] or row["email"],
        "name": _name(row["fields"], attributes),
        "displayName": row["displayName"],
        "title": profile.get("title"),
        "preferredLanguage": _language(row["language"], attributes),
        "timezone": row["values"].get("timezone"),
        "active": row["isActive"],
        "emails": shown_emails(row["email"], attributes.get("emails", ())),
        "phoneNumbers": shown_values(profile.get("phones") or (), attributes.get("phoneNumbers", ())),
        "photos": shown_photos(avatar_url(settings, row["avatar"]), attributes.get("photos", ())),
    }
    enterprise: dict[str, Any] = {"department": profile.get("department")}
    if attributes:
        user |= {name: attributes[name] for name in STORED_AS_SENT if name in attributes}
        enterprise |= {name: attributes[name] for name in STORED_OF_ENTERPRISE if name in attributes}
        if "manager" in attributes:
            enterprise["manager"] = {"value": attributes["manager"]}
    user[ENTERPRISE_SCHEMA] = {name: value for name, value in enterprise.items() if value is not None}
    quotas = {what: limit for what, limit in row["quotas"].items() if limit is not None}
    user[OFFICE_SCHEMA] = {"quotas": quotas} if quotas else {}
    return {name: value for name, value in user.items() if value or value in (False, "")}


def _name(fields: Mapping[str, Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
    name = {"formatted": full_name(fields)} | attributes.get("name", {})
    name |= {member: fields.get(alias) for member, alias in NAMES.items()}
    return {member: value for member, value in name.items() if value}


def _language(language: str, attributes: Mapping[str, Any]) -> str:
    """The language as SCIM sent it, unless another method changed it since."""
    given: str | None = attributes.get("preferredLanguage")
    return given if given is not None and language_of(given) in (None, language) else language


def _groups(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups = [{"id": ADMINS_ID, "name": ADMINS}] if row["isAdmin"] else []
    return [
        {
            "value": str(group["id"]), "$ref": f"../Groups/{group['id']}", "display": group["name"],
            "type": "direct",
        }
        for group in (*groups, *(row["memberships"] or ()))
    ]  # fmt: skip


def _provisioned(row: Mapping[str, Any]) -> dict[str, Any]:
    """The read-only attributes of our extension."""
    plans = [
        {"value": plan["planId"], "display": plan["name"]}
        | ({} if plan["validTo"] is None else {"validTo": plan["validTo"]})
        for plan in row["plans"]
        if plan["state"] == "active"
    ]
    return {
        "mailboxes": {
            "inbox": row["inbox"], "spam": row["spam"], "sent": row["sent"], "trash": row["trashEmail"],
            "archive": row["archive"], "drafts": row["drafts"],
        },
        "calendars": {"main": row["mainCalendar"]},
        "folders": {"root": row["rootFiles"], "trash": row["trashFiles"]},
    } | ({"plans": plans} if plans else {})  # fmt: skip


# --- values of columns, with details from `attributes` -----------------------------------------------------


def default_email(email: str, others: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The entry of a user's e-mail if none was sent for it.

    It has the type work unless another entry has it: identity providers can send one e-mail as userName and
    another as the work e-mail, and expect to read them so.

    Args:
        others: the other entries.
    """
    others = list(others)
    entry: dict[str, Any] = {"value": email}
    if not any(other.get("type") == "work" for other in others):
        entry["type"] = "work"
    return entry if any(other.get("primary") for other in others) else entry | {"primary": True}


def shown_emails(email: str, entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The stored entries, and always one for the user's e-mail.

    Args:
        email: for a user without an e-mail, the login.
        entries: stored in the column `attributes`.
    """
    if not has_email(email):
        return list(entries)
    key = email_key(email)
    if entries and any(email_key(entry["value"]) == key for entry in entries):
        return list(entries)
    return [default_email(email, entries), *entries]


def shown_values(values: Iterable[str], entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One entry for each value, with the stored details.

    Args:
        entries: stored in the column `attributes`, perhaps also for values that are gone.
    """
    left = list(entries)
    shown: list[Mapping[str, Any]] = []
    for value in values:
        entry = next((entry for entry in left if entry["value"] == value), None)
        if entry is not None:
            left.remove(entry)
        shown.append(entry or {"value": value})
    return shown


def shown_photos(avatar: str, entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The stored entries, and always one for the avatar.

    Args:
        avatar: its URL; empty: none.
        entries: stored in the column `attributes`.
    """
    if not avatar or any(entry["value"] == avatar for entry in entries):
        return list(entries)
    return [default_photo(avatar), *entries]


def default_photo(avatar: str) -> dict[str, Any]:
    """The entry of an avatar if none was sent for it."""
    return {"value": avatar, "type": "photo"}
