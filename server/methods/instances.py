"""Instances: the tenants, which operators make and keep."""

import contextlib
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from server.base.errors import CONSTRAINTS, Conflict, FieldError, Invalid
from server.base.models import (
    IN_EVENTS,
    WITH_SECRETS,
    Host,
    Params,
    Result,
    TenantParams,
    Unchecked,
    validated,
)
from server.base.pages import After, Limit, Next, from_cursor, page
from server.directory.creation import create
from server.directory.many import Batch
from server.directory.rules import hash_password, password_failures
from server.directory.users import (
    ABSENT,
    CreateUser,
    DisplayName,
    Line,
    NewEmail,
    Password,
)
from server.methods.registry import Example, method
from server.methods.validation import Validation
from server.outside.graph import Office365
from server.tenants import access
from server.tenants.call import Call
from server.tenants.instances import Instance, InstanceSettings, Mebibytes


def _not_reserved(name: str) -> str:
    # /Provisioning/Environment/ is an address of its own.
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
        ABSENT, description="Left out: first and last name, or else the local part of the e-mail."
    )
    password: Password = Field(ABSENT, description="Left out: it cannot log in until one is set.")
    firstName: Line = Field(ABSENT, description="The profile field firstname.")
    lastName: Line = Field(ABSENT, description="The profile field lastname.")


class CreateInstance(Params):
    """A new tenant."""

    name: Name = Field(description="What calls name it by; it never changes.")
    title: Line = Field("", description="What people call it.")
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

    adminId: int = Field(description="The id of its first user.")


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
            "A tenant with its administrator",
            {"name": "ACME", "title": "Acme Inc.", "admin": {"email": "boss@acme.example"}},
            _INSTANCE | {"adminId": 1},
        ),
    ),
)
async def create_instance(call: Call, params: CreateInstance, password_hash: str | None) -> Any:
    """Make an instance together with its administrator, who is its first user.

    The administrator has the first account, at the root of tree 0.
    """
    row = await call.db.one(
        "create_instance",
        name=params.name,
        title=params.title,
        settings=params.settings.model_dump(context=WITH_SECRETS),
    )
    assert row is not None
    # So that what happens is written down there.
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
    """The params of createInstance, good or bad."""

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
    """Say everything that createInstance would refuse about its params, and write nothing."""
    given = params.model_extra or {}
    failures: list[FieldError] = []
    settings = InstanceSettings()
    try:
        settings = validated(CreateInstance, given).settings
    except Invalid as error:
        failures += error.fields
        with contextlib.suppress(ValidationError):
            settings = InstanceSettings.model_validate(given.get("settings", {}))
    bad = {failure.field for failure in failures}
    admin, name = given.get("admin"), given.get("name")
    password = admin.get("password") if isinstance(admin, dict) else None
    if isinstance(password, str) and "admin.password" not in bad:
        failures += password_failures("admin.password", password, settings.passwordPolicy)
    if isinstance(name, str) and "name" not in bad:
        taken = await call.db.value("find_instance", name=name)
        failures += [FieldError("name", CONSTRAINTS["instances_name"][2])] if taken is not None else []
    return {"valid": not failures, "failures": [failure._asdict() for failure in failures]}


class CountedInstance(InstanceInfo):
    """An instance with its numbers."""

    users: int = Field(description="Users that are not deleted.")
    maxUsers: int | None = Field(description="How many there may be; null: any.")


@method(
    "getInstance",
    result=CountedInstance,
    scope="instances:read",
    writes=False,
    examples=(
        Example(
            "The key's own", {"instance": "MYINSTANCE"},
            _INSTANCE | {"name": "MYINSTANCE", "title": "", "users": 2, "maxUsers": None},
        ),
    ),
)  # fmt: skip
async def get_instance(call: Call, params: TenantParams) -> Any:
    """Look at one instance: its settings and how many users it has."""
    row = await call.db.one("get_instance", instance_id=call.instance.id)
    assert row is not None
    return dict(row) | {"settings": InstanceSettings.model_validate(row["settings"]).model_dump()}


class ListInstances(Params):
    """From where on."""

    after: After = None
    limit: Limit = 100


