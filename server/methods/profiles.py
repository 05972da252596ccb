"""Profiles of members (seeds/001): changed through the queue, with fields of an instance's own."""

import uuid
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from server.base.errors import DUPLICATES, FieldError, Invalid, MemberForbidden, NotFound
from server.base.models import Result, TenantParams
from server.directory import change
from server.directory.fields import (
    ALIAS,
    EMAIL,
    SYSTEM_FIELDS,
    TYPES,
    ProfileField,
    checked,
    fields_of,
    profile_schema,
)
from server.directory.lookups import read_member
from server.directory.names import names_of_user
from server.directory.rows import Edit, hold, state, store, with_fields, with_names
from server.directory.users import ABSENT, Line, UserId, found
from server.events.changes import user_changes
from server.events.emit import Actor, emit
from server.jobs.queue import Services, enqueue, job
from server.jobs.worker import Suspended
from server.methods.avatars import SentPicture, prepared_picture, remove_picture, store_picture
from server.methods.members import Member, ProfileValues
from server.methods.registry import Example, method
from server.outside.pictures import Picture
from server.tenants import access
from server.tenants.call import Call

_AVATARS = [SentPicture.model_json_schema(), {"type": "string", "const": ""}, {"type": "null"}]


class UpdateProfile(UserId):
    """What changes of a profile; the rest stays."""

    profile: ProfileValues = Field(
        description="Alias -> value; null takes a value away. avatar: a picture, or null.",
        json_schema_extra=profile_schema(complete=False, avatar={"anyOf": _AVATARS}),
    )


class Queued(Result):
    """Where the outcome will be found."""

    queueRequest: bool
    documentId: str


class PreparedProfile(NamedTuple):
    """Checked values and, if one was sent, the picture."""

    fields: dict[str, Any]
    picture: Picture | None
    without_picture: bool
    # Whether the e-mail changes, and to which one; None takes it away.
    with_email: bool
    email: str | None


async def _prepare_profile(call: Call, params: UpdateProfile) -> PreparedProfile:
    profile = dict(params.profile)
    without_picture = "avatar" in profile and profile["avatar"] in (None, "")
    sent = None if without_picture else profile.get("avatar")
    with_picture = "avatar" in profile and not without_picture
    profile.pop("avatar", None)
    async with call.database.connection() as db:
        fields = await fields_of(db, call.instance.id)
        found(await read_member(db, call.settings, call.instance.id, params.id))
    values, failures = checked(fields, profile, complete=False)
    if not values and not with_picture and not without_picture and not failures:
        failures.append(FieldError("profile", "name at least one field to change"))
    if failures:
        raise Invalid.of(failures)
    picture = None
    if with_picture:
        picture = await prepared_picture(call, SentPicture.read(sent, "profile.avatar"))
    with_email = EMAIL in values
    email = values.pop(EMAIL, None)
    return PreparedProfile(values, picture, without_picture, with_email, email)


@method(
    "updateProfile",
    result=Queued,
    scope="users:write",
    writes=True,
    prepare=_prepare_profile,
    with_picture=True,
    errors=(NotFound, MemberForbidden, *DUPLICATES),
    examples=(
        Example(
            "A phone",
            {"id": 2, "profile": {"phone": "+973 3600 0000"}},
            {"queueRequest": True, "documentId": "0d4a9a5e-6f0e-4a35-9a46-0c6f5ab3d1d6"},
        ),
    ),
)
async def update_profile(call: Call, params: UpdateProfile, prepared: PreparedProfile) -> Any:
    """Change profile fields through the queue (user/profile-update); getDocument tells what came of it.

    Everything is checked at once, so that what is queued can fail only if the user goes meanwhile. What waits
    when the instance is suspended is done within an hour after that is over. A picture and the e-mail are
    changed at once too. The login stays as it is; null takes the e-mail away, unless it is
    the login. An administrator's needs the scope users:admin.
    """
    user = await change.hold_user(call, user_id=params.id)
    access.require_user(call.caller, user)
    call.subject = user["id"]
    if prepared.with_email:
        names = names_of_user(user["login"] or user["email"], prepared.email)
        renamed = with_names(user, names)
        await change.change(call, Edit(user, renamed), member="profile.email")
        user = renamed
    document_id = uuid.uuid4()
    await call.db.run(
        "create_document",
        instance_id=call.instance.id,
        document_id=document_id,
        entity="user",
        action="profile-update",
        user_id=params.id,
        fields=prepared.fields,
        asked_by=call.actor().columns() | access.kept(call.caller),
    )
    if prepared.picture is not None:
        await store_picture(call, user, prepared.picture)
    if prepared.without_picture:
        await remove_picture(call, user)
    await enqueue(call.db, "profile-update", {"instance_id": call.instance.id, "user_id": params.id})
    return {"queueRequest": True, "documentId": str(document_id)}


