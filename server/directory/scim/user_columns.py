"""Converts SCIM users to columns of the database (RFC 7643, 4.1 and 4.3).

`columns` converts new users and changed ones. A changed user is also a whole resource: what PUT sends, or the
stored user after the operations of PATCH.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from server.base.errors import Invalid
from server.base.models import Params, field_errors
from server.base.settings import Settings
from server.directory.creation import Membership
from server.directory.languages import language_of
from server.directory.names import Names, NewLogin, names_of_user
from server.directory.rows import Row, quotas, renamed_entries, with_email_keys, with_fields, with_names
from server.directory.rules import default_display_name, full_name
from server.directory.scim.errors import bad_value
from server.directory.scim.models import ENTERPRISE_SCHEMA, OFFICE_SCHEMA, USER_SCHEMA
from server.directory.scim.users import (
    NAMES,
    STORED_AS_SENT,
    STORED_OF_ENTERPRISE,
    Resource,
    default_email,
    default_photo,
    id_of,
    writable,
)
from server.directory.users import (
    AvatarUrl,
    CreateUser,
    DisplayName,
    ExternalId,
    Line,
    NewEmail,
    Profile,
    Quotas,
    Values,
)
from server.outside.pictures import avatar_url
from server.tenants.instances import Mebibytes

_MOST_BYTES = 65_536
"""Size of the column `attributes`, as JSON."""
DEFAULT_LANGUAGE = "en"
_EMAIL: TypeAdapter[str] = TypeAdapter(NewEmail)
_LOGIN: TypeAdapter[str] = TypeAdapter(NewLogin)


class _Single(Params):
    """Single values that have columns, by their SCIM paths, with the limits of createUser."""

    external_id: ExternalId | None = Field(None, alias="externalId")
    display_name: DisplayName | None = Field(None, alias="displayName")
    firstname: Line | None = Field(None, alias="name.givenName")
    lastname: Line | None = Field(None, alias="name.familyName")
    middlename: Line | None = Field(None, alias="name.middleName")
    title: Line | None = None
    department: Line | None = None
    timezone: Line | None = None
    active: bool | None = None
    phones: Annotated[list[Annotated[Line, Field(max_length=40)]], Field(max_length=20)] = Field(
        alias="phoneNumbers"
    )
    mail: Mebibytes | None = Field(None, alias="quotas.mail")
    files: Mebibytes | None = Field(None, alias="quotas.files")


class Columns(NamedTuple):
    """The columns of a SCIM user."""

    names: Names
    single: _Single
    avatar: str
    language: str
    attributes: dict[str, Any]

    @property
    def fields(self) -> dict[str, str | None]:
        """The profile fields of its names; None: no value."""
        return {alias: getattr(self.single, alias) for alias in NAMES.values()}


def columns(
    user: Mapping[str, Any], settings: Settings, row: Row | None = None, *, keep_avatar: bool = False
) -> Columns:
    """The columns of a user.

    Args:
        user: a whole resource in the spelling of the schema (operations.validated_user).
        row: the stored user; None: a new user.
        keep_avatar: whether the call leaves the avatar as it is.

    Raises:
        Invalid: attributes are not valid (invalid_value).
    """
    enterprise, name = user.get(ENTERPRISE_SCHEMA) or {}, user.get("name") or {}
    limits = (user.get(OFFICE_SCHEMA) or {}).get("quotas") or {}
    phones = _nonempty(user.get("phoneNumbers"))
    given = {
        **{
            member: user.get(member)
            for member in ("externalId", "displayName", "title", "timezone", "active")
        },
        **{f"name.{member}": _blank_as_none(name.get(member)) for member in NAMES},
        "department": enterprise.get("department"),
        "phoneNumbers": [entry["value"] for entry in phones],
        **{f"quotas.{kind}": limits.get(kind) for kind in ("mail", "files")},
    }
    try:
        single = _Single.model_validate(given)
    except ValidationError as error:
        raise Invalid.of(field_errors(error), code="invalid_value") from error
    emails = _emails(user)
    names = _names(user.get("userName"), emails)
    entries, stored = _nonempty(user.get("photos")), row["avatar"] if row else ""
    avatar = stored if keep_avatar else _avatar(entries, settings, stored)
    tag = user.get("preferredLanguage")
    language = DEFAULT_LANGUAGE
    if tag:
        # A language without a two-letter code is only stored; the language of e-mails does not change.
        language = language_of(tag) or (row["language"] if row else language)
    attributes = {
        **{member: user.get(member) for member in STORED_AS_SENT},
        **{member: enterprise.get(member) for member in STORED_OF_ENTERPRISE},
        "manager": _manager(enterprise.get("manager")),
        "name": _other_name_parts(name),
        "preferredLanguage": None if tag == language else tag,
        "emails": [entry for entry in emails if not _equals_default(entry, names.email, emails)],
        "phoneNumbers": phones if any(len(entry) > 1 for entry in phones) else None,
        "photos": [entry for entry in entries if entry != default_photo(avatar_url(settings, avatar))],
    }
    attributes = {member: value for member, value in attributes.items() if value not in (None, "", [], {})}
    if len(orjson.dumps(attributes)) > _MOST_BYTES:
        raise bad_value("params", "the attributes are larger than 64 KiB")
    return Columns(names, single, avatar, language, with_email_keys(attributes))


def _nonempty(entries: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """The entries that have a value. Entra ID clears an entry by an empty value."""
    return [dict(entry) for entry in entries or () if entry.get("value")]


def _blank_as_none(text: Any) -> Any:
    """A name of only spaces counts as empty, as in createUser."""
    return None if isinstance(text, str) and not text.strip() else text


def _emails(user: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of `emails`, with the addresses in the spelling that is stored."""
    found: list[dict[str, Any]] = []
    for index, entry in enumerate(_nonempty(user.get("emails"))):
        try:
            entry["value"] = _EMAIL.validate_python(entry["value"])
        except ValidationError as error:
            raise bad_value(f"emails.{index}.value", "is not a valid e-mail address") from error
        if entry not in found:
            found.append(entry)
    return found


