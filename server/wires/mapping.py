"""REST wires as declarations: routes, renamed members, errors. One handler serves every route.

A wire is a `RestWire` with `Route`s. A route names its method, and maps path parts, query parameters and body
members to the method's params. Its result is a type, such as a model of rendering.py, that renders the answer
and describes it in the OpenAPI document.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple

import orjson
from aiohttp import hdrs, web

from server.base.error_codes import ERROR_CODES
from server.base.errors import (
    Conflict,
    FieldError,
    Invalid,
    LengthRequired,
    NotFound,
    ServiceError,
    UnknownMethod,
)
from server.base.parsing import parse_long_json
from server.tenants.principals import Principal
from server.wires.http import (
    DISPATCHER,
    Handler,
    Wire,
    answer,
    authenticate,
    count,
    read_body,
    require_json,
    run,
)
from server.wires.params import Member
from server.wires.rendering import renderer
from server.wires.schemas import Schema


def status_of(kind: type[ServiceError], statuses: Mapping[type[ServiceError], int]) -> int:
    """The HTTP status of a kind of error.

    Args:
        statuses: the wire's. A kind that is not in it has the status of its nearest base class in it, else
            404 for NotFound and UnknownMethod, else the status at /rpc.
    """
    statuses = {NotFound: 404, UnknownMethod: 404, **statuses}
    own = next((statuses[known] for known in kind.__mro__ if known in statuses), None)
    return own or ERROR_CODES[kind.code].status


# --- routes and wires -----------------------------------------------------------------------------------


class MethodResult(NamedTuple):
    """In Route.result: the type of the method's result, in these generic models, the outermost first."""

    models: tuple[Any, ...] = ()


class CompletedCall(NamedTuple):
    """A request, the params for its method and the method's result."""

    request: web.Request
    params: Mapping[str, Any]
    result: Any


class Links(NamedTuple):
    """The Link Objects of an answer in the OpenAPI document: routes that take its values."""

    # Prefix of the paths of these routes.
    target: str
    # Their parameters -> runtime expressions (OpenAPI 3.1.1, section 4.8.20.4).
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """A function of a wire: verb, path, method and members."""

    verb: str
    # Below the wire's base, in aiohttp's syntax.
    path: str
    method: str
    # The type of the answer, a MethodResult, or None for an answer without a body.
    result: Any = None
    status: int = 200
    # Part of the path -> the params that it can be. The method gets all of them that it parses as.
    parts: Mapping[str, tuple[Member, ...]] = field(default_factory=dict)
    # None: query, or body, is ignored.
    query: Mapping[str, Member] | None = None
    body: Mapping[str, Member] | None = None
    # The param that the whole body is, instead of `body`.
    whole: Member | None = None
    # Request header -> param.
    sent: Mapping[str, Member] = field(default_factory=dict)
    # Constant params.
    fixed: Mapping[str, Any] = field(default_factory=dict)
    # Member -> the method that is called instead if the member is given (a flag: true).
    instead: Mapping[str, str] = field(default_factory=dict)
    # The method whose params the OpenAPI document shows, if `method` accepts invalid params too.
    like: str | None = None
    # The data for the answer, if that is not the method's result.
    source: Callable[[CompletedCall], Any] | None = None
    # Whether a request without Content-Length is refused.
    needs_length: bool = False
    # The query parameter for the next page of a list: the answer has a Link header with it (RFC 8288).
    continued_by: str | None = None
    links: Links | None = None
    # Method's result -> its version, None: it has none. The answer has it as ETag; a GET whose If-None-Match
    # has this version gets 304.
    version: Callable[[Any], str | None] | None = None
    # Method's result -> its address, for the header Location.
    location: Callable[[Any], str | None] | None = None
    # Params without any of which the answer has no body (204). Empty: it always has one.
    body_for: tuple[str, ...] = ()
    # Other methods that `handle` calls.
    also: tuple[str, ...] = ()
    # Instead of the declarations: the handler, and the responses in the OpenAPI document.
    handle: Handler | None = None
    responses: Mapping[int, Schema] = field(default_factory=dict)

    def members(self) -> dict[str, Member]:
        """The members of headers, query and body. The whole body is the member ""."""
        whole = {} if self.whole is None else {"": self.whole}
        return {**self.sent, **(self.query or {}), **(self.body or {}), **whole}

    def served_by(self) -> tuple[str, ...]:
        """The methods that it can call."""
        return (self.method, *self.instead.values(), *self.also)

    def answer_type(self, method_result: Any) -> Any:
        """The type of the answer; None: no body.

        Args:
            method_result: the type of the method's result.
        """
        if not isinstance(self.result, MethodResult):
            return self.result
        for model in reversed(self.result.models):
            method_result = model[method_result]
        return method_result


class ParsedCall(NamedTuple):
    """The method and params of a request."""

    method: str
    params: dict[str, Any]
    # Method's name of a param -> the name that the caller used.
    names: dict[str, str]
    # Errors found while parsing, in the wire's names.
    failures: list[FieldError]


Call = Callable[[web.Request, Principal, Route, ParsedCall], Awaitable[Any]]


