"""Uploaded pictures: measured before they are decoded, then encoded again in two sizes."""

import base64
import contextlib
import io
import warnings
from typing import NamedTuple

from PIL import GifImagePlugin, Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin

from server.base.errors import FieldError, Invalid
from server.base.settings import Settings
from server.base.shares import Shares
from server.base.threads import BoundedPool

LARGE, SMALL = 512, 128
"""The longer side of the two sizes in pixels; smaller pictures are not enlarged."""

# Memory for decoding: with the uploaded bytes less than 100 MB for any picture.
_MEMORY = 76 * 1024 * 1024
# Each scan of a progressive JPEG covers the whole picture: cameras write about ten, attackers thousands.
_SCANS = 64
# Waiting pictures, each with all its bytes: of one instance, and of all.
_WAITING, _WAITING_IN_ALL = 4, 16

# By content, not by file name. Pillow's other formats are never tried.
_KINDS: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    b"GIF87a": GifImagePlugin.GifImageFile,
    b"GIF89a": GifImagePlugin.GifImageFile,
}
# Pillow warns about bad EXIF data.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Limit of decompressed PNG texts, which are not used here; Pillow's is 64 MiB.
PngImagePlugin.MAX_TEXT_MEMORY = 2 * 1024 * 1024


class Picture(NamedTuple):
    """A picture as it is served: PNG if it is transparent, else JPEG, without metadata."""

    media_type: str
    small: bytes
    large: bytes


class _BadPicture(Exception):
    """Its message is for the caller."""


class Pictures:
    """Decodes and encodes, one picture at a time and few waiting, as each holds all its bytes."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.picture_limit
        self._pixels = settings.picture_pixels
        slots = Shares(
            size=1,
            of_one=1,
            waiting=_WAITING,
            waiting_in_all=_WAITING_IN_ALL,
            refusal="too many pictures are being read, try again",
        )
        self._pool = BoundedPool("pictures", slots)

    def close(self) -> None:
        """Cancel waiting pictures and end the thread."""
        self._pool.close()

    async def reencoded(self, data: str, member: str) -> Picture:
        """A picture in both sizes, rotated by its EXIF, without metadata; of an animation the first frame.

        Args:
            data: a PNG, JPEG or GIF in base64 (seeds/001, "Loading avatar").
            member: its name in the params, for the error.

        Raises:
            Invalid: it has too many bytes or pixels, or is not such a picture.
            Unavailable: too many pictures are waiting; try again after a second.
        """
        try:
            if len(data) // 4 * 3 - data[-2:].count("=") > self._limit:
                raise _BadPicture(f"is longer than {self._limit} bytes")
            return await self._pool.run(_reencoded, data, self._pixels)
        except _BadPicture as bad:
            raise Invalid.of([FieldError(member, str(bad))]) from bad.__cause__


def _reencoded(data: str, most_pixels: int) -> Picture:
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError as error:
        raise _BadPicture("must be base64") from error
    kind = next((kind for magic, kind in _KINDS.items() if content.startswith(magic)), None)
    if kind is None:
        raise _BadPicture("must be a PNG, JPEG or GIF picture")
    try:
        image: Image.Image = _measured(kind(io.BytesIO(content)), content, most_pixels)
        image = _plain(image)  # frees the first one
        return _encoded(_upright(image))
    except _BadPicture:
        raise
    except Image.DecompressionBombError as error:  # a GIF whose frame is larger than its screen
        raise _BadPicture(f"has more than {most_pixels} pixels") from error
    except Exception as error:  # Pillow raises any exception for broken files
        raise _BadPicture("is damaged or cut short") from error


def _measured(image: ImageFile.ImageFile, content: bytes, most_pixels: int) -> ImageFile.ImageFile:
    """The picture, prepared to decode, after only its header was read; refused if it is too large."""
    pixels = image.width * image.height
    if pixels > most_pixels:
        raise _BadPicture(f"has {image.width} x {image.height} pixels, more than {most_pixels} in all")
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        if content.count(b"\xff\xda") > _SCANS:
            raise _BadPicture(f"has more than {_SCANS} scans")
        memory = _kept_coefficients(image, content)
        # libjpeg can decode at 1/2, 1/4 or 1/8: twice the needed size keeps scaling smooth.
        shrink = max(image.size) / (2 * LARGE)
        image.draft(None, (max(1, int(image.width / shrink)), max(1, int(image.height / shrink))))
        memory += 4 * image.width * image.height
    elif image.mode in ("L", "RGB") and not image.has_transparency_data:
        memory = 4 * pixels
    else:
        memory = 8 * pixels  # four bytes each, twice while it is converted or scaled
    if memory > _MEMORY:
        raise _BadPicture(f"takes too much memory to decode at {pixels} pixels: send it smaller")
    return image


def _kept_coefficients(image: JpegImagePlugin.JpegImageFile, content: bytes) -> int:
    """Bytes that libjpeg keeps for the whole picture, unless one scan has all components."""
    assert image.fp is not None
    length = 6 + 2 * image.layers
    scan = content[: image.fp.tell()][-length - 2 :]
    if "progressive" not in image.info and scan[:5] == bytes((0xFF, 0xDA, 0, length, image.layers)):
        return 0
    across, down = max(layer[1] for layer in image.layer), max(layer[2] for layer in image.layer)
    samples = sum(layer[1] * layer[2] for layer in image.layer) / (across * down)
    return int(2 * samples * image.width * image.height)


def _plain(image: Image.Image) -> Image.Image:
    """The decoded picture in a mode that can be scaled."""
    if image.mode != "RGBA" and image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode == "I;16":  # 16-bit grey
        return image.point(lambda value: value / 256).convert("L")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB", "RGBA", "CMYK") else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Scaled to LARGE, rotated by its EXIF, as L, RGB or RGBA."""
    image.thumbnail((LARGE, LARGE), Image.Resampling.LANCZOS)
    with contextlib.suppress(Exception):  # broken EXIF is ignored
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "CMYK" or (image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255)):
        image = image.convert("RGB")
    return image


def _encoded(image: Image.Image) -> Picture:
    image.info = {}  # the encoders would write this
    small = image.copy()
    small.thumbnail((SMALL, SMALL), Image.Resampling.LANCZOS)
    name = "PNG" if image.mode == "RGBA" else "JPEG"
    files = []
    for size in (small, image):
        file = io.BytesIO()
        size.save(file, name, **({} if name == "PNG" else {"quality": 88, "optimize": True}))
        files.append(file.getvalue())
    return Picture(f"image/{name.lower()}", *files)


def picture_path(instance_id: int, name: str, size: str = "large") -> str:
    """The path of a stored picture (wires/files.py), which is the user's avatar."""
    return f"/files/{instance_id}-{name}-{size}"


def avatar_url(settings: Settings, stored: str) -> str:
    """A user's avatar in answers: the path of a stored picture gets this server's address.

    The address is not taken from the Host header of a request, which an attacker may choose.
    """
    return settings.own_address() + stored if stored.startswith("/") else stored
