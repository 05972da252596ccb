"""SCIM filters (RFC 7644, section 3.4.2.2) in Postgres.

A filter is translated into index look-ups and a jsonpath. The look-ups (`Lookups`) find candidates: rows that
include every match. For some filters no index helps. The jsonpath then checks each candidate: it is evaluated
on the document of the row, which the views scim_user_documents and scim_group_documents build. So one SQL
statement serves every filter. A document has the resource twice: `exact` as it is shown, and `folded` with
all names and strings in lower case, for case-insensitive attributes.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from inspect import isclass
from typing import Any, TypeGuard

from scim2_models import BaseModel, Extension, Group, InvalidFilterException, Mutability
from scim2_models.path import (
    AttributeBinding,
    AttrPath,
    CompareOperator,
    Comparison,
    FilterNode,
    FilterVisitor,
    LogicalExpr,
    LogicalOperator,
    Not,
    Present,
    ScimFilter,
    ValuePath,
)
from scim2_models.path.resolution import _resolve_filter_path, _validate_operator, coerce_value

from server.base.errors import Invalid
from server.directory.groups import group_key
from server.directory.scim.models import EnterpriseUser, OfficeUser
from server.directory.users import email_key

LONGEST = 2000
"""Most characters of a filter."""
_MOST_NESTED = 20
"""Most levels of nested brackets."""
_BRACKETS = re.compile(r"[()\[\]]")
_ORDER = {
    CompareOperator.gt: ">", CompareOperator.ge: ">=", CompareOperator.lt: "<", CompareOperator.le: "<=",
}  # fmt: skip


def invalid_filter(message: str) -> Invalid:
    """The error for a filter that is not valid, or would read every row of a large instance."""
    return Invalid(f"filter: {message}", code="invalid_filter")


def parsed(text: str) -> FilterNode:
    """The syntax tree of a filter.

    Raises:
        Invalid: it does not follow the grammar, or its brackets are nested too deeply.
    """
    depth = 0
    for bracket in _BRACKETS.findall(text):
        depth += 1 if bracket in "([" else -1
        if depth > _MOST_NESTED:
            raise invalid_filter(f"must have at most {_MOST_NESTED} levels of nested brackets")
    try:
        return ScimFilter(text).ast
    except InvalidFilterException as error:
        raise invalid_filter(str(error)) from error


def _binding_of(model: type[BaseModel], path: AttrPath, *, compared: bool = False) -> AttributeBinding:
    """The attribute that a path names.

    Args:
        compared: whether the filter compares it with a value.

    Raises:
        Invalid: there is no such attribute, or filters cannot use it.
    """
    try:
        binding = _resolve_filter_path(model, path, strict=True, for_comparison=compared)
    except InvalidFilterException as error:
        raise invalid_filter(str(error)) from error
    assert binding is not None
    if compared and _is_complex(binding.target_type):
        # `manager eq "7"` means manager.value. The library does this only for lists.
        if binding.sub_field_name is not None or "value" not in binding.target_type.model_fields:
            raise invalid_filter(f"{path} has sub-attributes: name the one to compare")
        return _binding_of(model, AttrPath(path.attr, "value", path.uri), compared=True)
    is_provisioned = binding.model is OfficeUser and binding.field_name != "quotas"
    if (
        binding.get_annotation(Mutability) == Mutability.write_only
        or binding.field_name == "schemas"
        or is_provisioned
    ):
        raise invalid_filter(f"{path} cannot be used in a filter")
    return binding


def _is_complex(kind: Any) -> TypeGuard[type[BaseModel]]:
    """Whether values of this type have sub-attributes."""
    return isclass(kind) and issubclass(kind, BaseModel)


def _operand(binding: AttributeBinding, node: Comparison) -> Any:
    """The value to compare an attribute with, as in documents.

    Raises:
        Invalid: the attribute's type does not allow the operator or the value.
    """
    kind = binding.target_type
    is_text = not (isclass(kind) and issubclass(kind, (bool, int, float, datetime, bytes)))
    try:
        _validate_operator(binding, node.op)
        # A string that the attribute can never have, such as an invalid e-mail address, matches nothing.
        value = node.value if is_text else coerce_value(binding, node.value, node.op)
    except InvalidFilterException as error:
        raise invalid_filter(f"{node.attr_path} cannot be compared with this operator or value") from error
    if is_text and not isinstance(value, str):
        raise invalid_filter(f"{node.attr_path} must be compared with a string")
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return aware.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return _storable(node, value)
    raise invalid_filter(f"{node.attr_path} cannot be compared")


_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")


def _storable(node: Comparison, text: str) -> str:
    """The text.

    Raises:
        Invalid: Postgres cannot store it.
    """
    if _NOT_STORABLE.search(text):
        raise invalid_filter(f"{node.attr_path}: must not contain NUL or lone surrogates")
    return str(text)


# --- the jsonpath ---------------------------------------------------------------------------------------


def jsonpath(model: type[BaseModel], node: FilterNode) -> str:
    """A filter as a jsonpath predicate over the document of a row.

    Raises:
        Invalid: it names an attribute that does not exist or is never shown, or uses an operator that the
            attribute's type does not allow.
    """
    return _Predicate(model).visit(node)


class _Predicate(FilterVisitor[str]):
    """Builds the jsonpath. It is never unknown: `ne` and `not` also match resources without the attribute."""

    def __init__(self, model: type[BaseModel], *, in_exact: bool | None = None) -> None:
        """
        Args:
            model: of the resource; within a value selection (emails[...]), of an item.
            in_exact: within a value selection, whether its items are those of `exact`; None: outside one.
        """
        self._model, self._in_exact = model, in_exact

    def visit_logical_expr(self, node: LogicalExpr) -> str:
        joined = " && " if node.op == LogicalOperator.and_ else " || "
        return f"({joined.join(self.visit(term) for term in node.terms)})"

    def visit_not(self, node: Not) -> str:
        return f"!({self.visit(node.expr)})"

    def visit_present(self, node: Present) -> str:
        binding = _binding_of(self._model, node.attr_path)
        return f"exists({self.path(binding)}{'.*' if _is_complex(binding.target_type) else ''})"

    def visit_comparison(self, node: Comparison) -> str:
        binding = _binding_of(self._model, node.attr_path, compared=True)
        path = self.path(binding)
        if node.value is None:
            if node.op not in (CompareOperator.eq, CompareOperator.ne):
                raise invalid_filter(f"{node.attr_path}: null can only be compared with eq and ne")
            return f"{'!' if node.op == CompareOperator.eq else ''}exists({path})"
        value = _operand(binding, node)
        negation = "!" if node.op == CompareOperator.ne else ""
        op = CompareOperator.eq if negation else node.op
        if isinstance(value, str) and not binding.case_exact:
            value = binding.comparable(value)
            if self._in_exact:
                return f"{negation}({path} {_case_insensitive(op, value)})"
        return f"{negation}({path} {_case_sensitive(op, value)})"

    def visit_value_path(self, node: ValuePath) -> str:
        binding = _binding_of(self._model, node.attr_path)
        item = binding.field_type
        if self._in_exact is not None or not binding.is_multivalued or not _is_complex(item):
            raise invalid_filter(
                f"{node.attr_path} is not a list of complex values: it cannot be followed by [ ]"
            )
        in_exact = _ComparesCase(item).visit(node.val_filter)
        path = self.path(binding, "exact" if in_exact else "folded")
        return f"exists({path} ? ({_Predicate(item, in_exact=in_exact).visit(node.val_filter)}))"

    def path(self, binding: AttributeBinding, document: str = "") -> str:
        document = document or ("exact" if binding.case_exact else "folded")
        root = f"$.{document}" if self._in_exact is None else "@"
        return root + "".join(f".{json.dumps(name)}" for name in _document_path(binding))


class _ComparesCase(FilterVisitor[bool]):
    """Whether a value selection compares a case-sensitive attribute."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model

    def visit_logical_expr(self, node: LogicalExpr) -> bool:
        return any(self.visit(term) for term in node.terms)

    def visit_not(self, node: Not) -> bool:
        return self.visit(node.expr)

    def visit_present(self, node: Present) -> bool:
        return False

    def visit_comparison(self, node: Comparison) -> bool:
        return _binding_of(self._model, node.attr_path, compared=True).case_exact

    def visit_value_path(self, node: ValuePath) -> bool:
        raise invalid_filter(f"{node.attr_path}: [ ] cannot be nested")


