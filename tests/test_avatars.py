"""Avatars: pictures in, re-encoded pictures out, and what a hostile one costs (seeds/001, "Loading avatar")."""

import asyncio
import base64
import io
import json
import re
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from conftest import ADMIN, Client, Serve, insert_key
from PIL import Image, PngImagePlugin

from server.base.errors import Invalid
from server.base.settings import Settings
from server.base.shares import taking_from
from server.methods.avatars import EXAMPLE_NAME, SentPicture
from server.outside import pictures
from server.outside.pictures import LARGE, SMALL, Pictures, avatar_url

JANE = {"email": "jane@example.com"}


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(mode: str = "RGB", size: tuple[int, int] = (800, 600)) -> Image.Image:
    """Red on its left half and blue on its right."""
    image = Image.new("RGB", size, (220, 20, 20))
    image.paste((20, 20, 220), (size[0] // 2, 0, *size))
    return image.convert(mode)


def sent(content: bytes, extension: str = "png", **changes: Any) -> dict[str, Any]:
    return {"data": base64.b64encode(content).decode(), "baseName": "me", "extension": extension} | changes


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def near(pixel: Any, color: tuple[int, int, int]) -> bool:
    return all(abs(one - other) < 40 for one, other in zip(pixel, color, strict=True))


async def reencoded(content: bytes, **settings: Any) -> pictures.Picture:
    workers = Pictures(Settings(**settings))
    try:
        return await workers.reencoded(base64.b64encode(content).decode(), "avatar.data")
    finally:
        workers.close()


async def refusal(content: bytes, **settings: Any) -> str:
    with pytest.raises(Invalid) as refused:
        await reencoded(content, **settings)
    ((field, message),) = refused.value.fields
    assert field == "avatar.data"
    return message


async def fetch(client: Client, address: str, verb: str = "GET", **options: Any) -> tuple[int, Any, bytes]:
    """Status, headers and body of a file, without a key."""
    url = client.url + "/files/" + address.rpartition("/files/")[2]
    async with client.http.request(verb, url, **options) as response:
        return response.status, response.headers, await response.read()


async def give(client: Client, image: Image.Image | None = None, **user: Any) -> str:
    """The address of Jane's new avatar."""
    params = {**(user or JANE), "avatar": sent(encoded(image or photo(), "PNG"))}
    return str((await client.call("setAvatarByEmail", params))["avatar"])


# --- what comes out -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mode", "extension", "media_type"),
    [
        ("PNG", "RGB", "png", "image/jpeg"),
        ("PNG", "RGBA", "png", "image/jpeg"),  # opaque: nothing shows through
        ("PNG", "P", "png", "image/jpeg"),
        ("PNG", "L", "png", "image/jpeg"),
        ("PNG", "1", "png", "image/jpeg"),
        ("PNG", "LA", "png", "image/jpeg"),
        ("PNG", "I;16", "png", "image/jpeg"),
        ("JPEG", "RGB", "jpeg", "image/jpeg"),
        ("JPEG", "CMYK", "jpg", "image/jpeg"),
        ("JPEG", "L", "jpg", "image/jpeg"),
        ("GIF", "P", "gif", "image/jpeg"),
        ("JPEG", "RGB", "png", "image/jpeg"),  # the extension need not be right
    ],
)
async def test_a_picture_goes_in_and_comes_out(
    kind: str, mode: str, extension: str, media_type: str, client: Client, jane: dict[str, Any]
) -> None:
    avatar = sent(encoded(photo(mode), kind), extension)
    address = (await client.call("setAvatarByEmail", JANE | {"avatar": avatar}))["avatar"]
    assert (await client.call("getUserByEmail", JANE))["avatar"] == address
    for url, longest in ((address, LARGE), (address.replace("-large", "-small"), SMALL)):
        status, headers, body = await fetch(client, url)
        assert (status, headers["Content-Type"]) == (200, media_type)
        assert opened(body).size == (longest, longest * 3 // 4)
    colors = opened((await fetch(client, address))[2]).convert("RGB")
    if mode in ("RGB", "RGBA", "P"):
        assert near(colors.getpixel((50, 200)), (220, 20, 20))
        assert near(colors.getpixel((460, 200)), (20, 20, 220))


async def test_grey_of_sixteen_bits_keeps_its_greys() -> None:
    middle = Image.frombytes("I;16", (10, 10), struct.pack("<H", 0x8080) * 100)
    assert abs(opened((await reencoded(encoded(middle, "PNG"))).large).getpixel((5, 5)) - 128) < 3


async def test_transparency_stays() -> None:
    image = photo("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    indexed = photo().quantize(8)
    red = indexed.getpixel((0, 0))
    keyed = Image.new("RGB", (20, 20), (1, 2, 3))
    for content in (
        encoded(image, "PNG"),
        encoded(indexed, "GIF", transparency=red),
        encoded(indexed, "PNG", transparency=red),
        encoded(keyed, "PNG", transparency=(1, 2, 3)),
    ):
        picture = await reencoded(content)
        assert picture.media_type == "image/png"
        for size in (picture.small, picture.large):
            assert opened(size).mode == "RGBA" and opened(size).getchannel("A").getextrema()[0] < 9


async def test_a_small_picture_is_not_blown_up() -> None:
    picture = await reencoded(encoded(photo(size=(40, 30)), "PNG"))
    assert opened(picture.small).size == opened(picture.large).size == (40, 30)
    thin = await reencoded(encoded(photo(size=(9000, 2)), "PNG"))
    assert (opened(thin.large).size, opened(thin.small).size) == ((512, 1), (128, 1))


async def test_of_an_animation_the_first_frame_stays() -> None:
    frames = [Image.new("RGB", (30, 30), color) for color in ((220, 20, 20), (20, 20, 220))]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    image = opened((await reencoded(animated)).large)
    assert getattr(image, "n_frames", 1) == 1 and near(image.getpixel((9, 9)), (220, 20, 20))


def with_exif(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "SECRET camera"
    exif.get_ifd(0x8825)[1] = "SECRET north"
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "SECRET xmp")
    options = {"pnginfo": text} if kind == "PNG" else {"comment": b"SECRET comment", "xmp": b"SECRET xmp"}
    return encoded(photo(), kind, exif=exif, icc_profile=b"SECRET profile" * 20, **options)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("orientation", "size", "red"),
    [
        (1, (512, 384), (50, 200)),
        (3, (512, 384), (460, 200)),
        (6, (384, 512), (200, 50)),
        (8, (384, 512), (200, 460)),
    ],
)
async def test_pictures_stand_upright_and_say_nothing(
    kind: str, orientation: int, size: tuple[int, int], red: tuple[int, int]
) -> None:
    """EXIF's orientation (tag 0x0112) is applied; then EXIF, GPS, XMP, comments and profiles are gone."""
    content = with_exif(orientation, kind)
    assert content.count(b"SECRET") >= 3
    picture = await reencoded(content)
    for one in (picture.small, picture.large):
        image = opened(one)
        assert not any(mark in one for mark in (b"SECRET", b"Exif", b"eXIf", b"ICC_PROFILE", b"iCCP", b"xmp"))
        assert not image.getexif() and not set(image.info) - {
            "jfif",
            "jfif_version",
            "jfif_unit",
            "jfif_density",
        }
    image = opened(picture.large)
    assert image.size == size and near(image.getpixel(red), (220, 20, 20))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as server/outside/pictures.py has it
async def test_broken_exif_is_no_reason_to_refuse_a_picture() -> None:
    picture = await reencoded(encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert opened(picture.large).size == (512, 384)


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        b"<html><script>alert(1)</script>",
        b"PK\x03\x04" + b"\0" * 40,
        b"%PDF-1.7",
        encoded(photo(), "BMP"),
        encoded(photo(), "TIFF"),
        encoded(photo(), "WEBP"),
        encoded(photo(), "PPM"),
        encoded(photo(), "EPS"),
    ],
)
async def test_other_types_are_refused_by_content(content: bytes) -> None:
    assert await refusal(content) == "must be a PNG, JPEG or GIF picture"


@pytest.mark.parametrize(
    "content",
    [
        encoded(photo(), "JPEG")[:-2000],
        encoded(photo(), "PNG")[:-200],
        encoded(photo("P"), "GIF")[:300],
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0" + b"A" * 100,
        b"GIF89a<script>alert(1)</script>",
        b"\x89PNG\r\n\x1a\n" + encoded(photo(), "JPEG"),
    ],
)
async def test_damaged_pictures_are_refused(content: bytes) -> None:
    assert await refusal(content) == "is damaged or cut short"


async def test_flipped_bytes_are_a_picture_or_a_refusal() -> None:
    """Never a bug of ours, whatever Pillow raises."""
    for kind in ("PNG", "JPEG", "GIF"):
        whole = encoded(photo("P" if kind == "GIF" else "RGB", (60, 40)), kind)
        for place in range(6, min(len(whole), 400), 3):
            broken = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
            try:
                await reencoded(broken)
            except Invalid as refused:
                assert refused.fields[0].field == "avatar.data"


@pytest.mark.parametrize("data", ["no base64!", "iVBORw0KGgo", "data:image/png;base64,iVBORw0KGgo=", "é"])
async def test_what_is_no_base64_is_refused(data: str, client: Client, jane: dict[str, Any]) -> None:
    avatar = sent(b"") | {"data": data}
    status, message = await client.outcome("setAvatarByEmail", JANE | {"avatar": avatar})
    assert (status, message) == (400, "avatar.data: must be base64")


async def test_the_length_is_measured_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    real = base64.b64decode
    monkeypatch.setattr(
        base64, "b64decode", lambda data, **k: (decoded.append(len(data)), real(data, **k))[1]
    )
    for length in (2047, 2048):
        assert await refusal(b"x" * length, picture_limit=2048) == "must be a PNG, JPEG or GIF picture"
    assert len(decoded) == 2
    for length in (2049, 2050, 2051, 100_000):
        assert await refusal(b"x" * length, picture_limit=2048) == "is longer than 2048 bytes"
    assert len(decoded) == 2


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"data": None}, "avatar.data: must be a string"),
        ({"data": 5}, "avatar.data: must be a string"),
        ({"extension": "svg"}, "avatar.extension: must be 'png', 'jpeg', 'jpg' or 'gif'"),
        ({"extension": "../png"}, "avatar.extension: must be 'png', 'jpeg', 'jpg' or 'gif'"),
        ({"baseName": "a\r\nb"}, "avatar.baseName: holds control characters"),
        ({"url": "https://example.com/x.png"}, "avatar.url: is not a member of this call"),
    ],
)
async def test_bad_members_are_named(
    changes: dict[str, Any], complaint: str, client: Client, jane: dict[str, Any]
) -> None:
    avatar = sent(encoded(photo(), "PNG")) | changes
    assert await client.outcome("setAvatarByEmail", JANE | {"avatar": avatar}) == (400, complaint)


