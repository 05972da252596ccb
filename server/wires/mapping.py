"""A REST wire as a declaration: routes, renamed members, errors. One handler serves every route.

A wire is a `RestWire` with `Route`s. A route names the method that serves it and what each part of the path,
query parameter and body member is to that method. Its result is a type, such as a model of rendering.py: it
renders the answer, and openapi.py describes the answer by it.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
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
from server.wires.http import DISPATCHER, Handler, Wire, answer, authenticate, read_body, require_json, run
from server.wires.members import Member
from server.wires.rendering import renderer
from server.wires.schemas import Schema


def status_of(kind: type[ServiceError], statuses: Mapping[type[ServiceError], int]) -> int:
    """The HTTP status of a kind of error.

    Args:
        statuses: those of a wire. A kind that is not there has that of the nearest kind above it; without
            any, that of /rpc, but 404 for what is not found.
    """
    statuses = {NotFound: 404, UnknownMethod: 404, **statuses}
    own = next((statuses[known] for known in kind.__mro__ if known in statuses), None)
    return own or ERROR_CODES[kind.code].status


# --- routes and wires -----------------------------------------------------------------------------------


class Own(NamedTuple):
    """The method's own result, as it is or within a generic model."""

    within: Any = None

    def kind(self, result: Any) -> Any:
        """The type of the answer, from that of the method's result."""
        return result if self.within is None else self.within[result]


class Done(NamedTuple):
    """A request that was served."""

    request: web.Request
    # What the method was given, and what it answered.
    params: Mapping[str, Any]
    result: Any


class Links(NamedTuple):
    """Where what a success tells can be used: for the OpenAPI document."""

    # The beginning of the paths of the other routes.
    target: str
    # Their parameters as runtime expressions (OpenAPI 3.1.1, section 4.8.20.4).
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Route:
    """One function of a wire: where it is, which method serves it, and how its members are written."""

    verb: str
    # Beneath the wire's base, as aiohttp writes it.
    path: str
    method: str
    # The type of the answer, Own, or None for an answer without a body.
    result: Any = None
    status: int = 200
    # A part of the path -> what it may be; all that it can be goes to the method.
    parts: Mapping[str, tuple[Member, ...]] = field(default_factory=dict)
    # None: whatever is there is ignored.
    query: Mapping[str, Member] | None = None
    body: Mapping[str, Member] | None = None
    # What the body is as a whole, where it is one param.
    whole: Member | None = None
    # Headers of the request that are params.
    sent: Mapping[str, Member] = field(default_factory=dict)
    # Params that the path stands for.
    fixed: Mapping[str, Any] = field(default_factory=dict)
    # A member that is given (a flag: set) -> the method that then serves the route instead.
    instead: Mapping[str, str] = field(default_factory=dict)
    # The method that describes the params in the OpenAPI document, where `method` takes good ones and bad.
    like: str | None = None
    # What the answer is rendered from, if that is not the method's result.
    source: Callable[[Done], Any] | None = None
    # Whether a request without Content-Length is refused.
    needs_length: bool = False
    # The query parameter that continues a list: the answer has a Link to the next page (RFC 8288).
    continued_by: str | None = None
    links: Links | None = None
    # From the method's result to the version of what is shown, None where it has none: the answer has it as
    # ETag, and a GET of the version that the caller has is answered by 304.
    version: Callable[[Any], str | None] | None = None
    # From the method's result to the address of what was made, for the header Location.
    location: Callable[[Any], str | None] | None = None
    # Methods that `handle` calls beside the others.
    also: tuple[str, ...] = ()
    # For what cannot be declared: serves the route, and describes its responses in the OpenAPI document.
    handle: Handler | None = None
    responses: Mapping[int, Schema] = field(default_factory=dict)

    def members(self) -> dict[str, Member]:
        """Those of headers, query and body; the whole body has no name."""
        whole = {} if self.whole is None else {"": self.whole}
        return {**self.sent, **(self.query or {}), **(self.body or {}), **whole}

    def served_by(self) -> tuple[str, ...]:
        """The methods that can serve it."""
        return (self.method, *self.instead.values(), *self.also)


class Asked(NamedTuple):
    """What a request asks for."""

    method: str
    params: dict[str, Any]
    # The method's name of a param -> the one that the caller used.
    names: dict[str, str]
    # What is wrong with it already, in the wire's names.
    failures: list[FieldError]


Call = Callable[[web.Request, Principal, Route, Asked], Awaitable[Any]]


