"""The member platform's wire, described for the OpenAPI document."""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any, Literal, NamedTuple

from pydantic import Field

from server.base.errors import (
    NoRoute,
    WrongVerb,
)  # fmt: skip
from server.base.models import Result
from server.rpc.openapi import Answer, Operation, Parameter, Wire, operation_id, refusals
from server.rpc.schemas import Schema, Schemas, json_object, nullable, one_of, written
from server.wires.online_office import (
    ERROR_CODES,
    GATEWAYS,
    LOCALES,
    PREFIXES,
    ROUTES,
    STATUSES,
    Route,
    _as_list,
    _auth,
    _created,
    _document,
    _existence,
    _needs_type,
    _nothing,
)


class FieldAlias(Result):
    """Which field of a profile."""

    alias: str


class ProfileEntry(Result):
    """A field of a profile and what stands in it."""

    field: FieldAlias
    value: str | int | float


class AuthAccount(Result):
    """The account of a user."""

    id: int
    title: str


class AuthUser(Result):
    """The user of an auth record."""

    id: int
    profile: list[ProfileEntry]
    account: AuthAccount | None


class Auth(Result):
    """A member."""

    id: int
    login: str
    type: Literal["member"]
    language: str
    isActive: bool
    isConfirmed: bool
    user: AuthUser


class AuthPayload(Result):
    """A member."""

    auth: Auth


class CreatedPayload(AuthPayload):
    """A new member whose password was made for it."""

    password: str


class FoundPayload(AuthPayload):
    """There is such a member."""

    exist: Literal[True]


class NotFoundPayload(Result):
    """There is none."""

    exist: Literal[False]


class NoPayload(Result):
    """Nothing to say."""


class DocumentContext(Result):
    """What was asked of the queue."""

    entity: str
    action: str


class DocumentBody(Result):
    """What was asked of the queue, and what came of it."""

    id: str
    context: DocumentContext
    result: Any = Field(description="Empty until it is done, then an envelope.")


class DocumentPayload(Result):
    """A document."""

    document: DocumentBody


# What renders a payload -> the type of the payload. _as_is and _as_list show the method's result.
PAYLOADS: dict[Callable[[Any], Mapping[str, Any]], Any] = {
    _auth: AuthPayload,
    _created: CreatedPayload | AuthPayload,
    _existence: FoundPayload | NotFoundPayload,
    _document: DocumentPayload,
    _nothing: NoPayload,
}
_LOCALE: Schema = one_of(*sorted(LOCALES.values()))
_FLAG: Schema = one_of(0, 1, False, True)
_NOTHING: Schema = {"type": "array", "items": {}, "maxItems": 0}
_FAILURE: Schema = {
    "type": "object",
    "properties": {
        "errorCode": one_of(*sorted(set(ERROR_CODES.values()))),
        "errorMessage": {"type": "string", "minLength": 1},
        "primary": {
            "type": "object",
            "properties": {
                "success": one_of(False),
                "message": {"type": "string", "minLength": 1},
                "payload": {"type": "object", "maxProperties": 0},
                "errors": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
                        "required": ["field", "message"],
                        "additionalProperties": False,
                    },
                },
            },
            "required": ["success", "message", "payload", "errors"],
            "additionalProperties": False,
        },
        "secondary": _NOTHING,
        "locale": _LOCALE,
    },
    "required": ["errorCode", "errorMessage", "primary", "secondary", "locale"],
    "additionalProperties": False,
}


def _succeeded(payload: Schema) -> Schema:
    """The envelope around a payload."""
    empty = one_of("")
    primary = {"success": one_of(True), "message": empty, "payload": payload, "errors": _NOTHING}
    members = {
        "errorCode": one_of(0), "errorMessage": empty, "primary": json_object(primary, primary),
        "secondary": _NOTHING, "locale": _LOCALE,
    }  # fmt: skip
    return json_object(members, members)


class Form(NamedTuple):
    """One way to ask for a function: the object that is sent, and examples of it."""

    schema: Schema
    examples: dict[str, dict[str, Any]]


