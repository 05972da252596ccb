"""/files: pictures, for any client that knows the name of one."""

import base64
from typing import Annotated, Any

from aiohttp import ETag, web
from pydantic import Field

from server.base.errors import Invalid, NotFound, ServiceError
from server.tenants.principals import FILE_READER
from server.wires.http import answer, run
from server.wires.mapping import RestWire, Route
from server.wires.params import Member

# A name always means the same bytes, so clients may store them. They must revalidate on each use (no-cache):
# the picture of a suspended or deleted user or instance is not public.
_HEADERS = {
    "Cache-Control": "public, no-cache",
    "Content-Disposition": "inline",
    "Content-Security-Policy": "default-src 'none'",
}
_HEADER_SCHEMAS = {name: {"required": True, "schema": {"type": "string"}} for name in ("ETag", *_HEADERS)}


def _render_error(request: web.Request, error: ServiceError, status: int) -> tuple[int, Any]:
    """A bare JSON string of one line, as at /rpc. Every 404 has the same message."""
    return status, NotFound().message if status == 404 else error.message


async def handle(request: web.Request) -> web.Response:
    """Send a picture, or 304 if the client has it."""
    name = request.match_info["name"]
    picture = await run(request, FILE_READER, "getPicture", {"name": name})
    if any(tag.value in (name, "*") for tag in request.if_none_match or ()):
        response = answer(304, None, _HEADERS)
    else:
        response = answer(200, base64.b64decode(picture["data"]), _HEADERS)
        response.content_type = picture["mediaType"]
    response.etag = ETag(name)
    return response


ROUTE = Route(
    "GET", "/files/{name}", "getPicture", parts={"name": (Member("name"),)}, handle=handle,
    responses={
        200: {
            "description": "The picture.", "headers": _HEADER_SCHEMAS,
            "content": {"image/jpeg": {}, "image/png": {}},
        },
        304: {"description": "The client already has it.", "headers": _HEADER_SCHEMAS},
    },
)  # fmt: skip

WIRE = RestWire(
    name="files",
    description="Pictures, for any client that knows the name of one.",
    prefixes=("/files/",),
    key_headers=(),
    routes=(ROUTE,),
    errors={Invalid: 404},  # an impossible name
    render_error=_render_error,
    error_type=lambda status: Annotated[str, Field(min_length=1)],
    header_parameters={
        "If-None-Match": {"type": "string", "description": "The ETag of an earlier answer."}
    },
)  # fmt: skip
