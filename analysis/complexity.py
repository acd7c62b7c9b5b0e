"""The papers' complexity formulas compared with the operators that mixers execute.

  formula  the paper's, or ours where none is published (analysis/counting/paper_formulas.py)
  exact    what the mixer states: projection, mixing, position and padding
  fvcore   the operators of a traced forward       torch  torch's counter in a second forward

agree: exact = fvcore = torch, and formula = projection + mixing where the sizes divide.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from analysis.counting import paper_formulas
from attention.configs.catalogue import alternates
from attention.configs.config import MixerConfig
from attention.configs.notation import make_config, parse
from attention.configs.registry import config_class, name_of, names
from attention.factory import build
from transom import cli, table
from transom.errors import SpecError
from transom.fields import read_flag, write
from transom.layout import Look

EPILOG = """examples:
  python -m analysis.complexity
  python -m analysis.complexity --mixer window full --sizes 56 14x28 --dim 96
  python -m analysis.complexity --mixer pale:size=7,scores=cosine --format json

exit code: 0 everything agrees, 1 something does not, 2 the request cannot be answered"""

LOOK = Look(
    heads={"formula_source": "formula of"},
    first=("exact", "formula", "agree", "options", "block", "h", "w", "fvcore", "torch",
           "formula_source", "projection", "mixing"),
    bad=lambda key, value: key == "agree" and value is False,
)  # fmt: skip
BYTES_A_MAC = 32  # more than any mixer needs, so that only those that might be refused are asked
SIZES = ((56, 56), (28, 14), (30, 45), (5, 9))  # two that windows of 7 divide, two that they do not
VARIED = ((28, 14), (15, 22))  # of an option that is varied: windows of 7 divide only the first


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("analysis.complexity", __doc__, EPILOG)
    add = parser.add_argument
    add(
        "--mixer", nargs="+", action="extend", metavar="MIXER",
        help="mixers with options, such as pale:size=7; default: every mixer with its defaults",
    )  # fmt: skip
    add(
        "--sizes", nargs="+", type=cli.image_size, metavar="SIZE",
        help="grids in tokens: 56, or 14x28 with the height first (default: 56; with --all or "
        "--mixer 56 28x14 30x45 5x9; for an option that --all varies 28x14, and 15x22 where it has "
        "pads; where even and odd blocks differ, the even one on 28x14, the odd one on 15x22)",
    )  # fmt: skip
    add("--all", action="store_true", help="every mixer, and its options varied; see --sizes")
    add("--dim", type=cli.count_from_one, default=96, help="channels (default 96)")
    add("--heads", type=cli.count_from_one, default=4, help="heads (default 4)")
    add(
        "--max-memory", type=cli.memory_size, default="4G", metavar="SIZE",
        help="refuse a forward that needs more (default 4G)",
    )  # fmt: skip
    cli.add_output(parser)
    return parser


def variations(name: str) -> Iterator[MixerConfig]:
    """The default config of a mixer, then every other value of each option alone.

    A combination that is refused is tried with shift=false, and else left out.
    """
    default = make_config(name)
    yield default
    for field in dataclasses.fields(config_class(name)):
        read = field.metadata.get("read")
        if read is read_flag:
            values: list[Any] = [not field.default]
        elif field.name == "size":
            h, w = getattr(default, field.name)
            values = [(h, 2 * w)]
        elif field.name == "hidden":
            values = [16]
        else:
            values = [v for v in getattr(read, "allowed", ()) if v != field.default]
        for value in values:
            for extra in ({}, {"shift": False}):
                try:
                    yield make_config(name, **{field.name: value}, **extra)
                    break
                except SpecError:
                    continue


def measure(
    config: MixerConfig, h: int, w: int, *, dim: int, heads: int, index: int, max_memory: int
) -> dict[str, Any]:
    """A row: MACs of a mixer on an (h, w) grid of tokens by formula, stated cost and counters."""
    import torch

    from analysis.counting import counters
    from analysis.counting.count import Budget

    with torch.device("meta"):
        mixer = build(config, dim=dim, heads=heads, index=index)
    shape = (1, h, w, dim)
    try:
        cost = mixer.cost(h, w)
    except NotImplementedError:
        cost = None
    if cost is None or BYTES_A_MAC * cost.total > max_memory:
        torch_tally = counters.on_meta(mixer, shape)
        weights = sum(p.numel() * p.element_size() for p in mixer.parameters())
        if refused := Budget(max_memory, float("inf")).refuses(weights, torch_tally):
            raise SpecError(f"{config} on a {h}x{w} grid: {refused}; choose smaller --sizes")
    else:
        torch_tally = counters.computed(mixer, shape)
    fvcore_tally = counters.traced(mixer, shape)
    formula = paper_formulas.formula(config, h, w, dim, index)
    counts = {fvcore_tally.macs[""], torch_tally.macs[""]} | ({cost.total} if cost else set())
    agree = len(counts) == 1 and not (fvcore_tally.uncounted or torch_tally.uncounted)
    if formula and formula.divides and cost:
        agree = agree and formula.macs == cost.projection + cost.mixing
    return {
        "mixer": name_of(type(config)), "h": h, "w": w, "dim": dim,
        "options": ",".join(f"{key}={write(value)}" for key, value in config.options().items()),
        "block": ("odd" if index else "even") if alternates(config) else "any",
        "formula": formula.macs if formula else None,
        "formula_source": formula.source if formula else "none",
        "projection": cost.projection if cost else None, "mixing": cost.mixing if cost else None,
        "position": cost.position if cost else None, "padding": cost.padding if cost else None,
        "exact": cost.total if cost else None, "fvcore": fvcore_tally.macs[""],
        "torch": torch_tally.macs[""], "divides": formula.divides if formula else None,
        "agree": agree,
    }  # fmt: skip


def _places(
    config: MixerConfig, sizes: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int, int]]:
    """(h, w, index of the block) of every row of a mixer on these grids."""
    return ((h, w, i) for h, w in sizes for i in ((0, 1) if alternates(config) else (0,)))


def _varied(config: MixerConfig, dim: int) -> list[tuple[int, int, int]]:
    """As `_places`, of an option that is varied: a grid that divides and one that does not."""
    if alternates(config):
        return [(h, w, i) for i, (h, w) in enumerate(VARIED)]
    formula = paper_formulas.formula(config, *VARIED[1], dim)
    everywhere = formula is not None and formula.divides  # as it does on the other grid
    return list(_places(config, VARIED[:1] if everywhere else VARIED))


def rows_of(
    mixers: Sequence[str], sizes: Sequence[tuple[int, int]], *, every_option: bool, dim: int,
    heads: int, max_memory: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row per mixer, grid and, where they differ, even and odd block.

    Args:
        mixers: notations; none: every mixer with its defaults, or with `every_option` each option
            varied.
        sizes: grids (h, w) in tokens; none: 56x56, and four grids where more is asked for, one or
            two for a varied option.
        every_option: see `mixers`.
        dim: channels.
        heads: heads.
        max_memory: bytes of a real forward beyond which it is refused.

    Raises:
        SpecError: a mixer cannot be read or built, or a forward needs more memory.
    """
    from transom.progress import Bar

    if mixers:
        configs = [parse(text) for text in mixers]
    elif every_option:
        configs = [config for name in names() for config in variations(name)]
    else:
        configs = [make_config(name) for name in names()]
    for config in configs:
        config.check(dim, heads)
    several = SIZES if mixers or every_option else SIZES[:1]
    jobs = []
    for config in configs:
        varied = every_option and bool(config.options()) and not sizes
        places = _varied(config, dim) if varied else _places(config, sizes or several)
        jobs += [(config, h, w, index) for h, w, index in places]
    return [
        measure(config, h, w, dim=dim, heads=heads, index=index, max_memory=max_memory)
        for config, h, w, index in Bar(jobs, unit="row")
    ]