def _names(user_name: Any, emails: Sequence[Mapping[str, Any]]) -> Names:
    """The names of a user.

    A userName that is an e-mail address is also the e-mail. With any other userName the e-mail is the primary
    entry of `emails`, or else the first.
    """
    if not isinstance(user_name, str) or not user_name.strip():
        raise bad_value("userName", "is required")
    try:
        if "@" in user_name:
            return Names(_EMAIL.validate_python(user_name.strip()))
        login = _LOGIN.validate_python(user_name.strip())
    except ValidationError as error:
        (failure, *_) = field_errors(error)
        raise bad_value("userName", failure.message) from error
    ranked = sorted(emails, key=lambda entry: not entry.get("primary"))
    return names_of_user(login, ranked[0]["value"] if ranked else None)


def _equals_default(entry: Mapping[str, Any], email: str, emails: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an entry equals the default entry of the user's e-mail, which need not be stored."""
    compared = {member: value for member, value in entry.items() if value is not False}
    return compared == default_email(email, [other for other in emails if other is not entry])


def _avatar(entries: Sequence[Mapping[str, Any]], settings: Settings, stored: str) -> str:
    """The avatar: the primary photo, else one of type photo, else any; among equals the present avatar.

    Args:
        stored: the present value of the column.
    """
    shown = avatar_url(settings, stored)
    pictures = [entry for entry in entries if entry["value"] == shown or _is_picture(entry["value"])]
    if not pictures:
        return ""
    best = min(
        pictures,
        key=lambda one: (not one.get("primary"), one.get("type") != "photo", one["value"] != shown),
    )
    return stored if best["value"] == shown else str(best["value"])


_PICTURE: TypeAdapter[str] = TypeAdapter(AvatarUrl)


def _is_picture(value: str) -> bool:
    try:
        return bool(_PICTURE.validate_python(value))
    except ValidationError:
        return False


def _manager(manager: Any) -> str | None:
    value = (manager or {}).get("value")
    if not value:
        return None
    if not id_of(value):
        raise bad_value(f"{ENTERPRISE_SCHEMA}:manager.value", "is not a user of this instance")
    return str(value)


def _other_name_parts(name: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of `name` that have no profile field; `formatted` only if it differs from the default."""
    others = {member: value for member, value in name.items() if member not in NAMES and value}
    fields = {alias: name.get(member) for member, alias in NAMES.items()}
    if others.get("formatted") == full_name(fields):
        del others["formatted"]
    return others


# --- new and changed users ----------------------------------------------------------------------------------


def new_user(given: Columns, password: str | None) -> tuple[CreateUser, Membership]:
    """The arguments of creation.create for a user.

    They are not validated again: CreateUser would refuse a login that is not an e-mail.
    """
    single = given.single
    item = CreateUser.model_construct(
        email=given.names.email,
        displayName=single.display_name or default_display_name(given.fields, _user_name(given.names)),
        password=password,  # type: ignore[arg-type]
        isActive=single.active is not False,
        profile=Profile(title=single.title, department=single.department, phones=single.phones),
        values=Values(timezone=single.timezone),
        avatar=given.avatar,
        externalId=single.external_id,
        quotas=Quotas(mail=single.mail, files=single.files),
    )
    fields = {alias: value for alias, value in given.fields.items() if value is not None}
    membership = Membership(fields, given.language, True, given.names.login, given.attributes)
    return item, membership


def _user_name(names: Names) -> str:
    return names.login or names.email


def changed(row: Row, given: Columns) -> Row:
    """The user with these columns."""
    single, names = given.single, given.names
    after = with_names(row, names) if names != (row["email"], row["login"]) else row
    after = with_fields(after, given.fields)
    display_name = single.display_name or default_display_name(given.fields, _user_name(names))
    return after | {
        "display_name": display_name,
        "is_active": row["is_active"] if single.active is None else single.active,
        "profile": row["profile"]
        | {"title": single.title, "department": single.department, "phones": single.phones},
        "app_values": row["app_values"] | {"timezone": single.timezone},
        "avatar": given.avatar,
        "language": given.language,
        "external_id": single.external_id,
        "mail_quota": single.mail,
        "files_quota": single.files,
        "attributes": given.attributes,
    }


def as_shown(row: Row) -> dict[str, Any]:
    """A locked user, with the column names of the view shown_users."""
    return {
        "id": row["id"], "email": row["email"], "login": row["login"], "externalId": row["external_id"],
        "displayName": row["display_name"], "fields": row["fields"], "profile": row["profile"],
        "values": row["app_values"], "language": row["language"], "avatar": row["avatar"],
        "isActive": row["is_active"], "isAdmin": row["is_admin"], "attributes": row["attributes"],
        "quotas": quotas(row),
    }  # fmt: skip


def patch_document(row: Row, settings: Settings) -> Resource:
    """A locked user as a resource for PATCH: only with writable attributes."""
    return {"schemas": [USER_SCHEMA, ENTERPRISE_SCHEMA, OFFICE_SCHEMA], **writable(as_shown(row), settings)}


def with_recomputed_names(before: Resource, after: Resource, row: Row) -> Resource:
    """A user after PATCH, with the names recomputed that depend on changed names.

    - If a part of the name changed, a formatted name that was not changed is left out, and so is a display
      name that was made of first and last name: `columns` computes both again.
    - If the userName was the e-mail and is another e-mail now, the entry of `emails` gets the new address.
    """
    old, new = before.get("name") or {}, after.get("name") or {}
    if any(old.get(member) != new.get(member) for member in NAMES):
        after = dict(after)
        if new.get("formatted") == old.get("formatted"):
            after["name"] = {member: value for member, value in new.items() if member != "formatted"}
        if after.get("displayName") == before.get("displayName") == full_name(row["fields"]):
            after.pop("displayName", None)
    user_name = after.get("userName") or ""
    if before["userName"] != user_name and "@" in user_name and before["userName"] == row["email"]:
        emails = [entry for entry in after.get("emails") or () if entry.get("value")]
        after = after | {"emails": renamed_entries(emails, row["email"], user_name)}
    return after
