"""Reads the operations of a SCIM PATCH (RFC 7644, 3.5.2) into one form, whichever client sent them.

Also applies them to a user. scim2-models has the grammar of paths, and can apply operations. Most operations
set a single string, number or boolean; these are applied here, because for `active` alone the library takes
longer than the whole call.
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
from server.directory.scim.models import POLICY, USER_SCHEMA, User

MOST_OPERATIONS = 500
"""Operations of a PATCH. Each validates its whole attribute, which blocks the event loop."""
MOST_MEMBERS = 200
"""Attributes of a resource, and values of one attribute of a user."""
_MOST_VALUES = 2_000
"""Values that all operations of a PATCH may search together. Each takes the library about 0.2 ms."""
_PATCH_SCHEMA = "urn:ietf:params:scim:api:messages:2.0:PatchOp"


@dataclass(frozen=True, slots=True)
class Target:
    """The attribute that a path names."""

    # As sent.
    path: str
    # The URN of the attribute's extension; None: the core schema.
    extension: str | None
    # In the spelling of the schema; empty: the whole extension.
    attribute: str
    sub_attribute: str | None
    is_read_only: bool
    is_required: bool
    is_multivalued: bool
    # str, bool or int: the type of a single value; None: the attribute is complex or a list.
    type: type | None
    # Whether the path selects items of a list by a filter.
    has_filter: bool

    @property
    def key(self) -> str:
        """The member of the resource that contains the attribute."""
        return self.extension or self.attribute


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation with its path."""

    op: Literal["add", "replace", "remove"]
    target: Target
    value: Any = None

    @property
    def is_simple(self) -> bool:
        """Whether it changes a single string, number or boolean."""
        return self.target.type is not None and self.target.key != "schemas"


def find_target(model: type[ScimResource[Any]], path: str) -> Target | None:
    """The attribute that a path names; None: the schemas have no such attribute.

    Raises:
        Invalid: it is not a path (invalid_path).
    """
    if len(path) > 200 or "[" in path:  # not cached: such paths are unlimited in number
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
    single_type = None
    if not binding.is_multivalued and not selects:
        single_type = next((kind for kind in (bool, int, str) if _is_kind(binding.target_type, kind)), None)
    required = binding.model.get_field_annotation(binding.field_name, Required) == Required.true
    return Target(
        path, schema if binding.model is not model else None, attribute, sub_attribute or None,
        is_read_only, required and not sub_attribute, binding.is_multivalued, single_type, selects,
    )  # fmt: skip


_find_known_target = functools.lru_cache(1024)(_find_target)


def _find_or_none(model: type[ScimResource[Any]], path: str) -> Target | None:
    """As find_target; None also for a text that is not a path."""
    with contextlib.suppress(Invalid):
        return find_target(model, path)
    return None


def _is_kind(found: Any, kind: type) -> bool:
    return isinstance(found, type) and issubclass(found, kind)


# --- parsing -----------------------------------------------------------------------------------------------


def read_operations(model: type[ScimResource[Any]], given: Sequence[Mapping[str, Any]]) -> list[Operation]:
    """The operations of a PATCH, each with a path.

    Accepted beyond the RFC, because clients send it:
    - `op` in any case (Entra ID: Replace);
    - no path, and a value whose keys are names or whole paths, also with filters (Okta; Entra ID for groups
      and for several attributes). Read-only attributes in it are ignored, as in a PUT (Okta sends the id),
      and so are unknown ones (Entra ID: custom attributes);
    - an empty string, which removes the value (Entra ID: attributes that were cleared);
    - a single value as a list of one item, or as an object with `value` (Entra ID without its flag
      aadOptscim062020), and items of a list as strings (Entra ID: roles).
    The models and POLICY accept booleans as strings, `manager` as a string, and a `remove` with the values to
    remove.

    Raises:
        Invalid: invalid_path: a path names no attribute; no_target: a remove has no path; mutability: an
            attribute is read-only or required; invalid_value.
    """
    operations: list[Operation] = []
    for one in given:
        operations += _read_operation(model, one)
        if len(operations) > MOST_OPERATIONS:
            raise bad_value(
                "operations",
                f"at most {MOST_OPERATIONS} operations; each member of a value without a path counts as one",
            )
    return operations


