"""Profiles of members (seeds/001): changes through the queue, and custom fields of an instance."""

import uuid
from dataclasses import asdict
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from server.base.errors import DUPLICATES, FieldError, Invalid, MemberForbidden, NotFound
from server.base.models import Result, TenantParams, Uuid
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
from server.directory.rows import Edit, hold, with_fields, with_names
from server.directory.users import ABSENT, Line, UserId, found
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
    """Changes of a profile. Fields left out stay as they are."""

    profile: ProfileValues = Field(
        description="Alias -> value; null removes a value. avatar: a picture, or null.",
        json_schema_extra=profile_schema(complete=False, avatar={"anyOf": _AVATARS}),
    )


class Queued(Result):
    """A queued change, for getDocument."""

    queueRequest: bool
    documentId: str


class PreparedProfile(NamedTuple):
    """Checked values, and the picture if one was sent."""

    fields: dict[str, Any]
    picture: Picture | None
    removes_picture: bool


async def _prepare_profile(call: Call, params: UpdateProfile) -> PreparedProfile:
    profile = dict(params.profile)
    has_avatar = "avatar" in profile
    avatar = profile.pop("avatar", None)
    removes_picture = has_avatar and avatar in (None, "")
    async with call.database.connection() as db:
        fields = await fields_of(db, call.instance.id)
        found(await read_member(db, call.settings, call.instance.id, params.id))
    values, failures = checked(fields, profile, complete=False)
    if not values and not has_avatar and not failures:
        failures.append(FieldError("profile", "name at least one field to change"))
    if failures:
        raise Invalid.of(failures)
    picture = None
    if has_avatar and not removes_picture:
        picture = await prepared_picture(call, SentPicture.read(avatar, "profile.avatar"))
    return PreparedProfile(values, picture, removes_picture)


@method(
    "updateProfile",
    result=Queued,
    scope="users:write",
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
    """Change profile fields through the queue (user/profile-update); getDocument shows the result.

    The values are checked at once; a queued change fails only if the user was deleted, or became an
    administrator, in between. Changes of a suspended instance continue within an hour after it is
    reactivated. A picture and the e-mail change at once. The login stays; null removes the e-mail, unless it
    is the login. For an administrator, needs the scope users:admin.
    """
    user = await change.hold_user(call, user_id=params.id)
    others = {alias: value for alias, value in prepared.fields.items() if alias != EMAIL}
    if Edit(user, with_fields(user, others)).has_effect:
        access.require_user(call.caller, user)
    if EMAIL in prepared.fields:
        names = names_of_user(user["login"] or user["email"], prepared.fields[EMAIL])
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
        fields=others,
        asked_by=call.actor()._asdict() | access.kept(call.caller),
    )
    if prepared.picture is not None:
        await store_picture(call, user, prepared.picture)
    if prepared.removes_picture:
        await remove_picture(call, user)
    await enqueue(call.db, "profile-update", {"instance_id": call.instance.id, "user_id": params.id})
    return {"queueRequest": True, "documentId": str(document_id)}


@job("profile-update")
async def apply_profile(services: Services, payload: dict[str, Any]) -> None:
    """Apply all queued profile changes of a user, in their order.

    Jobs can run in parallel and more than once: the first one applies all waiting changes, and the others
    find none. In a deleted instance it does nothing.

    Raises:
        Suspended: the instance is suspended.
    """
    user = {"instance_id": payload["instance_id"], "user_id": payload["user_id"]}
    async with services.database.transaction() as db:
        is_suspended = await db.value("is_suspended", instance_id=user["instance_id"])
        if is_suspended is None:
            return
        if is_suspended:
            raise Suspended
        row = next(iter(await hold(db, user["instance_id"], ids=[user["user_id"]])), None)
        emitted = 0
        for document in await db.all("list_unfinished", **user):
            message, member = "not found", None
            if row is not None and row["deleted_at"] is None:
                edit = Edit(row, with_fields(row, document["fields"]))
                try:
                    emitted += await change.change_of_job(
                        db, user["instance_id"], edit, document["asked_by"], "updateProfile", after=emitted
                    )
                except MemberForbidden as error:
                    message = error.message
                else:
                    message, row = "", edit.after
                    member = await read_member(db, services.settings, **user)
            result = {"success": member is not None, "message": message, "member": member}
            await db.run(
                "finish_document",
                instance_id=user["instance_id"],
                document_id=document["id"],
                result=result,
            )


