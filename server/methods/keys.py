"""API keys: shown once, stored as SHA-256, with scopes, expiry, networks, rotation and revocation."""

import contextlib
import ipaddress
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from server.base.errors import FieldError, Forbidden, Invalid, NotFound
from server.base.models import HIDDEN, Id, Params, Result, something_besides
from server.base.pages import Limit
from server.base.tokens import digest
from server.directory.users import ABSENT, DisplayName
from server.methods.instances import Name, forget_keys
from server.methods.registry import Example, method
from server.tenants import access
from server.tenants.call import Call
from server.tenants.keys import new_key
from server.tenants.principals import SCOPES


def _scope(scope: str) -> str:
    if scope not in SCOPES:
        raise ValueError(f"must be one of {', '.join(SCOPES)}")
    return scope


def _network(network: str) -> str:
    try:
        return str(ipaddress.ip_network(network))
    except ValueError as error:
        raise ValueError("is not a network such as 192.0.2.0/24") from error


ScopeName = Annotated[str, Field(max_length=40), AfterValidator(_scope)]
Scopes = Annotated[list[ScopeName], Field(min_length=1, max_length=50)]
Network = Annotated[str, Field(max_length=50), AfterValidator(_network)]
Seconds = Annotated[int, Field(ge=1, le=10 * 366 * 86400)]
Rate = Annotated[int, Field(ge=0, lt=2**31)]
RATE = "Calls a minute, on each worker; 0: any, null: the server's setting (OFFICERPC_KEY_RATE_LIMIT)."

_KEY = "orpc_0123456789abcdefghijklmnopqrstuvJ3lRbb"
_LISTED = {
    "id": 1, "name": "shop", "prefix": "orpc_012345", "scopes": list(SCOPES)[:2],
    "isOperator": False, "instances": ["MYINSTANCE"], "networks": [], "createdAt": 1683471262,
    "ratePerMinute": None, "expiresAt": None, "revokedAt": None,
}  # fmt: skip


class KeyParams(Params):
    """Params about the keys of an instance, or about all keys for an operator."""

    instance: str | int | None = Field(
        None, description="Left out: the key's default instance; for an operator's key, all keys."
    )


async def managed_instance(call: Call, params: KeyParams) -> int | None:
    """The id of the instance whose keys are managed; None: all keys, for an operator."""
    return await call.find_instance_or_all(params.instance)


class CreateApiKey(KeyParams):
    """A new key. It cannot have more rights than the caller's key."""

    name: DisplayName = Field(description="What it is for.")
    scopes: Scopes
    instances: Annotated[list[Name], Field(min_length=1, max_length=1000)] = Field(
        ABSENT, description="Several instances; the first is the default. Needs an operator's key."
    )
    isOperator: bool = Field(False, description="Holds all instances. Needs an operator's key.")
    expiresIn: Seconds | None = Field(None, description="Seconds until it expires; null: never.")
    networks: Annotated[list[Network], Field(max_length=100)] = Field(
        default_factory=list, description="Source networks it may be used from; empty: any."
    )
    ratePerMinute: Rate | None = Field(None, description=RATE)

    @model_validator(mode="after")
    def _one_owner(self) -> "CreateApiKey":
        if sum((self.isOperator, self.instances is not None, self.instance is not None)) > 1:
            raise ValueError("give one of instance, instances and isOperator")
        return self


class _Key(Result):
    """What every result about a key has."""

    id: int
    name: str
    scopes: list[str]
    isOperator: bool
    instances: list[str]
    networks: list[str]
    ratePerMinute: int | None = Field(description=RATE)
    createdAt: int = Field(description="Unix seconds.")
    expiresAt: int | None = Field(description="Unix seconds; null: never.")


class CreatedApiKey(_Key):
    """A new key. This is the only time that it is shown."""

    key: str


_CREATED = {name: _LISTED[name] for name in _Key.model_fields} | {"key": _KEY}


def _described(row: Mapping[str, Any]) -> dict[str, Any]:
    """Members of a key that come from columns of lock_key."""
    return {
        "name": row["name"], "scopes": row["scopes"], "isOperator": row["is_operator"],
        "instances": row["instances"], "networks": row["networks"], "ratePerMinute": row["rate_per_minute"],
    }  # fmt: skip