def _read_operation(model: type[ScimResource[Any]], given: Mapping[str, Any]) -> Iterator[Operation]:
    members = {name.lower(): value for name, value in given.items()}
    op = members.get("op")
    op = op.lower() if isinstance(op, str) else op
    if op not in ("add", "replace", "remove"):
        raise bad_value("op", "must be add, replace or remove")
    path = members.get("path")
    if path is not None and not isinstance(path, str):
        raise bad_path("path", "must be a string")
    if (op == "add" and members.get("value") is None) or (op == "replace" and "value" not in members):
        raise bad_value("value", f"is required for {op}")
    value = members.get("value")
    if not path:
        if op == "remove":
            raise no_target("path", "is required for remove")
        yield from _without_path(model, op, value, "")
        return
    target = find_target(model, path)
    if target is None:
        if path.lower() == str(model.__schema__).lower() and op != "remove":
            yield from _without_path(model, op, value, "")
            return
        raise bad_path("path", "is not an attribute of the schema")
    if target.is_read_only:
        raise not_writable("path", f"{path[:200]} is read-only")
    if not target.attribute and op != "remove":
        yield from _without_path(model, op, value, f"{target.extension}:")
        return
    yield _checked(model, op, target, value)


def _without_path(model: type[ScimResource[Any]], op: Any, value: Any, prefix: str) -> Iterator[Operation]:
    """One operation for each member of the value of an operation without a path."""
    if not isinstance(value, Mapping):
        raise bad_value("value", "must be an object if the path names no attribute")
    for name, item in value.items():
        target = _find_or_none(model, prefix + name)
        if target is None or target.is_read_only:
            continue
        if not target.attribute:
            if item is None:
                yield Operation("remove", target)
            else:
                yield from _without_path(model, op, item, f"{target.extension}:")
        else:
            yield _checked(model, op, target, item)


def _checked(model: type[ScimResource[Any]], op: Any, target: Target, value: Any) -> Operation:
    if target.is_required and (op == "remove" or value in (None, "", [])):
        raise not_writable(target.path, "is required")
    if op == "remove":
        return Operation(op, target, value)
    if value is None or value == "":
        return Operation("remove", target)
    return Operation(op, target, _in_form_of_schema(model, target, value))


def _in_form_of_schema(model: type[ScimResource[Any]], target: Target, value: Any) -> Any:
    """The value in the form that the schema requires."""
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
        return {name: part for name, part in value.items() if not _is_read_only_part(model, target, name)}
    return value


def _is_read_only_part(model: type[ScimResource[Any]], target: Target, name: str) -> bool:
    """Whether a sub-attribute is read-only. Such ones are ignored: clients send back what they read."""
    part = _find_or_none(model, f"{target.path}.{name}")
    return part is not None and part.is_read_only


