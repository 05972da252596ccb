"""Avatars: pictures sent in by the caller (seeds/001, "Loading avatar"), stored and served by this server."""

import base64
from typing import Any, Literal, NamedTuple

from pydantic import Field, PrivateAttr

from server.base.errors import FieldError, Invalid, MemberForbidden, NotFound
from server.base.models import Params, Result, validated
from server.base.tokens import new_secret
from server.directory.users import Line, UserId, UserRef, email_key, found, written
from server.methods.registry import Example, method
from server.outside.pictures import Picture, avatar_url, picture_path
from server.tenants.call import Call

# 142 bits: who knows a name may see the picture, so nobody must be able to guess one.
_NAME_LENGTH = 24

EXAMPLE_NAME = "ExampleNameExampleName12"
EXAMPLE_DOT = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class SentPicture(Params):
    """A picture as the member platform's document has it."""

    data: str = Field(description="The PNG, JPEG or GIF in base64.")
    baseName: Line = Field(description="The file's name without extension; it is not kept.")
    extension: Literal["png", "jpeg", "jpg", "gif"] = Field(
        description="What the picture is to be taken for; its content decides."
    )
    _member: str = PrivateAttr("avatar")

    @classmethod
    def read(cls, given: object, member: str) -> "SentPicture":
        """One that came where another model has no picture, such as among profile fields.

        Args:
            given: parsed JSON.
            member: where it stood, for errors.

        Raises:
            Invalid: naming every bad member beneath that one.
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


class PreparedPicture(NamedTuple):
    """A picture that can be stored, and the name that it will have."""

    name: str
    picture: Picture


async def prepared_picture(call: Call, sent: SentPicture) -> PreparedPicture:
    """Check, decode and encode a picture; for prepare, as it takes a while.

    Raises:
        Invalid: too long, too large, or not a picture of a kind that is taken.
        Unavailable: too many pictures are waiting.
    """
    picture = await call.pictures.reencoded(sent.data, f"{sent._member}.data")
    return PreparedPicture(new_secret(_NAME_LENGTH), picture)


async def store_picture(call: Call, user_id: int, prepared: PreparedPicture) -> str:
    """Make a picture a user's avatar; the one before is gone, and its address with it.

    Returns:
        what users.avatar now holds: the path, which pictures.avatar_url turns into the address.

    Raises:
        NotFound: there is no such user.
        MemberForbidden: it is an administrator, and the key may not change one.
    """
    name, picture = prepared
    stored = written(
        call,
        await call.db.one(
            "set_picture",
            instance_id=call.instance.id,
            user_id=user_id,
            avatar=picture_path(call.instance.id, name),
            name=name,
            **picture._asdict(),
        ),
    )
    call.emit_user_changes(user_id, stored["before"], stored["after"])
    return str(stored["avatar"])


async def _user_id(call: Call, params: UserRef) -> int:
    user_id: int = found(
        await call.db.value("find_user_id", instance_id=call.instance.id, email_key=email_key(params.email))
    )
    return user_id


class SetAvatar(UserRef):
    """A picture for a user."""

    avatar: SentPicture


class AvatarAddress(Result):
    """Where the picture is served."""

    avatar: str


async def _prepare(call: Call, params: SetAvatar) -> PreparedPicture:
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
async def set_avatar_by_email(call: Call, params: SetAvatar, prepared: PreparedPicture) -> Any:
    """Give a user a picture as its avatar.

    It is encoded anew, upright and without metadata, as PNG where it is transparent and as JPEG elsewhere;
    of an animation the first frame stays. The answer is the address of the large size (at most 512 pixels
    either way), which needs no key; with `small` at its end instead of `large` it is that of the small one
    (128). Each picture has an address of its own: that of the one before is gone.
    """
    stored = await store_picture(call, await _user_id(call, params), prepared)
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
    """Take a user's avatar away, and the picture if this server has it."""
    await remove_picture(call, await _user_id(call, params))
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
    """Take a user's avatar away, as removeAvatarByEmail does, by id (user/remove-avatar)."""
    await remove_picture(call, params.id)
    return True


async def remove_picture(call: Call, user_id: int) -> None:
    """Take a user's avatar away.

    Raises:
        NotFound: there is no such user.
        MemberForbidden: it is an administrator, and the key may not change one.
    """
    user = written(call, await call.db.one("remove_picture", instance_id=call.instance.id, user_id=user_id))
    call.emit_user_changes(user_id, user["before"], user["after"])


class PictureName(Params):
    """One size of a picture, as the end of its address has it."""

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

    The name is the right to see it: no instance is asked for, since the name has its number in it.
    """
    instance_id, name, size = params.name.split("-")
    row = found(
        await call.db.one("get_picture", instance_id=int(instance_id), name=name, is_small=size == "small")
    )
    return {"mediaType": row["media_type"], "data": base64.b64encode(row["content"]).decode()}