async def _insert_key(call: Call, held: Mapping[str, Any], lifetime: float | None) -> dict[str, Any]:
    """Create a key.

    Args:
        held: what it holds, as columns of lock_key.
        lifetime: seconds; None: no expiry. The expiry of the caller's key is a limit in any case.
    """
    key = new_key()
    created = await call.db.one(
        "create_key",
        digest=digest(key),
        prefix=key[:11],
        name=held["name"],
        scopes=held["scopes"],
        is_operator=held["is_operator"],
        instance_names=held["instances"],
        networks=held["networks"],
        rate_per_minute=held["rate_per_minute"],
        lifetime=lifetime,
        # The new key expires with this one at the latest.
        maker_id=None if call.caller.is_operator else call.caller.id,
    )
    assert created is not None
    times = {"createdAt": created["createdAt"], "expiresAt": created["expiresAt"]}
    return {"id": created["id"], "key": key} | _described(held) | times


async def held_instances(call: Call, params: CreateApiKey) -> list[str]:
    """The instances of a new key, the default first; none for an operator's key.

    Raises:
        Forbidden: the caller may not make such a key.
        Invalid: names the instance that does not exist.
    """
    access.require_scopes(call.caller, params.scopes)
    if params.isOperator or params.instances is not None:
        access.require_operator(call.caller)
    access.require_networks(call.caller, params.networks)
    if params.isOperator:
        return []
    if params.instances is None:
        call.instance = await call.find_instance(params.instance)
        return [call.instance.name]
    names = list(dict.fromkeys(params.instances))
    for place, name in enumerate(names):
        try:
            await call.find_instance(name)
        except Forbidden as error:
            raise Invalid.of([FieldError(f"instances.{place}", "there is no such instance")]) from error
    if len(names) == 1:  # the audit event belongs to it
        call.instance = await call.find_instance(names[0])
    return names


@method(
    "createApiKey",
    result=CreatedApiKey,
    scope="keys:write",
    writes=True,
    while_suspended=True,
    prepare=held_instances,
    errors=("scope_not_held", "network_not_held", "rate_not_held", "duplicate_key"),
    examples=(
        Example(
            "A key for a shop", {"name": "shop", "scopes": ["users:read", "users:write"]}, _CREATED
        ),
    ),
)  # fmt: skip
async def create_api_key(call: Call, params: CreateApiKey, instances: list[str]) -> Any:
    """Create a key for one instance, for several, or for an operator.

    Only this answer shows the key. Its scopes, lifetime, networks and calls a minute cannot exceed those of
    the caller's key.
    """
    held = {
        "name": params.name, "scopes": sorted(set(params.scopes)), "is_operator": params.isOperator,
        "instances": instances, "networks": params.networks or list(call.caller.networks),
        "rate_per_minute": access.permitted_rate(
            call.caller, call.settings.key_rate_limit, params.ratePerMinute
        ),
    }  # fmt: skip
    created = await _insert_key(call, held, params.expiresIn)
    call.audit_only(after=created | {"key": HIDDEN})
    return created


class ListApiKeys(KeyParams):
    """The page."""

    after: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="The last id of the page before.")
    limit: Limit = 100


class ApiKeyInfo(_Key):
    """A key without its secret."""

    prefix: str = Field(description="The first characters, for recognition.")
    revokedAt: int | None = Field(description="Unix seconds; null: not revoked.")


@method(
    "listApiKeys",
    result=list[ApiKeyInfo],
    scope="keys:read",
    writes=False,
    prepare=managed_instance,
    examples=(Example("The instance's keys", {"limit": 1}, [_LISTED]),),
)
async def list_api_keys(call: Call, params: ListApiKeys, instance_id: int | None) -> Any:
    """List keys without their secrets, revoked and expired keys included.

    Lists the keys that hold only this instance; all keys if an operator names no instance.
    """
    rows = await call.db.all("list_keys", instance_id=instance_id, after=params.after, row_limit=params.limit)
    return [dict(row) for row in rows]


class ApiKeyRef(KeyParams):
    """A key by its id."""

    id: Id


_NOT_HELD = ("scope_not_held", "network_not_held", "lifetime_not_held", "rate_not_held")
"""The codes of access.require_whole_key."""


class RotateApiKey(ApiKeyRef):
    """A key to replace."""

    overlap: Annotated[int, Field(ge=0, le=30 * 86400)] = Field(
        3600, description="Seconds for which the old key still works."
    )


async def managed_key(call: Call, params: ApiKeyRef) -> int | None:
    """managed_instance. If an operator names none, the key's only instance becomes that of the call."""
    instance_id = await managed_instance(call, params)
    if instance_id is None:
        only = await call.database.look_up("find_only_instance", key_id=params.id)
        if only is not None:
            with contextlib.suppress(Forbidden):  # deleted concurrently
                call.instance = await call.find_instance(only["name"])
    return instance_id


