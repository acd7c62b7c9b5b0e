"""The one-line notation: ``swin_t/3=pale:size=7/1.heads=4/norm=res_post``.

    backbone  a variant, an alias or a .toml file, then edits, each after a slash
    3=...     stage 3 gets these mixers; + alternates them over the blocks
    1.heads=4 one field of stage 1
    norm=...  one field of the backbone
    stages=3  the first 3 stages, or more: each new one doubles the width of the one before
    mixer     name, then :option=value,option=value

A .toml file has all fields of `BackboneSpec`, or a base and the fields that differ from it:

    base = "swin_t"
    [stages.3]
    mixers = "pale:size=7"
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backbones.specs import aliases, variants
from backbones.specs.construct import edit, from_dict, with_count, with_stage
from backbones.specs.error_column import Edit, at, located
from backbones.specs.spec import MOST_STAGES, BackboneSpec, fields_of
from backbones.specs.stage import StageSpec
from transom.errors import LONGEST_WORD, SpecError, nearest, one_line, printable
from transom.fields import read_count

LONGEST = 65536  # characters; nobody writes more by hand
DEEPEST = 8  # bases of bases


def parse(what: str | Mapping[str, Any] | BackboneSpec) -> BackboneSpec:
    """Reads the spec of a backbone from its notation.

    Args:
        what: the notation of this module's docstring, an alias of ./transom.toml, the path of a
            .toml file, a dict of its fields, or a spec, which is returned unchanged.

    Returns:
        The spec, named as it was written.

    Raises:
        SpecError: the text cannot be read; one line has the place, the value and the nearest
            allowed one.

    Example:
        >>> from backbones import parse
        >>> spec = parse("swin_t/3=pale:size=5/1.heads=4")
        >>> spec.name, spec.stages[0].heads, spec.stages[2].pattern()
        ('swin_t/3=pale:size=5/1.heads=4', 4, 'pale:size=5')
    """
    try:
        return _parse(what, 0)
    except SpecError:
        raise
    except (ValueError, RecursionError) as error:  # numbers or lists that cannot even be shown
        raise SpecError(f"a backbone has a value beyond reading: {one_line(str(error))}") from None


def _parse(what: Any, depth: int) -> BackboneSpec:
    if isinstance(what, BackboneSpec):
        return what
    if depth > DEEPEST:
        raise SpecError(f"{one_line(str(what))}: more than {DEEPEST} bases of bases; a circle?")
    if isinstance(what, Mapping):
        return _from_table(what, depth)
    if not isinstance(what, str):
        shown = one_line(repr(what))
        raise SpecError(f"a backbone is a text, a dict or a BackboneSpec, not {shown}")
    if len(what) > LONGEST:
        raise SpecError(f"a notation of {len(what)} characters; the longest read is {LONGEST}")
    base, edits = _base(what, depth)
    return _apply(base, edits, what) if edits else base


def _base(text: str, depth: int) -> tuple[BackboneSpec, list[str]]:
    """The spec before the first edit, and the edits.  A file's path may have slashes itself."""
    path, toml, rest = text.partition(".toml")
    if toml and (not rest or rest.startswith("/")):
        return _from_file(Path(path + toml), depth), rest.split("/")[1:]
    name, *edits = text.split("/")
    saved = {} if variants.known(name) else aliases.read()
    if name in saved:
        return edit(_parse(saved[name], depth + 1), name, name=name), edits
    try:
        return variants.get(name, also=tuple(saved)).spec, edits
    except SpecError as error:
        if edits and error.token:
            raise at(1, error) from None
        raise


def _from_file(path: Path, depth: int) -> BackboneSpec:
    try:
        data = aliases.load(path)
    except FileNotFoundError as error:
        raise SpecError(f"{printable(path)}: cannot be read: {error.strerror}") from None
    return _from_table({"name": path.stem, **data}, depth)