class InstancePage(Result):
    """A page of instances in the order of their names."""

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
            "All of them", {},
            {"instances": [_INSTANCE | {"name": "MYINSTANCE", "title": ""}], "next": None},
        ),
    ),
)  # fmt: skip
async def list_instances(call: Call, params: ListInstances) -> Any:
    """List all instances, page by page."""
    rows = await call.db.all("list_instances", after=from_cursor(params.after), row_limit=params.limit + 1)
    shown, after = page(rows, params.limit, lambda row: str(row["name"]))
    instances = [
        dict(row) | {"settings": InstanceSettings.model_validate(row["settings"]).model_dump()}
        for row in shown
    ]
    return {"instances": instances, "next": after}


class PolicyChange(Params):
    """Members of a password policy to change."""

    minLength: Annotated[int, Field(ge=1, le=128)] = ABSENT
    minClasses: Annotated[int, Field(ge=1, le=4)] = ABSENT
    refuseCommon: bool = ABSENT


class GeneratedPasswordsChange(Params):
    """Members of how passwords are generated to change."""

    length: Annotated[int, Field(ge=8, le=128)] = ABSENT
    specialSymbols: bool = ABSENT
    mixedCase: bool = ABSENT


class DefaultQuotasChange(Params):
    """Members of what users may store to change."""

    mail: Mebibytes | None = Field(None, description="MiB; null: any.")
    files: Mebibytes | None = Field(None, description="MiB; null: any.")


class SettingsChange(Params):
    """Members of an instance's settings to change."""

    passwordPolicy: PolicyChange = ABSENT
    retentionDays: Annotated[int, Field(ge=0, le=3650)] | None = None
    generatedPasswords: GeneratedPasswordsChange = ABSENT
    confirmationHosts: Annotated[list[Host], Field(max_length=100)] = ABSENT
    httpConfirmationHosts: Annotated[list[Host], Field(max_length=100)] = ABSENT
    positionsByHand: bool = ABSENT
    provisioningEnabled: bool = ABSENT
    office365: Office365 | None = Field(
        None,
        description="Replaced as a whole; without clientSecret the stored one stays. null takes it away.",
    )
    maxUsers: Annotated[int, Field(ge=1, lt=2**53)] | None = Field(
        None, description="Seats; not fewer than there are users. null: any number."
    )
    defaultQuotas: DefaultQuotasChange = ABSENT
    ratePerMinute: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="Calls a minute of all its keys together. 0: any; null: the server's setting."
    )