async def call(request: web.Request, caller: Principal, route: Route, parsed: ParsedCall) -> Any:
    """Call the method. Errors name members as the wire does."""
    if parsed.failures:
        raise Invalid.of(parsed.failures)
    try:
        return await run(request, caller, parsed.method, parsed.params)
    except (Invalid, Conflict) as error:
        of_path = not isinstance(error, Conflict)  # conflicts are about stored data
        fields = in_wire_names(error.fields, route, parsed.names, of_path=of_path)
        # A message that equals that of its one field, as for a wrong code, stays as it is.
        is_whole = not fields or error.message == error.fields[0].message
        message = error.message if is_whole else Invalid.of(fields).message
        raise type(error)(message, code=error.code, fields=fields) from error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RestWire(Wire):
    """A wire made of routes."""

    description: str
    # Headers for the API key; a request has one of them.
    key_headers: tuple[str, ...]
    routes: tuple[Route, ...]
    # The path of a route is mount + base + path; it is served under every mount.
    mounts: tuple[str, ...] = ("",)
    base: str = ""
    # Whether paths are served with and without a slash at the end.
    either_slash: bool = False

    # Kind of error -> HTTP status (see status_of).
    errors: Mapping[type[ServiceError], int]
    # Request, error, its status -> the answer's status and body; None: no body.
    render_error: Callable[[web.Request, ServiceError, int], tuple[int, Any]]
    # HTTP status -> type of that body.
    error_type: Callable[[int], Any]
    # Error codes of the wire itself, in addition to those of its methods.
    error_codes: tuple[str, ...] = ()
    # Message for unknown members, and the error for a body that is not an object.
    unknown: str = "is not a member of this call"
    no_object: Callable[[], ServiceError] = lambda: Invalid("the body must be an object")

    # Values that mean an omitted member, unless the member is nullable.
    omitted: tuple[Any, ...] = (None,)
    # Whether routes with a body refuse requests without one.
    needs_body: bool = False
    # Whether unknown and repeated query parameters are ignored.
    lenient_query: bool = False
    # Whether unknown members and query parameters are ignored.
    ignores_unknown: bool = False
    # Whether names of body members are compared without case.
    any_case: bool = False
    # Content-Type of answers with a body; in the OpenAPI document, of request bodies too.
    media_type: str = "application/json"
    # Checks, such as limits, once the caller is known.
    before: Callable[[web.Request, Principal, Route], Awaitable[None]] | None = None
    call: Call = call
    # Headers of every answer.
    headers: Callable[[web.Request], dict[str, str]] = lambda request: {}
    # In the OpenAPI document: these headers, and the header parameters of every route.
    header_schemas: Mapping[str, Schema] = field(default_factory=dict)
    header_parameters: Mapping[str, Schema] = field(default_factory=dict)

    def error_response(self, request: web.Request, error: ServiceError) -> web.Response:
        """The answer to an error."""
        status, body = self.render_error(request, error, status_of(type(error), self.errors))
        return self.answer(status, None if body is None else orjson.dumps(body), self.headers(request))

    def answer(self, status: int, body: bytes | None, headers: dict[str, str]) -> web.Response:
        """An answer with the wire's media type."""
        if body is not None and self.media_type != "application/json":
            headers[hdrs.CONTENT_TYPE] = self.media_type
        return answer(status, body, headers)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add every route under every mount. A GET also serves HEAD (RFC 9110, section 9.1)."""
        for route in self.routes:
            handle = route.handle or handler(self, route)
            path = self.base + route.path
            paths = (path.rstrip("/"), path.rstrip("/") + "/") if self.either_slash else (path,)
            add = router.add_get if route.verb == "GET" else partial(router.add_route, route.verb)
            for mount, path in product(self.mounts, paths):
                add(mount + path, handle)


@cache
def handler(wire: RestWire, route: Route) -> Handler:
    """The handler of a route: authenticate, parse, call the method, render."""
    answer_type = route.answer_type(Any)
    render = None if answer_type is None else renderer(answer_type)

    async def handle(request: web.Request) -> web.Response:
        caller = await authenticate(request, *wire.key_headers)
        count(request, caller)
        if route.needs_length and hdrs.CONTENT_LENGTH not in request.headers:
            raise LengthRequired
        if wire.before is not None:
            await wire.before(request, caller, route)
        parsed = await _parse(wire, route, request, caller)
        has_body = not route.body_for or any(name in parsed.params for name in route.body_for)
        result = await wire.call(request, caller, route, parsed)
        headers = wire.headers(request)
        if route.continued_by is not None and result["next"]:
            next_page = f"{wire.base}{route.path}?{route.continued_by}={result['next']}"
            headers["Link"] = f'<{next_page}>; rel="next"'
        if route.location is not None and (address := route.location(result)):
            headers[hdrs.LOCATION] = address
        if route.version is not None and (version := route.version(result)):
            headers[hdrs.ETAG] = version
            if request.method in ("GET", "HEAD") and has_version(request, version):
                return answer(304, None, headers)
        if render is None or not has_body:
            return answer(route.status if has_body else 204, None, headers)
        if route.source is not None:
            result = route.source(CompletedCall(request, parsed.params, result))
        return wire.answer(route.status, orjson.dumps(render(result)), headers)

    return handle


def has_version(request: web.Request, version: str) -> bool:
    """Whether If-None-Match has this version (RFC 9110, section 13.1.2)."""
    if hdrs.IF_NONE_MATCH not in request.headers:
        return False
    opaque = version.removeprefix("W/").strip('"')
    return any(tag.value in (opaque, "*") for tag in request.if_none_match or ())


def path_params(route: Route, request: web.Request) -> dict[str, Any]:
    """The params in the path.

    Raises:
        NotFound: a part of the path cannot be any of its params.
    """
    params: dict[str, Any] = {}
    for part, members in route.parts.items():
        text = request.match_info[part]
        possible: dict[str, Any] = {}
        for member in members:
            with suppress(ValueError):
                possible[member.param or ""] = member.format.parse(text)
        if not possible or "\0" in text:
            raise NotFound
        params |= possible
    return params


async def _parse(wire: RestWire, route: Route, request: web.Request, caller: Principal) -> ParsedCall:
    """The method and its params, from path, query and body."""
    params = path_params(route, request) | dict(route.fixed)
    declared = route.members()
    for member in declared.values():
        head, dot, _ = (member.param or "").partition(".")
        if dot:  # an empty object, so that errors name its members
            params.setdefault(head, {})
    method, names, seen = route.method, dict[str, str](), set[str]()
    bad: list[FieldError] = []
    unexpected: list[FieldError] = []
    for name, value, known in await _values(wire, route, request, caller):
        if known is None:
            unexpected.append(FieldError(name[:64], wire.unknown))
        elif value == "" and known.narrows:
            unexpected.append(FieldError(name, "must not be empty"))
        elif value in wire.omitted and not known.nullable:
            continue
        elif name in seen:
            unexpected.append(FieldError(name, "is given twice"))
        else:
            seen.add(name)
            if known.param in names:
                unexpected.append(FieldError(name, f"stands for the same as {names[known.param]}"))
                continue
            try:
                value = None if value in wire.omitted else known.format.parse(value)
            except ValueError as error:
                bad.append(FieldError(name, str(error)))
            if name in route.instead and (known.param is not None or value):
                method = route.instead[name]
            if known.param is not None:
                names[known.param] = name
                head, dot, rest = known.param.partition(".")
                target = params[head] if dot else params
                target[rest or head] = value
    for name, member in declared.items():
        if name not in seen and member.needed(seen):
            bad.append(FieldError(name, "is required"))
    return ParsedCall(method, params, names, bad + unexpected)


async def _values(
    wire: RestWire, route: Route, request: web.Request, caller: Principal
) -> list[tuple[str, Any, Member | None]]:
    """Name, value and declaration (None: unknown) of each value in query and body.

    A body member replaces the query parameter of the same name.
    """
    body: Any = {}
    takes_body = route.body is not None or route.whole is not None
    if takes_body and (wire.needs_body or request.body_exists):
        require_json(request)
        with_picture = request.app[DISPATCHER].methods[route.method].with_picture
        text = await read_body(request, with_picture=with_picture, share=caller.share)
        body = await parse_long_json(text)
        if not isinstance(body, dict):
            raise wire.no_object()
    values: list[tuple[str, Any, Member | None]] = [
        (name, value, member)
        for name, member in route.sent.items()
        for value in request.headers.getall(name, ())
    ]
    if route.query is not None:
        query = dict(request.query) if wire.lenient_query else request.query  # dict: the first of each name
        for name, value in query.items():
            is_ignored = name not in route.query and (wire.lenient_query or wire.ignores_unknown)
            if name not in body and not is_ignored:
                values.append((name, value, route.query.get(name)))
    if route.whole is not None:
        return [*values, ("", body, route.whole)]
    members = route.body or {}
    declared = {name.lower(): name for name in members} if wire.any_case else {}
    for name, value in body.items():
        name = declared.get(name.lower(), name)
        if name in members or not wire.ignores_unknown:
            values.append((name, value, members.get(name)))
    return values


def in_wire_names(
    fields: Iterable[FieldError], route: Route, used: Mapping[str, str], *, of_path: bool
) -> list[FieldError]:
    """Errors of members in the wire's names.

    Args:
        fields: the errors in the method's names.
        used: method's name -> the name that the caller used. Other params have their first declared name.
        of_path: whether an error of a part of the path means that the path is invalid.

    Raises:
        NotFound: the path is invalid.
    """
    in_path = {member.param: part for part, choices in route.parts.items() for member in choices}
    in_members = {member.param: name for name, member in reversed(route.members().items())}
    names = in_path | in_members | {**used}
    renamed = []
    for name, message in fields:
        head, dot, rest = name.partition(".")
        if of_path and head in in_path and head not in in_members:
            raise NotFound
        if name not in names and names.get(head) == "":  # a member of the whole body
            renamed.append(FieldError(rest or "body", message))
        else:
            renamed.append(FieldError(names.get(name) or names.get(head, head) + dot + rest, message))
    return renamed