async def _locked_key(call: Call, key_id: int, instance_id: int | None) -> Any:
    """Lock a key that the caller may change.

    Raises:
        NotFound: the key does not exist, or the caller does not manage it.
        Forbidden: it has more rights than the caller's key.
    """
    row = await call.db.one("lock_key", key_id=key_id, instance_id=instance_id)
    if row is None:
        raise NotFound
    access.require_key(call.caller, row)
    await forget_keys(call)
    return row


@method(
    "rotateApiKey",
    result=CreatedApiKey,
    scope="keys:write",
    writes=True,
    while_suspended=True,
    prepare=managed_key,
    errors=(NotFound, *_NOT_HELD, "duplicate_key"),
    examples=(Example("With an hour's overlap", {"id": 1}, _CREATED | {"id": 2}),),
)
async def rotate_api_key(call: Call, params: RotateApiKey, instance_id: int | None) -> Any:
    """Replace a key with a new one with the same rights; the old key works until the overlap ends.

    The new key expires when the old one would have. A key that is not an operator's cannot rotate a key that
    has other scopes or networks, expires later, or may make more calls a minute.

    Idempotency keys belong to one API key, and the new key does not see those of the old key: finish retries
    with the old key before the overlap ends.
    """
    row = await _locked_key(call, params.id, instance_id)
    access.require_whole_key(call.caller, call.settings.key_rate_limit, row)
    created = await _insert_key(call, row, row["seconds_left"])
    # After the new key: if a key rotates itself, its new end would limit the new key.
    await call.db.run("expire_key", key_id=params.id, overlap=params.overlap)
    call.audit_only(
        before={"id": params.id} | _described(row),
        after=created | {"key": HIDDEN, "overlap": params.overlap},
    )
    return created


class UpdateApiKey(ApiKeyRef):
    """What to change of a key: at least one member besides its id."""

    name: DisplayName = ABSENT
    scopes: Scopes = Field(ABSENT, description="The complete list.")
    ratePerMinute: Rate | None = Field(None, description=RATE)

    _something = something_besides("instance", "id")


@method(
    "updateApiKey",
    result=Literal[True],
    scope="keys:write",
    writes=True,
    while_suspended=True,
    prepare=managed_key,
    errors=(NotFound, *_NOT_HELD),
    examples=(
        Example("At most ten calls a second", {"id": 1, "ratePerMinute": 600}, True),
        Example("Only reading users", {"id": 1, "scopes": ["users:read"]}, True),
    ),
)
async def update_api_key(call: Call, params: UpdateApiKey, instance_id: int | None) -> Any:
    """Change a key's name, scopes or calls a minute.

    Only an operator's key can raise the calls a minute. A key with a scope that the caller's key lacks cannot
    be changed. A scope can be added only by a key that has this scope and could rotate the changed key.
    """
    row = await _locked_key(call, params.id, instance_id)
    scopes = sorted(set(params.scopes or row["scopes"]))
    default_rate, rate = call.settings.key_rate_limit, row["rate_per_minute"]
    if not set(scopes) <= set(row["scopes"]):
        access.require_whole_key(call.caller, default_rate, dict(row) | {"scopes": scopes})
    if "ratePerMinute" in params.model_fields_set:
        rate = access.permitted_rate(call.caller, default_rate, params.ratePerMinute, rate)
    after: dict[str, Any] = {"name": params.name or row["name"], "ratePerMinute": rate}
    await call.db.run("change_key", key_id=params.id, name=after["name"], scopes=scopes, rate_per_minute=rate)
    if params.scopes is not None:
        after["scopes"] = scopes
    before = _described(row)
    call.audit_only(before={"id": params.id} | {name: before[name] for name in after}, after=after)
    return True


@method(
    "revokeApiKey",
    result=Literal[True],
    scope="keys:write",
    writes=True,
    while_suspended=True,
    prepare=managed_key,
    errors=(NotFound, "scope_not_held"),
    examples=(Example("Revoke", {"id": 1}, True),),
)
async def revoke_api_key(call: Call, params: ApiKeyRef, instance_id: int | None) -> Any:
    """Revoke a key; its next request is refused.

    A key with a scope that the caller's key lacks cannot be revoked.
    """
    row = await _locked_key(call, params.id, instance_id)
    await call.db.run("revoke_key", key_id=params.id)
    call.audit_only(before={"id": params.id} | _described(row))
    return True
