"""SCIM's Bulk (RFC 7644, section 3.7): several operations in one request, each a separate call.

Operations run in the order of the request. An operation with a reference (bulkId:...) to a resource that a
later operation creates runs as soon as that resource exists. Circular references are refused (409). After an
operation fails because of the rate limit or the database, no further operation is run: the remaining ones get
the same error.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import orjson
import structlog
from aiohttp import web
from pydantic import Field

from server.base.errors import (
    Conflict,
    FieldError,
    Forbidden,
    Invalid,
    Malformed,
    ServiceError,
    TooLarge,
    TooMany,
    Unavailable,
)
from server.base.logs import safe_traceback
from server.base.parsing import parse_long_json
from server.tenants.principals import Principal
from server.wires.http import (
    CALLS,
    REQUEST_ID,
    SETTINGS,
    answer,
    authenticate,
    count,
    is_dry_run,
    read_body,
    require_json,
    run,
)
from server.wires.mapping import Route, status_of
from server.wires.params import Format, Member
from server.wires.rendering import AnswerModel
from server.wires.schemas import Schema
from server.wires.scim_errors import (
    BULK_REQUEST,
    BULK_RESPONSE,
    KEY_HEADERS,
    MEDIA_TYPE,
    PATCH,
    STATUSES,
    ScimError,
    error_body,
    has_schema,
)

log = structlog.get_logger()

VERBS = {"POST": "create", "PUT": "replace", "PATCH": "patch", "DELETE": "delete"}
_PATH = re.compile(r"/?(Users|Groups)(?:/([^/?#]+))?/?")
_REFERENCE = re.compile(r"bulkId:(.+)", re.DOTALL)


class BulkResult(AnswerModel):
    """The result of an operation."""

    method: str | None = None
    bulkId: str | None = None
    version: str | None = None
    location: str | None = None
    status: Annotated[str, Field(pattern="^[245][0-9]{2}$")]
    response: ScimError | None = None


class BulkResponse(AnswerModel):
    """The results of the operations."""

    schemas: list[Literal["urn:ietf:params:scim:api:messages:2.0:BulkResponse"]] = Field(min_length=1)
    Operations: list[BulkResult]


@dataclass(slots=True)
class Operation:
    """One operation of a request."""

    # Position in the request, from 0.
    index: int
    verb: str
    bulk_id: str | None
    # User or Group, and the id in the path; None: it creates one.
    kind: str
    target_id: str | None
    version: str | None
    data: Any
    # The bulkIds that it refers to.
    references: set[str]


def _refused(name: str, text: str) -> Invalid:
    return Invalid.of([FieldError(name, text)])


def _members(value: object, what: str) -> dict[str, Any]:
    """The members of an object, with names in lower case: they are case-insensitive (RFC 7643, 2.1)."""
    if not isinstance(value, dict):
        raise Malformed(f"{what} must be an object")
    return {name.lower(): member for name, member in value.items()}


def _text(members: Mapping[str, Any], name: str) -> str | None:
    value = members.get(name.lower())
    if value is not None and not isinstance(value, str):
        raise _refused(name, "must be a string")
    return value or None


def _operation(index: int, given: object) -> Operation:
    """The operation that was sent.

    Raises:
        Invalid, Malformed: it is not valid.
    """
    members = _members(given, "an operation")
    verb, path = (_text(members, "method") or "").upper(), _text(members, "path") or ""
    match = _PATH.fullmatch(path)
    if verb not in VERBS:
        raise _refused("method", "must be POST, PUT, PATCH or DELETE")
    if match is None or (verb == "POST") != (match[2] is None):
        raise _refused(
            "path", "must be /Users or /Groups for POST, and /Users/ID or /Groups/ID for the other methods"
        )
    bulk_id, data = _text(members, "bulkId"), members.get("data")
    if verb == "POST" and bulk_id is None:
        raise _refused("bulkId", "is required for POST")
    target_id = None if match[2] is None else unquote(match[2])
    version = _text(members, "version")
    references = set(_references([target_id, None if verb == "DELETE" else data]))
    return Operation(index, verb, bulk_id, match[1].removesuffix("s"), target_id, version, data, references)


def _references(value: Any) -> Iterator[str]:
    """The bulkIds that a value refers to."""
    if isinstance(value, str) and (match := _REFERENCE.fullmatch(value)):
        yield match[1]
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _references(inner)


def _resolved(value: Any, created: Mapping[str, str]) -> Any:
    """A value with references replaced by ids."""
    if isinstance(value, str) and (match := _REFERENCE.fullmatch(value)):
        return created[match[1]]
    if isinstance(value, dict):
        return {name: _resolved(inner, created) for name, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, created) for inner in value]
    return value


def _params(operation: Operation, created: Mapping[str, str]) -> dict[str, Any]:
    """The params of the method. Of the resource only `meta` is requested: its location and version."""
    params: dict[str, Any] = {}
    if operation.target_id is not None:
        params["id"] = _resolved(operation.target_id, created)
    if operation.version is not None and operation.verb != "POST":
        params["version"] = operation.version
    if operation.verb == "DELETE":
        return params
    data = _resolved(operation.data, created)
    if operation.verb == "PATCH":
        # In the RFC's example (section 3.7.3) `data` is the list of operations, without the PatchOp message.
        params["operations"] = data if isinstance(data, list) else _members(data, "data").get("operations")
    else:
        _members(data, "data")  # must be an object
        params[operation.kind.lower()] = data
    return params | {"attributes": ["meta"]}


class _Bulk:
    """A bulk request that is being run."""

    def __init__(self, request: web.Request, caller: Principal, instance: Mapping[str, Any]) -> None:
        self.request, self.caller, self.instance = request, caller, instance
        address = request.path.rstrip("/").removesuffix("/Bulk")
        self.base = request.app[SETTINGS].own_address() + address
        # The bulkIds of all resources to create; of those created, with their ids; of those that failed.
        self.creations: set[str] = set()
        self.created: dict[str, str] = {}
        self.failed: set[str] = set()
        self.results: dict[int, dict[str, Any]] = {}
        # The error that stopped the request: the remaining operations get it too.
        self.stopped_by: ServiceError | None = None
        self.errors = 0
        self.started = 0

    async def run(self, given: list[Any], max_errors: int | None) -> list[dict[str, Any]]:
        """The results, in the order of the request. After the last permitted error no operation is run."""
        waiting = {index: self._parse(index, one) for index, one in enumerate(given)}
        while waiting and (max_errors is None or self.errors < max_errors):
            ready = (index for index, operation in waiting.items() if self._is_ready(operation))
            index = next(ready, next(iter(waiting)))
            operation = waiting.pop(index)
            refusal = operation if isinstance(operation, ServiceError) else self._refusal(operation)
            if refusal is not None:
                self._fail(index, given[index], refusal)
            elif isinstance(operation, Operation):
                await self._run_operation(operation, given[index])
        return [self.results[index] for index in sorted(self.results)]

    def _parse(self, index: int, sent: object) -> Operation | ServiceError:
        """The operation, or its error if it is not valid."""
        try:
            operation = _operation(index, sent)
            if operation.verb == "POST":
                if operation.bulk_id in self.creations:
                    raise _refused("bulkId", "is given twice")
                self.creations.add(str(operation.bulk_id))
        except ServiceError as error:
            return error
        return operation

    def _is_ready(self, operation: Operation | ServiceError) -> bool:
        """Whether each resource that it refers to was created, or failed."""
        if isinstance(operation, ServiceError):
            return True
        return operation.references & self.creations <= self.created.keys() | self.failed

    def _refusal(self, operation: Operation) -> ServiceError | None:
        """The error of an operation that cannot be run; None: it can."""
        if self.stopped_by is not None:
            return self.stopped_by
        if operation.references - self.creations:
            return _refused("bulkId", "is not the bulkId of another operation")
        if operation.references and is_dry_run(self.request):
            return _refused("bulkId", "cannot be resolved in a dry run, which creates nothing")
        if operation.references & self.failed:
            return Conflict("an operation that this one refers to was refused")
        if operation.references - self.created.keys():
            return Conflict("the references between operations are circular")
        return None

    async def _run_operation(self, operation: Operation, given: Any) -> None:
        try:
            if self.started:  # the first was counted as the request
                count(self.request, self.caller)
            self.started += 1
            method = f"{VERBS[operation.verb]}Scim{operation.kind}"
            params = _params(operation, self.created) | dict(self.instance)
            result = await run(self.request, self.caller, method, params, index=operation.index)
        except ServiceError as error:
            if isinstance(error, (TooMany, Unavailable)):
                self.stopped_by = error
            self._fail(operation.index, given, error)
            return
        except Exception as bug:
            request_id = self.request[REQUEST_ID]
            log.error("bug", request_id=request_id, traceback=safe_traceback(bug))
            self._fail(operation.index, given, ServiceError())
            return
        shown = {"method": operation.verb, "bulkId": operation.bulk_id}
        if operation.verb == "DELETE":
            shown |= {"location": f"{self.base}/{operation.kind}s/{params['id']}", "status": "204"}
        else:
            status = "201" if operation.verb == "POST" else "200"
            shown |= {name: result["meta"][name] for name in ("version", "location")} | {"status": status}
        if operation.verb == "POST" and operation.bulk_id is not None:
            self.created[operation.bulk_id] = result["id"]
        self._add_result(operation.index, shown)

    def _fail(self, index: int, given: Any, error: ServiceError) -> None:
        """Record an error; `given` is the operation as sent, valid or not."""
        self.errors += 1
        members = {name.lower(): value for name, value in given.items()} if isinstance(given, dict) else {}
        verb, bulk_id, path = (members.get(name) for name in ("method", "bulkid", "path"))
        verb = verb.upper() if isinstance(verb, str) and verb.upper() in VERBS else None
        if verb == "POST" and isinstance(bulk_id, str) and bulk_id not in self.created:
            self.failed.add(bulk_id)
        if isinstance(error, Forbidden) and error.scope is not None:
            self.request[CALLS].scopes.add(error.scope)
        status = status_of(type(error), STATUSES)
        location = f"{self.base}/{path.strip('/')}" if verb != "POST" and isinstance(path, str) else None
        shown = {
            "method": verb,
            "bulkId": bulk_id if isinstance(bulk_id, str) else None,
            "location": location,
            "status": str(status),
            "response": error_body(error, status),
        }
        self._add_result(index, shown)

    def _add_result(self, index: int, shown: Mapping[str, Any]) -> None:
        self.results[index] = {name: value for name, value in shown.items() if value is not None}


def _envelope(parsed: object, max_operations: int) -> tuple[list[Any], int | None]:
    """The operations, and failOnErrors: the number of errors that ends the request; None: no limit.

    Raises:
        TooLarge: there are too many operations.
        Invalid, Malformed: it is not a BulkRequest.
    """
    members = _members(parsed, "the body")
    schemas, operations = members.get("schemas"), members.get("operations")
    if not has_schema(schemas, BULK_REQUEST):
        raise _refused("schemas", f"must be a list with {BULK_REQUEST}")
    if not isinstance(operations, list):
        raise _refused("Operations", "must be a list")
    if len(operations) > max_operations:
        raise TooLarge(f"a bulk request has at most {max_operations} operations (maxOperations)")
    errors = members.get("failonerrors")
    if errors is not None and (type(errors) is not int or errors < 0):
        raise _refused("failOnErrors", "must be an integer, 0 or more")
    return operations, errors or None


async def handle(request: web.Request) -> web.Response:
    """Run a bulk request; see the module's docstring."""
    caller = await authenticate(request, *KEY_HEADERS)
    count(request, caller)
    require_json(request)
    parsed = await parse_long_json(await read_body(request, with_picture=False, share=caller.share))
    operations, max_errors = _envelope(parsed, request.app[SETTINGS].scim_bulk_operations)
    instance = {name: value for name, value in request.match_info.items() if name == "instance"}
    results = await _Bulk(request, caller, instance).run(operations, max_errors)
    body = {"schemas": [BULK_RESPONSE], "Operations": results}
    return answer(200, orjson.dumps(body), {"Content-Type": MEDIA_TYPE})


