"""The methods, one module a subject. Importing this package fills the registry, and that of the jobs."""

from server.methods import (
    accounts,
    avatars,
    codes,
    confirmation,
    discovery,
    instances,
    keys,
    members,
    office365,
    plans,
    profiles,
    search,
    sessions,
    store,
    users,
)

__all__ = [
    "accounts",
    "avatars",
    "codes",
    "confirmation",
    "discovery",
    "instances",
    "keys",
    "members",
    "office365",
    "plans",
    "profiles",
    "search",
    "sessions",
    "store",
    "users",
]
