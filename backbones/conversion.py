"""The work of ``python -m backbones.convert``: read, check, resize, write, report."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attention import table, terminal
from backbones import hub, reading, storage, weights
from backbones.detect import source_of, under
from backbones.inference import SMALL_MAPS
from backbones.model import HierarchicalBackbone
from backbones.notation import parse
from backbones.originals import LIBRARIES, difference, original
from backbones.planning import row
from backbones.resize import Adapt, extent_of, retarget
from backbones.spec import BackboneSpec
from backbones.storage import WeightsError
from backbones.writing import to_notation

TOLERANCE = 1e-5
POSITIONS = ("absolute_pos_embed", "position_embeddings", "stem.position")


def source_spec(args: argparse.Namespace, state: Mapping[str, Any], path: Path, source: str):
    """The backbone that the weights are of."""
    if args.spec is not None:
        return parse(args.spec)
    told = {
        "window": args.source_window, "pretrained_window": args.pretrained_window,
        "heads": args.heads, "img_size": args.source_img_size,
    }  # fmt: skip
    if args.img_size is not None and args.source_img_size is None and args.window is None:
        told["img_size"] = args.img_size  # then nothing depends on the old one but positions
        if any(key.endswith(POSITIONS) for key in state):
            told["img_size"] = None
    return weights.spec_of(state, source, path, **told)


def check(
    source: str, spec: BackboneSpec, state: Mapping[str, Tensor], ours: HierarchicalBackbone,
    stored: str | bool,
) -> tuple[float, float]:  # fmt: skip
    """(largest difference, largest logit): against the source's library, or a stored file with
    `input` and `logits`."""
    if isinstance(stored, str):
        pair = reading.read(stored)
        if not {"input", "logits"} <= set(pair):
            raise WeightsError(f"--check {stored}: expected tensors called input and logits")
        with torch.no_grad():
            found = ours.eval()(pair["input"].float())
        wanted = pair["logits"].float()
        if found.shape != wanted.shape:
            return float("inf"), 1.0
        return float((found - wanted).abs().amax()), float(wanted.abs().amax())
    theirs = original(source, spec, state)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, spec.in_channels, *spec.img_size, generator=generator)
    return difference(ours, theirs, image)


def convert(args: argparse.Namespace) -> tuple[int, str]:
    """(exit code, report) of one request; the file is written unless something is refused."""
    if args.num_classes is not None and args.num_classes < 0:
        raise WeightsError(f"--num-classes {args.num_classes}: expected 0 or more")
    if args.check is True and args.source is not None and args.source not in LIBRARIES:
        original(args.source, parse("swin_t"), {})  # says so before anything is read
    path = hub.fetch(args.file) if args.file.startswith("hf:") else Path(args.file)
    state = reading.read(path, args.entry)
    others: dict[str, Any] = {}
    with storage.about(path):
        if args.prefix:
            state, others = under(state, args.prefix)
        source = args.source or source_of(state)
        spec = source_spec(args, state, path, source)
    rule = SMALL_MAPS.get(source, "shrink_both")
    new = retarget(
        spec, img_size=args.img_size, window=args.window, num_classes=args.num_classes,
        in_channels=args.in_channels, rule=rule,
    )  # fmt: skip
    code, verdict = terminal.AGREED, ""
    if args.check is not None:
        with storage.about(path):
            ours = weights.load(spec, state, source).model
        assert isinstance(ours, HierarchicalBackbone)
        worst, largest = check(source, spec, state, ours, args.check)
        allowed = TOLERANCE * max(1.0, largest)
        agreed = worst <= allowed
        code = terminal.AGREED if agreed else terminal.DIFFER
        verdict = f"check: {'equal' if agreed else 'DIFFERS'}: largest difference {worst:.3g}, "
        verdict += f"allowed {allowed:.3g}, largest logit {largest:.3g}"
    how = Adapt(
        resize=args.resize if args.window or args.img_size else None,
        windows=_old_windows(spec), grid=spec.grids(spec.img_size)[0],
        new_head=args.num_classes is not None and args.num_classes != spec.num_classes,
        new_inputs=args.in_channels is not None,
    )  # fmt: skip
    with storage.about(path):
        loaded = weights.load(new, state, source, how=how)
    assert isinstance(loaded.model, HierarchicalBackbone)
    target = _write(loaded.model, args.to, args.target)
    report = loaded.report + [row("dropped", None, key, tensor) for key, tensor in others.items()]
    note = f"{args.file} (names of {source}) -> {target}: {to_notation(loaded.model.spec)}"
    counts = dict.fromkeys(("loaded", "resized", "dropped", "missing"), 0)
    for line in report:
        counts[line["status"]] += 1
    note += "\n" + ", ".join(f"{number} {status}" for status, number in counts.items())
    note += f"\n{verdict}" if verdict else ""
    text = table.render(report, terminal.chosen_format(args), note=note)
    return code, text


def _write(model: HierarchicalBackbone, to: Path, target: str | None) -> Path:
    if target is None:
        return weights.save(model, to)
    state = weights.export(model, target)
    return storage.write(state, to, {"format": "pt"})


def _old_windows(spec: BackboneSpec) -> list[tuple[int, int]] | None:
    """Those of the tables in the file; None for mixers without windows."""
    mixers = [stage.mixers[0] for stage in spec.resolve().stages]
    if not all(hasattr(mixer, "size") for mixer in mixers):
        return None
    return [extent_of(mixer) for mixer in mixers]
