"""/files: what this server stores for others to show, to everybody who knows a file's name."""

import base64
from typing import Annotated, Any

from aiohttp import ETag, web
from pydantic import Field

from server.base.errors import Invalid, NotFound, ServiceError
from server.tenants.principals import FILE_READER
from server.wires.http import answer, run
from server.wires.mapping import RestWire, Route
from server.wires.members import Member

# A name is never given to another picture, so that its bytes may be kept. Whether they may still be shown is
# asked each time: a picture is no longer public once its user or instance is suspended or deleted.
_HEADERS = {
    "Cache-Control": "public, no-cache",
    "Content-Disposition": "inline",
    "Content-Security-Policy": "default-src 'none'",
}
_DESCRIBED = {"headers": {
    name: {"required": True, "schema": {"type": "string"}} for name in ("ETag", *_HEADERS)
}}  # fmt: skip


def _error_form(request: web.Request, error: ServiceError, status: int) -> tuple[int, Any]:
    """As at /rpc, a bare JSON string of one line; whatever is not there is one and the same 404."""
    return status, NotFound().message if status == 404 else error.message


async def handle(request: web.Request) -> web.Response:
    """A picture by its name, or 304 if the caller has it."""
    name = request.match_info["name"]
    picture = await run(request, FILE_READER, "getPicture", {"name": name})
    known = any(tag.value in (name, "*") for tag in request.if_none_match or ())
    response = answer(304 if known else 200, None if known else base64.b64decode(picture["data"]), _HEADERS)
    response.etag = ETag(name)
    if not known:
        response.content_type = picture["mediaType"]
    return response


ROUTE = Route(
    "GET", "/files/{name}", "getPicture", parts={"name": (Member("name"),)}, handle=handle,
    responses={
        200: _DESCRIBED | {"description": "The picture.", "content": {"image/jpeg": {}, "image/png": {}}},
        304: _DESCRIBED | {"description": "The caller has it already."},
    },
)  # fmt: skip

WIRE = RestWire(
    name="files",
    description="Pictures, for everybody who knows a name.",
    prefixes=("/files/",),
    key_headers=(),
    routes=(ROUTE,),
    errors={Invalid: 404},  # a name that cannot be
    error_form=_error_form,
    error_type=lambda status: Annotated[str, Field(min_length=1)],
    header_parameters={
        "If-None-Match": {
            "type": "string", "description": "What the caller has, by the ETag of an earlier answer.",
        }
    },
)  # fmt: skip
