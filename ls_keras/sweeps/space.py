"""What a sweep varies: fields of a recipe's Config, and the values of each, all checked before anything is trained."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ls_keras.experiment import Config, Recipe, unknown

import numpy as np

# Points that are checked one by one; of more, each value is.
_MOST_CHECKED = 10_000
# What a float32 keeps: values drawn from a range travel through KerasTuner's messages in that.
_DIGITS = 6
# Stands for the teacher, where students are checked before there is one.
_SOME_TEACHER = Path("teacher")
TEACHER = "teacher."
Point = Mapping[str, Any]
"""Values by field; a teacher's fields are named `teacher.FIELD`."""


@dataclasses.dataclass(frozen=True)
class Between:
    """All numbers of a range, both ends among them, for random and Bayesian search.

    Attributes:
        low: The least.
        high: The greatest.
        log: Whether search is even in the logarithm.
    """

    low: float
    high: float
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Task:
    """A trial: a point that somebody shall train, with all seeds.

    Attributes:
        name: The trial's name, a number.
        point: Values by field.
        epochs: Evaluations after which training pauses, under Hyperband; None trains to the end.
    """

    name: str
    point: Point
    epochs: int | None = None


@dataclasses.dataclass(frozen=True)
class Space:
    """The fields that a sweep varies, and all that its networks share.

    Attributes:
        axes: Values by field, in the order of tables: listed ones, or a range.
        recipe: How networks are trained.
        size: The size of the recipe that they start from.
        teacher: Recipe and size of the teachers, if students are swept.
    """

    axes: Mapping[str, tuple[Any, ...] | Between]
    recipe: Recipe
    size: str
    teacher: tuple[Recipe, str] | None = None

    def config(self, point: Point, seed: int, teacher: Path | None = None) -> Config:
        """Return the config of a point's network, a student's with its teacher."""
        own = {field: value for field, value in point.items() if not field.startswith(TEACHER)}
        given = {} if self.teacher is None else {"teacher": teacher}
        return dataclasses.replace(_base(self.recipe, self.size), **own, **given, seed=seed)

    def teacher_config(self, point: Point, seed: int) -> Config:
        """Return the config of a point's teacher."""
        given = {f.removeprefix(TEACHER): value for f, value in point.items() if f.startswith(TEACHER)}
        return dataclasses.replace(_base(*self.teacher), **given, seed=seed)

    def points(self) -> list[dict[str, Any]]:
        """Return all points, where every axis lists its values: the last field changes fastest."""
        return [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]

    @property
    def number(self) -> float:
        """Return how many points there are; infinity where a range is no whole numbers."""
        counts = [
            len(values)
            if isinstance(values, tuple)
            else values.high - values.low + 1
            if isinstance(values.low, int)
            else math.inf
            for values in self.axes.values()
        ]
        return math.prod(counts)

    @property
    def varied(self) -> list[str]:
        """Return the fields that have more than one value."""
        return [field for field, values in self.axes.items() if isinstance(values, Between) or len(values) > 1]

    def check(self) -> None:
        """Refuse points that cannot be meant.

        Raises:
            ValueError: With the point and the reason.
        """
        for point in self._to_check():
            try:
                if self.teacher is not None:
                    self.teacher[0].checked(self.teacher_config(point, 0), self.teacher[1])
                self.recipe.checked(self.config(point, 0, _SOME_TEACHER), self.size)
            except (ValueError, TypeError) as problem:
                raise ValueError(f"The point {describe(point)} cannot be trained: {problem}") from problem

    def _to_check(self) -> Iterator[dict[str, Any]]:
        ends = [(v.low, v.high) if isinstance(v, Between) else v for v in self.axes.values()]
        if math.prod(map(len, ends)) <= _MOST_CHECKED:
            yield from (dict(zip(self.axes, values, strict=True)) for values in itertools.product(*ends))
            return
        first = {field: values[0] for field, values in zip(self.axes, ends, strict=True)}
        for field, values in zip(self.axes, ends, strict=True):
            yield from ({**first, field: value} for value in values)


