"""Instances (tenants), managed by operators."""

import contextlib
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError

from server.base.errors import CONSTRAINTS, Conflict, FieldError, Invalid
from server.base.models import (
    IN_EVENTS,
    WITH_SECRETS,
    Params,
    Result,
    TenantParams,
    Unchecked,
    something_besides,
    validated,
)
from server.base.pages import After, Limit, Next, from_cursor, page
from server.directory.creation import create
from server.directory.many import Batch, hold_counters
from server.directory.rules import hash_password, password_failures
from server.directory.users import ABSENT, CreateUser, DisplayName, Line, NewEmail, Password
from server.methods.registry import Example, method
from server.methods.validation import Validation
from server.outside.graph import Office365
from server.tenants import access
from server.tenants.call import Call
from server.tenants.instances import GeneratedPasswords, Instance, InstanceSettings, PasswordPolicy


def _not_reserved(name: str) -> str:
    # /Provisioning/Environment/ is the address for instances themselves.
    if name.lower() == "environment":
        raise ValueError("is reserved")
    return name


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"), AfterValidator(_not_reserved)]

_SETTINGS = InstanceSettings().model_dump()
_INSTANCE = {
    "name": "ACME", "title": "Acme Inc.", "isActive": True, "settings": _SETTINGS, "createdAt": 1683471262,
}  # fmt: skip


class Administrator(Params):
    """The first user of an instance."""

    email: NewEmail
    displayName: DisplayName = Field(
        ABSENT, description="Left out: first and last name, or the local part of the e-mail."
    )
    password: Password = Field(ABSENT, description="Left out: no login until one is set.")
    firstName: Line = Field(ABSENT, description="The profile field firstname.")
    lastName: Line = Field(ABSENT, description="The profile field lastname.")


class CreateInstance(Params):
    """A new instance."""

    name: Name = Field(description="The name in calls; it cannot be changed.")
    title: Line = Field("", description="The name for people.")
    admin: Administrator
    settings: InstanceSettings = Field(default_factory=InstanceSettings)


class InstanceInfo(Result):
    """An instance."""

    name: str
    title: str
    isActive: bool
    settings: InstanceSettings
    createdAt: int = Field(description="Unix seconds.")


class CreatedInstance(InstanceInfo):
    """A new instance."""

    adminId: int = Field(description="The id of the administrator.")


async def _hash_admin_password(call: Call, params: CreateInstance) -> str | None:
    policy = params.settings.passwordPolicy
    return await hash_password(call, "admin.password", params.admin.password, policy)


@method(
    "createInstance",
    result=CreatedInstance,
    scope="instances:write",
    writes=True,
    operator=True,
    prepare=_hash_admin_password,
    errors=("duplicate_instance",),
    examples=(
        Example(
            "An instance with its administrator",
            {"name": "ACME", "title": "Acme Inc.", "admin": {"email": "boss@acme.example"}},
            _INSTANCE | {"adminId": 1},
        ),
    ),
)
async def create_instance(call: Call, params: CreateInstance, password_hash: str | None) -> Any:
    """Create an instance and its first user, the administrator, whose account is the root of tree 0."""
    row = await call.db.one(
        "create_instance",
        name=params.name,
        title=params.title,
        settings=params.settings.model_dump(context=WITH_SECRETS),
    )
    assert row is not None
    # The events belong to the new instance.
    call.instance = Instance(row["id"], row["name"], row["is_active"], params.settings)
    call.audit_only(after=params.model_dump(exclude={"admin"}, context=IN_EVENTS))
    admin = CreateUser(**params.admin.model_dump(exclude_unset=True, exclude={"password"}), isAdmin=True)
    user = (await create(call, Batch.one(admin, password_hash)))[0]
    await call.db.one(
        "create_account",
        instance_id=row["id"],
        user_id=user["id"],
        sponsor_id=None,
        title=user["displayName"],
        placed=True,
    )
    return {
        "name": row["name"], "title": row["title"], "isActive": row["is_active"],
        "settings": params.settings.model_dump(), "createdAt": row["created_at"], "adminId": user["id"],
    }  # fmt: skip


class ValidateInstance(Unchecked):
    """The params of createInstance, valid or not."""

    checked_by = CreateInstance


