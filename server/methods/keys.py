"""API keys: shown once, stored as SHA-256, with scopes, expiry, networks, rotation and revocation."""

import contextlib
import ipaddress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from server.base.errors import FieldError, Forbidden, Invalid, NotFound
from server.base.models import HIDDEN, Params, Result
from server.base.tokens import digest
from server.directory.users import ABSENT, DisplayName
from server.methods.instances import Name
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
    """Params about the keys of an instance or, for an operator who names none, about all keys."""

    instance: str | int | None = Field(
        None, description="Left out: the key's default instance; for an operator's key all keys."
    )


async def managed_instance(call: Call, params: KeyParams) -> int | None:
    """The id of the instance whose keys the caller may manage; None: all keys, for an operator."""
    return await call.find_instance_or_all(params.instance)


class CreateApiKey(KeyParams):
    """A new key. It can hold no more than the key that makes it."""

    name: DisplayName = Field(description="What it is for, so that it is known again in a list.")
    scopes: Annotated[list[ScopeName], Field(min_length=1, max_length=50)]
    instances: Annotated[list[Name], Field(min_length=1, max_length=1000)] = Field(
        ABSENT, description="Several instances, the first being the default. Needs an operator's key."
    )
    isOperator: bool = Field(False, description="Holds every instance. Needs an operator's key.")
    expiresIn: Seconds | None = Field(None, description="Seconds until it expires; null: never.")
    networks: Annotated[list[Network], Field(max_length=100)] = Field(
        default_factory=list, description="Where it may be used from; empty: anywhere."
    )
    ratePerMinute: Rate | None = Field(None, description=RATE)

    @model_validator(mode="after")
    def _belongs(self) -> "CreateApiKey":
        if sum((self.isOperator, self.instances is not None, self.instance is not None)) > 1:
            raise ValueError("give one of instance, instances and isOperator")
        return self


class CreatedApiKey(Result):
    """A new key; this is the only time that it is shown."""

    id: int
    key: str
    name: str
    scopes: list[str]
    isOperator: bool
    instances: list[str]
    networks: list[str]
    ratePerMinute: int | None = Field(description=RATE)
    createdAt: int = Field(description="Unix seconds.")
    expiresAt: int | None = Field(description="Unix seconds; null: never.")


async def _insert_key(call: Call, key: str, **values: Any) -> Any:
    row = await call.db.one(
        "create_key",
        name=values["name"],
        digest=digest(key),
        prefix=key[:11],
        scopes=values["scopes"],
        is_operator=values["is_operator"],
        instance_names=values["instances"],
        networks=values["networks"],
        lifetime=values["lifetime"],
        # Whose end is this one's at the latest.
        maker_id=None if call.caller.is_operator else call.caller.id,
        rate_per_minute=values["rate_per_minute"],
    )
    assert row is not None
    return {
        "id": row["id"], "key": key, "name": values["name"], "scopes": values["scopes"],
        "isOperator": values["is_operator"], "instances": values["instances"],
        "networks": values["networks"], "ratePerMinute": values["rate_per_minute"],
        "createdAt": row["createdAt"], "expiresAt": row["expiresAt"],
    }  # fmt: skip


_CREATED = {name: value for name, value in _LISTED.items() if name not in ("prefix", "revokedAt")} | {
    "key": _KEY
}


async def held_instances(call: Call, params: CreateApiKey) -> list[str]:
    """The instances that a new key is to hold, the default first; none for an operator's key.

    Raises:
        Forbidden: the caller may not make such a key.
        Invalid: naming the instance that does not exist.
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
    if len(names) == 1:  # whose audit tells of it
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
    """Make a key for an instance, for several, or for the operator.

    The key is in this answer and nowhere else. It can have no scope that the caller's key lacks, lives no
    longer, makes no more calls a minute, and works from no other networks.
    """
    rate = access.permitted_rate(call.caller, call.settings.key_rate_limit, params.ratePerMinute)
    created = await _insert_key(
        call, new_key(), name=params.name, scopes=sorted(set(params.scopes)), is_operator=params.isOperator,
        instances=instances, networks=params.networks or list(call.caller.networks),
        lifetime=params.expiresIn, rate_per_minute=rate,
    )  # fmt: skip
    call.audit_only(after=created | {"key": HIDDEN})
    return created


class ListApiKeys(KeyParams):
    """From where on."""

    after: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="The id of the last key of the page before."
    )
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class ApiKeyInfo(Result):
    """A key without its secret."""

    id: int
    name: str
    prefix: str = Field(description="The first characters, to know it by.")
    scopes: list[str]
    isOperator: bool
    instances: list[str]
    networks: list[str]
    ratePerMinute: int | None = Field(description=RATE)
    createdAt: int = Field(description="Unix seconds.")
    expiresAt: int | None = Field(description="Unix seconds; null: never.")
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
    """List keys, revoked and expired ones too, without their secrets.

    These are the keys that hold the instance and no other; an operator who names no instance sees all.
    """
    rows = await call.db.all(
        "list_keys",
        instance_id=instance_id,
        after=params.after,
        row_limit=params.limit,
    )
    return [dict(row) for row in rows]


class ApiKeyRef(KeyParams):
    """A key by its id."""

    id: Annotated[int, Field(ge=1, lt=2**63)]


class RotateApiKey(ApiKeyRef):
    """A key to replace."""

    overlap: Annotated[int, Field(ge=0, le=30 * 86400)] = Field(
        3600, description="Seconds for which the old key still works."
    )


async def managed_key(call: Call, params: ApiKeyRef) -> int | None:
    """managed_instance. The key's only instance is that of the call even where an operator names none."""
    instance_id = await managed_instance(call, params)
    if instance_id is None:
        only = await call.database.look_up("find_only_instance", key_id=params.id)
        if only is not None:
            with contextlib.suppress(Forbidden):  # deleted in between
                call.instance = await call.find_instance(only["name"])
    return instance_id