def test_a_picture_among_profile_fields_names_its_place() -> None:
    assert SentPicture.read(sent(b"x"), "profile.avatar").baseName == "me"
    for given, fields in (
        ("x", ["profile.avatar"]),
        (["eA==", "me", "png"], ["profile.avatar"]),
        ({"data": 1}, ["profile.avatar.data", "profile.avatar.baseName", "profile.avatar.extension"]),
    ):
        with pytest.raises(Invalid) as refused:
            SentPicture.read(given, "profile.avatar")
        assert [field for field, _ in refused.value.fields] == fields


# --- bombs --------------------------------------------------------------------------------------------


def raw_png(width: int, height: int, depth: int, color: int) -> bytes:
    """A PNG of one colour, written row by row, so that the test itself needs little memory."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color] * width
    row, packer = b"\0" + b"\x55" * ((bits + 7) // 8), zlib.compressobj(1)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(768)) if color == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def empty_gif(width: int, height: int) -> bytes:
    """A GIF whose screen is a dot and whose frame is not."""
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08\x01\x00\x00;"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + frame


async def test_a_bomb_is_a_clear_error(client: Client, jane: dict[str, Any], db: asyncpg.Connection) -> None:
    bomb = raw_png(30000, 30000, 1, 0)  # 900 million pixels, half a megabyte
    assert len(bomb) < 600_000
    status, message = await client.outcome("setAvatarByEmail", JANE | {"avatar": sent(bomb)})
    assert status == 400
    assert message == "avatar.data: has 30000 x 30000 pixels, more than 40000000 in all"
    assert await db.fetchval("SELECT count(*) FROM pictures WHERE user_id = $1", jane["id"]) == 0


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (empty_gif(65535, 65535), "has more than 40000000 pixels"),
        (empty_gif(9000, 9000), "has 9000 x 9000 pixels, more than"),
        (raw_png(4500, 4500, 8, 2), "takes too much memory"),
        (raw_png(3300, 3300, 8, 6), "takes too much memory"),
        (raw_png(3300, 3300, 8, 3), "takes too much memory"),
    ],
)
async def test_what_would_take_too_much_is_refused(content: bytes, complaint: str) -> None:
    assert (await refusal(content)).startswith(complaint)


async def test_the_pixel_limit_is_a_setting() -> None:
    content = encoded(photo(size=(101, 100)), "PNG")
    assert await refusal(content, picture_pixels=10_000) == "has 101 x 100 pixels, more than 10000 in all"
    assert await reencoded(content, picture_pixels=10_100)


async def test_scans_without_end_are_refused() -> None:
    """A progressive JPEG makes the decoder go over the whole picture again with each scan."""
    whole = encoded(photo(), "JPEG", progressive=True)
    assert await reencoded(whole)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    assert await refusal(whole[:-2] + last * 60 + b"\xff\xd9") == "has more than 64 scans"


async def test_large_photos_are_taken() -> None:
    """What phones make: 24 megapixels in one pass or progressive, 40 in one pass."""
    for size, progressive in (((5712, 4284), True), ((7300, 5475), False)):
        content = encoded(Image.new("RGB", size, (20, 20, 220)), "JPEG", progressive=progressive)
        assert opened((await reencoded(content)).large).size == (512, 384)


_COST = """
import base64, resource, sys
from pathlib import Path
from server.outside.pictures import _BadPicture, _reencoded

