"""Rendering of answers: models whose fields declare the source of their values.

The same models describe the answers in the OpenAPI document. `renderer` turns a type into a function once;
rendering an answer calls that function and validates nothing.
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
    """In Annotated: the value is this member of the data. Without it, the member with the field's name."""

    name: str


class Computed(NamedTuple):
    """In Annotated: this function makes the value from the data, or from the member of a From after it."""

    function: Callable[[Any], Any]


def always(value: Any) -> Computed:
    """In Annotated: the value is the same in every answer."""
    return Computed(lambda _: value)


WHOLE = Computed(unchanged)
"""In Annotated: the value is the whole data, rendered as this type."""
Empty: TypeAlias = tuple[()]
"""A list that is always empty."""


class AnswerModel(Result):
    """A part of an answer: names, types and sources of its fields.

    A field with a default is omitted if its value is None.
    """


def _constant(kind: Any) -> tuple[Any] | None:
    """The only value of a type, in a tuple; None if it has several."""
    if kind in (None, NoneType):
        return (None,)
    arguments = get_args(kind)
    if get_origin(kind) is Literal and len(arguments) == 1:
        return (arguments[0],)
    return ((),) if get_origin(kind) is tuple and not arguments else None


def renderer(kind: Any) -> Callable[[Any], Any]:
    """A function that renders data, such as a method's result, as JSON of this type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, AnswerModel):
        return _model_renderer(kind)
    if origin is Annotated:
        return _stepwise(arguments[0], arguments[1:])
    if constant := _constant(kind):
        return lambda _: constant[0]
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
        elif isinstance(step, Computed):
            render = _then(step.function, render)
    return render


def _then(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Callable[[Any], Any]:
    if unchanged in (first, second):
        return second if first is unchanged else first
    return lambda value: second(first(value))


def _model_renderer(model: type[AnswerModel]) -> Callable[[Any], Any]:
    parts = [
        (info.alias or name, _field_renderer(info.alias or name, info), not info.is_required())
        for name, info in model.model_fields.items()
    ]

    def render(data: Any) -> dict[str, Any]:
        rendered = {}
        for name, part, is_optional in parts:
            value = part(data)
            if value is not None or not is_optional:
                rendered[name] = value
        return rendered

    return render


def _field_renderer(name: str, info: FieldInfo) -> Callable[[Any], Any]:
    steps = [step for step in info.metadata if isinstance(step, (From, Computed))]
    return _stepwise(info.annotation, steps or ([] if _constant(info.annotation) else [From(name)]))
