"""The description of the service, by the service."""

import asyncio
from typing import Any

from server.openrpc import VERSION, document
from server.registry import Call, Example, Params, method


class NoParams(Params):
    """Nothing."""


@method(
    "rpc.discover",
    result=dict[str, Any],
    scope="docs:read",
    writes=False,
    examples=(Example("All of it", {}, {"openrpc": VERSION}),),
)
async def discover(call: Call, params: NoParams) -> Any:
    """Describe every method as an OpenRPC document."""
    return await asyncio.to_thread(document, tuple(call.methods.values()), call.settings.own_address())