_reencoded(base64.b64encode(Path(sys.argv[1]).read_bytes()).decode(), 100)
data = base64.b64encode(Path(sys.argv[2]).read_bytes()).decode()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    _reencoded(data, 40_000_000)
except _BadPicture:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    "name",
    ["bomb", "rgb", "rgba", "progressive", "two scans", "tall", "transparent gif"],
)
async def test_no_picture_costs_a_hundred_megabytes(name: str, tmp_path: Path) -> None:
    """The peak of a process that decodes the largest of each kind that is taken, or a bomb."""
    match name:
        case "bomb":
            content = raw_png(30000, 30000, 1, 0)
        case "rgb":
            content = raw_png(4462, 4462, 8, 2)
        case "rgba":
            content = raw_png(3155, 3155, 8, 6)
        case "progressive":
            content = encoded(Image.new("RGB", (5712, 4284)), "JPEG", progressive=True)
        case "two scans":
            # Baseline, but each component in a scan of its own: libjpeg keeps the whole picture as well.
            content = encoded(Image.new("RGB", (6300, 6300)), "JPEG", subsampling=0)
            scan = content.index(b"\xff\xda")
            content = content[:scan] + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + content[scan + 14 :]
        case "tall":
            content = encoded(Image.new("RGB", (1023, 39000)), "JPEG")
        case "transparent gif":
            content = encoded(Image.new("P", (3155, 3155)), "GIF", transparency=3)
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(encoded(photo("RGB", (9, 9)), "JPEG"))
    large.write_bytes(content)
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", _COST, str(small), str(large)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 100_000_000