@method(
    "validateInstance",
    result=Validation,
    scope="instances:write",
    writes=False,
    operator=True,
    examples=(
        Example(
            "A taken name and no administrator",
            {"name": "MYINSTANCE"},
            {"valid": False, "failures": [
                {"field": "admin", "message": "is required"},
                {"field": "name", "message": CONSTRAINTS["instances_name"][2]},
            ]},
        ),
    ),
)  # fmt: skip
async def validate_instance(call: Call, params: ValidateInstance) -> Any:
    """List everything that createInstance would refuse in its params. Nothing is written."""
    given = params.model_extra or {}
    failures: list[FieldError] = []
    settings = InstanceSettings()
    with contextlib.suppress(ValidationError):
        settings = InstanceSettings.model_validate(given.get("settings", {}))
    try:
        validated(CreateInstance, given)
    except Invalid as error:
        failures += error.fields
    bad = {failure.field for failure in failures}
    admin, name = given.get("admin"), given.get("name")
    password = admin.get("password") if isinstance(admin, dict) else None
    if isinstance(password, str) and "admin.password" not in bad:
        failures += password_failures("admin.password", password, settings.passwordPolicy)
    if isinstance(name, str) and "name" not in bad and await call.db.value("find_instance", name=name):
        failures.append(FieldError("name", CONSTRAINTS["instances_name"][2]))
    return {"valid": not failures, "failures": [failure._asdict() for failure in failures]}


class CountedInstance(InstanceInfo):
    """An instance with its numbers of users."""

    users: int = Field(description="Users that are not deleted.")
    maxUsers: int | None = Field(description="Seats; null: any number.")


@method(
    "getInstance",
    result=CountedInstance,
    scope="instances:read",
    writes=False,
    examples=(
        Example(
            "The key's instance", {"instance": "MYINSTANCE"},
            _INSTANCE | {"name": "MYINSTANCE", "title": "", "users": 2, "maxUsers": None},
        ),
    ),
)  # fmt: skip
async def get_instance(call: Call, params: TenantParams) -> Any:
    """Look up an instance with its settings and number of users."""
    return _shown(await call.db.one("get_instance", instance_id=call.instance.id))


def _shown(row: Any) -> dict[str, Any]:
    return dict(row) | {"settings": InstanceSettings.model_validate(row["settings"]).model_dump()}


class ListInstances(Params):
    """The page."""

    after: After = None
    limit: Limit = 100


class InstancePage(Result):
    """A page of instances, by name."""

    instances: list[InstanceInfo]
    next: Next


@method(
    "listInstances",
    result=InstancePage,
    scope="instances:read",
    writes=False,
    operator=True,
    examples=(
        Example(
            "All instances", {},
            {"instances": [_INSTANCE | {"name": "MYINSTANCE", "title": ""}], "next": None},
        ),
    ),
)  # fmt: skip
async def list_instances(call: Call, params: ListInstances) -> Any:
    """List all instances."""
    rows = await call.db.all("list_instances", after=from_cursor(params.after), row_limit=params.limit + 1)
    shown, after = page(rows, params.limit, lambda row: str(row["name"]))
    return {"instances": [_shown(row) for row in shown], "next": after}


def _without_defaults(schema: dict[str, Any]) -> None:
    for member in schema["properties"].values():
        member.pop("default", None)


_CHANGE = ConfigDict(json_schema_extra=_without_defaults)
"""For models of changes: members that are left out stay as they are, so they have no defaults."""


class PolicyChange(PasswordPolicy):
    """Members of a password policy to change."""

    model_config = _CHANGE


class GeneratedPasswordsChange(GeneratedPasswords):
    """Members of the rules for generated passwords to change."""

    model_config = _CHANGE


class SettingsChange(InstanceSettings):
    """Members of an instance's settings to change."""

    model_config = _CHANGE

    passwordPolicy: PolicyChange = ABSENT
    generatedPasswords: GeneratedPasswordsChange = ABSENT
    office365: Office365 | None = Field(
        None, description="Replaced as a whole, except that a missing clientSecret stays. Null removes it."
    )
    maxUsers: Annotated[int, Field(ge=1, lt=2**53)] | None = Field(
        None, description="Seats; not fewer than there are users. null: any number."
    )


class UpdateInstance(TenantParams):
    """What to change: at least one member besides instance."""

    title: Line = ABSENT
    isActive: bool = Field(
        ABSENT, description="False suspends the instance: its keys are refused and its sessions end."
    )
    settings: SettingsChange = Field(ABSENT, description="Merged into the stored settings.")

    _something = something_besides("instance")


