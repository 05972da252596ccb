"""The methods, one module a subject. Importing this package fills the registry."""

from server.methods import discovery, instances, keys, sessions, users

__all__ = ["discovery", "instances", "keys", "sessions", "users"]