async def test_few_pictures_wait(client: Client, jane: dict[str, Any]) -> None:
    """Beyond one at work and four of an instance waiting a picture is refused at once."""
    gate = threading.Event()
    pool = client.dispatcher.pictures._pool
    with taking_from(1):
        waiting = [asyncio.create_task(pool.run(gate.wait)) for _ in range(5)]
        await asyncio.sleep(0)
    body = {"method": "setAvatarByEmail", "params": JANE | {"avatar": sent(encoded(photo(), "PNG"))}}
    async with await client.post(body) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert response.headers["X-Error-Code"] == "busy"
    gate.set()
    assert await asyncio.gather(*waiting) == [True] * 5
    await give(client)


async def test_few_large_bodies_are_read_at_once(serve: Serve, db: asyncpg.Connection) -> None:
    """The others of the instance stay with their senders; other instances, and calls of the usual size, pass."""
    client = await serve(body_timeout=1.5)
    place = urlsplit(client.url)
    data = b'{"method":"setAvatarByEmail","params":{"email":"' + b"x" * (2 * 2**20)

    async def stall() -> int:
        head = (
            f"POST /rpc HTTP/1.1\r\nHost: x\r\nx-api-key: {client.key}\r\nContent-Type: application/json\r\n"
        )
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(head.encode() + b"Content-Length: 4000000\r\n\r\n" + data)
        answer = await reader.readline()
        writer.close()
        return int(answer.split()[1])

    operator = client.using(await insert_key(db, operator=True))
    await operator.call("createInstance", {"name": "OTHER", "admin": {"email": JANE["email"]}})
    other = client.using(await insert_key(db, instances=("OTHER",)))
    stalled = [asyncio.create_task(stall()) for _ in range(5)]
    await asyncio.sleep(0.5)
    assert (await client.outcome("getUserByEmail", {"email": ADMIN}))[0] == 200
    await client.call("createUser", JANE)
    large = Image.effect_noise((1400, 1400), 100)
    assert len(encoded(large, "PNG")) > 2**20
    body = json.dumps(
        {"method": "setAvatarByEmail", "params": JANE | {"avatar": sent(encoded(large, "PNG"))}}
    )
    async with await other.post(io.BytesIO(body.encode())) as response:
        assert response.status == 200
    assert await asyncio.gather(*stalled) == [408] * 5