def describe(point: Point) -> str:
    """Write a point as tables and messages do."""
    return ", ".join(f"{field} = {shown(value)}" for field, value in point.items())


def shown(value: Any) -> str:
    """Write a value as a command line takes it."""
    if isinstance(value, tuple):
        return "x".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def space(
    recipe: Recipe,
    size: str | None,
    over: Mapping[str, Any],
    teacher_over: Mapping[str, Any] | None = None,
    teacher_recipe: Recipe | None = None,
    teacher_size: str | None = None,
) -> Space:
    """Return what is swept; `Space.check` refuses points that cannot be trained.

    Args:
        recipe: How networks are trained.
        size: What they start from; None is the recipe's first size.
        over: By field, a sequence of values, text as a command line has it (`"0,0.05,0.1"`, `"0.01:1:log"`), or a
            `Between`.
        teacher_over: The same about the teachers, if the networks are students.
        teacher_recipe: How teachers are trained; None is `recipe`.
        teacher_size: What they start from; None is `size`.

    Raises:
        ValueError: A field that the recipe has not, values of another type, or one that is given twice.
    """
    for given, option in ((over, "over"), (teacher_over if teacher_over is not None else {}, "teacher_over")):
        if not isinstance(given, Mapping) or not all(isinstance(field, str) for field in given):
            raise ValueError(f"`{option}` takes values by field, such as {{'alpha': (0, 0.1)}}; received {given!r}.")
    for given in (recipe, teacher_recipe or recipe):
        if not isinstance(given, Recipe):
            raise ValueError(f"a recipe is an `experiment.Recipe`, such as mnist_mlp.RECIPE; received {given!r}.")
    size = _size(recipe, size)
    students = teacher_over is not None
    if not students and (teacher_recipe is not None or teacher_size is not None):
        raise ValueError("a recipe or size of teachers cannot act without fields of theirs: give --teacher-over.")
    axes = {field: _values(recipe, size, field, values) for field, values in over.items()}
    teacher = None
    if students:
        teacher_recipe = teacher_recipe or recipe
        teacher = teacher_recipe, _size(teacher_recipe, teacher_size if teacher_size is not None else size)
        if "teacher" not in _fields(_base(recipe, size)):
            raise ValueError(f"Networks of {recipe.name} cannot be students: its Config has no teacher.")
        if "teacher" in axes:
            raise ValueError("`teacher` is what --teacher-over trains: leave one of the two out.")
        axes = {f"{TEACHER}{field}": _values(*teacher, field, values) for field, values in teacher_over.items()} | axes
    if not axes:
        raise ValueError("nothing is swept: give --over FIELD=VALUE,VALUE at least once.")
    return Space(axes, recipe, size, teacher)


def parse(texts: Sequence[str], option: str) -> dict[str, str]:
    """Return values by field from `FIELD=VALUES` of a command line.

    Raises:
        ValueError: Another form, or a field that is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        field, equals, values = text.partition("=")
        field = field.strip().replace("-", "_")
        if not equals or not field or not values:
            raise ValueError(
                f"{option} takes FIELD=VALUE,VALUE,… or FIELD=LOW:HIGH or FIELD=LOW:HIGH:log; received {text!r}."
            )
        if field in found:
            raise ValueError(f"{option} names {field!r} twice: give all of its values at once.")
        found[field] = values
    return found


def rounded(value: Any) -> Any:
    """Return a value drawn from a range as every process keeps it, with 6 digits."""
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _size(recipe: Recipe, size: str | None) -> str:
    if size is None:
        return next(iter(recipe.sizes))
    if not isinstance(size, str) or size not in recipe.sizes:
        raise ValueError(unknown("size", str(size), recipe.sizes))
    return size


def _base(recipe: Recipe, size: str) -> Config:
    """Return a size's config, of which the end alone matters: sweeps show no curves of what is observed."""
    config = recipe.sizes[size]
    return dataclasses.replace(config, observe_every=0) if hasattr(config, "observe_every") else config