def _from_table(data: Mapping[str, Any], depth: int) -> BackboneSpec:
    """The spec of a table with all fields, or with a base and the fields that differ.

    Beside a base, stages are tables by their number.
    """
    stages = data.get("stages", {})
    if "base" not in data:
        label = one_line(str(data.get("name", "backbone")))
        if isinstance(stages, (list, tuple)):
            if len(stages) > MOST_STAGES:
                found = f"{len(stages)} stages; a backbone has 1 to {MOST_STAGES}"
                raise SpecError(f"{label}: {found}")
            for fields in stages:
                _text_keys(fields if isinstance(fields, Mapping) else {}, label)
        return from_dict(_text_keys(data, label))
    base = _parse(data["base"], depth + 1)
    label = one_line(str(data.get("name", base.name)))
    if not isinstance(stages, Mapping):
        raise SpecError(f"{label}: beside a base, stages are tables by number: [stages.3]")
    kept = base.stages
    for number, fields in stages.items():
        if not (isinstance(number, str) and number.isdecimal() and len(number) < 4):
            raise SpecError(f"{label}: stages.{one_line(str(number))} is not a stage's number")
        if not isinstance(fields, Mapping):
            raise SpecError(f"{label}: stages.{number} is not a table of fields")
        changed = _text_keys(fields, label)
        kept = with_stage(base.name, kept, int(number), label, **changed)
    rest = {key: value for key, value in data.items() if key not in ("base", "stages")}
    return edit(base, label, stages=kept, **_text_keys(rest, label))


def _text_keys(fields: Mapping[Any, Any], label: str) -> dict[str, Any]:
    for key in fields:
        if not isinstance(key, str) or len(key) > LONGEST_WORD:
            raise SpecError(f"{label}: no field {one_line(repr(key))}")
    return dict(fields)


def _apply(spec: BackboneSpec, edits: list[str], notation: str) -> BackboneSpec:
    """The spec with all edits, whose order does not matter: 1=axial may precede 1.heads=4."""
    label = one_line(notation)
    by_stage: dict[int, list[Edit]] = {}
    for item in _edits(edits, notation, label):
        by_stage.setdefault(item.stage, []).append(item)
    spec_edits = by_stage.pop(0, [])
    stages = spec.stages
    for item in spec_edits:
        if item.field == "stages":
            stages = _counted(stages, item, label)
    spec_edits = [item for item in spec_edits if item.field != "stages"]
    for stage, group in by_stage.items():
        fields = {item.field: item.value for item in group}
        try:
            stages = with_stage(spec.name, stages, stage, label, **fields)
        except SpecError as error:
            if stage > len(stages):
                raise at(group[0].column, SpecError(str(error), group[0].text)) from None
            raise located(error, StageSpec, group) from None
    try:
        fields = {item.field: item.value for item in spec_edits}
        return edit(spec, label, name=notation, stages=stages, **fields)
    except SpecError as error:
        raise located(error, BackboneSpec, spec_edits) from None


def _edits(texts: list[str], notation: str, label: str) -> list[Edit]:
    column = len(notation) - len("/".join(texts)) + 1
    edits: dict[tuple[int, str], Edit] = {}
    for text in texts:
        try:
            stage, field, value = _edit(text, label)
            if (stage, field) in edits:
                again = f"{label}: {one_line(text)!r} sets what an earlier edit has set"
                raise SpecError(again, text)
        except SpecError as error:
            raise at(column, error) from None
        edits[stage, field] = Edit(column, stage, field, value, text)
        column += len(text) + 1
    return list(edits.values())


def _counted(given: tuple[StageSpec, ...], item: Edit, label: str) -> tuple[StageSpec, ...]:
    """The stages of the edit `stages=N`."""
    try:
        count = read_count(item.value)
    except ValueError:
        count = 0
    if count > MOST_STAGES or not count:
        shown = f"stages={one_line(item.value)!r}"
        wrong = f"{label}: {shown}: expected a number from 1 to {MOST_STAGES}"
        raise at(item.column, SpecError(wrong, item.text))
    return with_count(given, count)


def _edit(text: str, label: str) -> tuple[int, str, str]:
    """(stage or 0, field, value) of one edit."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise SpecError(
            f"{label}: {one_line(text)!r} is not an edit such as 3=pale:size=7, 1.heads=4 or "
            "norm=res_post",
            token=text,
        )
    head, dot, field = key.partition(".")
    if head.isdecimal() and len(head) < 4:
        field = field if dot else "mixers"
        if field not in fields_of(StageSpec):
            hint = nearest(field, fields_of(StageSpec))
            wrong = f"{label}: stage {head} has no field {one_line(field)!r}{hint}"
            raise SpecError(wrong, token=text)
        if int(head) == 0:
            raise SpecError(f"{label}: no stage 0; stages count from 1", token=text)
        return int(head), field, value
    allowed = [name for name in fields_of(BackboneSpec) if name != "name"]
    if key not in allowed:
        hint = nearest(key, allowed)
        raise SpecError(f"{label}: a backbone has no field {one_line(key)!r}{hint}", token=text)
    return 0, key, value