def _forms(route: Route, schemas: Schemas, typed_by_gateway: bool) -> Iterator[Form]:
    """One for each method that serves the function, and for each way to name its params."""
    kinds: list[tuple[str, dict[str, Schema]]] = [(route.method, {})]
    other = route.other
    if other is not None:
        kinds.append((other.method, {other.member: one_of(1, True)} if other.is_flag else {}))
    for method, asked in kinds:
        known, needed = schemas.members(method), schemas.required(method)
        ways: dict[str, list[str]] = {}
        for name, target in route.names.items():
            if target in known:
                ways.setdefault(target, []).append(name)
        for names in product(*ways.values()):
            by_name = dict(zip(names, ways, strict=True))
            members = {name: known[target] for name, target in by_name.items()}
            members |= dict.fromkeys(route.flags & members.keys(), nullable(_FLAG)) | asked
            required = [name for name, target in by_name.items() if target in needed] + list(asked)
            if other is not None and other.is_flag and not asked:
                members[other.member] = one_of(0, False, None)
            if route.typed:
                members["type"] = one_of("member")
                if route.typed_with is not None:
                    members["type"] = {"anyOf": [one_of("member"), {"type": "integer"}]}
                if _needs_type(route, members, typed_by_gateway):
                    required.append("type")
                else:
                    members["type"] = nullable(members["type"])
            always = dict.fromkeys(asked, 1) | ({"type": "member"} if "type" in required else {})
            examples = {
                example.name: always
                | {
                    name: int(value) if name in route.flags else value
                    for name, target in by_name.items()
                    if (value := example.params.get(target)) is not None
                }
                for example in schemas.methods[method].examples
            }
            yield Form(json_object(members, required), examples)


def _operation(
    route: Route, verb: str, gateway: str, schemas: Schemas, refused: Mapping[int, Answer]
) -> Operation:
    forms = list(_forms(route, schemas, typed_by_gateway=gateway == "online-office"))
    parameters = [Parameter("Locale", "header", _LANGUAGE)]
    sent: Schema | None = None
    examples: dict[str, Any] = {}
    if verb == "GET":
        (form,) = forms
        for name, schema in form.schema["properties"].items():
            values = {title: given[name] for title, given in form.examples.items() if name in given}
            needed = name in form.schema["required"]
            parameters.append(Parameter(name, "query", written(schema), needed, values))
    else:
        sent = forms[0].schema if len(forms) == 1 else {"anyOf": [form.schema for form in forms]}
        for form in forms:
            examples |= form.examples
    payload = schemas.result(PAYLOADS.get(route.payload, schemas.methods[route.method].result))
    if route.payload is _as_list:
        payload = json_object({"list": payload}, ["list"])
    told = {"anyOf": [_succeeded(payload), refused[200].schema]}
    done = Answer(f"Done; or, with a non-zero errorCode: {refused[200].description}", told)
    return Operation(
        verb, f"/{gateway}/{route.path}", (route.method, *([route.other.method] if route.other else [])),
        {**refused, 200: done}, tuple(parameters), sent, examples,
        servers=tuple(prefix or "/" for prefix in PREFIXES), links={200: _links(route, gateway)},
    )  # fmt: skip


def _links(route: Route, gateway: str) -> dict[str, dict[str, str]]:
    if route.path not in LINKS:
        return {}
    target, parameter, place = LINKS[route.path]
    operation = operation_id("GET", f"/{gateway}/{target}")
    return {operation: {f"query.{parameter}": f"$response.body#/primary/payload/{place}"}}


# Where the id of what a function made can be used: the function, its parameter, where the id stands.
LINKS = {
    "user/create": ("user/get", "id", "auth/id"),
    "user/profile-update": ("document/get", "id", "documentId"),
}
_LANGUAGE: Schema = {
    "type": "string",
    "description": "The language of messages: en_US, ru_RU; English for any other.",
    "examples": sorted(LOCALES.values()),
}


def describe(schemas: Schemas) -> Wire:
    """The wire for the OpenAPI document."""
    failure = schemas.component("Failure", _FAILURE)
    statuses = {
        kind: 404 if kind is NoRoute else STATUSES.get(code, code)
        for kind, code in ERROR_CODES.items()
        if kind not in (NoRoute, WrongVerb)
    }
    served = [name for route in ROUTES for name in (route.method, *(route.other or ())[:1])]
    refused = refusals(statuses, lambda _: failure, schemas.error_codes(served))
    operations = tuple(
        _operation(route, verb, gateway, schemas, refused)
        for gateway in GATEWAYS
        for route in ROUTES
        for verb in route.verbs
    )
    about = "The member platform: envelopes with an errorCode, also beneath /api2."
    return Wire("online_office", about, ("x-api-key", "Token"), operations)
