"""Errors in SCIM's format (RFC 7644, section 3.12), and the type of all its messages."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import Field

from server.base.error_codes import ERROR_CODES
from server.base.errors import Conflict, Forbidden, NoRoute, NotHeld, ServiceError, Unauthenticated
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
"""Code of an error -> scimType (RFC 7644, table 9); other errors have none."""
OF_MEMBERS = {
    "schemas": "invalidSyntax",
    "Operations": "invalidSyntax",
    "cursor": "invalidCursor",
    "count": "invalidCount",
}
"""Member or parameter that alone is wrong -> scimType (the last two: RFC 9865, section 2.1)."""

NOT_IMPLEMENTED = {
    "Me": "an API key is no person, so that there is no /Me (RFC 7644, section 3.11)",
    ".search": "search beneath /Users or /Groups: both together cannot be searched",
    "": "search beneath /Users or /Groups: both together cannot be listed",
}
"""What stands at the end of a path that RFC 7644 knows and is not served -> why it is not: 501."""


class ScimError(AnswerModel):
    """What went wrong."""

    schemas: list[Literal["urn:ietf:params:scim:api:messages:2.0:Error"]] = Field(min_length=1)
    status: Annotated[str, Field(pattern="^[45][0-9]{2}$")]
    scimType: Annotated[str | None, Field(min_length=1)] = None
    detail: Annotated[str, Field(min_length=1)]


def scim_type(error: ServiceError) -> str | None:
    """What kind of error it is to SCIM, beside its status."""
    kind = SCIM_TYPES.get(error.code)
    named = {name.partition(".")[0] for name, _ in error.fields}
    if error.code == "invalid_params" and len(named) == 1:
        kind = OF_MEMBERS.get(named.pop(), kind)
    return kind


def error_body(error: ServiceError, status: int) -> dict[str, Any]:
    """An error as a message; the status is a text there."""
    body = {"schemas": [ERROR], "status": str(status), "scimType": scim_type(error), "detail": _detail(error)}
    return {name: value for name, value in body.items() if value is not None}


def _detail(error: ServiceError) -> str:
    """What an administrator reads in the log of the identity provider.

    The messages of these errors are those that clients of /rpc look for, such as "not-allowed".
    """
    if isinstance(error, (Unauthenticated, Forbidden)) or error.code.startswith("duplicate_"):
        told = ERROR_CODES[error.code]
        scope = f" ({error.scope})" if isinstance(error, Forbidden) and error.scope else ""
        return f"{told.meaning} {told.remedy}{scope}"
    return error.message


def render_error(request: web.Request, error: ServiceError, status: int) -> tuple[int, Any]:
    """The status and the body of the answer to an error."""
    parts = request.path.removeprefix(BASE).strip("/").split("/")  # perhaps with the name of an instance
    if isinstance(error, NoRoute) and len(parts) <= 2 and parts[-1] in NOT_IMPLEMENTED:
        return 501, error_body(NoRoute(NOT_IMPLEMENTED[parts[-1]]), 501)
    return status, error_body(error, status)
