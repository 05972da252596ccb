"""The method rpc.discover."""

import asyncio
from typing import Annotated, Any

import orjson
from pydantic import BeforeValidator

import server.methods  # noqa: F401  # registers all other methods
from server.base.models import Params
from server.methods.registry import Example, method
from server.rpc.openrpc import VERSION, rendered
from server.tenants.call import Call


def _parsed(value: Any) -> Any:
    return orjson.loads(orjson.dumps(value))  # the result is already JSON


class NoParams(Params):
    """No params."""


@method(
    "rpc.discover",
    result=Annotated[dict[str, Any], BeforeValidator(_parsed)],
    scope="docs:read",
    writes=False,
    examples=(Example("All of it", {}, {"openrpc": VERSION}),),
)
async def discover(call: Call, params: NoParams) -> Any:
    """Describe every method as an OpenRPC document."""
    methods = tuple(call.methods.values())
    return orjson.Fragment(await asyncio.to_thread(rendered, methods, call.settings.own_address()))