def example(dim: int = 96, window: tuple[int, int] = (7, 7)) -> list[str]:
    """The example of the Swin paper, section 3.2: a 56x56 grid, C = 96, M = 7."""
    local, full = paper_formulas.w_msa(56, 56, dim, window), paper_formulas.msa(56, 56, dim)
    side = paper_formulas.twice_side(dim, window)
    return [
        f"the paper's example, 56x56 tokens, C {dim}, M {window[0]}: "
        f"W-MSA {local:,} MACs, MSA {full:,} MACs, ratio {full / local:.2f}",
        f"MSA costs twice W-MSA on {round(side**2)} tokens, a square grid of side {side:.2f}",
    ]


def short(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the first screen: the formula, what runs, and whether they agree."""
    keys = ("mixer", "block", "exact", "formula", "formula_source", "fvcore", "torch", "agree")
    return {key: row[key] for key in keys}


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    cli.load_plugins(args.plugin)
    if args.mixer and args.all:
        raise SpecError("--mixer and --all: choose one of the two")
    rows = rows_of(
        args.mixer or (), args.sizes or (), every_option=args.all, dim=args.dim, heads=args.heads,
        max_memory=args.max_memory,
    )  # fmt: skip
    style = cli.chosen_format(args)
    if style == "json":
        text = table.as_json({"rows": rows})
    elif style == "csv":
        text = table.csv(rows)
    else:
        bad = sum(not row["agree"] for row in rows)
        verdict = "all agree" if not bad else f"{bad} do not agree"
        shown = rows if args.all or args.mixer else [short(row) for row in rows]
        more = "" if args.all or args.mixer else "; --all varies every option, on more grids"
        verdict = f"{len(rows)} rows: {verdict}{more}"
        text = "\n".join([*example(), "", table.grid(shown, style, LOOK), "", verdict])
    cli.emit(text, args)
    return cli.AGREED if all(row["agree"] for row in rows) else cli.DIFFER


if __name__ == "__main__":
    cli.run(main)