def _document_path(binding: AttributeBinding) -> Iterable[str]:
    """The path of an attribute in a document, in lower case."""
    model = binding.model
    if isclass(model) and issubclass(model, Extension):
        yield str(model.__schema__).lower()
    yield model._scim_name(binding.field_name).lower()
    if binding.sub_field_name is not None:
        yield binding.field_type._scim_name(binding.sub_field_name).lower()  # type: ignore[union-attr]


def _case_sensitive(op: CompareOperator, value: Any) -> str:
    """A case-sensitive comparison with a value."""
    match op:
        case CompareOperator.eq:
            return f"== {_quoted(value)}"
        case CompareOperator.co:
            return f"like_regex {_quoted(_regex(value))}"
        case CompareOperator.sw:
            return f"starts with {_quoted(value)}"
        case CompareOperator.ew:
            return f"like_regex {_quoted(_regex(value) + '$')}"
    return f"{_ORDER[op]} {_quoted(value)}"


def _case_insensitive(op: CompareOperator, value: str) -> str:
    """A case-insensitive comparison with a text."""
    start = "^" if op in (CompareOperator.eq, CompareOperator.sw) else ""
    end = "$" if op in (CompareOperator.eq, CompareOperator.ew) else ""
    if op in _ORDER:
        raise invalid_filter(f"{op.value} cannot be combined with a case-sensitive attribute in [ ]")
    return f'like_regex {_quoted(start + _regex(value) + end)} flag "i"'