# --- what is stored -----------------------------------------------------------------------------------


async def stored(db: asyncpg.Connection, user_id: int) -> tuple[str, int]:
    """A user's avatar and how many pictures it has."""
    return (
        await db.fetchval("SELECT avatar FROM users WHERE id = $1 AND instance_id = 1", user_id),
        await db.fetchval("SELECT count(*) FROM pictures WHERE user_id = $1 AND instance_id = 1", user_id),
    )


@pytest.mark.parametrize("by", ["removeAvatarByEmail", "removeAvatar"])
async def test_removal_takes_row_and_bytes(
    by: str, client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    address = await give(client)
    params = JANE if by == "removeAvatarByEmail" else {"id": jane["id"]}
    assert await client.call(by, params) is True
    assert await stored(db, jane["id"]) == ("", 0)
    assert (await client.call("getUserByEmail", JANE))["avatar"] == ""
    assert (await fetch(client, address))[0] == 404
    assert await client.call(by, params) is True  # nothing to take is no error
    assert await db.fetchval("SELECT count(*) FROM pictures WHERE name = $1", EXAMPLE_NAME) == 1


async def test_removal_empties_an_avatar_elsewhere(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    await client.call("updateUserByEmail", JANE | {"avatar": "https://example.com/me.png"})
    await client.call("removeAvatarByEmail", JANE)
    assert await stored(db, jane["id"]) == ("", 0)


async def test_another_picture_replaces_the_one_before(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    first, second = await give(client), await give(client)
    assert first != second and (await stored(db, jane["id"]))[1] == 1
    for size in ("-large", "-small"):
        assert (await fetch(client, first.replace("-large", size)))[0] == 404
        assert (await fetch(client, second.replace("-large", size)))[0] == 200


@pytest.mark.parametrize("avatar", ["", "https://example.com/me.png"])
async def test_another_avatar_takes_the_picture_along(
    avatar: str, client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    address = await give(client)
    await client.call("updateUserByEmail", JANE | {"displayName": "J"})
    assert (await stored(db, jane["id"]))[1] == 1
    await client.call("updateUserByEmail", JANE | {"avatar": avatar})
    assert await stored(db, jane["id"]) == (avatar, 0)
    assert (await fetch(client, address))[0] == 404


async def test_an_avatar_sent_back_as_it_was_read_stays(
    serve: Serve, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    client = await serve(public_url="https://office.example.com")
    address = await give(client)
    read = (await client.call("getUserByEmail", JANE))["avatar"]
    await client.call("updateUserByEmail", JANE | {"avatar": read})
    assert await stored(db, jane["id"]) == (address, 1)
    assert (await client.call("getUserByEmail", JANE))["avatar"] == address
    assert (await fetch(client, address))[0] == 200


async def test_a_deleted_users_picture_is_not_shown(client: Client, jane: dict[str, Any]) -> None:
    address = await give(client)
    await client.call("deleteUserByEmail", JANE)
    assert (await fetch(client, address))[0] == 404
    await client.call("restoreUserByEmail", JANE)
    assert (await fetch(client, address))[0] == 200


async def test_another_tenant_cannot_touch_it(
    client: Client, other: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    await give(client)
    before = await stored(db, jane["id"])
    picture = sent(encoded(photo(), "PNG"))
    for method, params, nobody in (
        ("setAvatarByEmail", JANE | {"avatar": picture}, {"email": "no@example.com", "avatar": picture}),
        ("removeAvatarByEmail", JANE, {"email": "no@example.com"}),
        ("removeAvatar", {"id": jane["id"]}, {"id": 4711}),
    ):
        assert await other.outcome(method, params) == await other.outcome(method, nobody)
        assert await other.outcome(method, params) == (400, "not found")
    assert await stored(db, jane["id"]) == before


async def test_nothing_is_written_without_the_scope(
    client: Client, jane: dict[str, Any], db: asyncpg.Connection
) -> None:
    poor = client.using(await insert_key(db, scopes=("users:read", "files:read")))
    avatar = sent(encoded(photo(), "PNG"))
    for method, params in (
        ("setAvatarByEmail", JANE | {"avatar": avatar}),
        ("removeAvatarByEmail", JANE),
        ("removeAvatar", {"id": jane["id"]}),
    ):
        assert await poor.outcome(method, params) == (403, "not-allowed")
    assert (await poor.call("getPicture", {"name": f"1-{EXAMPLE_NAME}-large"}))["mediaType"] == "image/png"


@pytest.mark.parametrize("user_id", [0, -1, 2**63, "2", True, None, 1.5])
async def test_ids_are_whole_numbers(user_id: Any, client: Client) -> None:
    status, message = await client.outcome("removeAvatar", {"id": user_id})
    assert status == 400 and ("id: " in message or "64 bits" in message)


async def test_an_export_leaves_pictures_behind(client: Client, jane: dict[str, Any], officerpc: Any) -> None:
    """They are served here alone, and createUser takes no such address."""
    await give(client)
    await client.call("updateUserByEmail", {"email": "admin@example.com", "avatar": "https://example.com/a"})
    exported = (await officerpc("users", "export", "--instance", "MYINSTANCE")).out.splitlines()
    assert [json.loads(user)["avatar"] for user in exported] == ["https://example.com/a", ""]


# --- how it is served ---------------------------------------------------------------------------------


async def test_how_a_picture_is_served(client: Client, jane: dict[str, Any]) -> None:
    address = await give(client)
    name = address.rpartition("/")[2]
    status, headers, body = await fetch(client, address)
    assert (status, len(body)) == (200, int(headers["Content-Length"]))
    expected = {
        "Content-Type": "image/jpeg",
        "Cache-Control": "public, no-cache",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'",
        "Content-Disposition": "inline",
        "ETag": f'"{name}"',
    }
    assert {key: headers[key] for key in expected} == expected
    assert "X-Request-Id" in headers and "Server" not in headers and "Set-Cookie" not in headers

    status, head, nothing = await fetch(client, address, "HEAD")
    assert (status, nothing) == (200, b"") and head["Content-Length"] == headers["Content-Length"]
    assert {key: head[key] for key in expected} == expected

    for tag in (f'"{name}"', f'W/"{name}"', f'"x", "{name}"', "*"):
        status, same, nothing = await fetch(client, address, headers={"If-None-Match": tag})
        assert (status, nothing) == (304, b"") and "Content-Type" not in same
        assert (same["ETag"], same["Cache-Control"]) == (expected["ETag"], expected["Cache-Control"])
    for tag in ('"x"', "x", '"'):
        assert (await fetch(client, address, headers={"If-None-Match": tag}))[0] == 200


async def test_a_picture_that_is_gone_is_not_unmodified(client: Client, jane: dict[str, Any]) -> None:
    address = await give(client)
    await client.call("removeAvatarByEmail", JANE)
    tag = {"If-None-Match": f'"{address.rpartition("/")[2]}"'}
    assert (await fetch(client, address, headers=tag))[0] == 404


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        f"1-{EXAMPLE_NAME}",
        f"1-{EXAMPLE_NAME}-huge",
        f"2-{EXAMPLE_NAME}-large",
        f"01-{EXAMPLE_NAME}-large",
        f"999999999999999999999-{EXAMPLE_NAME}-large",
        f"1-{EXAMPLE_NAME.lower()}-large",
        f"1-{EXAMPLE_NAME}-large%0A",
        f"1-{EXAMPLE_NAME}-large/x",
        "1-%25%25%25%25%25%25%25%25%25%25%25%25%25%25%25%25%25%25%25%25%25%25%25%25-large",
        "..%2f..%2fetc%2fpasswd",
        "%00",
    ],
)
async def test_everything_else_is_one_404(name: str, client: Client, jane: dict[str, Any]) -> None:
    status, headers, body = await fetch(client, "/files/" + name)
    assert (status, body, headers["Content-Type"]) == (404, b'"not found"', "application/json")
    assert headers["Cache-Control"] == "no-store"


async def test_files_are_only_read(client: Client, jane: dict[str, Any]) -> None:
    for verb in ("POST", "PUT", "DELETE"):
        status, headers, _ = await fetch(client, f"1-{EXAMPLE_NAME}-large", verb)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")


async def test_addresses_cannot_be_guessed(client: Client, jane: dict[str, Any]) -> None:
    """Instance, 24 random base62 characters (142 bits), size: nothing of the user or the file's name."""
    addresses = {await give(client) for _ in range(5)}
    assert len(addresses) == 5
    for address in addresses:
        assert re.fullmatch(r"http://127\.0\.0\.1:8080/files/1-[0-9A-Za-z]{24}-large", address)


async def test_addresses_come_from_the_settings(serve: Serve, jane: dict[str, Any]) -> None:
    """Never from the request: its Host header may name anybody's machine."""
    client = await serve(public_url="https://office.example.com/")
    body = {"method": "setAvatarByEmail", "params": JANE | {"avatar": sent(encoded(photo(), "PNG"))}}
    headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    async with await client.post(body, headers=headers) as response:
        address = (await response.json())["avatar"]
    assert address.startswith("https://office.example.com/files/1-")
    assert avatar_url(Settings(host="::1", port=9), "/files/x") == "http://[::1]:9/files/x"
    assert avatar_url(Settings(), "https://example.com/a") == "https://example.com/a"
    assert avatar_url(Settings(public_url="https://a.example"), "") == ""
