"""The spec of a budget: scales widths, depths or MLPs of a backbone to given MACs or parameters.

Widths grow by heads of a fixed dimension, depths by blocks, MLPs by a quarter of the width.  All
stages grow by one factor, then single stages by a step.  The nearest spec is printed with its
remaining error.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from backbones.specs.notation import parse
from backbones.specs.spec import BackboneSpec
from backbones.specs.stage import StageSpec
from backbones.specs.writing import to_notation
from transom import cli, table
from transom.errors import SpecError, one_line

EPILOG = """examples:
  python -m backbones.fit pale_t --macs 4.5G
  python -m backbones.fit "swin_t/3=pale" --params 28M --by depth

exit code: 0 within 1% of the budget, 1 further away, 2 the request cannot be answered"""

TOLERANCE = 0.01
LARGEST_FACTOR = 16.0
QUARTERS = 4  # steps of an MLP's ratio
OTHER_KIND = LARGEST_FACTOR**2  # a width times the largest factor costs so many times as much
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def amount(text: str) -> int:
    """``4.5G``, ``28M`` or a whole number."""
    digits, unit = _split_unit(text)
    try:
        value = float(digits) * _UNITS[unit]
    except (ValueError, KeyError):
        value = math.nan
    if not (math.isfinite(value) and value >= 1):
        raise argparse.ArgumentTypeError(f"{text!r}: expected an amount such as 4.5G or 28M")
    return round(value)


def _split_unit(text: str) -> tuple[str, str]:
    digits = text.rstrip("KMGT")
    return digits, text[len(digits) :]


def check_unit(text: str, current: int, option: str) -> None:
    """Refuses an amount without a unit that only a unit brings near the backbone's amount.

    Args:
        text: the amount, as `amount` reads it.
        current: parameters or MACs of the backbone before it is scaled.
        option: the option that has the text.

    Raises:
        SpecError: a unit is missing; the message has the unit that was meant.

    Example:
        >>> check_unit("4.5", 4_203_000_000, "--macs")
        Traceback (most recent call last):
        transom.errors.SpecError: --macs 4.5: the backbone has 4,203,000,000; did you mean 4.5G?
    """

    def times_off(unit: str) -> float:
        return max(float(digits) * _UNITS[unit] / current, current / (float(digits) * _UNITS[unit]))

    digits, unit = _split_unit(text)
    meant = min(_UNITS, key=times_off)
    if not unit and times_off(unit) > OTHER_KIND > times_off(meant):
        hint = f"did you mean {digits}{meant}?"
        raise SpecError(f"{option} {one_line(text)}: the backbone has {current:,}; {hint}")


def counts_of(spec: BackboneSpec, by: str) -> list[int]:
    """Heads (by="width"), blocks (by="depth") or quarters of the MLP's ratio, of every stage."""
    counts = {
        "width": lambda stage: stage.heads,
        "depth": lambda stage: stage.depth,
        "mlp": lambda stage: max(1, round(QUARTERS * stage.mlp_ratio)),
    }
    return [counts[by](stage) for stage in spec.stages]