@job("profile-update")
async def apply_profile(services: Services, payload: dict[str, Any]) -> None:
    """Do all that was asked about a user and is not done yet, in the order in which it was asked.

    The queue hands jobs out side by side and some of them again: whichever comes first does the work of
    all that wait, and the others find nothing left. In a suspended instance it waits; in a deleted one it
    does nothing.

    Raises:
        Suspended: the instance is.
    """
    user = {"instance_id": payload["instance_id"], "user_id": payload["user_id"]}
    async with services.database.transaction() as db:
        is_suspended = await db.value("is_suspended", instance_id=user["instance_id"])
        if is_suspended is None:
            return
        if is_suspended:
            raise Suspended
        held = await hold(db, user["instance_id"], ids=[user["user_id"]])
        emitted = 0
        for document in await db.all("list_unfinished", **user):
            # A user may have become an administrator since.
            asked_by = document["asked_by"]
            may = bool(held) and access.may_still_change_user(asked_by, held[0])
            member = None
            if may and held[0]["deleted_at"] is None:
                edit = Edit(held[0], with_fields(held[0], document["fields"]))
                await store(db, user["instance_id"], [edit])
                changes = user_changes(user["user_id"], state(edit.before), state(edit.after))
                await emit(
                    db, user["instance_id"], Actor.of(asked_by, "updateProfile"), changes, after=emitted
                )
                emitted += len(changes)
                held = [edit.after]
                member = await read_member(db, services.settings, **user)
            result = {
                "success": member is not None,
                "message": "" if member else "not found" if may or not held else "not-allowed",
                "member": member,
            }
            await db.run(
                "finish_document",
                instance_id=user["instance_id"],
                document_id=document["id"],
                result=result,
            )


class DocumentId(TenantParams):
    """A document by its id."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


class Outcome(Result):
    """What came of it."""

    success: bool
    message: str
    member: Member | None


class Document(Result):
    """What was asked of the queue, and what came of it."""

    id: str
    entity: str
    action: str
    result: Outcome | None = Field(description="Null until it is done.")


@method(
    "getDocument",
    result=Document,
    scope="users:read",
    writes=False,
    errors=(NotFound,),
    examples=(
        Example(
            "A change that waits",
            {"id": "00000000-0000-4000-8000-000000000001"},
            {"id": "00000000-0000-4000-8000-000000000001", "entity": "user", "action": "profile-update",
             "result": None},
        ),
    ),
)  # fmt: skip
async def get_document(call: Call, params: DocumentId) -> Any:
    """What was asked of the queue and what came of it (document/get); kept for seven days."""
    return dict(
        found(
            await call.db.one("get_document", instance_id=call.instance.id, document_id=uuid.UUID(params.id))
        )
    )


class FieldInfo(Result):
    """A profile field."""

    alias: str
    title: str
    type: Literal["string", "text", "date", "number", "choice", "phone", "email", "id"]
    mandatory: bool
    choices: list[str]
    system: bool = Field(description="Whether every instance has it.")


def _field_info(field: ProfileField) -> dict[str, Any]:
    return {
        "alias": field.alias, "title": field.title, "type": field.type, "mandatory": field.mandatory,
        "choices": list(field.choices), "system": field.system,
    }  # fmt: skip


@method(
    "listProfileFields",
    result=list[FieldInfo],
    scope="users:read",
    writes=False,
    examples=(Example("All of them", {}, [_field_info(field) for field in SYSTEM_FIELDS]),),
)
async def list_profile_fields(call: Call, params: TenantParams) -> Any:
    """The fields of a profile (profile-field/get-list): the system's, then the instance's own."""
    fields = await fields_of(call.db, call.instance.id)
    return [_field_info(field) for field in fields.values()]


Alias = Annotated[str, Field(pattern=ALIAS)]
RESERVED = {field.alias for field in SYSTEM_FIELDS} | {"avatar", "phone_e164"}


class DefineProfileField(TenantParams):
    """A field of the instance's own."""

    alias: Alias
    title: Line
    type: Literal["string", "text", "date", "number", "choice"] = Field(description=", ".join(TYPES))
    mandatory: bool = False
    choices: Annotated[list[Annotated[Line, Field(min_length=1)]], Field(max_length=200)] = ABSENT


@method(
    "defineProfileField",
    result=Literal[True],
    scope="fields:write",
    writes=True,
    examples=(
        Example(
            "A choice",
            {"alias": "tier", "title": "Tier", "type": "choice", "choices": ["gold", "silver"]},
            True,
        ),
    ),
)  # fmt: skip
async def define_profile_field(call: Call, params: DefineProfileField) -> Any:
    """Give the profiles of the instance a field of its own, or change one.

    Values that users have already are not checked again until they are changed.
    """
    if params.alias in RESERVED:
        raise Invalid.of([FieldError("alias", "is a field of every instance")])
    if (params.type == "choice") != bool(params.choices):
        raise Invalid.of([FieldError("choices", "belong to the type choice, and to no other")])
    values = {
        "title": params.title, "type": params.type, "mandatory": params.mandatory,
        "choices": params.choices or [],
    }  # fmt: skip
    before = await call.db.value("define_field", instance_id=call.instance.id, alias=params.alias, **values)
    alias = {"alias": params.alias}
    call.audit_only(before=before and alias | before, after=alias | values)
    return True


class FieldAlias(TenantParams):
    """A field of the instance's own."""

    alias: Alias


@method(
    "removeProfileField",
    result=Literal[True],
    scope="fields:write",
    writes=True,
    errors=(NotFound,),
    examples=(Example("A field", {"alias": "shoe_size"}, True),),
)
async def remove_profile_field(call: Call, params: FieldAlias) -> Any:
    """Take a field of the instance's own away. The values that users have of it stay, unseen, and come back
    with the field."""
    before = found(await call.db.value("remove_field", instance_id=call.instance.id, alias=params.alias))
    call.audit_only(before={"alias": params.alias} | before)
    return True
