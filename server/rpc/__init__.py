"""Running and describing methods: dispatch, idempotent calls, OpenRPC."""