class DocumentId(TenantParams):
    """A document by its id."""

    id: Uuid


class Outcome(Result):
    """The result of a change."""

    success: bool
    message: str
    member: Member | None


class Document(Result):
    """A queued change and its result."""

    id: str
    entity: str
    action: str
    result: Outcome | None = Field(description="Null: not done yet.")


@method(
    "getDocument",
    result=Document,
    scope="users:read",
    errors=(NotFound,),
    examples=(
        Example(
            "A waiting change",
            {"id": "00000000-0000-4000-8000-000000000001"},
            {"id": "00000000-0000-4000-8000-000000000001", "entity": "user", "action": "profile-update",
             "result": None},
        ),
    ),
)  # fmt: skip
async def get_document(call: Call, params: DocumentId) -> Any:
    """Look up a queued change and its result (document/get), for seven days."""
    document_id = uuid.UUID(params.id)
    row = await call.db.one("get_document", instance_id=call.instance.id, document_id=document_id)
    return dict(found(row))


class FieldInfo(Result):
    """A profile field."""

    alias: str
    title: str
    type: Literal["string", "text", "date", "number", "choice", "phone", "email", "id"]
    mandatory: bool
    choices: list[str]
    system: bool = Field(description="True: a field of every instance.")


def _field_info(field: ProfileField) -> dict[str, Any]:
    return asdict(field) | {"choices": list(field.choices)}


@method(
    "listProfileFields",
    result=list[FieldInfo],
    scope="users:read",
    examples=(Example("All", {}, [_field_info(field) for field in SYSTEM_FIELDS]),),
)
async def list_profile_fields(call: Call, params: TenantParams) -> Any:
    """List profile fields (profile-field/get-list): system fields, then custom fields of the instance."""
    fields = await fields_of(call.db, call.instance.id)
    return [_field_info(field) for field in fields.values()]


Alias = Annotated[str, Field(pattern=ALIAS)]
RESERVED = {field.alias for field in SYSTEM_FIELDS} | {"avatar", "phone_e164"}


class DefineProfileField(TenantParams):
    """A custom field."""

    alias: Alias
    title: Line
    type: Literal["string", "text", "date", "number", "choice"] = Field(description=", ".join(TYPES))
    mandatory: bool = False
    choices: Annotated[list[Annotated[Line, Field(min_length=1)]], Field(max_length=200)] = ABSENT


@method(
    "defineProfileField",
    scope="fields:write",
    examples=(
        Example(
            "A choice",
            {"alias": "tier", "title": "Tier", "type": "choice", "choices": ["gold", "silver"]},
            True,
        ),
    ),
)  # fmt: skip
async def define_profile_field(call: Call, params: DefineProfileField) -> Literal[True]:
    """Create or change a custom profile field of the instance.

    Existing values are checked only when they change.
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
    """A custom field by its alias."""

    alias: Alias


@method(
    "removeProfileField",
    scope="fields:write",
    errors=(NotFound,),
    examples=(Example("A field", {"alias": "shoe_size"}, True),),
)
async def remove_profile_field(call: Call, params: FieldAlias) -> Literal[True]:
    """Remove a custom field. Existing values stay stored but hidden, and reappear with the field."""
    before = found(await call.db.value("remove_field", instance_id=call.instance.id, alias=params.alias))
    call.audit_only(before={"alias": params.alias} | before)
    return True