@method(
    "updateInstance",
    result=Literal[True],
    scope="instances:write",
    writes=True,
    operator=True,
    while_suspended=True,
    errors=("seats_taken",),
    examples=(
        Example(
            "Require longer passwords",
            {"instance": "MYINSTANCE", "settings": {"passwordPolicy": {"minLength": 12}}},
            True,
        ),
        Example("Suspend an instance", {"instance": "MYINSTANCE", "isActive": False}, True),
    ),
)
async def update_instance(call: Call, params: UpdateInstance) -> Any:
    """Change an instance's title or settings, or suspend it.

    Suspending (isActive false) ends every session of the instance in the same transaction. A suspended
    instance's keys are refused on every wire with 403 and the code instance_suspended. Operators' keys can
    read it and its users, manage its keys, and change, reactivate or delete it; other writes and logins are
    refused to them too. Users and their data stay. Reactivating restores everything except the sessions and
    the mailed codes. While the instance is suspended, its pictures are not served, and its webhooks and
    queued changes wait.
    """
    stored = await _hold_instance(call)
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    settings = None
    if params.title is not None:
        before["title"], after["title"] = stored["title"], params.title
    if params.settings is not None:
        current = InstanceSettings.model_validate(stored["settings"])
        changed = _merged(current, params.settings)
        settings = changed.model_dump(context=WITH_SECRETS)
        if (seats := params.settings.maxUsers) is not None:
            await _require_seats(call, seats)
        before["settings"] = current.model_dump(context=IN_EVENTS)
        after["settings"] = changed.model_dump(context=IN_EVENTS)
    columns = {"instance_id": call.instance.id, "is_active": params.isActive, "settings": settings}
    await call.db.run("update_counters", **columns)
    await call.db.run("update_instance", **columns, title=params.title)
    if params.isActive is False:
        await call.db.run("end_codes_of_instance", instance_id=call.instance.id)
    if after:
        call.audit_only(before=before, after=after)
    if params.isActive is not None and params.isActive != stored["isActive"]:
        await _record_activity(call, params.isActive)
    await forget_keys(call)
    return True


def _merged(stored: InstanceSettings, given: SettingsChange) -> InstanceSettings:
    settings = stored.model_dump(context=WITH_SECRETS)
    change = given.model_dump(exclude_unset=True, context=WITH_SECRETS)
    for nested in ("passwordPolicy", "generatedPasswords", "defaultQuotas"):
        settings[nested] |= change.pop(nested, {})
    if (office := change.get("office365")) and not office.get("clientSecret") and settings["office365"]:
        office["clientSecret"] = settings["office365"]["clientSecret"]
    return InstanceSettings.model_validate(settings | change)


async def _require_seats(call: Call, seats: int) -> None:
    """Raises Conflict where the instance has more users than seats."""
    row = await call.db.one("get_instance", instance_id=call.instance.id)
    assert row is not None
    if row["users"] > seats:
        problem = f"must not be less than the {row['users']} users that there are"
        fields = [FieldError("settings.maxUsers", problem)]
        raise Conflict(f"settings.maxUsers: {problem}", code="seats_taken", fields=fields)


async def forget_keys(call: Call) -> None:
    """Have every worker drop its cached keys when the call commits."""
    await call.db.run("announce_keys_changed")
    call.after_commit.append(call.keys.forget)


async def _hold_instance(call: Call) -> Any:
    """Lock the instance's row and its counters.

    The counters first, as in every call that creates a user: an inserted user locks the instance's row (by
    its foreign key), so the other order could deadlock.

    Raises:
        NotHeld: the instance was deleted concurrently.
    """
    await hold_counters(call)
    row = await call.db.one("lock_instance", instance_id=call.instance.id)
    if row is None:
        raise access.INSTANCE.refusal()
    return row


async def _record_activity(call: Call, is_active: bool) -> None:
    """Record a suspension, and end the sessions; or record a reactivation."""
    before, after = {"isActive": not is_active}, {"isActive": is_active}
    if is_active:
        call.emit("instance.reactivated", before=before, after=after)
        return
    # A statement after the lock of the counters: it sees the sessions of logins that ran before the lock.
    # Later logins find the instance suspended.
    ended = await call.db.value("end_all_sessions", instance_id=call.instance.id)
    call.emit("instance.suspended", before=before | {"sessions": ended}, after=after | {"sessions": 0})


class DeleteInstance(TenantParams):
    """The instance to delete."""

    instance: str | int = Field(description="The name; required.", examples=["MYINSTANCE"])


@method(
    "deleteInstance",
    result=Literal[True],
    scope="instances:write",
    writes=True,
    operator=True,
    while_suspended=True,
    examples=(Example("Delete an instance", {"instance": "MYINSTANCE"}, True),),
)
async def delete_instance(call: Call, params: DeleteInstance) -> Any:
    """Delete an instance. No key can access it any more, and its name can be used again.

    Sessions and codes are deleted; all other rows stay in the database until an administrator of the database
    removes them. The API cannot restore the instance. Keys that also hold other instances keep those. If this
    was a key's default instance, it has none any more, and its calls must name an instance.
    """
    await _hold_instance(call)
    await call.db.value("delete_instance", instance_id=call.instance.id)
    # A separate statement, as in _record_activity.
    await call.db.value("end_all_sessions", instance_id=call.instance.id)
    await call.db.run("end_codes_of_instance", instance_id=call.instance.id)
    call.audit_only(before={"name": call.instance.name})
    await forget_keys(call)
    return True
