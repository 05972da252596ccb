"""The operations of a SCIM PATCH (RFC 7644, 3.5.2), made alike whoever sends them, and applied to a user.

scim2-models has the grammar of paths and applies operations. Those on attributes that hold one text, number
or boolean, which are most, are applied here: for `active` alone the library takes longer than the whole call.
"""

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError
from scim2_models import BaseModel, Context, Mutability, PatchOp, Path, Required, SCIMException
from scim2_models import Resource as ScimResource

from server.base.errors import Invalid
from server.base.models import field_errors
from server.directory.scim.errors import BY_SCIM_TYPE, bad_path, bad_value, no_target, not_writable
from server.directory.scim.models import POLICY, Group, User

MOST_OPERATIONS = 500
"""Of a PATCH: each is validated with its whole attribute, which keeps the event loop busy."""
MOST_MEMBERS = 200
"""Attributes of a resource, and values of one attribute of a user."""
_MOST_VALUES = 2_000
"""Values that the operations of a PATCH look at, all together. Each takes the library some 0.2 ms."""
_PATCH_SCHEMA = "urn:ietf:params:scim:api:messages:2.0:PatchOp"


@dataclass(frozen=True, slots=True)
class Target:
    """What a path leads to."""

    # As it came.
    path: str
    # The URN of the extension that the attribute belongs to; None: the core schema.
    extension: str | None
    # As the schema spells it; empty for the whole extension.
    attribute: str
    sub_attribute: str | None
    is_read_only: bool
    is_required: bool
    is_multivalued: bool
    # The type of a single value: str, bool or int; None for what is no such thing, or is one of several.
    type: type | None
    # Whether its path selects some of several values.
    has_filter: bool

    @property
    def key(self) -> str:
        """The member of the resource that an operation on it changes."""
        return self.extension or self.attribute


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation with its path."""

    op: Literal["add", "replace", "remove"]
    target: Target
    value: Any = None

    @property
    def is_simple(self) -> bool:
        """Whether it is on an attribute, or a part of one, that holds one text, number or boolean."""
        return self.target.type is not None and self.target.key != "schemas"


def find_target(model: type[ScimResource[Any]], path: str) -> Target | None:
    """What a path leads to; None where the schemas do not know it.

    Raises:
        Invalid: it is no path (invalid_path).
    """
    if len(path) > 200 or "[" in path:  # it is one of any number
        return _find_target(model, path)
    return _find_known_target(model, path)


def _find_target(model: type[ScimResource[Any]], path: str) -> Target | None:
    try:
        parsed = Path[model](path)  # type: ignore[valid-type]
        designated = parsed.model
        if designated is not None:
            if designated is model:
                return None
            urn = str(designated.__schema__)  # type: ignore[attr-defined]
            return Target(path, urn, "", None, False, False, False, None, False)
        binding = parsed.resolve()
        selects = parsed.value_filter is not None
    except SCIMException as error:
        raise translated(error, "path") from error
    if binding is None:
        return None
    schema = str(binding.model.__schema__)  # type: ignore[attr-defined]
    attribute, _, sub_attribute = binding.urn.removeprefix(f"{schema}:").partition(".")
    mutability = binding.model.get_field_annotation(binding.field_name, Mutability)
    is_read_only = Mutability.read_only in (mutability, binding.get_annotation(Mutability))
    one = None
    if not binding.is_multivalued and not selects:
        one = next((kind for kind in (bool, int, str) if _is_kind(binding.target_type, kind)), None)
    required = binding.model.get_field_annotation(binding.field_name, Required) == Required.true
    return Target(
        path, schema if binding.model is not model else None, attribute, sub_attribute or None,
        is_read_only, required and not sub_attribute, binding.is_multivalued, one, selects,
    )  # fmt: skip


_find_known_target = functools.lru_cache(1024)(_find_target)


def _is_kind(found: Any, kind: type) -> bool:
    return isinstance(found, type) and issubclass(found, kind)


# --- what is sent ------------------------------------------------------------------------------------------


def read_operations(model: type[ScimResource[Any]], given: Sequence[Mapping[str, Any]]) -> list[Operation]:
    """The operations of a PATCH, each with a path.

    What real clients send beside the RFC is accepted here and in POLICY:
    - `op` in any case (Entra ID: Replace);
    - no path, and a value whose members are names or whole paths, with filters too (Okta; Entra ID for groups
      and for several attributes); read-only ones are passed over, as in a PUT (Okta sends the id);
    - members of such a value that no schema knows are passed over (Entra ID, custom attributes);
    - an empty text takes the value away (Entra ID, attributes that were emptied);
    - a single value as a list of one, or as an object with `value` alone (Entra ID before its flag
      aadOptscim062020), and values of several as bare texts (Entra ID: roles).
    Booleans as texts, `manager` as a bare text and a `remove` with the values to remove are the models' and
    POLICY's part.

    Raises:
        Invalid: invalid_path for a path that leads nowhere, no_target for a remove without one, mutability
            for one to what can only be read, invalid_value.
    """
    operations: list[Operation] = []
    for one in given:
        operations += _read(model, one)
        if len(operations) > MOST_OPERATIONS:
            raise bad_value("operations", f"at most {MOST_OPERATIONS} operations and members of their values")
    return operations


def _read(model: type[ScimResource[Any]], given: Mapping[str, Any]) -> Iterator[Operation]:
    members = {name.lower(): value for name, value in given.items()}
    op = members.get("op")
    op = op.lower() if isinstance(op, str) else op
    if op not in ("add", "replace", "remove"):
        raise bad_value("op", "must be add, replace or remove")
    path = members.get("path")
    if path is not None and not isinstance(path, str):
        raise bad_path("must be a string")
    if (op == "add" and members.get("value") is None) or (op == "replace" and "value" not in members):
        raise bad_value("value", f"is required for {op}")
    value = members.get("value")
    if not path:
        if op == "remove":
            raise no_target("path", "is required for remove")
        yield from _of_members(model, op, value, "")
        return
    target = find_target(model, path)
    if target is None:
        if path.lower() == str(model.__schema__).lower() and op != "remove":
            yield from _of_members(model, op, value, "")
            return
        raise bad_path("is no attribute of the schema")
    if target.is_read_only:
        raise not_writable("path", f"{path[:200]} can only be read")
    if not target.attribute and op != "remove":
        yield from _of_members(model, op, value, f"{target.extension}:")
        return
    yield _operation(model, op, target, value)


def _of_members(model: type[ScimResource[Any]], op: Any, value: Any, prefix: str) -> Iterator[Operation]:
    """An operation for each member of a value that has no path of its own."""
    if not isinstance(value, Mapping):
        raise bad_value("value", "must be an object where the path names no attribute")
    for name, item in value.items():
        target = None
        with contextlib.suppress(Invalid):  # no path
            target = find_target(model, prefix + name)
        if target is None or target.is_read_only:
            continue
        if not target.attribute:
            if item is None:
                yield Operation("remove", target)
            else:
                yield from _of_members(model, op, item, f"{target.extension}:")
        else:
            yield _operation(model, op, target, item)


def _operation(model: type[ScimResource[Any]], op: Any, target: Target, value: Any) -> Operation:
    if target.is_required and (op == "remove" or value in (None, "", [])):
        raise not_writable(target.path, "is required")
    if op == "remove":
        return Operation(op, target, value)
    if value is None or value == "":
        return Operation("remove", target)
    return Operation(op, target, _plain(model, target, value))


def _plain(model: type[ScimResource[Any]], target: Target, value: Any) -> Any:
    """The value in the form that the schema asks for."""
    if target.attribute == "schemas":
        return value
    if target.is_multivalued and not target.has_filter and target.sub_attribute is None:
        values = value if isinstance(value, list) else [value]
        return [{"value": one} if isinstance(one, str) else one for one in values]
    if not target.is_multivalued and isinstance(value, list) and len(value) == 1:
        value = value[0]
    if target.type is not None and isinstance(value, Mapping) and "value" in value:
        return value["value"]
    if isinstance(value, Mapping) and not target.is_multivalued:
        return {name: part for name, part in value.items() if not _is_read_only(model, target, name)}
    return value


def _is_read_only(model: type[ScimResource[Any]], target: Target, name: str) -> bool:
    """Whether a part of a value is passed over, as Entra ID and PUT send what they read."""
    part = None
    with contextlib.suppress(Invalid):  # no path
        part = find_target(model, f"{target.path}.{name}")
    return part is not None and part.is_read_only


def take_passwords(operations: Sequence[Operation]) -> tuple[list[Operation], str | None]:
    """The other operations, and the last password that one of them sets.

    Raises:
        Invalid: it is no text (invalid_value).
    """
    password, others = None, []
    for operation in operations:
        if operation.target.key != "password":
            others.append(operation)
        elif operation.op != "remove":
            if not isinstance(operation.value, str) or not operation.value:
                raise bad_value("password", "must be a string")
            password = operation.value
    return others, password


# --- what becomes of a user --------------------------------------------------------------------------------


def patched(user: Mapping[str, Any], operations: Sequence[Operation]) -> dict[str, Any]:
    """A user as it is after operations, one after the other.

    Args:
        user: a resource; its parts are left as they are.

    Raises:
        Invalid: see translated.
    """
    after = dict(user)
    looked_at = 0
    for operation in operations:
        if operation.is_simple:
            _set(after, operation)
            continue
        value = after.get(operation.target.key)
        looked_at += len(value) if isinstance(value, list) else 1
        if looked_at > _MOST_VALUES:
            raise bad_value("operations", "select among too many values: send fewer operations at a time")
        _patch(after, operation)
    return after


def _set(user: dict[str, Any], operation: Operation) -> None:
    """An operation on an attribute, or a part of one, that holds one text, number or boolean."""
    target = operation.target
    *way, last = (name for name in (target.extension, target.attribute, target.sub_attribute) if name)
    holder = user
    for name in way:
        holder[name] = holder = dict(holder.get(name) or {})
    value = None if operation.op == "remove" else single_value(target, operation.value)
    if value is None:
        holder.pop(last, None)
    else:
        holder[last] = value


def single_value(target: Target, value: Any) -> Any:
    """A value of the attribute's type; an empty text is none (RFC 7643, 2.5).

    Raises:
        Invalid: it is of another type (invalid_value).
    """
    if target.type is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, target.type or object) or (target.type is int and isinstance(value, bool)):
        kind = {bool: "true or false", int: "an integer"}.get(target.type or str, "a string")
        raise bad_value(target.path, f"must be {kind}")
    return None if value == "" else value


def _patch(user: dict[str, Any], operation: Operation) -> None:
    """Any other operation, on no more of the user than it changes."""
    target = operation.target
    part = {name: user[name] for name in ("schemas", "userName", target.key) if name in user}
    sent = {"op": operation.op, "path": target.path}
    if operation.value is not None:
        sent["value"] = operation.value
    try:
        resource = User.model_validate(part, scim_policy=POLICY)
        patch = PatchOp[User].model_validate(
            {"schemas": [_PATCH_SCHEMA], "Operations": [sent]},
            scim_ctx=Context.RESOURCE_PATCH_REQUEST, scim_policy=POLICY,
        )  # fmt: skip
        patch.patch(resource, scim_policy=POLICY)
    except (SCIMException, ValidationError) as error:
        raise translated(error, target.path) from error
    dumped = resource.model_dump()
    if target.key in dumped:
        user[target.key] = dumped[target.key]
    else:
        user.pop(target.key, None)


def validated(model: type[ScimResource[Any]], document: Mapping[str, Any]) -> dict[str, Any]:
    """A whole resource as it is sent, in the spelling of the schema; what can only be read is left out.

    Raises:
        Invalid: see translated.
    """
    require_schema(document, str(model.__schema__))
    if len(document) > MOST_MEMBERS:
        raise bad_value("params", f"at most {MOST_MEMBERS} attributes")
    if model is not Group:
        for name, value in document.items():
            if isinstance(value, list) and len(value) > MOST_MEMBERS:
                raise bad_value(name[:64], f"at most {MOST_MEMBERS} values")
    try:
        resource: BaseModel = model.model_validate(
            _lenient(model, document), scim_ctx=Context.RESOURCE_REPLACEMENT_REQUEST, scim_policy=POLICY
        )
    except (SCIMException, ValidationError) as error:
        raise translated(error, "params") from error
    return resource.model_dump(scim_ctx=Context.RESOURCE_REPLACEMENT_REQUEST)


def require_schema(document: Mapping[str, Any], urn: str) -> None:
    """Raises Invalid where `schemas` does not name the schema of a resource (RFC 7643, 3)."""
    if not has_schema(document, urn):
        raise bad_value("schemas", f"must hold {urn}")


def has_schema(document: Mapping[str, Any], urn: str) -> bool:
    """Whether `schemas` names a schema."""
    schemas = next((value for name, value in document.items() if name.lower() == "schemas"), None)
    return isinstance(schemas, list) and urn.lower() in (str(schema).lower() for schema in schemas)


def _lenient(model: type[ScimResource[Any]], document: Mapping[str, Any]) -> dict[str, Any]:
    """A whole resource with its values in the form of the schema, and without empty ones (see _filled)."""
    found = {}
    for name, value in document.items():
        target = None
        with contextlib.suppress(Invalid):  # no path
            target = find_target(model, name)
        plain = value if target is None or not target.attribute else _plain(model, target, value)
        if (filled := _filled(plain)) is not None:
            found[name] = filled
    return found


def _filled(value: Any) -> Any:
    """A value without null and empty parts, which are the same as none (RFC 7643, 2.5); None for none."""
    if isinstance(value, Mapping):
        parts = {name: _filled(part) for name, part in value.items()}
        return {name: part for name, part in parts.items() if part is not None} or None
    if isinstance(value, list):
        return [part for part in map(_filled, value) if part is not None] or None
    return None if value == "" else value


def translated(error: SCIMException | ValidationError, member: str) -> Invalid:
    """The library's error as one of ours, with one line for each bad attribute, never quoting what was sent.

    Args:
        member: what it is about, where the error does not say so itself.
    """
    if isinstance(error, ValidationError):
        told = [detail for detail in error.errors() if detail["type"].startswith("scim_")]
        if told:
            detail = told[0]
            where = ".".join(str(part) for part in detail["loc"] if part != "Operations") or member
            made = BY_SCIM_TYPE.get(detail.get("ctx", {}).get("scim_type", ""), bad_value)
            return made(where, _line(detail["msg"]))
        return Invalid.of(field_errors(error), code="invalid_value")
    if isinstance(error.__cause__, ValidationError):
        return Invalid.of(field_errors(error.__cause__), code="invalid_value")
    return BY_SCIM_TYPE.get(error.scim_type, bad_value)(member, _line(error.detail))


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text)[:300]
