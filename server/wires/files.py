"""/files: what this server stores for others to show, to everybody who knows a file's name."""

import base64

import orjson
from aiohttp import ETag, web

from server.base.errors import (
    BadExpectation,
    Invalid,
    NoRoute,
    NotFound,
    ServiceError,
    TooMany,
    Unavailable,
    WrongVerb,
)  # fmt: skip
from server.rpc.openapi import Answer, Operation, Parameter, Wire, refusals
from server.rpc.schemas import Schema, Schemas
from server.tenants.principals import FILE_READER
from server.wires.http import Front, answer, run

STATUS: dict[type[ServiceError], int] = {
    ServiceError: 500,
    Invalid: 404,  # a name that cannot be
    NotFound: 404,
    NoRoute: 404,
    WrongVerb: 405,
    BadExpectation: 417,
    TooMany: 429,
    Unavailable: 503,
}
"""Kind of error -> status; a kind that is not here has that of its parent."""

# A name is never given to another picture, so that its bytes may be kept. Whether they may still be shown is
# asked each time: a picture is no longer public once its user or instance is suspended or deleted.
_HEADERS = {
    "Cache-Control": "public, no-cache",
    "Content-Disposition": "inline",
    "Content-Security-Policy": "default-src 'none'",
}


def error_response(request: web.Request, error: ServiceError) -> web.Response:
    """As at /rpc, a bare JSON string of one line; whatever is not there is one and the same 404."""
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    return answer(status, orjson.dumps(NotFound().message if status == 404 else error.message))


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


def describe(schemas: Schemas) -> Wire:
    """The wire for the OpenAPI document."""
    method = schemas.methods["getPicture"]
    of_picture = {
        name: {"type": "string"}
        for name in ("ETag", "Cache-Control", "Content-Disposition", "Content-Security-Policy")
    }
    codes = schemas.error_codes((method.name,))
    answers = refusals(STATUS, lambda status: {"type": "string", "minLength": 1}, codes) | {
        200: Answer("The picture.", None, ("image/jpeg", "image/png"), of_picture),
        304: Answer("The caller has it already.", headers=of_picture),
    }
    del answers[405]
    tag: Schema = {"type": "string", "description": "What the caller has, by the ETag of an earlier answer."}
    parameters = (
        Parameter(
            "name", "path", schemas.members("getPicture")["name"],
            examples={example.name: example.params["name"] for example in method.examples},
        ),
        Parameter("If-None-Match", "header", tag),
    )  # fmt: skip
    operation = Operation("GET", "/files/{name}", ("getPicture",), answers, parameters, keyed=False)
    return Wire("files", "Pictures, for everybody who knows a name.", (), (operation,))


def add_routes(router: web.UrlDispatcher) -> None:
    """GET and HEAD."""
    router.add_get("/files/{name}", handle)


FRONT = Front("files", "/files/", add_routes, error_response)