class UpdateInstance(TenantParams):
    """What to change; at least one member beside the instance."""

    title: Line = ABSENT
    isActive: bool = Field(
        ABSENT, description="False suspends the instance: its keys are refused and its sessions end."
    )
    settings: SettingsChange = Field(ABSENT, description="Merged into the stored settings.")

    @model_validator(mode="after")
    def _something(self) -> "UpdateInstance":
        if not self.model_fields_set - {"instance"}:
            raise ValueError("name at least one member to change")
        return self


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
            "Ask for longer passwords",
            {"instance": "MYINSTANCE", "settings": {"passwordPolicy": {"minLength": 12}}},
            True,
        ),
        Example("Suspend a tenant", {"instance": "MYINSTANCE", "isActive": False}, True),
    ),
)
async def update_instance(call: Call, params: UpdateInstance) -> Any:
    """Change an instance's title or settings, or suspend it.

    Suspending (isActive false) ends every session of the instance in the same transaction. While it is
    suspended, its own keys are refused everything, on every wire, with 403 and the code instance_suspended.
    Operators' keys can look at it and its users, manage its keys, change, reactivate and delete it; whatever
    else writes or logs in is refused to them too. Its users and their data stay, and what they were before
    holds again when it is reactivated; only the sessions are gone, and the codes that were mailed to its
    users. Its pictures are not served, and its webhooks and queued changes wait.
    """
    stored = dict(await _hold_instance(call))
    settings = None
    if params.settings is not None:
        settings = InstanceSettings.model_validate(stored["settings"]).model_dump(context=WITH_SECRETS)
        change = params.settings.model_dump(exclude_unset=True, context=WITH_SECRETS)
        for nested in ("passwordPolicy", "generatedPasswords", "defaultQuotas"):
            settings[nested] |= change.pop(nested, {})
        if (office := change.get("office365")) and not office.get("clientSecret") and settings["office365"]:
            office["clientSecret"] = settings["office365"]["clientSecret"]
        settings = InstanceSettings.model_validate(settings | change).model_dump(context=WITH_SECRETS)
        if (seats := params.settings.maxUsers) is not None:
            counted = await call.db.one("get_instance", instance_id=call.instance.id)
            if counted is not None and counted["users"] > seats:
                problem = f"must not be less than the {counted['users']} users that there are"
                fields = [FieldError("settings.maxUsers", problem)]
                raise Conflict(f"settings.maxUsers: {problem}", code="seats_taken", fields=fields)
    columns = {"instance_id": call.instance.id, "is_active": params.isActive, "settings": settings}
    await call.db.run("update_counters", **columns)
    await call.db.run("update_instance", **columns, title=params.title)
    if params.isActive is False:
        await call.db.run("end_codes_of_instance", instance_id=call.instance.id)
    given = params.model_dump(include={"title"}, exclude_unset=True)
    before = {name: stored[name] for name in given}
    if settings is not None:
        before["settings"], given["settings"] = (
            InstanceSettings.model_validate(those).model_dump(context=IN_EVENTS)
            for those in (stored["settings"], settings)
        )
    if given:
        call.audit_only(before=before, after=given)
    if params.isActive is not None and params.isActive != stored["isActive"]:
        await _record_activity(call, params.isActive)
    await call.db.run("announce_keys_changed")
    call.after_commit.append(call.keys.forget)
    return True


async def _hold_instance(call: Call) -> Any:
    """The stored instance, held until the transaction ends, with its counters.

    The counters come first, as in every call that creates a user: inserting one takes a lock on the
    instance's row (of its foreign key), so that the other order could deadlock with it.

    Raises:
        NotHeld: it was deleted after the call had found it.
    """
    await call.db.one("hold_counters", instance_id=call.instance.id)
    row = await call.db.one("lock_instance", instance_id=call.instance.id)
    if row is None:
        raise access.INSTANCE.refusal()
    return row


async def _record_activity(call: Call, is_active: bool) -> None:
    """Note that the instance was suspended, and end its sessions, or that it was reactivated."""
    before: dict[str, Any] = {"isActive": not is_active}
    after: dict[str, Any] = {"isActive": is_active}
    if is_active:
        call.emit("instance.reactivated", before=before, after=after)
        return
    # A statement of its own, after the one that holds the counters: it sees the sessions of logins that were
    # under way, and those that come later find the instance suspended.
    ended = await call.db.value("end_all_sessions", instance_id=call.instance.id)
    call.emit("instance.suspended", before=before | {"sessions": ended}, after=after | {"sessions": 0})


class DeleteInstance(TenantParams):
    """The instance that goes."""

    instance: str | int = Field(description="By its name, which has to be given.", examples=["MYINSTANCE"])


@method(
    "deleteInstance",
    result=Literal[True],
    scope="instances:write",
    writes=True,
    operator=True,
    while_suspended=True,
    examples=(Example("A tenant that left", {"instance": "MYINSTANCE"}, True),),
)
async def delete_instance(call: Call, params: DeleteInstance) -> Any:
    """Delete an instance: no key reaches it any more, and its name is free for another one.

    Its rows stay in the database until they are removed there by hand, except sessions and codes, which end;
    nothing brings it back over the API. Keys that hold other instances too keep those, but have no default if
    this was it: their calls name the instance.
    """
    await _hold_instance(call)
    await call.db.value("delete_instance", instance_id=call.instance.id)
    # A statement of its own, as in _record_activity.
    await call.db.value("end_all_sessions", instance_id=call.instance.id)
    await call.db.run("end_codes_of_instance", instance_id=call.instance.id)
    call.audit_only(before={"name": call.instance.name})
    await call.db.run("announce_keys_changed")
    call.after_commit.append(call.keys.forget)
    return True
