"""SCIM 2.0 (RFC 7643, RFC 7644, RFC 9865): /scim/v2, the key's default instance, and /scim/v2/{instance}.

Methods return complete resources. This wire adds the format of lists and errors, ETags, discovery
(scim_discovery.py) and Bulk (scim_bulk.py). SCIM.md explains how to connect identity providers.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from aiohttp import web

from server.base.errors import Malformed
from server.base.models import NO_CONTROLS
from server.tenants.principals import Principal
from server.wires import scim_bulk, scim_discovery
from server.wires.mapping import CompletedCall, Links, MethodResult, ParsedCall, RestWire, Route, call
from server.wires.params import INTEGER, Format, Member, same
from server.wires.schemas import Schema
from server.wires.scim_discovery import ListResponse, listed
from server.wires.scim_errors import (
    BASE,
    KEY_HEADERS,
    MEDIA_TYPE,
    PATCH,
    SEARCH,
    STATUSES,
    ScimError,
    has_schema,
    render_error,
)

# --- members of requests --------------------------------------------------------------------------------


def _names(value: Any) -> Any:
    """Attribute names in a query, separated by commas (RFC 7644, section 3.9)."""
    return [name.strip() for name in value.split(",") if name.strip()]


def _always(given: Container[str]) -> bool:
    return True


NAMES = Format(_names)
SELECTION = {
    "attributes": Member("attributes", NAMES),
    "excludedAttributes": Member("excludedAttributes", NAMES),
}
QUERY = SELECTION | {
    "filter": Member("filter"),
    "sortBy": Member("sortBy"),
    "sortOrder": Member("sortOrder"),
    "startIndex": Member("startIndex", INTEGER),
    "count": Member("count", INTEGER),
    "cursor": Member("cursor"),
}
LISTED = same("attributes", "excludedAttributes")
IF_MATCH = {"If-Match": Member("version")}


def message(urn: str) -> Member:
    """The member `schemas` of a message, which must contain the URN of the message."""

    def parse(value: Any) -> Any:
        if not has_schema(value, urn):
            raise ValueError(f"must be a list with {urn}")
        return value

    schema: Schema = {
        "type": "array",
        "items": {"type": "string"},
        "contains": {"const": urn},
        "examples": [[urn]],
    }
    return Member(None, Format(parse, lambda _: schema), needed=_always)


def _resource(urn: str, name: str) -> Callable[[Schema], Schema]:
    """The required attributes of a resource, for the OpenAPI document. /Schemas describes all attributes."""
    schema: Schema = {
        "type": "object",
        "properties": {
            "schemas": {"type": "array", "items": {"type": "string"}, "contains": {"const": urn}},
            name: {"type": "string", "minLength": 1, "maxLength": 100, **NO_CONTROLS},
        },
        "required": ["schemas", name],
    }
    return lambda _: schema


def _operations(schema: Schema) -> Schema:
    """Operations of a PATCH; `op` is case-insensitive."""
    op: Schema = {"type": "string", "pattern": "^([Aa]dd|[Rr]emove|[Rr]eplace)$"}
    return schema | {
        "items": {"type": "object", "properties": {"op": op, "path": {"type": "string"}}, "required": ["op"]}
    }


OPERATIONS = Format(schema=_operations)
USER = Format(schema=_resource("urn:ietf:params:scim:schemas:core:2.0:User", "userName"))
GROUP = Format(schema=_resource("urn:ietf:params:scim:schemas:core:2.0:Group", "displayName"))


# --- routes ---------------------------------------------------------------------------------------------


def version_of(resource: Mapping[str, Any]) -> str | None:
    """The version of a resource; None: `meta` is not in the answer."""
    version: str | None = resource.get("meta", {}).get("version")
    return version


def location_of(resource: Mapping[str, Any]) -> str | None:
    """The URL of a resource; None: `meta` is not in the answer."""
    location: str | None = resource.get("meta", {}).get("location")
    return location


def _hides_meta(attributes: Sequence[str], excluded: Sequence[str]) -> bool:
    """Whether the client wants no `meta`. ETag and Location are made of it all the same (RFC 7644, 3.3)."""
    if attributes:
        return not any(name.lower().startswith("meta") for name in attributes)
    return any(name.lower() == "meta" for name in excluded)


def _as_asked(completed: CompletedCall) -> Any:
    """The resource without `meta`, if that was read only for the headers."""
    asked = [_names(completed.request.query.get(name, "")) for name in SELECTION]
    if _hides_meta(*asked):
        return {name: value for name, value in completed.result.items() if name != "meta"}
    return completed.result


def _resources(
    prefix: str, parts: Mapping[str, tuple[Member, ...]], kind: str, format: Format
) -> tuple[Route, ...]:
    """The routes of a resource type: User or Group."""
    collection, own = f"{prefix}/{kind}s", MethodResult()
    one = collection + r"/{id:(?!\.search/?$)[^/]+}"
    by_id = {**parts, "id": (Member("id"),)}
    whole = Member(kind.lower(), format)
    links = Links(
        one, {"path.id": "$response.body#/id"} | {f"path.{part}": f"$request.path.{part}" for part in parts}
    )
    search: dict[str, Any] = {"parts": parts, "source": listed}
    changed: dict[str, Any] = {"parts": by_id, "sent": IF_MATCH, "source": _as_asked}
    return (
        Route(
            "POST", collection, f"createScim{kind}", own, 201, parts=parts, query=SELECTION, whole=whole,
            version=version_of, location=location_of, links=links, source=_as_asked,
        ),
        Route("GET", collection, f"searchScim{kind}s", ListResponse, query=QUERY, **search),
        Route(
            "POST", f"{collection}/.search", f"searchScim{kind}s", ListResponse,
            body={"schemas": message(SEARCH)} | QUERY | LISTED, **search,
        ),
        Route(
            "GET", one, f"getScim{kind}", own, parts=by_id, query=SELECTION, version=version_of,
            source=_as_asked,
        ),
        Route(
            "PUT", one, f"replaceScim{kind}", own, query=SELECTION, whole=whole, version=version_of,
            **changed,
        ),
        Route(
            "PATCH", one, f"patchScim{kind}", own, query=SELECTION, version=version_of,
            body={"schemas": message(PATCH), "Operations": Member("operations", OPERATIONS)},
            # 204 without a body (RFC 7644, 3.5.2): groups can have very many members.
            body_for=tuple(SELECTION) if kind == "Group" else (), **changed,
        ),
        Route("DELETE", one, f"deleteScim{kind}", status=204, **changed),
    )  # fmt: skip


_RESERVED = r"Users|Groups|Schemas|ResourceTypes|ServiceProviderConfig|Bulk|Me|\.search"
# An instance with a reserved name works only as the default instance of a key.
_INSTANCE = f"/{{instance:(?!(?:{_RESERVED})(?:/|$))[^/]+}}"
_OF_INSTANCE = {"instance": (Member("instance", Format(schema=lambda _: {"type": "string"})),)}
ROUTES = tuple(
    route
    for prefix, parts in (("", {}), (_INSTANCE, _OF_INSTANCE))
    for route in (
        *_resources(prefix, parts, "User", USER),
        *_resources(prefix, parts, "Group", GROUP),
        *scim_discovery.routes(prefix, parts),
        scim_bulk.route(prefix, parts),
    )
)


async def _call(request: web.Request, caller: Principal, route: Route, parsed: ParsedCall) -> Any:
    if route.method == "describeScim":
        return await scim_discovery.describe(request, caller, route, parsed)
    attributes, excluded = (parsed.params.get(name) or [] for name in SELECTION)
    if route.source is _as_asked and _hides_meta(attributes, excluded):
        if attributes:
            parsed.params["attributes"] = [*attributes, "meta"]
        parsed.params["excludedAttributes"] = [name for name in excluded if name.lower() != "meta"]
    if route.body_for and not SELECTION.keys() & parsed.params.keys():
        parsed.params["attributes"] = ["meta"]  # for ETag
    return await call(request, caller, route, parsed)


WIRE = RestWire(
    name="scim",
    description="SCIM 2.0: users and groups, as identity providers such as Entra ID and Okta manage them.",
    prefixes=("/scim/",),
    challenge='Bearer realm="officerpc"',
    base=BASE,
    either_slash=True,
    key_headers=KEY_HEADERS,
    media_type=MEDIA_TYPE,
    routes=ROUTES,
    errors=STATUSES,
    render_error=render_error,
    error_type=lambda status: ScimError,
    no_object=lambda: Malformed("the body must be an object"),
    needs_body=True,
    ignores_unknown=True,
    any_case=True,
    call=_call,
)
