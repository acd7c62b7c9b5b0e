"""The one-line notation: ``swin_t/3=pale:size=7/1.heads=4/norm=res_post``.

    backbone  a variant's name or a .toml file, then edits, each after a slash
    3=...     stage 3 gets these mixers; + alternates them over the blocks
    1.heads=4 one field of stage 1
    norm=...  one field of the backbone
    mixer     name, then :option=value,option=value
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attention.registry import SpecError, nearest
from backbones import variants
from backbones.spec import (
    BackboneSpec,
    StageSpec,
    edit,
    edit_stage,
    fields_of,
    from_dict,
    one_line,
)  # fmt: skip

LONGEST = 65536  # characters; nobody writes more by hand


def parse(what: str | Mapping[str, Any] | BackboneSpec) -> BackboneSpec:
    """The spec of a notation, a dict, or a spec itself.

    Raises SpecError with the place, the value and the nearest allowed one.
    """
    if isinstance(what, BackboneSpec):
        return what
    if isinstance(what, Mapping):
        return from_dict(what)
    if not isinstance(what, str):
        raise SpecError(f"a backbone is a text, a dict or a BackboneSpec, not {what!r}")
    if len(what) > LONGEST:
        raise SpecError(f"a notation of {len(what)} characters; the longest read is {LONGEST}")
    base, edits = _base(what)
    return _apply(base, edits, what) if edits else base


def _base(text: str) -> tuple[BackboneSpec, list[str]]:
    """The spec before the first edit, and the edits.  A file's path may have slashes itself."""
    path, toml, rest = text.partition(".toml")
    if toml and (not rest or rest.startswith("/")):
        return _from_file(Path(path + toml)), rest.split("/")[1:]
    name, *edits = text.split("/")
    return variants.get(name).spec, edits


def _from_file(path: Path) -> BackboneSpec:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # no file, no path, no TOML, too deep
        raise SpecError(f"{one_line(str(path))}: cannot be read: {one_line(str(error))}") from None
    return from_dict({"name": path.stem, **data})


def _apply(spec: BackboneSpec, edits: list[str], whole: str) -> BackboneSpec:
    """All edits at once, so that their order does not matter: 1=axial may precede 1.heads=4."""
    place = one_line(whole)
    whole_spec: dict[str, str] = {"name": whole}
    by_stage: dict[int, dict[str, str]] = {}
    for text in edits:
        stage, field, value = _edit(text, place)
        target = by_stage.setdefault(stage, {}) if stage else whole_spec
        if field in target:
            raise SpecError(f"{place}: {text!r} sets what an earlier edit has set")
        target[field] = value
    for stage, fields in by_stage.items():
        spec = edit_stage(spec, stage, place, **fields)
    return edit(spec, place, **whole_spec)


def _edit(text: str, place: str) -> tuple[int, str, str]:
    """(stage or 0, field, value) of one edit."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise SpecError(
            f"{place}: {text!r} is not an edit such as 3=pale:size=7, 1.heads=4 or norm=res_post"
        )
    head, dot, field = key.partition(".")
    if head.isdecimal() and len(head) < 4:
        field = field if dot else "mixers"
        if field not in fields_of(StageSpec):
            hint = nearest(field, fields_of(StageSpec))
            raise SpecError(f"{place}: stage {head} has no field {field!r}{hint}")
        if int(head) == 0:
            raise SpecError(f"{place}: no stage 0; stages count from 1")
        return int(head), field, value
    allowed = [name for name in fields_of(BackboneSpec) if name not in ("stages", "name")]
    if key not in allowed:
        raise SpecError(f"{place}: a backbone has no field {key!r}{nearest(key, allowed)}")
    return 0, key, value
