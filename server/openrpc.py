"""The registry as an OpenRPC 1.4 document (https://spec.open-rpc.org)."""

from functools import lru_cache
from importlib.metadata import version
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from server.error_codes import ERROR_CODES
from server.errors import ServiceError, kind_of
from server.registry import DRY_RUN, Method, positions

RPC_CODES: dict[str, int] = {
    "malformed_json": -32700,
    "invalid_request": -32600,
    "unknown_method": -32601,
    "invalid_params": -32602,
    "internal": -32603,
    "unauthenticated": -32001,
    "forbidden": -32003,
    "not_found": -32004,
    "conflict": -32009,
    "still_running": -32010,
    "idempotency_conflict": -32022,
    "too_many_calls": -32029,
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


@lru_cache(maxsize=1)
def document(methods: tuple[Method, ...]) -> dict[str, Any]:
    """The OpenRPC document of a registry's methods. Takes a while, once.

    Params are described by name; extensions to the OneOffice document carry the tag `extension`.
    """
    template = "#/components/schemas/{model}"
    _, definitions = models_json_schema(
        [(method.params, "validation") for method in methods], ref_template=template
    )
    schemas = dict(definitions.get("$defs", {}))
    described = [_method(method, schemas, template) for method in methods]
    return {
        "openrpc": "1.4.1",
        "info": {
            "title": "officerpc",
            "version": version("officerpc"),
            "description": "Users of office suites: provision, change, suspend and look them up. "
            "A call that writes takes an Idempotency-Key: as an HTTP header, or as idempotencyKey beside "
            "method. Sent again with it within 24 hours, it is answered as the first time and does nothing.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "methods": described,
        "components": {"schemas": schemas, "errors": {code: _whole_error(code) for code in ERROR_CODES}},
    }


def _method(method: Method, schemas: dict[str, Any], template: str) -> dict[str, Any]:
    model = schemas[method.params.__name__]
    required = model.get("required", [])
    result = TypeAdapter(method.result).json_schema(mode="serialization", ref_template=template)
    schemas.update(result.pop("$defs", {}))
    needs = [f"Needs the scope `{method.scope}`" + (" on an operator's key." if method.operator else ".")]
    needs += [f"`{member}` needs `{scope}`." for member, scope in method.member_scopes.items()]
    return {
        "name": method.name,
        "summary": method.summary,
        "description": "\n\n".join(part for part in (method.description, " ".join(needs)) if part),
        "tags": [{"name": "extension" if method.extension else "oneoffice"}],
        "paramStructure": "either",
        "params": [
            {
                "name": name,
                "required": name in required,
                "schema": model["properties"][name],
                **({"description": text} if (text := model["properties"][name].get("description")) else {}),
            }
            for name in positions(method.params)
        ]
        + ([_DRY_RUN] if method.writes else []),
        "result": {"name": f"{method.name}Result", "schema": result},
        "errors": [_error(code) for code in method.errors],
        "examples": [
            {
                "name": example.name,
                "params": [{"name": name, "value": value} for name, value in example.params.items()],
                "result": {"name": "result", "value": example.result},
            }
            for example in method.examples
        ],
        "x-scope": method.scope,
    }
