"""The registry as an OpenRPC document (https://spec.open-rpc.org)."""

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any

import orjson
from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from server.base.error_codes import ERROR_CODES
from server.base.errors import kind_of
from server.base.models import JsonSchema, positions
from server.methods.registry import DRY_RUN, Method

VERSION = "1.2.6"
"""Version of the specification: the newest that published generators of clients accept; also valid as 1.4."""

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
"""Error code -> JSON-RPC 2.0 code; those above -32100 are this server's own."""


@cache
def rpc_number(code: str) -> int:
    """The JSON-RPC 2.0 code of an error code: its own, or that of the nearest base class of its kind."""
    codes = (code, *(getattr(kind, "code", "") for kind in kind_of(code).__mro__))
    return next(RPC_CODES[code] for code in codes if code in RPC_CODES)


def _error(code: str) -> dict[str, Any]:
    """The Error Object of a method; components/errors has more."""
    return {"code": rpc_number(code), "message": ERROR_CODES[code].meaning, "data": {"code": code}}


def _whole_error(code: str) -> dict[str, Any]:
    """The Error Object in components/errors."""
    entry = ERROR_CODES[code]
    data = {"code": code, "retryable": entry.retryable, "remedy": entry.remedy, "httpStatus": entry.status}
    return _error(code) | {"data": data}


_DRY_RUN = {
    "name": DRY_RUN,
    "required": False,
    "schema": {"type": "boolean", "default": False},
    "description": "Only as a named parameter. True: check everything, answer as usual and write nothing.",
}
_OF_ARRAYS = frozenset({
    "at", "concat", "entries", "every", "fill", "filter", "find", "flat", "includes", "join", "keys",
    "length", "map", "pop", "push", "reduce", "reverse", "shift", "slice", "some", "sort", "splice",
    "unshift", "values", "with",
})  # fmt: skip
"""Members of every JavaScript array.

If a method takes params by name and by position, clients of @open-rpc/generator look up an omitted param by
its name in their array of params. For these names they would find a function.
"""
_TEMPLATE = "#/components/schemas/{model}"
_DISCOVERY = "rpc."
"""Prefix of the protocol's own methods, which the document leaves out."""


@lru_cache(maxsize=1)
def document(methods: tuple[Method, ...], address: str | None = None) -> dict[str, Any]:
    """Make the OpenRPC document of a registry. It is slow, and done once.

    Params go by name or by position; extensions of the OneOffice document have the tag `extension`.

    Args:
        methods: the registry's.
        address: URL of the server without a slash at the end; None: the document has no servers.
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
            "description": "Provision, change, suspend and look up users of office suites. "
            "The API key goes into the header x-api-key. "
            "Calls that write take an idempotency key: the HTTP header Idempotency-Key, or the member "
            "idempotencyKey next to method. Sent again with its key within 24 hours, a call does nothing and "
            "gets the first answer. "
            "Every method takes its params by name or by position, whatever its paramStructure is. "
            "Null for an optional param whose schema has no null omits it. In a list of params, in the order "
            "of the document, any null of an optional param omits it. "
            "components/errors has every error code, including those of requests that are refused before "
            "their method is known. Several error codes can share a number; data.code is unique.",
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
    """The document as JSON."""
    return orjson.dumps(document(methods, address))


def _referred_to(described: Any, schemas: Mapping[str, Any]) -> dict[str, Any]:
    """The schemas that a description refers to, directly or through others."""
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
    """The params of an example in the method's order, as some tools send them as a list; null: omitted."""
    count = max((names.index(name) + 1 for name in given), default=0)
    return [{"name": name, "value": given.get(name)} for name in names[:count]]
