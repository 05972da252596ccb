"""How a method is run and described: dispatch, idempotent calls, OpenRPC, OpenAPI."""
