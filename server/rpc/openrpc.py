"""The registry as an OpenRPC document (https://spec.open-rpc.org)."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import orjson
from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from server.base.error_codes import ERROR_CODES
from server.base.errors import ServiceError, kind_of
from server.base.models import JsonSchema, positions
from server.methods.registry import DRY_RUN, Method

VERSION = "1.2.6"
"""Of the specification: the newest that the published generators of clients take. It is a valid 1.4 too."""

RPC_CODES: dict[str, int] = {
    "malformed_json": -32700,
    "invalid_request": -32600,
    "unknown_method": -32601,
    "invalid_params": -32602,
    "internal": -32603,
    "unauthenticated": -32001,
    "forbidden": -32003,
    "not_found": -32004,
    "request_timeout": -32008,
    "conflict": -32009,
    "still_running": -32010,
    "too_large": -32013,
    "unsupported_media_type": -32015,
    "idempotency_conflict": -32022,
    "too_many_calls": -32029,
    "batch_full": -32030,
    "unavailable": -32053,
}
"""Kind of error -> JSON-RPC 2.0 code; those above -32100 are this server's own."""


def rpc_code(error: ServiceError | type[ServiceError]) -> int:
    """The JSON-RPC 2.0 code of an error, by its kind or the nearest kind above it."""
    kind = error if isinstance(error, type) else type(error)
    for ancestor in kind.__mro__:
        if (code := RPC_CODES.get(getattr(ancestor, "code", ""))) is not None:
            return code
    return RPC_CODES["internal"]


def rpc_number(code: str) -> int:
    """The JSON-RPC 2.0 code that goes with one of ERROR_CODES; those of one kind share a number."""
    return RPC_CODES.get(code) or rpc_code(kind_of(code))


def _error(code: str) -> dict[str, Any]:
    """An error code as an Error Object of a method; components/errors says more of it."""
    return {"code": rpc_number(code), "message": ERROR_CODES[code].meaning, "data": {"code": code}}


def _whole_error(code: str) -> dict[str, Any]:
    entry = ERROR_CODES[code]
    more = {"retryable": entry.retryable, "remedy": entry.remedy, "httpStatus": entry.status}
    return _error(code) | {"data": {"code": code} | more}


_DRY_RUN = {
    "name": DRY_RUN,
    "required": False,
    "schema": {"type": "boolean", "default": False},
    "description": "By name alone. True: check everything and answer as usual, and write nothing.",
}
_OF_ARRAYS = frozenset({
    "at", "concat", "entries", "every", "fill", "filter", "find", "flat", "includes", "join", "keys",
    "length", "map", "pop", "push", "reduce", "reverse", "shift", "slice", "some", "sort", "splice",
    "unshift", "values", "with",
})  # fmt: skip
"""What every array of JavaScript has.

Clients of @open-rpc/generator look a param that is left out up by its name in their list of params, where the
method may be called either way, and there they find a function.
"""
_TEMPLATE = "#/components/schemas/{model}"
_DISCOVERY = "rpc."
"""How the names of methods begin that belong to the protocol and describe themselves nowhere."""


@lru_cache(maxsize=1)
def document(methods: tuple[Method, ...], address: str | None = None) -> dict[str, Any]:
    """The OpenRPC document of a registry's methods. Takes a while, once.

    Params go by name or by position; extensions to the OneOffice document carry the tag `extension`.

    Args:
        methods: the registry's.
        address: where clients reach the server, without a slash at the end; None: it is not told.
    """
    methods = tuple(method for method in methods if not method.name.startswith(_DISCOVERY))
    _, definitions = models_json_schema(
        [(method.params, "validation") for method in methods],
        ref_template=_TEMPLATE,
        schema_generator=JsonSchema,
    )
    schemas = dict(definitions.get("$defs", {}))
    described = [_method(method, schemas) for method in methods]
    return {
        "openrpc": VERSION,
        "info": {
            "title": "officerpc",
            "version": version("officerpc"),
            "description": "Users of office suites: provision, change, suspend and look them up. "
            "The API key goes into the header x-api-key. "
            "A call that writes takes an Idempotency-Key: as an HTTP header, or as idempotencyKey beside "
            "method. Sent again with it within 24 hours, it is answered as the first time and does nothing. "
            "Every method takes its params by name or by position, whatever its paramStructure says. "
            "Null for an optional param whose schema has no null is the same as leaving it out; in a list of "
            "params, which has the order of the document, so is any null. "
            "components/errors has every error code, those that a request can be refused with before its "
            "method is known included; error codes of one kind share a number, data.code tells them apart.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        **({"servers": [{"name": "officerpc", "url": f"{address}/rpc"}]} if address else {}),
        "methods": described,
        "components": {
            "schemas": _referred_to(described, schemas),
            "errors": {code: _whole_error(code) for code in ERROR_CODES},
        },
    }


@lru_cache(maxsize=1)
def rendered(methods: tuple[Method, ...], address: str) -> bytes:
    """The same document as JSON."""
    return orjson.dumps(document(methods, address))


def _referred_to(described: Any, schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the schemas that a description refers to, directly or by another one."""
    found: dict[str, Any] = {}
    waiting = [described]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            name = str(part.get("$ref", "")).removeprefix(_TEMPLATE.format(model=""))
            if name in schemas and name not in found:
                found[name] = schemas[name]
                waiting.append(schemas[name])
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return found


def _method(method: Method, schemas: dict[str, Any]) -> dict[str, Any]:
    model = schemas[method.params.__name__]
    required, members = model.get("required", []), model.get("properties", {})
    result = TypeAdapter(method.result).json_schema(
        mode="serialization", ref_template=_TEMPLATE, schema_generator=JsonSchema
    )
    schemas.update(result.pop("$defs", {}))
    needs = [f"Needs the scope `{method.scope}`" + (" on an operator's key." if method.operator else ".")]
    needs += [f"`{member}` needs `{scope}`." for member, scope in method.member_scopes.items()]
    names = positions(method.params)
    return {
        "name": method.name,
        "summary": method.summary,
        "description": "\n\n".join(part for part in (method.description, " ".join(needs)) if part),
        "tags": [{"name": "extension" if method.extension else "oneoffice"}],
        "paramStructure": "by-position" if _OF_ARRAYS & set(names) else "either",
        "params": [
            {
                "name": name,
                "required": name in required,
                "schema": members[name],
                **({"description": text} if (text := members[name].get("description")) else {}),
            }
            for name in names
        ]
        + ([_DRY_RUN] if method.writes else []),
        "result": {"name": f"{method.name}Result", "schema": result},
        "errors": [_error(code) for code in method.errors],
        "examples": [
            {
                "name": example.name,
                "params": _by_position(example.params, names),
                "result": {"name": "result", "value": example.result},
            }
            for example in method.examples
        ],
        "x-scope": method.scope,
        "x-operator": method.operator,
    }


def _by_position(given: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """The params of an example as the first of the method's: there are tools that send them as a list.

    Null stands for what the example leaves out.
    """
    count = max((names.index(name) + 1 for name in given), default=0)
    return [{"name": name, "value": given.get(name)} for name in names[:count]]
