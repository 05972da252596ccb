"""Avatars: pictures that callers send (seeds/001, "Loading avatar") and this server stores and serves."""

import base64
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from server.base.errors import FieldError, Invalid, MemberForbidden, NotFound
from server.base.models import Params, Result, validated
from server.base.tokens import new_secret
from server.directory import change
from server.directory.rows import Edit, Row
from server.directory.users import Line, UserId, UserRef, found
from server.methods.registry import Example, method
from server.outside.pictures import Picture, avatar_url, picture_path
from server.tenants.call import Call

# 142 bits: the name is the only protection of a picture, so it must not be guessable.
_NAME_LENGTH = 24

EXAMPLE_NAME = "ExampleNameExampleName12"
EXAMPLE_DOT = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class SentPicture(Params):
    """A picture, in the form of the member platform's document."""

    data: str = Field(description="A PNG, JPEG or GIF in base64.")
    baseName: Line = Field(description="The file name without extension; not stored.")
    extension: Literal["png", "jpeg", "jpg", "gif"] = Field(description="Ignored: the content decides.")
    _member: str = PrivateAttr("avatar")

    @classmethod
    def read(cls, given: object, member: str) -> "SentPicture":
        """Validate a picture that is a member of untyped JSON, such as a profile field.

        Args:
            given: parsed JSON.
            member: the path of the member, for errors.

        Raises:
            Invalid: names every bad member, with its path.
        """
        if not isinstance(given, dict):
            raise Invalid.of([FieldError(member, "must be an object with data, baseName and extension")])
        try:
            sent: SentPicture = validated(cls, given)
        except Invalid as error:
            raise Invalid.of(
                [FieldError(f"{member}.{field}", message) for field, message in error.fields]
            ) from error
        sent._member = member
        return sent


async def prepared_picture(call: Call, sent: SentPicture) -> Picture:
    """Check and encode a picture. Slow, so only for prepare. See Pictures.reencoded for the errors."""
    return await call.pictures.reencoded(sent.data, f"{sent._member}.data")


async def store_picture(call: Call, user: Row, picture: Picture) -> str:
    """Replace the avatar of a held user. The old picture and its address are deleted.

    Returns:
        the new value of users.avatar: a path; pictures.avatar_url makes the address of it.

    Raises:
        MemberForbidden: the user is an administrator, and the key may not change one.
    """
    name = new_secret(_NAME_LENGTH)
    avatar = picture_path(call.instance.id, name)
    await change.change(call, Edit(user, user | {"avatar": avatar}))
    await call.db.run(
        "insert_picture", instance_id=call.instance.id, user_id=user["id"], name=name, **picture._asdict()
    )
    return avatar


class SetAvatar(UserRef):
    """A picture for a user."""

    avatar: SentPicture


class AvatarAddress(Result):
    """The address of a picture."""

    avatar: str


async def _prepare(call: Call, params: SetAvatar) -> Picture:
    return await prepared_picture(call, params.avatar)


@method(
    "setAvatarByEmail",
    result=AvatarAddress,
    scope="users:write",
    writes=True,
    prepare=_prepare,
    with_picture=True,
    errors=(NotFound, MemberForbidden),
    examples=(
        Example(
            "A dot",
            {"email": "jane@example.com",
             "avatar": {"data": EXAMPLE_DOT, "baseName": "dot", "extension": "png"}},
            {"avatar": f"https://office.example.com/files/1-{EXAMPLE_NAME}-large"},
        ),
    ),
)  # fmt: skip
async def set_avatar_by_email(call: Call, params: SetAvatar, picture: Picture) -> Any:
    """Set a user's avatar.

    The picture is rotated upright and encoded again without metadata: as PNG if it is transparent, otherwise
    as JPEG; of an animation only the first frame. The answer is the address of the large size (at most 512
    by 512 pixels), which needs no key; with `small` instead of `large` at its end, of the small size (128).
    Each picture has a new address; the old address stops working.
    """
    stored = await store_picture(call, await change.hold_user(call, email=params.email), picture)
    return {"avatar": avatar_url(call.settings, stored)}


@method(
    "removeAvatarByEmail",
    result=Literal[True],
    scope="users:write",
    writes=True,
    errors=(NotFound, MemberForbidden),
    examples=(Example("Remove", {"email": "jane@example.com"}, True),),
)
async def remove_avatar_by_email(call: Call, params: UserRef) -> Any:
    """Remove a user's avatar, and the picture if it is stored here."""
    await remove_picture(call, await change.hold_user(call, email=params.email))
    return True


@method(
    "removeAvatar",
    result=Literal[True],
    scope="users:write",
    writes=True,
    errors=(NotFound, MemberForbidden),
    examples=(Example("Remove", {"id": 2}, True),),
)
async def remove_avatar(call: Call, params: UserId) -> Any:
    """Remove a user's avatar by id, as removeAvatarByEmail does (user/remove-avatar)."""
    await remove_picture(call, await change.hold_user(call, user_id=params.id))
    return True


async def remove_picture(call: Call, user: Row) -> None:
    """Remove the avatar of a held user. See store_picture for the error."""
    await change.change(call, Edit(user, user | {"avatar": ""}))


class PictureName(Params):
    """The name of one size of a picture: the end of its address."""

    name: str = Field(pattern=r"^[1-9]\d{0,17}-[0-9A-Za-z]{24}-(small|large)$")


class StoredPicture(Result):
    """A picture's bytes."""

    mediaType: Literal["image/jpeg", "image/png"]
    data: str = Field(description="In base64.")


@method(
    "getPicture",
    result=StoredPicture,
    scope="files:read",
    writes=False,
    errors=(NotFound,),
    examples=(
        Example(
            "By its name",
            {"name": f"1-{EXAMPLE_NAME}-small"},
            {"mediaType": "image/png", "data": EXAMPLE_DOT},
        ),
    ),
)
async def get_picture(call: Call, params: PictureName) -> Any:
    """Read a stored picture by its name; `/files/` serves the same bytes to everybody.

    The name grants access. There is no param instance: the name contains its number.
    """
    instance_id, name, size = params.name.split("-")
    row = found(
        await call.db.one("get_picture", instance_id=int(instance_id), name=name, is_small=size == "small")
    )
    return {"mediaType": row["media_type"], "data": base64.b64encode(row["content"]).decode()}