async def call(request: web.Request, caller: Principal, route: Route, asked: Asked) -> Any:
    """The result of what is asked for; errors name members as the wire does."""
    if asked.failures:
        raise Invalid.of(asked.failures)
    try:
        return await run(request, caller, asked.method, asked.params)
    except (Invalid, Conflict) as error:
        of_path = not isinstance(error, Conflict)  # which is about what is stored
        fields = in_wire_names(error.fields, route, asked.names, of_path=of_path)
        # Where the message is that of one field, as for a wrong code, it says it all.
        is_whole = not fields or error.message == error.fields[0].message
        message = error.message if is_whole else Invalid.of(fields).message
        raise type(error)(message, code=error.code, fields=fields) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class RestWire(Wire):
    """A wire of routes."""

    description: str
    # Headers that the key may stand in, one of them.
    key_headers: tuple[str, ...]
    routes: tuple[Route, ...]
    # Prefixes beneath each of which every route is served, and what all paths begin with after them.
    mounts: tuple[str, ...] = ("",)
    base: str = ""
    # Whether a path is served with and without a slash at its end.
    either_slash: bool = False

    # Kind of error -> HTTP status (see status_of); from an error and its status to the answer's status and
    # body, None for none; and the type of the body, by its status.
    errors: Mapping[type[ServiceError], int]
    error_form: Callable[[web.Request, ServiceError, int], tuple[int, Any]]
    error_type: Callable[[int], Any]
    # Codes of errors that the wire itself gives, beside those of its methods.
    error_codes: tuple[str, ...] = ()
    # What a caller is told who sends a member, or a body, that cannot be.
    unknown: str = "is not a member of this call"
    no_object: Callable[[], ServiceError] = lambda: Invalid("the body must be an object")

    # Values that stand for a member that is left out, where it is not nullable.
    left_out: tuple[Any, ...] = (None,)
    # Whether a route with a body refuses a request without one.
    needs_body: bool = False
    # Whether query parameters that are unknown, or given again, are ignored instead of refused.
    lenient_query: bool = False
    # Whether members and query parameters that are unknown are ignored instead of refused.
    ignores_unknown: bool = False
    # Whether members of bodies have their names in any case.
    any_case: bool = False
    # The type of answers, and of the bodies that the OpenAPI document describes.
    media_type: str = "application/json"
    # Runs once the caller is known: limits, and what an instance allows.
    before: Callable[[web.Request, Principal, Route], Awaitable[None]] | None = None
    call: Call = call
    # A generic model around every result, and what it is rendered from.
    envelope: Any = None
    enveloped: Callable[[Done], Any] | None = None
    # Headers of every answer.
    headers: Callable[[web.Request], dict[str, str]] = lambda request: {}
    # For the OpenAPI document: those headers, and header parameters that every route takes.
    header_schemas: Mapping[str, Schema] = field(default_factory=dict)
    header_parameters: Mapping[str, Schema] = field(default_factory=dict)

    def error_response(self, request: web.Request, error: ServiceError) -> web.Response:
        """An error in the wire's form."""
        status, body = self.error_form(request, error, status_of(type(error), self.errors))
        return self.answer(status, None if body is None else orjson.dumps(body), self.headers(request))

    def answer(self, status: int, body: bytes | None, headers: dict[str, str]) -> web.Response:
        """An answer in the wire's type."""
        if body is not None and self.media_type != "application/json":
            headers[hdrs.CONTENT_TYPE] = self.media_type
        return answer(status, body, headers)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Every route, beneath every mount."""
        for route in self.routes:
            handle = route.handle or handler(self, route)
            path = self.base + route.path
            paths = (path.rstrip("/"), path.rstrip("/") + "/") if self.either_slash else (path,)
            for mount in self.mounts:
                for path in paths:
                    router.add_route(route.verb, mount + path, handle)

    def kind(self, route: Route, method_result: Any) -> Any:
        """The type of a route's answer, from that of its method's result; None: no body."""
        kind = route.result.kind(method_result) if isinstance(route.result, Own) else route.result
        return kind if kind is None or self.envelope is None else self.envelope[kind]


def handler(wire: RestWire, route: Route) -> Handler:
    """What serves a route: authenticate, read, call the method, render."""
    kind = wire.kind(route, Any)
    render = None if kind is None else renderer(kind)

    async def handle(request: web.Request) -> web.Response:
        caller = await authenticate(request, *wire.key_headers)
        if route.needs_length and hdrs.CONTENT_LENGTH not in request.headers:
            raise LengthRequired
        if wire.before is not None:
            await wire.before(request, caller, route)
        asked = await _asked(wire, route, request, caller)
        result = await wire.call(request, caller, route, asked)
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
        if render is None:
            return answer(route.status, None, headers)
        done = Done(request, asked.params, result)
        if route.source is not None:
            done = done._replace(result=route.source(done))
        shown = done.result if wire.enveloped is None else wire.enveloped(done)
        return wire.answer(route.status, orjson.dumps(render(shown)), headers)

    return handle


def has_version(request: web.Request, version: str) -> bool:
    """Whether the caller says, by If-None-Match, that it has this version (RFC 9110, section 13.1.2)."""
    if hdrs.IF_NONE_MATCH not in request.headers:
        return False
    opaque = version.removeprefix("W/").strip('"')
    return any(tag.value in (opaque, "*") for tag in request.if_none_match or ())


def named(route: Route, request: web.Request) -> dict[str, Any]:
    """The params that the path names.

    Raises:
        NotFound: a part of it cannot be the name of anything.
    """
    params: dict[str, Any] = {}
    for part, members in route.parts.items():
        text = request.match_info[part]
        possible: dict[str, Any] = {}
        for member in members:
            with suppress(ValueError):
                possible[member.param or ""] = member.form.read(text)
        if not possible or "\0" in text:
            raise NotFound
        params |= possible
    return params


async def _asked(wire: RestWire, route: Route, request: web.Request, caller: Principal) -> Asked:
    """The method that is asked for and its params, from path, query and body."""
    params = named(route, request) | dict(route.fixed)
    declared = route.members()
    for member in declared.values():
        head, dot, _ = (member.param or "").partition(".")
        if dot:  # there, so that errors are about its members
            params.setdefault(head, {})
    method, names, seen = route.method, dict[str, str](), set[str]()
    bad: list[FieldError] = []
    odd: list[FieldError] = []
    for name, value, known in await _given(wire, route, request, caller):
        if known is None:
            odd.append(FieldError(name[:64], wire.unknown))
        elif value == "" and known.narrows:
            odd.append(FieldError(name, "must not be empty"))
        elif value in wire.left_out and not known.nullable:
            continue
        elif name in seen:
            odd.append(FieldError(name, "is given twice"))
        else:
            seen.add(name)
            if known.param in names:
                odd.append(FieldError(name, f"stands for the same as {names[known.param]}"))
                continue
            try:
                value = None if value in wire.left_out else known.form.read(value)
            except ValueError as error:
                bad.append(FieldError(name, str(error)))
            if name in route.instead and (known.param is not None or value):
                method = route.instead[name]
            if known.param is not None:
                names[known.param] = name
                _put(params, known.param, value)
    for name, member in declared.items():
        if name not in seen and member.needed(seen):
            bad.append(FieldError(name, "is required"))
    return Asked(method, params, names, bad + odd)


async def _given(
    wire: RestWire, route: Route, request: web.Request, caller: Principal
) -> list[tuple[str, Any, Member | None]]:
    """The values in query and body, each with what it is to the method: None for nothing.

    A member of the body stands in place of the query parameter of its name.
    """
    body: dict[str, Any] = {}
    takes_body = route.body is not None or route.whole is not None
    if takes_body and (wire.needs_body or request.body_exists):
        require_json(request)
        with_picture = request.app[DISPATCHER].methods[route.method].with_picture
        parsed = await parse_long_json(
            await read_body(request, with_picture=with_picture, share=caller.share)
        )
        if not isinstance(parsed, dict):
            raise wire.no_object()
        body = parsed
    given: list[tuple[str, Any, Member | None]] = [
        (name, value, member)
        for name, member in route.sent.items()
        for value in request.headers.getall(name, ())
    ]
    if route.query is not None:
        query = dict(request.query) if wire.lenient_query else request.query  # a dict has the first of a name
        for name, value in query.items():
            is_told = name in route.query or not (wire.lenient_query or wire.ignores_unknown)
            if name not in body and is_told:
                given.append((name, value, route.query.get(name)))
    if route.whole is not None:
        return [*given, ("", body, route.whole)]
    members = route.body or {}
    known = {name.lower(): name for name in members} if wire.any_case else {}
    for name, value in body.items():
        name = known.get(name.lower(), name)
        if name in members or not wire.ignores_unknown:
            given.append((name, value, members.get(name)))
    return given


def _put(params: dict[str, Any], param: str, value: Any) -> None:
    head, dot, rest = param.partition(".")
    if dot:
        params[head][rest] = value
    else:
        params[head] = value


def in_wire_names(
    fields: Iterable[FieldError], route: Route, used: Mapping[str, str], *, of_path: bool = True
) -> list[FieldError]:
    """What is wrong, in the wire's names.

    Args:
        fields: the same in the method's names.
        used: the wire's names that the caller used, by the method's; of others, the first in the declaration.
        of_path: False where a part of the path names something that is there.

    Raises:
        NotFound: a part of the path cannot be the name of anything.
    """
    in_path = {member.param: part for part, choices in route.parts.items() for member in choices}
    in_members = {member.param: name for name, member in reversed(route.members().items())}
    names = in_path | in_members | {**used}
    told = []
    for name, message in fields:
        head, dot, rest = name.partition(".")
        if of_path and head in in_path and head not in in_members:
            raise NotFound
        if name not in names and names.get(head) == "":  # a member of the whole body
            told.append(FieldError(rest or "body", message))
        else:
            told.append(FieldError(names.get(name) or names.get(head, head) + dot + rest, message))
    return told