def _regex(text: str) -> str:
    """A regular expression that matches only this text."""
    # Postgres allows a backslash only before characters that are not letters or digits.
    return re.sub(r"[^\w\s\x80-\U0010ffff]", r"\\\g<0>", text, flags=re.ASCII)


def _quoted(value: Any) -> str:
    """A value as a jsonpath literal; strings are as in JSON."""
    return json.dumps(value, ensure_ascii=False)


class _NamedParts(FilterVisitor[set[str]]):
    """Collects the parts of documents that a filter reads."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model

    def visit_logical_expr(self, node: LogicalExpr) -> set[str]:
        return set[str]().union(*(self.visit(term) for term in node.terms))

    def visit_not(self, node: Not) -> set[str]:
        return self.visit(node.expr)

    def visit_present(self, node: Present) -> set[str]:
        return self._part(node)

    def visit_comparison(self, node: Comparison) -> set[str]:
        return self._part(node)

    def visit_value_path(self, node: ValuePath) -> set[str]:
        return self._part(node)

    def _part(self, node: Present | Comparison | ValuePath) -> set[str]:
        return _parts_of_document(_binding_of(self._model, node.attr_path))


def _parts_of_document(binding: AttributeBinding) -> set[str]:
    """The parts of a document that an attribute belongs to."""
    if binding.model is OfficeUser:
        return {"office"}
    return {binding.field_name, "enterprise"} if binding.model is EnterpriseUser else {binding.field_name}


def named_parts(model: type[BaseModel], node: FilterNode) -> set[str]:
    """The parts of documents that a filter reads: field names of scim2-models, `enterprise`, `office`."""
    return _NamedParts(model).visit(node)


def sort_key(model: type[BaseModel], name: str) -> tuple[str, set[str]]:
    """The jsonpath of the attribute in sortBy, and the parts of documents that it reads (see named_parts).

    Raises:
        Invalid: there is no such attribute, or it cannot be sorted by (invalid_value).
    """
    try:
        node = ScimFilter(f"{name} pr").ast
        assert isinstance(node, Present)
        binding = _binding_of(model, node.attr_path, compared=True)
    except (InvalidFilterException, AssertionError, Invalid) as error:
        raise Invalid("sortBy: is not an attribute that can be sorted by", code="invalid_value") from error
    return _Predicate(model).path(binding), _parts_of_document(binding)


# --- index look-ups -------------------------------------------------------------------------------------


def single_equality(node: FilterNode) -> tuple[str, str] | None:
    """The name and the text of a filter that consists of one `userName eq` or `externalId eq`.

    Identity providers send such a filter before every change.

    Raises:
        Invalid: Postgres cannot store the text.
    """
    if not isinstance(node, Comparison) or node.op != CompareOperator.eq or not isinstance(node.value, str):
        return None
    name = _SINGLE.get(str(node.attr_path).lower())
    return None if name is None else (name, _storable(node, node.value))


_SINGLE = {name.lower(): name for name in ("userName", "externalId")}


@dataclass
class Lookups:
    """Index look-ups that together find every row that a filter can match. Each list has its own index."""

    ids: list[int] = field(default_factory=list)
    # For users, email_key of an e-mail or login; for groups, group_key of the name.
    keys: list[str] = field(default_factory=list)
    external_ids: list[str] = field(default_factory=list)
    # Prefixes of e-mails and logins, in lower case.
    prefixes: list[str] = field(default_factory=list)
    # Substrings of names, e-mails and logins, in lower case, for the index of trigrams, or else of bigrams.
    substrings: list[str] = field(default_factory=list)
    short_substrings: list[str] = field(default_factory=list)
    # For users, ids of the groups that they are in; for groups, ids of the users that are in them.
    members: list[int] = field(default_factory=list)
    # [True]: all suspended users.
    suspended: list[bool] = field(default_factory=list)

    def add(self, other: "Lookups") -> None:
        """Add the look-ups of another filter."""
        for list_field in fields(self):
            getattr(self, list_field.name).extend(getattr(other, list_field.name))

    @property
    def cost(self) -> int:
        """An estimate of the rows found, for choosing the cheapest look-ups."""
        return (
            len(self.ids) + len(self.keys) + len(self.external_ids) + 100 * len(self.prefixes)
            + sum(1000 // len(text) for text in self.substrings) + 2000 * len(self.short_substrings)
            + 500 * len(self.members) + 5000 * len(self.suspended)
        )  # fmt: skip


_TRIGRAM = re.compile(r"[a-z0-9]{3}", re.ASCII)
"""A text that the trigram index can find in every locale of the database."""
_INDEXED_TEXTS = frozenset({
    "username", "displayname", "name.formatted", "name.givenname", "name.familyname", "emails.value",
})  # fmt: skip
"""Attributes of users whose texts have trigram and bigram indexes."""


def lookups_of(model: type[BaseModel], node: FilterNode) -> Lookups | None:
    """Look-ups that find every row that a filter can match; None: no index helps."""
    return _Finder(model).visit(node)


class _Finder(FilterVisitor[Lookups | None]):
    def __init__(self, model: type[BaseModel], within: str = "") -> None:
        """
        Args:
            within: the path of the list whose items a value selection compares, with a dot at the end.
        """
        self._model, self._within = model, within

    def visit_logical_expr(self, node: LogicalExpr) -> Lookups | None:
        found = [self.visit(term) for term in node.terms]
        if node.op == LogicalOperator.and_:
            return min((one for one in found if one is not None), key=lambda one: one.cost, default=None)
        joined = Lookups()
        for one in found:
            if one is None:
                return None
            joined.add(one)
        return joined

    def visit_not(self, node: Not) -> Lookups | None:
        return None

    def visit_present(self, node: Present) -> Lookups | None:
        return None

    def visit_value_path(self, node: ValuePath) -> Lookups | None:
        binding = _binding_of(self._model, node.attr_path)
        item = binding.field_type
        if not _is_complex(item):
            return None
        return _Finder(item, within=f"{'.'.join(_document_path(binding))}.").visit(node.val_filter)

    def visit_comparison(self, node: Comparison) -> Lookups | None:
        binding = _binding_of(self._model, node.attr_path, compared=True)
        name = self._within + ".".join(_document_path(binding))
        if node.value is None:
            return None
        value = _operand(binding, node)
        is_group = issubclass(self._model, Group)
        if node.op == CompareOperator.eq:
            if name == "id" or name in ("groups.value", "members.value"):
                number = int(value) if re.fullmatch("[0-9]{1,18}", value) else None
                found = [] if number is None else [number]
                return Lookups(ids=found) if name == "id" else Lookups(members=found)
            if name == "externalid":
                return Lookups(external_ids=[value])
            if is_group and name == "displayname":
                return Lookups(keys=[group_key(value)])
            if name in ("username", "emails.value"):
                return Lookups(keys=[email_key(value)])
            if name == "active" and value is False:
                return Lookups(suspended=[True])
        if not is_group and node.op in (
            CompareOperator.eq, CompareOperator.co, CompareOperator.sw, CompareOperator.ew,
        ):  # fmt: skip
            return _by_text(name, node.op, value)
        return None


def _by_text(name: str, op: CompareOperator, value: Any) -> Lookups | None:
    if name not in _INDEXED_TEXTS or not isinstance(value, str):
        return None
    text = value.lower()
    if name == "username" and op == CompareOperator.sw and text:
        return Lookups(prefixes=[text])
    if _TRIGRAM.search(text):
        found = Lookups(substrings=[text])
    elif len(text) >= 2:
        found = Lookups(short_substrings=[text])
    else:
        return None
    if name == "emails.value" and op == CompareOperator.sw:
        found.prefixes.append(text)
    return found
