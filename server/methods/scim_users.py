"""Users as SCIM resources (RFC 7643, RFC 7644), for the wire /scim/v2 and for /rpc."""

from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, SerializationInfo

from server.base.errors import DUPLICATES, MemberForbidden, NotFound
from server.base.models import HIDDEN, IN_EVENTS, TenantParams
from server.directory.scim import user_changes
from server.directory.scim.attributes import selected
from server.directory.scim.models import ENTERPRISE_SCHEMA, OFFICE_SCHEMA, USER_SCHEMA
from server.directory.scim.operations import MOST_OPERATIONS
from server.directory.scim.user_changes import NewAccount, Patch, Replacement, parsed_id
from server.directory.scim.users import Resource
from server.methods.registry import Example, method
from server.tenants.call import Call

ScimId = Annotated[str, Field(min_length=1, max_length=64, description="The `id` of the resource: a string.")]
AttributeNames = Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=100)]
Version = Annotated[
    str,
    Field(
        min_length=1,
        max_length=1000,
        description="Change the resource only if it has this version (meta.version), or one of several.",
    ),
]
VALUE_ERRORS = ("invalid_value",)
"""Error codes for a whole resource."""
OPERATION_ERRORS = (*VALUE_ERRORS, "invalid_path", "no_target", "mutability")
"""Error codes for operations."""


def _hidden_in_events(value: Any, info: SerializationInfo) -> Any:
    return _hidden(value) if info.context == IN_EVENTS else value


def _hidden(value: Any) -> Any:
    """A value with HIDDEN for each member that can be, or set, a password."""
    if isinstance(value, list):
        return [_hidden(part) for part in value]
    if not isinstance(value, dict):
        return value
    path = next((text for name, text in value.items() if name.lower() == "path"), "")
    sets_password = isinstance(path, str) and path.lower().endswith("password")
    return {
        name: HIDDEN
        if name.lower().endswith("password") or (sets_password and name.lower() == "value")
        else _hidden(part)
        for name, part in value.items()
    }


HiddenInEvents = PlainSerializer(_hidden_in_events)
"""For params that can contain a password: it is hidden in events."""
SentUser = Annotated[
    dict[str, Any],
    HiddenInEvents,
    Field(description="A SCIM user (RFC 7643, 4.1) with its extensions; names are case-insensitive."),
]
SentOperations = Annotated[
    list[dict[str, Any]],
    HiddenInEvents,
    Field(
        min_length=1,
        max_length=MOST_OPERATIONS,
        description="Operations of a SCIM PATCH (RFC 7644, 3.5.2): op, path, value.",
    ),
]


class Selection(TenantParams):
    """The attributes to return: all, unless one of the two lists is given."""

    attributes: AttributeNames | None = Field(None, description="Names of the only attributes to return.")
    excludedAttributes: AttributeNames | None = Field(
        None, description="Names of the attributes to leave out."
    )

    def select(self, resource: Resource) -> Resource:
        """The requested attributes of a resource; see attributes.selected for the errors."""
        return selected(resource, self.attributes, self.excludedAttributes)


class ScimUserId(Selection):
    """A user, and the attributes to return."""

    id: ScimId


SCIM_USER = {
    "schemas": [USER_SCHEMA, OFFICE_SCHEMA], "id": "2", "userName": "jane@example.com",
    "displayName": "Jane Doe", "preferredLanguage": "en", "active": True,
    "emails": [{"value": "jane@example.com", "type": "work", "primary": True}],
    OFFICE_SCHEMA: {
        "mailboxes": {"inbox": 7, "spam": 8, "sent": 9, "trash": 10, "archive": 11, "drafts": 12},
        "calendars": {"main": 2}, "folders": {"root": 3, "trash": 4},
    },
    "meta": {
        "resourceType": "User", "created": "2023-05-07T14:47:42.000000Z",
        "lastModified": "2023-05-07T14:47:42.000000Z",
        "location": "https://officerpc.example.com/scim/v2/MYINSTANCE/Users/2",
        "version": 'W/"5fb1b4d7e5b80"',
    },
}  # fmt: skip


@method(
    "getScimUser",
    result=Resource,
    scope="users:read",
    writes=False,
    errors=(NotFound, *VALUE_ERRORS),
    examples=(
        Example("All attributes", {"id": "2"}, SCIM_USER),
        Example(
            "One attribute", {"id": "2", "attributes": ["userName"]},
            {"schemas": [USER_SCHEMA], "id": "2", "userName": "jane@example.com"},
        ),
    ),
)  # fmt: skip
async def get_scim_user(call: Call, params: ScimUserId) -> Any:
    """A user as a SCIM resource. Suspended users have `active` false; deleted users are not found."""
    return params.select(await user_changes.read(call, parsed_id(params.id)))


class CreateScimUser(Selection):
    """A new user, and the attributes to return."""

    user: SentUser


