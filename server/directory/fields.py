"""Profile fields of the member platform: which there are, and what may stand in them."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import phonenumbers

from server.base.errors import FieldError
from server.base.models import NO_CONTROLS
from server.base.strict import whole
from server.directory.users import address
from server.postgres.db import Connection

TYPES = ("string", "text", "date", "number", "choice")
"""What a custom field can be; the system fields also have a phone."""


@dataclass(frozen=True, slots=True)
class ProfileField:
    """A field of a profile."""

    alias: str
    title: str
    type: str
    mandatory: bool = False
    choices: tuple[str, ...] = ()
    system: bool = True


SYSTEM_FIELDS = (
    ProfileField("firstname", "First name", "string", mandatory=True),
    ProfileField("lastname", "Last name", "string", mandatory=True),
    ProfileField("email", "E-mail", "email"),
    ProfileField("phone", "Phone", "phone"),
    ProfileField("countryId", "Country", "id"),
    ProfileField("skype", "Skype", "string"),
    ProfileField("gender", "Gender", "choice", choices=("male", "female")),
    ProfileField("birth_date", "Date of birth", "date"),
    ProfileField("Mailing_address", "Mailing address", "text"),
    ProfileField("Postal/ZIP_code", "Postal/ZIP code", "string"),
    ProfileField("card_id", "Card", "string"),
    ProfileField("middlename", "Middle name", "string"),
    ProfileField("country", "Country", "string"),
    ProfileField("city", "City", "string"),
    ProfileField("address", "Address", "text"),
)
EMAIL = "email"
"""The field that is no part of what is stored as profile: it is the user's e-mail."""
PHONE_E164 = "phone_e164"
"""Kept beside a phone as it was given; nobody sends it."""

# What `checked` keeps, in the words of JSON Schema.
_NO_VALUE = {"anyOf": [{"type": "string", "pattern": r"^[ \t]*$"}, {"type": "null"}]}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "string": {"type": ["string", "null"], "maxLength": 200, **NO_CONTROLS},
    "text": {"type": ["string", "null"], "maxLength": 4000},
    "date": {"anyOf": [{"type": "string", "format": "date"}, *_NO_VALUE["anyOf"]]},
    "id": {
        "anyOf": [
            {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
            {"type": "string", "maxLength": 40, **NO_CONTROLS},
            {"type": "null"},
        ]
    },
    "email": {
        "anyOf": [
            {"type": "string", "maxLength": 254, "format": "email", "description": "Where mails go."},
            *_NO_VALUE["anyOf"],
        ]
    },
    "phone": {
        "anyOf": [
            {"type": "string", "maxLength": 40, "format": "phone", "description": "With its country code."},
            *_NO_VALUE["anyOf"],
        ]
    },
}
_MANDATORY = {
    "type": "string",
    "maxLength": 200,
    "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f]"
    r"[^\u0000-\u001f\u007f-\u009f]*$",
}
ALIAS = r"^[a-z][a-z0-9_]{0,39}$"
"""What fields are called."""
_ALIASES = f"{ALIAS}|^({'|'.join(field.alias for field in SYSTEM_FIELDS)})$"
OWN_VALUE = {"type": ["string", "number", "null"]}
"""What a field of an instance's own can hold at all."""


