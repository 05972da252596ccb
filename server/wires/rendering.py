"""How answers are written: models whose fields say where their values come from.

The same models describe the answers in the OpenAPI document. `renderer` turns a type into a function once;
rendering an answer calls it, and validates nothing.
"""

from collections.abc import Callable
from operator import itemgetter
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from server.base.models import Result


def unchanged(value: Any) -> Any:
    """The value as it is."""
    return value


class From(NamedTuple):
    """In Annotated: the value is this member of what is rendered. Without it, a field takes its own name."""

    name: str


class By(NamedTuple):
    """In Annotated: the value is made by this function, of the whole of what is rendered."""

    function: Callable[[Any], Any]


class Always(NamedTuple):
    """In Annotated: the value is the same in every answer."""

    value: Any


WHOLE = By(unchanged)
"""In Annotated: the value is the whole of what is rendered, as this type."""
Empty: TypeAlias = tuple[()]
"""A list that is always empty."""


class Shown(Result):
    """A part of an answer: what its fields are called, their types, and where their values come from.

    A field with a default is left out where its value is None.
    """


def _constant(kind: Any) -> tuple[Any] | None:
    """The only value that a type has."""
    if kind in (None, NoneType):
        return (None,)
    arguments = get_args(kind)
    if get_origin(kind) is Literal and len(arguments) == 1:
        return (arguments[0],)
    return ((),) if get_origin(kind) is tuple and not arguments else None


def renderer(kind: Any) -> Callable[[Any], Any]:
    """What makes JSON of this type from what a method answers."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, Shown):
        return _model_renderer(kind)
    if origin is Annotated:
        return _stepwise(arguments[0], arguments[1:])
    if constant := _constant(kind):
        return _constantly(constant[0])
    if origin is list:
        item = renderer(arguments[0])
        return unchanged if item is unchanged else lambda values: [item(value) for value in values]
    if origin in (Union, UnionType) and len(arguments) == 2 and arguments[1] is NoneType:
        some = renderer(arguments[0])
        return unchanged if some is unchanged else lambda value: None if value is None else some(value)
    return unchanged


def _stepwise(kind: Any, metadata: Any) -> Callable[[Any], Any]:
    render = renderer(kind)
    for step in metadata:
        if isinstance(step, From):
            render = _then(itemgetter(step.name), render)
        elif isinstance(step, By):
            render = _then(step.function, render)
        elif isinstance(step, Always):
            render = _constantly(step.value)
    return render


def _constantly(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def _then(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Callable[[Any], Any]:
    if unchanged in (first, second):
        return second if first is unchanged else first
    return lambda value: second(first(value))


def _model_renderer(model: type[Shown]) -> Callable[[Any], Any]:
    parts = [
        (info.alias or name, _field_renderer(info.alias or name, info), not info.is_required())
        for name, info in model.model_fields.items()
    ]

    def render(value: Any) -> dict[str, Any]:
        shown = {}
        for name, part, is_optional in parts:
            rendered = part(value)
            if rendered is not None or not is_optional:
                shown[name] = rendered
        return shown

    return render


def _field_renderer(name: str, info: FieldInfo) -> Callable[[Any], Any]:
    steps = [step for step in info.metadata if isinstance(step, (From, By, Always))]
    return _stepwise(info.annotation, steps or ([] if _constant(info.annotation) else [From(name)]))