def with_counts(spec: BackboneSpec, by: str, counts: Sequence[int]) -> BackboneSpec | None:
    """The spec with these heads (and widths that keep the head dimensions), depths or MLP ratios.

    None where it cannot be built.
    """
    changed = {
        "width": lambda stage, n: replace(stage, heads=n, dim=n * (stage.dim // stage.heads)),
        "depth": lambda stage, n: replace(stage, depth=n),
        "mlp": lambda stage, n: replace(stage, mlp_ratio=n / QUARTERS),
    }
    try:
        stages = [changed[by](stage, n) for stage, n in zip(spec.stages, counts, strict=True)]
        return replace(spec, stages=tuple(stages))
    except SpecError:
        return None


def step_of(stage: StageSpec, by: str) -> int:
    """Smallest change of a count: a block, a head, or two heads where two branches share them."""
    if by == "width":
        try:
            for mixer in stage.mixers:
                mixer.check(stage.dim // stage.heads, 1)
        except SpecError:
            return 2
    return 1


def uniform(spec: BackboneSpec, by: str) -> list[tuple[int, ...]]:
    """Counts of all stages scaled by one factor and rounded, for every factor in growing order."""
    counts, steps = counts_of(spec, by), [step_of(stage, by) for stage in spec.stages]
    edges = {  # factors at which some stage's rounding changes
        step * (k + 0.5) / count
        for count, step in zip(counts, steps, strict=True)
        for k in range(int(LARGEST_FACTOR * count / step) + 1)
    }
    found = [
        tuple(
            max(step, step * math.floor(count * factor / step + 0.5))
            for count, step in zip(counts, steps, strict=True)
        )
        for factor in (0.0, *(edge * (1 + 1e-9) for edge in sorted(edges)))
    ]
    return list(dict.fromkeys(found))


def fit(
    spec: BackboneSpec, *, macs: int | None = None, params: int | None = None, by: str = "width"
) -> tuple[BackboneSpec, int]:
    """Scales a backbone to a budget of MACs or parameters.

    All stages grow by one factor: the cost grows with it, so a bisection finds where it crosses
    the budget.  There, one or two stages may be a little larger or smaller.  Of the specs within
    1% of the budget the one that keeps the proportions best is taken, else the nearest.

    Args:
        spec: the backbone.
        macs: the budget in multiply-adds of one image at spec.img_size.
        params: the budget in parameters.
        by: width (heads of a fixed dimension), depth (blocks) or mlp (hidden channels).

    Returns:
        The nearest spec, and its MACs or parameters.

    Raises:
        SpecError: no budget or two are given, or no such spec can be built.

    Example:
        >>> from backbones import parse
        >>> from backbones.fit import fit
        >>> spec, params = fit(parse("swin_t/stages=2"), params=3_000_000)
        >>> [stage.dim for stage in spec.stages], params
        ([192, 256], 2939428)
    """
    from backbones.model.sizes import stage_sizes

    if (macs is None) == (params is None):
        raise SpecError("give one budget: macs or params")
    target, what = (macs, "macs") if macs is not None else (params, "params")
    assert target is not None

    parts: dict[tuple[int, ...], int] = {}  # a stage depends on itself and the one before

    @functools.cache
    def size(counts: tuple[int, ...]) -> float:
        chain = (0, *counts, 0)
        keys = [(i, *chain[i : i + 2]) for i in range(len(counts) + 1)]
        if any(key not in parts for key in keys):
            scaled = with_counts(spec, by, counts)
            if scaled is None:
                return math.inf
            parts.update(zip(keys, (getattr(s, what) for s in stage_sizes(scaled)), strict=True))
        return sum(parts[key] for key in keys)

    def error(counts: tuple[int, ...]) -> float:
        return abs(size(counts) - target)

    ladder = uniform(spec, by)
    low, high = 0, len(ladder) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if size(ladder[middle]) > target else (middle, high)
    original = counts_of(spec, by)

    def rank(counts: tuple[int, ...]) -> tuple[bool, float, float]:
        """Orders by distortion within the tolerance, and by distance beyond it."""
        logs = [math.log(c / o) for c, o in zip(counts, original, strict=True)]
        too_far = error(counts) > TOLERANCE * target
        distortion = max(logs) - min(logs)
        if too_far:
            return True, error(counts), distortion
        return False, distortion, error(counts)

    starts = ladder[low], ladder[high]
    best = min((c for start in starts for c in _neighbours(spec, by, start)), key=rank)
    found = with_counts(spec, by, best)
    if found is None:
        raise SpecError(f"{one_line(spec.name)}: no {by} can be built near this budget")
    return found, int(size(best))


def _neighbours(spec: BackboneSpec, by: str, counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The counts, and counts with one or two stages larger or smaller.

    A stage changes by a quarter of its count at most, a small stage by one step.
    """
    steps = [step_of(stage, by) for stage in spec.stages]
    reach = [max(1, c // (4 * s)) for c, s in zip(counts, steps, strict=True)]
    for moves in itertools.product(*(range(-r, r + 1) for r in reach)):
        if sum(move != 0 for move in moves) <= 2:
            moved = [c + m * s for c, m, s in zip(counts, moves, steps, strict=True)]
            yield tuple(max(c, s) for c, s in zip(moved, steps, strict=True))


def _amount_text(text: str) -> str:
    amount(text)
    return text


def row_of(found: BackboneSpec, by: str, what: str, target: int, value: int) -> dict[str, Any]:
    """The answer as a row.

    Args:
        found: the nearest backbone.
        by: what was changed.
        what: macs or params.
        target: the budget.
        value: what the backbone has.
    """
    stages = found.stages
    return {
        "backbone": to_notation(found), "by": by, "budget": f"{what}={target}", "found": value,
        "error_%": 100 * (value - target) / target,
        "dims": " ".join(str(stage.dim) for stage in stages),
        "heads": " ".join(str(stage.heads) for stage in stages),
        "depths": " ".join(str(stage.depth) for stage in stages),
        "mlp_ratios": " ".join(f"{stage.mlp_ratio:g}" for stage in stages),
    }  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("backbones.fit", __doc__, EPILOG)
    parser.add_argument("spec", help="a notation, a variant, an alias or a .toml file")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--macs", type=_amount_text, metavar="AMOUNT",
                        help="such as 4.5G, at --img-size")  # fmt: skip
    budget.add_argument("--params", type=_amount_text, metavar="AMOUNT", help="such as 28M")
    parser.add_argument("--by", choices=("width", "depth", "mlp"), default="width",
                        help="default: width")  # fmt: skip
    parser.add_argument("--img-size", type=cli.image_size, metavar="SIZE", help="default: own")
    cli.add_output(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    cli.load_plugins(args.plugin)
    spec = parse(args.spec)
    from backbones.model.sizes import stage_sizes, total

    if args.img_size:
        spec = replace(spec, img_size=args.img_size)
    what, text = ("macs", args.macs) if args.macs else ("params", args.params)
    check_unit(text, getattr(total(stage_sizes(spec)), what), f"--{what}")
    target = amount(text)
    found, value = fit(spec, by=args.by, **{what: target})
    row = row_of(found, args.by, what, target, value)
    cli.emit(table.render([row], cli.chosen_format(args)), args)
    return cli.AGREED if abs(row["error_%"]) <= 100 * TOLERANCE else cli.DIFFER


if __name__ == "__main__":
    cli.run(main)