def profile_schema(*, complete: bool, **others: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a profile that is sent.

    Args:
        complete: whether every mandatory field must be there.
        others: what else it may hold.
    """
    properties: dict[str, Any] = {}
    for field in SYSTEM_FIELDS:
        properties[field.alias] = _MANDATORY if field.mandatory else _SCHEMAS.get(field.type)
        if field.type == "choice":
            properties[field.alias] = {
                "anyOf": [{"type": "string", "enum": list(field.choices)}, *_NO_VALUE["anyOf"]]
            }
    # A member whose name is no identifier breaks the TypeScript that generators make of properties.
    patterns = {f"^{name}$": properties.pop(name) for name in list(properties) if not name.isidentifier()}
    schema: dict[str, Any] = {
        "title": "NewMemberProfile" if complete else "MemberProfileChange",
        "type": "object", "properties": properties | others, "patternProperties": patterns,
        "additionalProperties": OWN_VALUE, "propertyNames": {"pattern": _ALIASES}, "maxProperties": 100,
    }  # fmt: skip
    if complete:
        return schema | {"required": [field.alias for field in SYSTEM_FIELDS if field.mandatory]}
    return schema | {"minProperties": 1}


async def fields_of(db: Connection, instance_id: int) -> dict[str, ProfileField]:
    """Every field of an instance by its alias: the system's first, then its own."""
    rows = await db.all("list_fields", instance_id=instance_id)
    own = (
        ProfileField(row["alias"], row["title"], row["type"], row["mandatory"], tuple(row["choices"]), False)
        for row in rows
    )
    fields = {field.alias: field for field in SYSTEM_FIELDS}
    for field in own:  # one that was defined before the system had its name gives way
        fields.setdefault(field.alias, field)
    return fields


def checked(
    fields: Mapping[str, ProfileField], profile: Mapping[str, Any], *, complete: bool
) -> tuple[dict[str, Any], list[FieldError]]:
    """What is to be stored of a profile, and everything that is wrong with it.

    Args:
        fields: those of the instance.
        profile: alias -> value; null or an empty text takes a value away.
        complete: whether every mandatory field must be there.
    """
    values: dict[str, Any] = {}
    failures: list[FieldError] = []
    for alias, given in profile.items():
        field = fields.get(alias)
        if field is None:
            failures.append(FieldError(f"profile.{alias[:64]}", "is not a field of this instance"))
        elif given is None or (isinstance(given, str) and not given.strip()):
            values[alias] = None
        else:
            value, problem = _value(field, given)
            if problem:
                failures.append(FieldError(f"profile.{alias}", problem))
            values[alias] = value
    if "phone" in values:
        number = values["phone"] and phonenumbers.parse(_international(values["phone"]))
        values[PHONE_E164] = number and phonenumbers.format_number(
            number, phonenumbers.PhoneNumberFormat.E164
        )
    bad = {failure.field for failure in failures}
    failures += [
        FieldError(f"profile.{alias}", "is required")
        for alias, field in fields.items()
        if field.mandatory
        and (complete or alias in values)
        and values.get(alias) is None
        and f"profile.{alias}" not in bad
    ]
    return values, failures


def _value(field: ProfileField, given: Any) -> tuple[Any, str | None]:
    problem: str | None = None
    if field.type == "id":
        given = whole(given)
    match field.type:
        case "number":
            if isinstance(given, bool) or not isinstance(given, (int, float)):
                problem = "must be a number"
        case "id" if isinstance(given, int) and not isinstance(given, bool):
            pass
        case _ if not isinstance(given, str):
            problem = "must be a string"
        case "id" if len(given) > 40 or any(unicodedata.category(char) == "Cc" for char in given):
            problem = "must be a number, or one line of at most 40 characters"
        case "email":
            try:
                given = address(given) if len(given) <= 254 else ""
            except ValueError:
                given = ""
            problem = None if given else "is not a valid e-mail address"
        case "string" if len(given) > 200 or any(unicodedata.category(char) == "Cc" for char in given):
            problem = "must be one line of at most 200 characters"
        case "text" if len(given) > 4000:
            problem = "must have at most 4000 characters"
        case "date":
            try:
                if date.fromisoformat(given).isoformat() != given:
                    problem = "must be a date such as 1984-02-29"
            except ValueError:
                problem = "must be a date such as 1984-02-29"
        case "choice" if given not in field.choices:
            problem = f"must be one of {', '.join(field.choices)}"
        case "phone":
            try:
                good = len(given) <= 40 and phonenumbers.is_valid_number(
                    phonenumbers.parse(_international(given))
                )
            except phonenumbers.NumberParseException:
                good = False
            problem = None if good else "must be a phone number with its country code"
    return (None, problem) if problem else (given, None)


def _international(phone: str) -> str:
    return phone if phone.lstrip().startswith("+") else "+" + phone
