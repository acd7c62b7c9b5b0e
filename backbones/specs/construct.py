"""Specs from plain data, and copies of specs with fields replaced; errors name the stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from backbones.specs.spec import BackboneSpec, fields_of
from backbones.specs.stage import StageSpec
from transom.errors import SpecError, nearest, one_line


def _construct(cls: Any, data: Any, label: str) -> Any:
    if not isinstance(data, Mapping):
        raise SpecError(f"{label}: expected a table of fields, not {type(data).__name__}")
    for key in data:
        if key not in fields_of(cls):
            raise SpecError(f"{label}: no field {key!r}{nearest(str(key), fields_of(cls))}")
    try:
        return cls(**data)
    except SpecError as error:
        named = str(error).startswith(f"{label}: ")  # by the spec's own name
        raise SpecError(str(error) if named else f"{label}: {error}", error.token) from None


def from_dict(data: Mapping[str, Any]) -> BackboneSpec:
    """Builds a spec from a dict of its fields.

    Args:
        data: fields of `BackboneSpec`, as `BackboneSpec.to_dict` writes them; "stages" is a list of
            dicts or of StageSpec and must be there, other fields have their defaults.

    Returns:
        The spec; ``from_dict(spec.to_dict()) == spec``.

    Raises:
        SpecError: a field is unknown or its value not allowed; the message names the stage and
            the field.

    Example:
        >>> from backbones import from_dict
        >>> stages = [{"dim": 8, "heads": 2, "mixers": ["window:size=7"]}, {"mixers": "full"}]
        >>> spec = from_dict({"name": "two", "stages": stages})
        >>> spec.stages[0].dim, spec.num_classes, from_dict(spec.to_dict()) == spec
        (8, 1000, True)
    """
    name = data.get("name", "backbone") if isinstance(data, Mapping) else "backbone"
    label = one_line(str(name))
    if not isinstance(data, Mapping) or not isinstance(data.get("stages"), (list, tuple)):
        raise SpecError(f"{label}: stages must be a list of tables")
    stages = tuple(
        stage
        if isinstance(stage, StageSpec)
        else _construct(StageSpec, stage, f"{label}: stage {number}")
        for number, stage in enumerate(data["stages"], start=1)
    )
    return _construct(BackboneSpec, {**data, "stages": stages}, label)


def edit(spec: BackboneSpec, label: str, /, **fields: Any) -> BackboneSpec:
    """A copy with fields of the backbone replaced; errors begin with `label`."""
    current = {name: getattr(spec, name) for name in fields_of(BackboneSpec)}
    return _construct(BackboneSpec, {**current, **fields}, label)


def with_count(stages: tuple[StageSpec, ...], count: int) -> tuple[StageSpec, ...]:
    """The first `count` stages, or more: each new one doubles width and heads of the one before."""
    while len(stages) < count:
        last = stages[-1]
        stages = (*stages, replace(last, dim=2 * last.dim, heads=2 * last.heads))
    return stages[:count]


def with_stage(
    name: str, stages: Sequence[StageSpec], number: int, label: str, /, **fields: Any
) -> tuple[StageSpec, ...]:
    """The stages of the backbone `name`, with fields of stage `number` (from 1) replaced."""
    if not 1 <= number <= len(stages):
        known = f"{one_line(name)} has 1 to {len(stages)}"
        raise SpecError(f"{label}: no stage {number}; {known}", str(number))
    stage = stages[number - 1]
    current = {field: getattr(stage, field) for field in fields_of(StageSpec)}
    new = _construct(StageSpec, {**current, **fields}, f"{label}: stage {number}")
    return (*stages[: number - 1], new, *stages[number:])
