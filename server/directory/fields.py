"""Profile fields of the member platform, and the check of their values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import phonenumbers

from server.base.errors import FieldError
from server.base.models import NO_CONTROLS, has_controls, is_date
from server.base.strict import whole
from server.directory.users import address
from server.postgres.db import Connection

TYPES = ("string", "text", "date", "number", "choice")
"""Types of custom fields. System fields have others, too."""


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
"""This field is the user's e-mail, and not stored with the profile."""
PHONE_E164 = "phone_e164"
"""Stored in addition to the phone as it was given. Clients do not send it."""


def _or_empty(**schema: Any) -> dict[str, Any]:
    """The JSON Schema of such a string, a blank string or null."""
    blank = {"type": "string", "pattern": r"^[ \t]*$"}
    return {"anyOf": [{"type": "string", **schema}, blank, {"type": "null"}]}


# The rules of `checked` in JSON Schema.
_SCHEMAS: dict[str, dict[str, Any]] = {
    "string": {"type": ["string", "null"], "maxLength": 200, **NO_CONTROLS},
    "text": {"type": ["string", "null"], "maxLength": 4000},
    "date": _or_empty(format="date"),
    "id": {
        "anyOf": [
            {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
            {"type": "string", "maxLength": 40, **NO_CONTROLS},
            {"type": "null"},
        ]
    },
    "email": _or_empty(maxLength=254, format="email", description="Where mails go."),
    "phone": _or_empty(maxLength=40, format="phone", description="With its country code."),
}
_MANDATORY = {
    "type": "string",
    "maxLength": 200,
    "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f]"
    r"[^\u0000-\u001f\u007f-\u009f]*$",
}
ALIAS = r"^[a-z][a-z0-9_]{0,39}$"
"""The pattern of aliases of custom fields."""
_ALIASES = f"{ALIAS}|^({'|'.join(field.alias for field in SYSTEM_FIELDS)})$"


def profile_schema(*, complete: bool, **others: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a profile in params.

    Args:
        complete: whether every mandatory field is required.
        others: further properties and their schemas.
    """
    properties: dict[str, Any] = {}
    for field in SYSTEM_FIELDS:
        properties[field.alias] = _MANDATORY if field.mandatory else _SCHEMAS.get(field.type)
        if field.type == "choice":
            properties[field.alias] = _or_empty(enum=list(field.choices))
    # In properties, a name that is no identifier breaks generated TypeScript.
    patterns = {f"^{name}$": properties.pop(name) for name in list(properties) if not name.isidentifier()}
    schema: dict[str, Any] = {
        "title": "NewMemberProfile" if complete else "MemberProfileChange",
        "type": "object", "properties": properties | others, "patternProperties": patterns,
        "additionalProperties": {"type": ["string", "number", "null"]},
        "propertyNames": {"pattern": _ALIASES}, "maxProperties": 100,
    }  # fmt: skip
    if complete:
        return schema | {"required": [field.alias for field in SYSTEM_FIELDS if field.mandatory]}
    return schema | {"minProperties": 1}


async def fields_of(db: Connection, instance_id: int) -> dict[str, ProfileField]:
    """Every field of an instance by its alias: the system fields, then the custom ones."""
    rows = await db.all("list_fields", instance_id=instance_id)
    own = (
        ProfileField(row["alias"], row["title"], row["type"], row["mandatory"], tuple(row["choices"]), False)
        for row in rows
    )
    fields = {field.alias: field for field in SYSTEM_FIELDS}
    for field in own:  # a system field replaces a custom field of its name that is older
        fields.setdefault(field.alias, field)
    return fields


def checked(
    fields: Mapping[str, ProfileField], profile: Mapping[str, Any], *, complete: bool
) -> tuple[dict[str, Any], list[FieldError]]:
    """The values to store of a profile, and all that is wrong with it.

    Args:
        fields: of the instance.
        profile: alias -> value; null or a blank text removes a value.
        complete: whether every mandatory field is required.
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
            try:
                values[alias] = _value(field, given)
            except ValueError as error:
                values[alias] = None
                failures.append(FieldError(f"profile.{alias}", str(error)))
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


def _value(field: ProfileField, given: Any) -> Any:
    """A value as it is stored.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if field.type == "id":
        given = whole(given)
        if isinstance(given, int) and not isinstance(given, bool):
            return given
    if field.type == "number":
        if isinstance(given, bool) or not isinstance(given, (int, float)):
            raise ValueError("must be a number")
        return given
    match field.type:
        case _ if not isinstance(given, str):
            raise ValueError("must be a string")
        case "id" if len(given) > 40 or has_controls(given):
            raise ValueError("must be a number, or one line of at most 40 characters")
        case "email" if len(given) > 254:
            raise ValueError("is not a valid e-mail address")
        case "email":
            try:
                return address(given)
            except ValueError:
                raise ValueError("is not a valid e-mail address") from None
        case "string" if len(given) > 200 or has_controls(given):
            raise ValueError("must be one line of at most 200 characters")
        case "text" if len(given) > 4000:
            raise ValueError("must have at most 4000 characters")
        case "date" if not is_date(given):
            raise ValueError("must be a date such as 1984-02-29")
        case "choice" if given not in field.choices:
            raise ValueError(f"must be one of {', '.join(field.choices)}")
        case "phone" if len(given) > 40 or not _is_phone(given):
            raise ValueError("must be a phone number with its country code")
    return given


def _is_phone(text: str) -> bool:
    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(_international(text))))
    except phonenumbers.NumberParseException:
        return False


def _international(phone: str) -> str:
    return phone if phone.lstrip().startswith("+") else "+" + phone
