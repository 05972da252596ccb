"""The models of SCIM resources: users and groups of RFC 7643, the enterprise extension and our own.

scim2-models has the attributes, the grammar of paths and filters, and PATCH. This module adds our extension,
and accepts what clients send beyond the RFC (POLICY, Manager).
"""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator
from scim2_models import (
    ComplexAttribute,
    Extension,
    Mutability,
    Reference,
    Required,
    ScimPolicy,
)
from scim2_models import EnterpriseUser as RfcEnterpriseUser
from scim2_models import Group as RfcGroup
from scim2_models import User as RfcUser
from scim2_models.annotations import CaseExact
from scim2_models.urn import URN

USER_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:Group"
ENTERPRISE_SCHEMA = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
OFFICE_SCHEMA = "urn:ietf:params:scim:schemas:extension:officerpc:2.0:User"

POLICY = ScimPolicy(
    unknown=ScimPolicy.Unknown.ignore,
    # Entra ID sends the members to remove in `value`, and writes to elements that do not exist yet.
    remove_value_as_filter=ScimPolicy.RemoveValue.apply,
    unmatched_path_filter=ScimPolicy.UnmatchedPathFilter.create,
)
"""What is accepted beyond the RFC. Without it the models already accept booleans as strings."""


class Manager(ComplexAttribute):
    """A user's manager. Entra ID sends only the id, as a string."""

    value: Annotated[str | None, Required.true, CaseExact.true] = None
    ref: Reference["User"] | None = Field(None, serialization_alias="$ref", validation_alias="$ref")
    display_name: Annotated[str | None, Mutability.read_only] = None

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"value": value} if isinstance(value, str) else value


class EnterpriseUser(RfcEnterpriseUser):
    """The enterprise extension (RFC 7643, section 4.3)."""

    @field_validator("manager", mode="before")
    @classmethod
    def _none_without_value(cls, manager: Any) -> Any:
        """A manager without `value` counts as none: clients send back what they read."""
        has_value = not isinstance(manager, dict) or any(name.lower() == "value" for name in manager)
        return manager if has_value else None

    manager: Manager | None = None  # type: ignore[assignment]


class Mailboxes(ComplexAttribute):
    """The ids of a user's mailboxes."""

    inbox: Annotated[int | None, Mutability.read_only] = None
    spam: Annotated[int | None, Mutability.read_only] = None
    sent: Annotated[int | None, Mutability.read_only] = None
    trash: Annotated[int | None, Mutability.read_only] = None
    archive: Annotated[int | None, Mutability.read_only] = None
    drafts: Annotated[int | None, Mutability.read_only] = None


class Calendars(ComplexAttribute):
    """The ids of a user's calendars."""

    main: Annotated[int | None, Mutability.read_only] = None


class Folders(ComplexAttribute):
    """The ids of a user's file folders."""

    root: Annotated[int | None, Mutability.read_only] = None
    trash: Annotated[int | None, Mutability.read_only] = None


class Quotas(ComplexAttribute):
    """What a user may store, in MiB; null: the instance's default."""

    mail: int | None = None
    files: int | None = None


class Plan(ComplexAttribute):
    """A plan that a user has now."""

    value: Annotated[int | None, Mutability.read_only] = None
    display: Annotated[str | None, Mutability.read_only] = None
    valid_to: Annotated[str | None, Mutability.read_only] = None


class OfficeUser(Extension):
    """What is provisioned for a user: mailboxes, calendar, folders, quotas, plans."""

    __schema__ = URN(OFFICE_SCHEMA)

    mailboxes: Annotated[Mailboxes | None, Mutability.read_only] = None
    calendars: Annotated[Calendars | None, Mutability.read_only] = None
    folders: Annotated[Folders | None, Mutability.read_only] = None
    quotas: Quotas | None = None
    plans: Annotated[list[Plan] | None, Mutability.read_only] = None


User = RfcUser[EnterpriseUser | OfficeUser]
"""A user with both extensions."""
Group = RfcGroup
"""A group."""
