"""The description of the service, by the service."""

import asyncio
from typing import Annotated, Any

import orjson
from pydantic import BeforeValidator

from server.openrpc import VERSION, rendered
from server.registry import Call, Example, Params, method


def _parsed(value: Any) -> Any:
    return orjson.loads(orjson.dumps(value))  # the result is JSON already


class NoParams(Params):
    """Nothing."""


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
