"""The work of ``python -m backbones.convert``: read, check, resize, write, report."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.files import reading, storage
from backbones.files.detect_source import source_of
from backbones.files.storage import WeightsError
from backbones.model.backbone import HierarchicalBackbone
from backbones.specs.notation import parse
from backbones.specs.spec import BackboneSpec
from backbones.specs.writing import to_notation
from backbones.weights.infer_spec import small_maps
from backbones.weights.loading import load_read
from backbones.weights.reference_models import BUILDERS, difference, reference_model
from backbones.weights.resize import Adapt, extent_of, retarget
from backbones.weights.saving import export, save
from backbones.weights.source import SourceWeights, read_weights
from transom import cli, table
from transom.errors import cause_of, one_line

TOLERANCE = 1e-5
POSITIONS = re.compile(r".*(pos_embed(ding)?\d?|position_embeddings|(stem|stages\.\d)\.position)")


def source_spec(
    args: argparse.Namespace, given: SourceWeights, source: str
) -> BackboneSpec:
    """The spec of the weights: that of --spec, or inferred from their shapes."""
    if args.spec is not None:
        return parse(args.spec)
    config = infer_config(args)
    if args.img_size is not None and args.source_img_size is None and args.window is None:
        config["img_size"] = args.img_size  # only positions depend on the old size
        if any(POSITIONS.fullmatch(str(key)) for key in given.state):
            config["img_size"] = None
    return given.spec(source, **config)


def infer_config(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "window": args.source_window, "pretrained_window": args.pretrained_window,
        "heads": args.heads, "img_size": args.source_img_size, "qk_scale": args.qk_scale,
    }  # fmt: skip


def check(
    source: str, spec: BackboneSpec, state: Mapping[str, Tensor], ours: HierarchicalBackbone,
    stored: str | bool,
) -> tuple[float, float]:  # fmt: skip
    """(largest difference, largest logit) of our model and a reference.

    stored: a .safetensors file with `input` and `logits`; True: the model of the source's library.
    """
    if isinstance(stored, str):
        pair = reading.read(stored)
        if not {"input", "logits"} <= set(pair):
            raise WeightsError(f"--check {stored}: expected tensors called input and logits")
        with torch.no_grad():
            logits = ours.eval()(pair["input"].float())
        wanted = pair["logits"].float()
        if logits.shape != wanted.shape:
            return float("inf"), 1.0
        return float((logits - wanted).abs().amax()), float(wanted.abs().amax())
    theirs = reference_model(source, spec, state)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, spec.in_channels, *spec.img_size, generator=generator)
    try:
        return difference(ours, theirs, image)
    except (AssertionError, RuntimeError) as error:  # windows that do not divide their map
        size, cause = "x".join(map(str, spec.img_size)), one_line(cause_of(error))
        raise WeightsError(
            f"--check: {source} cannot run images of {size}: {cause}; give --source-img-size"
        ) from None


def convert(args: argparse.Namespace) -> tuple[int, str]:
    """(exit code, report) of one request; the file is written unless something is refused."""
    if args.num_classes is not None and args.num_classes < 0:
        raise WeightsError(f"--num-classes {args.num_classes}: expected 0 or more")
    if args.check is True and args.source is not None and args.source not in BUILDERS:
        reference_model(args.source, parse("swin_t"), {})  # raises before anything is read
    if args.partial is not None:
        _check_partial(args)
    source_weights = read_weights(args.file, args.entry, args.prefix, args.drop, dict(args.rename))
    code, result = cli.AGREED, ""
    with storage.about(source_weights.path):
        source = args.source or source_of(source_weights.state)
        if args.partial is not None:
            config = {k: v for k, v in infer_config(args).items() if v is not None}
            asked = parse(args.spec)
            loaded = load_read(asked, source_weights, source, partial=args.partial, **config)
        else:
            spec = source_spec(args, source_weights, source)
            new = _retargeted(args, spec, source)
            if args.check is not None:
                code, result = _check_result(args, spec, source_weights, source)
            loaded = load_read(new, source_weights, source, how=_adapt_config(args, spec))
    assert isinstance(loaded.model, HierarchicalBackbone)
    target = _write(loaded.model, args.to, args.target)
    note = f"{args.file} (names of {source}) -> {target}: {to_notation(loaded.model.spec)}"
    counts = dict.fromkeys(("loaded", "resized", "fresh", "left out"), 0)
    for line in loaded.report:
        counts[line["status"]] += 1
    note += "\n" + ", ".join(f"{number} {status}" for status, number in counts.items())
    note += f"\n{result}" if result else ""
    return code, table.render(loaded.report, cli.chosen_format(args), note=note)


def _check_partial(args: argparse.Namespace) -> None:
    """Raises WeightsError for options that --partial excludes."""
    if args.spec is None:
        raise WeightsError(f"--partial {args.partial}: into which backbone? give it by --spec")
    for option in ("check", "img_size", "window", "num_classes", "in_channels"):
        if getattr(args, option) is not None:
            name = option.replace("_", "-")
            raise WeightsError(
                f"--{name} goes with whole weights; with --partial, --spec says what is made"
            )


def _retargeted(args: argparse.Namespace, spec: BackboneSpec, source: str) -> BackboneSpec:
    return retarget(
        spec, img_size=args.img_size, window=args.window, num_classes=args.num_classes,
        in_channels=args.in_channels, rule=small_maps(source, [args.window or (1, 1)]),
    )  # fmt: skip


def _adapt_config(args: argparse.Namespace, spec: BackboneSpec) -> Adapt:
    return Adapt(
        resize=args.resize if args.window or args.img_size else None,
        windows=_old_windows(spec), grid=spec.stem_grid(spec.img_size),
        new_head=args.num_classes is not None and args.num_classes != spec.num_classes,
        new_inputs=args.in_channels is not None,
    )  # fmt: skip


def _check_result(
    args: argparse.Namespace, spec: BackboneSpec, source_weights: SourceWeights, source: str
) -> tuple[int, str]:
    """(exit code, line of the report) of --check."""
    ours = load_read(spec, source_weights, source).model
    assert isinstance(ours, HierarchicalBackbone)
    worst, largest = check(source, spec, source_weights.state, ours, args.check)
    allowed = TOLERANCE * max(1.0, largest)
    agreed = worst <= allowed
    line = f"check: {'equal' if agreed else 'DIFFERS'}: largest difference {worst:.3g}, "
    line += f"allowed {allowed:.3g}, largest logit {largest:.3g}"
    return cli.AGREED if agreed else cli.DIFFER, line


def _write(model: HierarchicalBackbone, to: Path, target: str | None) -> Path:
    if target is None:
        return save(model, to)
    state = export(model, target)
    return storage.write(state, to, {"format": "pt"})


def _old_windows(spec: BackboneSpec) -> list[tuple[int, int]] | None:
    """Windows of the bias tables in the file; None for mixers without windows."""
    mixers = [stage.mixers[0] for stage in spec.resolve().stages]
    if not all(hasattr(mixer, "size") for mixer in mixers):
        return None
    return [extent_of(mixer) for mixer in mixers]
