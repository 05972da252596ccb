"""Errors in SCIM's format (RFC 7644, section 3.12), the media type, and the URNs of messages."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import Field

from server.base.error_codes import ERROR_CODES
from server.base.errors import Conflict, Forbidden, NoRoute, NotHeld, ServiceError
from server.wires.rendering import AnswerModel

MEDIA_TYPE = "application/scim+json"
KEY_HEADERS = ("Authorization", "x-api-key")
BASE = "/scim/v2"
_MESSAGES = "urn:ietf:params:scim:api:messages:2.0:"
ERROR, LIST = _MESSAGES + "Error", _MESSAGES + "ListResponse"
PATCH, SEARCH = _MESSAGES + "PatchOp", _MESSAGES + "SearchRequest"
BULK_REQUEST, BULK_RESPONSE = _MESSAGES + "BulkRequest", _MESSAGES + "BulkResponse"

STATUSES: Mapping[type[ServiceError], int] = {Conflict: 409, NotHeld: 404}

SCIM_TYPES = {
    "duplicate_email": "uniqueness",
    "duplicate_external_id": "uniqueness",
    "duplicate_group": "uniqueness",
    "user_deleted": "uniqueness",
    "invalid_filter": "invalidFilter",
    "invalid_path": "invalidPath",
    "invalid_value": "invalidValue",
    "invalid_params": "invalidValue",
    "malformed_json": "invalidSyntax",
    "mutability": "mutability",
    "no_target": "noTarget",
    "too_many_matches": "tooMany",
}
"""Error code -> scimType (RFC 7644, table 9); other errors have no scimType."""
OF_MEMBERS = {
    "schemas": "invalidSyntax",
    "Operations": "invalidSyntax",
    "cursor": "invalidCursor",
    "count": "invalidCount",
}
"""The only invalid member or parameter -> scimType (the last two: RFC 9865, section 2.1)."""

NOT_IMPLEMENTED = {
    "Me": "/Me is not supported: an API key does not belong to a user (RFC 7644, section 3.11)",
    ".search": "users and groups cannot be searched together: use /Users/.search or /Groups/.search",
    "": "users and groups cannot be listed together: use /Users or /Groups",
}
"""Last part of a path that RFC 7644 defines and we do not support (501) -> the reason."""


def has_schema(schemas: object, urn: str) -> bool:
    """Whether the member `schemas` of a message contains a URN."""
    return isinstance(schemas, list) and any(
        isinstance(one, str) and one.lower() == urn.lower() for one in schemas
    )


class ScimError(AnswerModel):
    """A SCIM error."""

    schemas: list[Literal["urn:ietf:params:scim:api:messages:2.0:Error"]] = Field(min_length=1)
    status: Annotated[str, Field(pattern="^[45][0-9]{2}$")]
    scimType: Annotated[str | None, Field(min_length=1)] = None
    detail: Annotated[str, Field(min_length=1)]


def scim_type(error: ServiceError) -> str | None:
    """The scimType of an error; None: it has none."""
    kind = SCIM_TYPES.get(error.code)
    named = {name.partition(".")[0] for name, _ in error.fields}
    if error.code == "invalid_params" and len(named) == 1:
        kind = OF_MEMBERS.get(named.pop(), kind)
    return kind


def error_body(error: ServiceError, status: int) -> dict[str, Any]:
    """An error as a SCIM message; `status` is a string in it."""
    body = {"schemas": [ERROR], "status": str(status), "scimType": scim_type(error), "detail": _detail(error)}
    return {name: value for name, value in body.items() if value is not None}


def _detail(error: ServiceError) -> str:
    """The text that an administrator reads in the log of the identity provider.

    Some errors have short messages that clients of /rpc compare, such as "not-allowed". Here they get the
    meaning and the remedy of their code.
    """
    has_own = error.message not in (type(error).__doc__, "not-allowed")
    if not has_own or error.code.startswith("duplicate_"):
        code = ERROR_CODES[error.code]
        scope = f" ({error.scope})" if isinstance(error, Forbidden) and error.scope else ""
        return f"{code.meaning} {code.remedy}{scope}"
    return error.message


def render_error(request: web.Request, error: ServiceError, status: int) -> tuple[int, Any]:
    """The status and the body of the answer to an error."""
    parts = request.path.removeprefix(BASE).strip("/").split("/")  # the first can be an instance
    if isinstance(error, NoRoute) and len(parts) <= 2 and parts[-1] in NOT_IMPLEMENTED:
        return 501, error_body(NoRoute(NOT_IMPLEMENTED[parts[-1]]), 501)
    return status, error_body(error, status)
