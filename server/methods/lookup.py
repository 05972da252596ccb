"""All data of a user in one look-up."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from server.base.errors import NotFound
from server.base.models import Id, Result, TenantParams
from server.directory.lookups import named
from server.directory.names import has_email
from server.directory.users import USER, ExternalId, Profile, Values, found
from server.methods.members import Account
from server.methods.quotas import UserQuotas
from server.methods.registry import Example, method
from server.methods.store import HeldPlan
from server.outside.pictures import avatar_url
from server.tenants.call import Call


class GetUser(TenantParams):
    """Which user: exactly one of id, email and externalId."""

    id: Id | None = None
    email: Annotated[str, Field(min_length=1, max_length=254)] | None = Field(
        None, description="The e-mail or login, in any case."
    )
    externalId: ExternalId | None = None

    @model_validator(mode="after")
    def _one(self) -> "GetUser":
        if sum(name is not None for name in (self.id, self.email, self.externalId)) != 1:
            raise ValueError("give one of id, email and externalId")
        return self


class Mailboxes(Result):
    """The ids of a user's mailboxes."""

    inbox: int
    spam: int
    sent: int
    trash: int
    archive: int
    drafts: int


class Calendars(Result):
    """The ids of a user's calendars."""

    main: int


class Folders(Result):
    """The ids of a user's file folders."""

    root: int
    trash: int


class WholeUser(Result):
    """All data of a user."""

    id: int
    uuid: str
    instance: str
    email: str | None = Field(description="Null: none.")
    login: str = Field(description="The login name; by default the e-mail.")
    externalId: str | None
    displayName: str
    fullName: str = Field(description="First and last name, or the display name.")
    isActive: bool = Field(description="False: suspended.")
    isAdmin: bool
    isConfirmed: bool = Field(description="False until the registration is confirmed.")
    isDeleted: bool = Field(description="True: can be restored or purged.")
    createdAt: int = Field(description="Unix seconds.")
    updatedAt: int = Field(description="Unix seconds.")
    suspendedAt: int | None = Field(description="Unix seconds; null: not suspended.")
    deletedAt: int | None = Field(description="Unix seconds; null: not deleted.")
    lastLoginAt: int | None = Field(
        description="Unix seconds; the start of the newest stored session. Null: no session is stored."
    )
    sessions: int = Field(description="Number of active sessions.")
    sessionsLimit: int | None
    language: str = Field(description="Two letters, ISO 639-1.")
    avatar: str
    groups: list[str]
    profile: Profile
    values: Values
    settings: list[int]
    apps: list[int]
    fields: dict[str, Any] = Field(description="Profile fields of the member platform, alias -> value.")
    attributes: dict[str, Any] = Field(description="What SCIM knows of it beyond all this, by SCIM's names.")
    quotas: UserQuotas
    isPlanAdmin: bool
    onlySeesReadable: bool
    plans: list[HeldPlan] = Field(description="The newest hundred.")
    account: Account | None
    mailboxes: Mailboxes
    calendars: Calendars
    folders: Folders


_NO_LIMIT = {"limit": None, "isDefault": True}
_WHOLE = {name: value for name, value in USER.items() if name in WholeUser.model_fields} | {
    "uuid": "af5af4f9-9b8d-4d79-b162-0cec4279cae5", "login": "jane@example.com", "externalId": None,
    "fullName": "Jane Doe", "isConfirmed": True, "isDeleted": False, "createdAt": 1683471262,
    "updatedAt": 1683471262, "suspendedAt": None, "deletedAt": None, "lastLoginAt": 1683471262, "sessions": 1,
    "sessionsLimit": None, "language": "en", "fields": {}, "attributes": {},
    "quotas": {"mail": _NO_LIMIT, "files": _NO_LIMIT}, "isPlanAdmin": False, "onlySeesReadable": False,
    "plans": [], "account": None,
    "mailboxes": {"inbox": 7, "spam": 8, "sent": 9, "trash": 10, "archive": 11, "drafts": 12},
    "calendars": {"main": 2}, "folders": {"root": 3, "trash": 4},
}  # fmt: skip


@method(
    "getUser",
    result=WholeUser,
    scope="users:read",
    writes=False,
    errors=(NotFound,),
    examples=(
        Example("By id", {"id": 2}, _WHOLE),
        Example("By e-mail", {"email": "jane@example.com"}, _WHOLE),
    ),
)
async def get_user(call: Call, params: GetUser) -> Any:
    """Look up all data of a user by id, by e-mail or login, or by externalId.

    Suspended and deleted users are found too.
    """
    key = named(params.id, params.email, params.externalId)
    row = dict(found(await call.db.one("get_whole_user", instance_id=call.instance.id, **key)))
    defaults = call.instance.settings.defaultQuotas
    user = row | {
        "instance": call.instance.name,
        "email": row["email"] if has_email(row["email"]) else None,
        "login": row["login"] or row["email"],
        "isDeleted": row["deletedAt"] is not None,
        "avatar": avatar_url(call.settings, row["avatar"]),
        "quotas": {
            kind: {"limit": getattr(defaults, kind) if limit is None else limit, "isDefault": limit is None}
            for kind, limit in row["quotas"].items()
        },
        "mailboxes": {
            "inbox": row["inbox"], "spam": row["spam"], "sent": row["sent"], "trash": row["trashEmail"],
            "archive": row["archive"], "drafts": row["drafts"],
        },
        "calendars": {"main": row["mainCalendar"]},
        "folders": {"root": row["rootFiles"], "trash": row["trashFiles"]},
    }  # fmt: skip
    return {member: user[member] for member in WholeUser.model_fields}
