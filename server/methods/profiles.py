"""Profiles of members (seeds/001): changed through the queue, with fields of an instance's own."""

import uuid
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from server.base.errors import DUPLICATES, FieldError, Invalid, MemberForbidden, NotFound
from server.base.models import Result, TenantParams
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
from server.directory.names import change_email
from server.directory.users import ABSENT, Line, UserId, end_codes, found, written
from server.events.emit import Change, user_changes
from server.jobs.queue import Services, enqueue, job
from server.jobs.worker import Suspended
from server.methods.avatars import (
    PreparedPicture,
    SentPicture,
    prepared_picture,
    remove_picture,
    store_picture,
)  # fmt: skip
from server.methods.members import Member, ProfileValues, member_of
from server.methods.registry import Example, method
from server.postgres.db import Connection
from server.tenants import access
from server.tenants.call import Call

MAY_ADMINISTRATE = "may_administrate"
"""Member of asked_by: whether the key that asked may change administrators."""
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
    picture: PreparedPicture | None
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
        found(await db.one("get_member", instance_id=call.instance.id, user_id=params.id))
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
    if prepared.with_email:
        changed = await change_email(call, params.id, prepared.email, "profile.email")
        if changed is not None:
            written(call, changed)
            call.record_user(params.id, changed["before"], changed["after"])
            await end_codes(call, before=changed["before"], after=changed["after"], user_id=params.id)
    document_id = uuid.uuid4()
    document = await call.db.one(
        "create_document",
        instance_id=call.instance.id,
        document_id=document_id,
        entity="user",
        action="profile-update",
        user_id=params.id,
        fields=prepared.fields,
        asked_by={
            "key_id": call.caller.key_id, "key_name": call.caller.key_name,
            "request_id": call.context.request_id, "address": call.context.address,
            "origin": call.context.origin, MAY_ADMINISTRATE: access.may_administrate(call.caller),
        },
    )  # fmt: skip
    written(call, document)
    call.subject = params.id
    if prepared.picture is not None:
        await store_picture(call, params.id, prepared.picture)
    if prepared.without_picture:
        await remove_picture(call, params.id)
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
        held = await db.one("hold_user", **user)
        changes: list[tuple[Change, dict[str, Any]]] = []
        for document in await db.all("list_unfinished", **user):
            # A user may have become an administrator since.
            may = held is not None and (document["asked_by"].get(MAY_ADMINISTRATE) or not held["is_admin"])
            done = await db.one("merge_fields", **user, fields=document["fields"]) if may else None
            if done is not None:
                found_changes = user_changes(done["id"], done["before"], done["after"])
                changes += [(change, document["asked_by"]) for change in found_changes]
            row = await db.one("get_member", **user) if done else None
            result = {
                "success": row is not None,
                "message": "" if row else "not found" if may or held is None else "not-allowed",
                "member": row and member_of(row, services.settings),
            }
            await db.run(
                "finish_document",
                instance_id=user["instance_id"],
                document_id=document["id"],
                result=result,
            )
        await _write_down(db, user["instance_id"], changes)


async def _write_down(db: Connection, instance_id: int, changes: list[tuple[Change, dict[str, Any]]]) -> None:
    """What the queue changed, in the name of those who asked for it."""
    if changes:
        await db.run(
            "insert_events_of_others",
            instance_id=instance_id,
            types=[change.type for change, _ in changes],
            user_ids=[change.user_id for change, _ in changes],
            befores=[change.before for change, _ in changes],
            afters=[change.after for change, _ in changes],
            method="updateProfile",
            key_ids=[who.get("key_id", 0) for _, who in changes],
            key_names=[who.get("key_name", "") for _, who in changes],
            request_ids=[who.get("request_id", "") for _, who in changes],
            addresses=[who.get("address") for _, who in changes],
            origins=[who.get("origin") for _, who in changes],
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
    call.note(before=before and alias | before, after=alias | values)
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
    call.note(before={"alias": params.alias} | before)
    return True