async def _prepare_creation(call: Call, params: CreateScimUser) -> NewAccount:
    return await user_changes.prepare_new(call, params.user)


@method(
    "createScimUser",
    result=Resource,
    scope="users:write",
    writes=True,
    prepare=_prepare_creation,
    errors=(*DUPLICATES, "seats_exhausted", *VALUE_ERRORS),
    examples=(
        Example(
            "A user with a department",
            {"user": {"schemas": [USER_SCHEMA, ENTERPRISE_SCHEMA], "userName": "ann@example.com",
                      "name": {"givenName": "Ann", "familyName": "Lee"}, "active": True,
                      ENTERPRISE_SCHEMA: {"department": "Sales", "manager": {"value": "2"}}},
             "attributes": ["userName", "displayName"]},
            {"schemas": [USER_SCHEMA], "id": "6", "userName": "ann@example.com", "displayName": "Ann Lee"},
        ),
    ),
)  # fmt: skip
async def create_scim_user(call: Call, params: CreateScimUser, prepared: NewAccount) -> Any:
    """Create a user from a SCIM resource, with mailbox, calendar and files (RFC 7644, 3.3).

    A userName that is an e-mail address is also the user's e-mail. Any other userName is the login; then the
    e-mail is the primary entry of `emails`, or else the first, if there is one. Read-only attributes are
    ignored.
    """
    return params.select(await user_changes.create(call, prepared))


class ReplaceScimUser(ScimUserId):
    """The resource that replaces a user."""

    user: SentUser
    version: Version | None = None


async def _prepare_replacement(call: Call, params: ReplaceScimUser) -> Replacement:
    return await user_changes.prepare_replacement(call, params.user)


_CHANGE_ERRORS = (NotFound, MemberForbidden, "version_mismatch")
_NAME_ERRORS = ("duplicate_email", "duplicate_external_id", "user_deleted")


@method(
    "replaceScimUser",
    result=Resource,
    scope="users:write",
    writes=True,
    prepare=_prepare_replacement,
    errors=(*_CHANGE_ERRORS, *_NAME_ERRORS, *VALUE_ERRORS),
    examples=(
        Example(
            "Only a userName and a name",
            {"id": "2", "user": {"schemas": [USER_SCHEMA], "userName": "jane@example.com",
                                 "name": {"givenName": "Jane", "familyName": "Roe"}},
             "attributes": ["name"]},
            {"schemas": [USER_SCHEMA], "id": "2",
             "name": {"formatted": "Jane Roe", "givenName": "Jane", "familyName": "Roe"}},
        ),
    ),
)  # fmt: skip
async def replace_scim_user(call: Call, params: ReplaceScimUser, prepared: Replacement) -> Any:
    """Replace a user by a SCIM resource (PUT; RFC 7644, 3.5.1).

    Attributes that are left out are removed, except: password, active, preferredLanguage, a picture that was
    uploaded here, and the quotas (unless `schemas` contains our extension). A new password ends the user's
    sessions, and so does `active` false.
    """
    return params.select(await user_changes.replace(call, parsed_id(params.id), prepared, params.version))


class PatchScimUser(ScimUserId):
    """Changes of a user."""

    operations: SentOperations
    version: Version | None = None


async def _prepare_patch(call: Call, params: PatchScimUser) -> Patch:
    return await user_changes.prepare_patch(call, params.operations)


@method(
    "patchScimUser",
    result=Resource,
    scope="users:write",
    writes=True,
    prepare=_prepare_patch,
    errors=(*_CHANGE_ERRORS, *_NAME_ERRORS, *OPERATION_ERRORS),
    examples=(
        Example(
            "Suspend",
            {"id": "2", "operations": [{"op": "replace", "path": "active", "value": False}],
             "attributes": ["active"]},
            {"schemas": [USER_SCHEMA], "id": "2", "active": False},
        ),
    ),
)  # fmt: skip
async def patch_scim_user(call: Call, params: PatchScimUser, prepared: Patch) -> Any:
    """Change a user by SCIM operations: all of them or none (PATCH; RFC 7644, 3.5.2).

    What Entra ID and Okta send beyond the RFC is accepted. A new password ends the user's sessions, and so
    does `active` false.
    """
    return params.select(await user_changes.patch(call, parsed_id(params.id), prepared, params.version))


class DeleteScimUser(TenantParams):
    """A user to delete."""

    id: ScimId
    version: Version | None = None


@method(
    "deleteScimUser",
    result=Literal[True],
    scope="users:write",
    writes=True,
    errors=_CHANGE_ERRORS,
    examples=(Example("A user", {"id": "2"}, True),),
)
async def delete_scim_user(call: Call, params: DeleteScimUser) -> Any:
    """Delete a user, as deleteUserByEmail does.

    SCIM does not find it any more; restoreUserByEmail restores it.
    """
    await user_changes.delete(call, parsed_id(params.id), params.version)
    return True
