"""Specs as text: the shortest notation, or TOML.  `notation.parse` reads both back."""

from __future__ import annotations

import json
from typing import Any

from backbones.specs import variants
from backbones.specs.aliases import quoted
from backbones.specs.construct import with_count
from backbones.specs.spec import BackboneSpec, fields_of
from backbones.specs.stage import StageSpec
from transom.fields import write


def to_notation(spec: BackboneSpec) -> str:
    """The shortest notation over all variants; `parse` reads it to an equal spec of that name."""
    return min((difference(base, spec) for base in variants.names()), key=len)


def difference(name: str, spec: BackboneSpec) -> str:
    """The notation of `spec` as edits of the variant `name`."""
    base = variants.get(name).spec
    edits = [name]
    for field in fields_of(BackboneSpec):
        if field not in ("name", "stages") and getattr(spec, field) != getattr(base, field):
            edits.append(f"{field}={write(getattr(spec, field))}")
    count = len(spec.stages)
    if count != len(base.stages):
        edits.append(f"stages={count}")
    pairs = zip(spec.stages, with_count(base.stages, count), strict=True)
    for i, (stage, old) in enumerate(pairs, start=1):
        if stage.mixers != old.mixers:
            edits.append(f"{i}={stage.pattern()}")
        for field in fields_of(StageSpec):
            if field != "mixers" and getattr(stage, field) != getattr(old, field):
                edits.append(f"{i}.{field}={write(getattr(stage, field))}")
    return "/".join(edits)


def to_toml(spec: BackboneSpec) -> str:
    """A .toml file that reads back to an equal spec, name included.

    Raises SpecError for a name that is no Unicode text.
    """
    data = spec.to_dict()
    stages = data.pop("stages")
    lines = [f"{key} = {_value(value)}" for key, value in data.items()]
    for stage in stages:
        lines += ["", "[[stages]]", *(f"{key} = {_value(value)}" for key, value in stage.items())]
    return "\n".join([*lines, ""])


def _value(value: Any) -> str:
    """A value as TOML; numbers, flags and lists are written as in JSON, and None is "none"."""
    value = "none" if value is None else value
    return quoted(value) if isinstance(value, str) else json.dumps(value)