def take_passwords(operations: Sequence[Operation]) -> tuple[list[Operation], str | None]:
    """The operations on other attributes, and the last password that is set.

    Raises:
        Invalid: a password is not a string (invalid_value).
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


# --- applying operations -----------------------------------------------------------------------------------


def patched(user: Mapping[str, Any], operations: Sequence[Operation]) -> dict[str, Any]:
    """A user after the operations, which are applied in order.

    Args:
        user: a resource, which is not modified.

    Raises:
        Invalid: see translated.
    """
    after = dict(user)
    searched = 0
    for operation in operations:
        if operation.is_simple:
            _apply_simple(after, operation)
            continue
        value = after.get(operation.target.key)
        searched += len(value) if isinstance(value, list) else 1
        if searched > _MOST_VALUES:
            raise bad_value("operations", "search too many values: send fewer operations in one request")
        _apply_by_library(after, operation)
    return after


def _apply_simple(user: dict[str, Any], operation: Operation) -> None:
    """Apply an operation on a single string, number or boolean."""
    target = operation.target
    *parents, last = (name for name in (target.extension, target.attribute, target.sub_attribute) if name)
    holder = user
    for name in parents:
        holder[name] = holder = dict(holder.get(name) or {})
    value = None if operation.op == "remove" else single_value(target, operation.value)
    if value is None:
        holder.pop(last, None)
    else:
        holder[last] = value


def single_value(target: Target, value: Any) -> Any:
    """A value of the attribute's type. An empty string counts as no value: None (RFC 7643, 2.5).

    Raises:
        Invalid: the value has another type (invalid_value).
    """
    if target.type is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, target.type or object) or (target.type is int and isinstance(value, bool)):
        kind = {bool: "true or false", int: "an integer"}.get(target.type or str, "a string")
        raise bad_value(target.path, f"must be {kind}")
    return None if value == "" else value


def _apply_by_library(user: dict[str, Any], operation: Operation) -> None:
    """Apply any other operation, by the library, to only the attribute that it changes."""
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


def validated_user(document: Mapping[str, Any]) -> dict[str, Any]:
    """A whole user as sent, in the spelling of the schema, without read-only attributes.

    Raises:
        Invalid: see translated.
    """
    require_schema(document, USER_SCHEMA)
    if len(document) > MOST_MEMBERS:
        raise bad_value("params", f"at most {MOST_MEMBERS} attributes")
    for name, value in document.items():
        if isinstance(value, list) and len(value) > MOST_MEMBERS:
            raise bad_value(name[:64], f"at most {MOST_MEMBERS} values")
    try:
        resource: BaseModel = User.model_validate(
            _normalized(document), scim_ctx=Context.RESOURCE_REPLACEMENT_REQUEST, scim_policy=POLICY
        )
    except (SCIMException, ValidationError) as error:
        raise translated(error, "params") from error
    return resource.model_dump(scim_ctx=Context.RESOURCE_REPLACEMENT_REQUEST)


def require_schema(document: Mapping[str, Any], urn: str) -> None:
    """Raise Invalid if `schemas` does not contain the schema of the resource (RFC 7643, 3)."""
    if not has_schema(document, urn):
        raise bad_value("schemas", f"must contain {urn}")


def has_schema(document: Mapping[str, Any], urn: str) -> bool:
    """Whether `schemas` contains a schema."""
    schemas = next((value for name, value in document.items() if name.lower() == "schemas"), None)
    return isinstance(schemas, list) and urn.lower() in (str(schema).lower() for schema in schemas)


def _normalized(document: Mapping[str, Any]) -> dict[str, Any]:
    """A whole user with values in the form that the schema requires, without empty ones."""
    found = {}
    for name, value in document.items():
        target = _find_or_none(User, name)
        plain = value if target is None or not target.attribute else _in_form_of_schema(User, target, value)
        if (filled := _without_empty(plain)) is not None:
            found[name] = filled
    return found


def _without_empty(value: Any) -> Any:
    """A value without null and empty parts, which count as missing (RFC 7643, 2.5); None: it is empty."""
    if isinstance(value, Mapping):
        parts = {name: _without_empty(part) for name, part in value.items()}
        return {name: part for name, part in parts.items() if part is not None} or None
    if isinstance(value, list):
        return [part for part in map(_without_empty, value) if part is not None] or None
    return None if value == "" else value


def translated(error: SCIMException | ValidationError, member: str) -> Invalid:
    """Our error for an error of the library. It names the bad attributes, and never quotes their values.

    Args:
        member: the attribute to name if the library's error names none.
    """
    if isinstance(error, ValidationError):
        details = [detail for detail in error.errors() if detail["type"].startswith("scim_")]
        if details:
            detail = details[0]
            where = ".".join(str(part) for part in detail["loc"] if part != "Operations") or member
            make_error = BY_SCIM_TYPE.get(detail.get("ctx", {}).get("scim_type", ""), bad_value)
            return make_error(where, _one_line(detail["msg"]))
        return Invalid.of(field_errors(error), code="invalid_value")
    if isinstance(error.__cause__, ValidationError):
        return Invalid.of(field_errors(error.__cause__), code="invalid_value")
    return BY_SCIM_TYPE.get(error.scim_type, bad_value)(member, _one_line(error.detail))


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)[:300]
