"""SCIM's documents about the service (RFC 7644, section 4), for every valid key."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import Field

from server.base.errors import Forbidden
from server.tenants.principals import Principal
from server.wires.http import DISPATCHER
from server.wires.mapping import CompletedCall, MethodResult, ParsedCall, Route, call
from server.wires.params import Member
from server.wires.rendering import AnswerModel, From
from server.wires.scim_errors import LIST


class ListResponse(AnswerModel):
    """A page of a list (RFC 7644, section 3.4.2; RFC 9865)."""

    schemas: list[Literal["urn:ietf:params:scim:api:messages:2.0:ListResponse"]] = Field(min_length=1)
    totalResults: Annotated[int, Field(ge=0)]
    startIndex: Annotated[int | None, Field(ge=1)] = None
    itemsPerPage: Annotated[int, Field(ge=0)]
    nextCursor: str | None = None
    Resources: Annotated[list[dict[str, Any]], From("Resources")]


def listed(completed: CompletedCall) -> Any:
    """The data of a ListResponse. Members with None are left out of the answer."""
    return {"schemas": [LIST], "startIndex": None, "nextCursor": None, **completed.result}


def routes(prefix: str, parts: Mapping[str, tuple[Member, ...]]) -> tuple[Route, ...]:
    """The routes of discovery below a prefix with these path parameters."""
    described = "describeScim"
    by_id = {**parts, "id": (Member("id"),)}
    config = {"document": "ServiceProviderConfig"}
    schemas, types = {"document": "Schemas"}, {"document": "ResourceTypes"}
    return (
        Route("GET", f"{prefix}/ServiceProviderConfig", described, MethodResult(), parts=parts, fixed=config),
        Route("GET", f"{prefix}/Schemas", described, ListResponse, parts=parts, fixed=schemas, source=listed),
        Route("GET", f"{prefix}/Schemas/{{id}}", described, MethodResult(), parts=by_id, fixed=schemas),
        Route(
            "GET", f"{prefix}/ResourceTypes", described, ListResponse, parts=parts, fixed=types, source=listed
        ),
        Route("GET", f"{prefix}/ResourceTypes/{{id}}", described, MethodResult(), parts=by_id, fixed=types),
    )


async def describe(request: web.Request, caller: Principal, route: Route, parsed: ParsedCall) -> Any:
    """A document about the service. It needs no scope, because it contains nothing about users.

    Raises:
        Forbidden: a filter is given (RFC 7644, section 4).
    """
    if "filter" in request.query:
        raise Forbidden("the descriptions of the service cannot be filtered")
    scope = request.app[DISPATCHER].methods[parsed.method].scope
    return await call(request, replace(caller, scopes=caller.scopes | {scope}), route, parsed)