async def _locked_key(call: Call, key_id: int, instance_id: int | None) -> Any:
    """A key that the caller may change, held until the transaction ends.

    Raises:
        NotFound: there is none, or not among those that the caller manages.
        Forbidden: it is stronger than the caller's.
    """
    row = await call.db.one("lock_key", key_id=key_id, instance_id=instance_id)
    if row is None:
        raise NotFound
    access.require_key(call.caller, row)
    await call.db.run("announce_keys_changed")
    call.after_commit.append(call.keys.forget)
    return row


@method(
    "rotateApiKey",
    result=CreatedApiKey,
    scope="keys:write",
    writes=True,
    while_suspended=True,
    prepare=managed_key,
    errors=(
        NotFound,
        "scope_not_held",
        "network_not_held",
        "lifetime_not_held",
        "rate_not_held",
        "duplicate_key",
    ),
    examples=(Example("With an hour's overlap", {"id": 1}, _CREATED | {"id": 2}),),
)
async def rotate_api_key(call: Call, params: RotateApiKey, instance_id: int | None) -> Any:
    """Replace a key by a new one that holds the same; the old one works on for the overlap.

    The new key lives as long as the old one would have. Whoever rotates a key gets what it holds: a key other
    than an operator's rotates none that has a scope it lacks, works from other networks, lives longer, or may
    make more calls a minute.

    Idempotency keys belong to the API key that they came with: a call that was sent with the old key is a new
    one when it is sent again with the new key, so let retries end within the overlap.
    """
    row = await _locked_key(call, params.id, instance_id)
    access.require_whole_key(call.caller, call.settings.key_rate_limit, row)
    created = await _insert_key(
        call, new_key(), name=row["name"], scopes=row["scopes"], is_operator=row["is_operator"],
        instances=row["instances"], networks=row["networks"], lifetime=row["seconds_left"],
        rate_per_minute=row["rate_per_minute"],
    )  # fmt: skip
    # Only now: a key that rotates itself would pass its new end on.
    await call.db.run("expire_key", key_id=params.id, overlap=params.overlap)
    call.audit_only(before=_held(row), after=created | {"key": HIDDEN, "overlap": params.overlap})
    return created


def _held(row: Any) -> dict[str, Any]:
    return {
        "id": row["id"], "name": row["name"], "scopes": row["scopes"], "isOperator": row["is_operator"],
        "instances": row["instances"], "networks": row["networks"], "ratePerMinute": row["rate_per_minute"],
    }  # fmt: skip


class UpdateApiKey(ApiKeyRef):
    """What to change of a key; at least one member beside its id."""

    name: DisplayName = ABSENT
    scopes: Annotated[list[ScopeName], Field(min_length=1, max_length=50)] = Field(
        ABSENT, description="All scopes that it is to have."
    )
    ratePerMinute: Rate | None = Field(None, description=RATE)

    @model_validator(mode="after")
    def _something(self) -> "UpdateApiKey":
        if not self.model_fields_set - {"instance", "id"}:
            raise ValueError("name at least one member to change")
        return self


@method(
    "updateApiKey",
    result=Literal[True],
    scope="keys:write",
    writes=True,
    while_suspended=True,
    prepare=managed_key,
    errors=(NotFound, "scope_not_held", "network_not_held", "lifetime_not_held", "rate_not_held"),
    examples=(
        Example("At most ten calls a second", {"id": 1, "ratePerMinute": 600}, True),
        Example("For looking users up alone", {"id": 1, "scopes": ["users:read"]}, True),
    ),
)
async def update_api_key(call: Call, params: UpdateApiKey, instance_id: int | None) -> Any:
    """Change a key's name, its scopes, or how many calls a minute it may make.

    Only an operator's key can raise that again. A key that has a scope which the caller's key lacks cannot be
    changed. It is given another scope only by a key that has this scope, and could rotate it.
    """
    row = await _locked_key(call, params.id, instance_id)
    scopes = sorted(set(params.scopes or row["scopes"]))
    if not set(scopes) <= set(row["scopes"]):
        access.require_whole_key(call.caller, call.settings.key_rate_limit, dict(row) | {"scopes": scopes})
    given = [name for name in ("ratePerMinute",) if name in params.model_fields_set]
    default = call.settings.key_rate_limit
    rate = (
        access.permitted_rate(call.caller, default, params.ratePerMinute, row["rate_per_minute"])
        if given
        else None
    )
    await call.db.run(
        "change_key", key_id=params.id, name=params.name, scopes=scopes, given=given, rate_per_minute=rate
    )  # fmt: skip
    before, after = _held(row), {"name": params.name or row["name"]}
    if params.scopes is not None:
        after["scopes"] = scopes
    after["ratePerMinute"] = rate if given else row["rate_per_minute"]
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
    """End a key now; its next request is refused.

    A key that has a scope which the caller's key lacks cannot be ended.
    """
    row = await _locked_key(call, params.id, instance_id)
    await call.db.run("revoke_key", key_id=params.id)
    call.audit_only(before=_held(row))
    return True
