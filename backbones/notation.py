"""The one-line notation: ``swin_t/3=pale:size=7/1.heads=4/norm=res_post``.

    backbone  a variant, an alias or a .toml file, then edits, each after a slash
    3=...     stage 3 gets these mixers; + alternates them over the blocks
    1.heads=4 one field of stage 1
    norm=...  one field of the backbone
    stages=3  the first 3 stages, or more: each new one doubles the width of the one before
    mixer     name, then :option=value,option=value

A .toml file has the fields of `BackboneSpec`, whole, or a base and what differs from it:

    base = "swin_t"
    [stages.3]
    mixers = "pale:size=7"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from attention.options import SpecError, nearest, one_line, read_count
from backbones import aliases, variants
from backbones.spec import (
    MOST_STAGES,
    BackboneSpec,
    StageSpec,
    edit,
    edit_stage,
    fields_of,
    from_dict,
)

LONGEST = 65536  # characters; nobody writes more by hand
DEEPEST = 8  # bases of bases


def parse(what: str | Mapping[str, Any] | BackboneSpec) -> BackboneSpec:
    """The spec of a notation, a dict, or a spec itself.

    Raises SpecError with the place, the value and the nearest allowed one.
    """
    return _parse(what, 0)


def _parse(what: Any, depth: int) -> BackboneSpec:
    if isinstance(what, BackboneSpec):
        return what
    if depth > DEEPEST:
        raise SpecError(f"{one_line(str(what))}: more than {DEEPEST} bases of bases; a circle?")
    if isinstance(what, Mapping):
        return _from_table(what, depth)
    if not isinstance(what, str):
        raise SpecError(f"a backbone is a text, a dict or a BackboneSpec, not {what!r}")
    if len(what) > LONGEST:
        raise SpecError(f"a notation of {len(what)} characters; the longest read is {LONGEST}")
    try:
        base, edits = _base(what, depth)
        return _apply(base, edits, what) if edits else base
    except SpecError as error:
        column = what.find(error.token) + 1 if error.token else 0
        where = f", at column {column}" if column and "/" in what else ""
        raise SpecError(f"{error}{where}") from None


def _base(text: str, depth: int) -> tuple[BackboneSpec, list[str]]:
    """The spec before the first edit, and the edits.  A file's path may have slashes itself."""
    path, toml, rest = text.partition(".toml")
    if toml and (not rest or rest.startswith("/")):
        return _from_file(Path(path + toml), depth), rest.split("/")[1:]
    name, *edits = text.split("/")
    if not variants.known(name) and name in (saved := aliases.read()):
        return edit(_parse(saved[name], depth + 1), name, name=name), edits
    return variants.get(name, also=tuple(aliases.read())).spec, edits


def _from_file(path: Path, depth: int) -> BackboneSpec:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # no file, no path, no TOML, too deep
        raise SpecError(f"{one_line(str(path))}: cannot be read: {one_line(str(error))}") from None
    return _from_table({"name": path.stem, **data}, depth)


def _from_table(data: Mapping[str, Any], depth: int) -> BackboneSpec:
    """All fields, or a base and the fields that differ; stages then by their number."""
    if "base" not in data:
        return from_dict(data)
    base = _parse(data["base"], depth + 1)
    place = one_line(str(data.get("name", base.name)))
    stages = data.get("stages", {})
    if not isinstance(stages, Mapping):
        raise SpecError(f"{place}: beside a base, stages are tables by number: [stages.3]")
    for number, fields in stages.items():
        if not (isinstance(number, str) and number.isdecimal() and len(number) < 4):
            raise SpecError(f"{place}: stages.{one_line(str(number))} is not a stage's number")
        if not isinstance(fields, Mapping):
            raise SpecError(f"{place}: stages.{number} is not a table of fields")
        base = edit_stage(base, int(number), place, **_texts(fields, place))
    rest = {key: value for key, value in data.items() if key not in ("base", "stages")}
    return edit(base, place, **_texts(rest, place))


def _texts(fields: Mapping[Any, Any], place: str) -> dict[str, Any]:
    for key in fields:
        if not isinstance(key, str):
            raise SpecError(f"{place}: no field {key!r}")
    return dict(fields)


def _apply(spec: BackboneSpec, edits: list[str], whole: str) -> BackboneSpec:
    """All edits at once, so that their order does not matter: 1=axial may precede 1.heads=4."""
    place = one_line(whole)
    whole_spec: dict[str, str] = {"name": whole}
    by_stage: dict[int, dict[str, str]] = {}
    for text in edits:
        stage, field, value = _edit(text, place)
        target = by_stage.setdefault(stage, {}) if stage else whole_spec
        if field in target:
            again = f"{place}: {one_line(text)!r} sets what an earlier edit has set"
            raise SpecError(again, token=text)
        target[field] = value
    if "stages" in whole_spec:
        spec = _with_stages(spec, whole_spec.pop("stages"), place)
    for stage, fields in by_stage.items():
        spec = edit_stage(spec, stage, place, **fields)
    return edit(spec, place, **whole_spec)


def _with_stages(spec: BackboneSpec, text: str, place: str) -> BackboneSpec:
    """The first so many stages, continued by stages of twice the width and heads."""
    try:
        count = read_count(text)
    except ValueError:
        count = 0
    if not 2 <= count <= MOST_STAGES:
        wrong = f"{place}: stages={one_line(text)!r}: expected a number from 2 to {MOST_STAGES}"
        raise SpecError(wrong, token=f"stages={text}")
    stages = list(spec.stages[:count])
    while len(stages) < count:
        last = stages[-1]
        stages.append(replace(last, dim=2 * last.dim, heads=2 * last.heads))
    return replace(spec, stages=tuple(stages))


def _edit(text: str, place: str) -> tuple[int, str, str]:
    """(stage or 0, field, value) of one edit."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise SpecError(
            f"{place}: {one_line(text)!r} is not an edit such as 3=pale:size=7, 1.heads=4 or "
            "norm=res_post",
            token=text,
        )
    head, dot, field = key.partition(".")
    if head.isdecimal() and len(head) < 4:
        field = field if dot else "mixers"
        if field not in fields_of(StageSpec):
            hint = nearest(field, fields_of(StageSpec))
            wrong = f"{place}: stage {head} has no field {one_line(field)!r}{hint}"
            raise SpecError(wrong, token=text)
        if int(head) == 0:
            raise SpecError(f"{place}: no stage 0; stages count from 1", token=text)
        return int(head), field, value
    allowed = [name for name in fields_of(BackboneSpec) if name != "name"]
    if key not in allowed:
        hint = nearest(key, allowed)
        raise SpecError(f"{place}: a backbone has no field {one_line(key)!r}{hint}", token=text)
    return 0, key, value