# --- the route ------------------------------------------------------------------------------------------

# Without a type: an invalid operation gets an error in its own result.
_OPERATION: Schema = {
    "description": "An object: method (POST, PUT, PATCH or DELETE), path, bulkId for POST, version, data."
}
_EXAMPLE = {
    "method": "PATCH",
    "path": "/Users/2",
    "data": {"schemas": [PATCH], "Operations": [{"op": "replace", "path": "active", "value": False}]},
}


def _described(schema: Schema) -> Format:
    return Format(schema=lambda _: schema)


def route(prefix: str, parts: Mapping[str, tuple[Member, ...]]) -> Route:
    """The route of Bulk below a prefix with these path parameters."""
    schemas: Schema = {
        "type": "array", "items": {"type": "string"}, "contains": {"const": BULK_REQUEST},
        "examples": [[BULK_REQUEST]],
    }  # fmt: skip
    operations: Schema = {"type": "array", "items": _OPERATION, "examples": [[_EXAMPLE]]}
    return Route(
        "POST", f"{prefix}/Bulk", "patchScimUser", BulkResponse, parts=parts, handle=handle,
        body={
            "schemas": Member(None, _described(schemas), needed=lambda given: True),
            "failOnErrors": Member(None, _described({"type": "integer", "minimum": 0})),
            "Operations": Member(None, _described(operations), needed=lambda given: True),
        },
        also=tuple(
            f"{verb}Scim{kind}" for kind in ("User", "Group") for verb in VERBS.values()
            if (verb, kind) != ("patch", "User")
        ),
    )  # fmt: skip