def _fields(config: Config) -> dict[str, Any]:
    hints = typing.get_type_hints(type(config))
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def _values(recipe: Recipe, size: str, field: str, values: Any) -> tuple[Any, ...] | Between:
    """Return the values of a field, typed as its Config says."""
    known = _fields(recipe.sizes[size])
    if field not in known:
        raise ValueError(f"{recipe.name}: {unknown('field', field, known)}")
    if field == "seed":
        raise ValueError("`seed` is what --seeds counts: every point is trained with each.")
    hint = known[field]
    if isinstance(values, str):
        values = _from_text(field, values, hint)
    if isinstance(values, Between):
        return _range(field, values, hint)
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, bytes):
        raise ValueError(f"`{field}` takes a sequence of values, text, or Between(low, high); received {values!r}.")
    typed = tuple(_typed(field, value, hint) for value in values)
    if not typed:
        raise ValueError(f"`{field}` has no values.")
    again = [value for k, value in enumerate(typed) if value in typed[:k]]
    if again:
        raise ValueError(f"`{field}` has {shown(again[0])} twice: the same points would be trained twice.")
    return typed


def _range(field: str, values: Between, hint: Any) -> Between:
    kinds = [kind for kind in _kinds(hint) if kind in (int, float)]
    if not kinds:
        raise ValueError(f"`{field}` is {_named(hint)} and has no range: list its values.")
    low, high = (rounded(_typed(field, end, kinds[0])) for end in (values.low, values.high))
    if not isinstance(values.log, bool):
        raise ValueError(f"`{field}`: Between takes log=True or False; received {values.log!r}.")
    if not low < high or (values.log and not low > 0):
        raise ValueError(
            f"`{field}` takes LOW:HIGH with LOW < HIGH, and LOW > 0 with :log; received {low:g}:{high:g}"
            f"{':log' * values.log}."
        )
    return Between(low, high, values.log)


def _from_text(field: str, text: str, hint: Any) -> tuple[Any, ...] | Between:
    if ":" in text and {int, float} & set(_kinds(hint)):
        low, high, *log = text.split(":")
        if log not in ([], ["log"]):
            raise ValueError(f"`{field}` takes LOW:HIGH or LOW:HIGH:log; received {text!r}.")
        kind = int if int in _kinds(hint) else float
        return Between(_read(field, low, kind), _read(field, high, kind), bool(log))
    # Not at the commas of a loss's own arguments.
    return tuple(_read(field, part.strip(), hint) for part in re.split(r",(?![^(]*\))", text))


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Return what a field may be: the members of a union, or the one type."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if union else (hint,)


def _named(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _read(field: str, text: str, hint: Any) -> Any:
    """Read a value of a command line as the field's type."""
    if type(None) in _kinds(hint) and text.lower() == "none":
        return None
    for kind in _kinds(hint):
        if typing.get_origin(kind) is Literal and text in map(str, typing.get_args(kind)):
            return next(value for value in typing.get_args(kind) if str(value) == text)
        if kind is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if typing.get_origin(kind) is tuple:
            return tuple(_read(field, part, typing.get_args(kind)[0]) for part in text.split("x"))
        if kind in (int, float, str, Path):
            try:
                return kind(text)
            except ValueError:
                continue
    raise ValueError(f"`{field}` is {_named(hint)}; received {text!r}.")


def _typed(field: str, value: Any, hint: Any) -> Any:
    """Return a value as the field's type has it; whole numbers stand for floats, lists for tuples."""
    value = value.item() if isinstance(value, np.generic) else value
    value = value.tolist() if isinstance(value, np.ndarray) else value
    for kind in _kinds(hint):
        if (kind is type(None) and value is None) or (typing.get_origin(kind) is Literal and value in _choices(kind)):
            return value
        if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
            return tuple(_typed(field, part, typing.get_args(kind)[0]) for part in value)
        if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind is Path and isinstance(value, str):
            return Path(value)
    raise ValueError(f"`{field}` is {_named(hint)}; received {value!r}.")


def _choices(literal: Any) -> tuple[Any, ...]:
    return typing.get_args(literal)
