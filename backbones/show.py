"""A backbone drawn to scale: its stages, widths, depths, heads and mixers; or as TOML or JSON."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from backbones.specs import aliases, variants
from backbones.specs.notation import parse
from backbones.specs.spec import BackboneSpec
from backbones.specs.writing import to_toml
from transom import cli, table
from transom.errors import SpecError

EPILOG = """examples:
  python -m backbones.show "swin_t/3=pale:size=7+window"
  python -m backbones.show "swin_t/3=pale" --format toml --out hybrid.toml
  python -m backbones.show "swin_t/3=pale" --save mine    then: --backbone mine

exit code: 0, or 2 when the request cannot be answered"""

WIDEST = 40  # characters of the widest stage


def strip(spec: BackboneSpec, img_size: tuple[int, int]) -> str:
    """A line per stage, as wide as its channels; a letter per block, one for each mixer."""
    from backbones.model.sizes import stage_sizes, total

    sizes = stage_sizes(spec, img_size)
    overall = total(sizes)
    configs = list(dict.fromkeys(c for stage in spec.stages for c, _ in stage.blocks()))
    letters = {config: _letter(i) for i, config in enumerate(configs)}
    widest = max(stage.dim for stage in spec.stages)
    h, w = img_size
    lines = [
        f"{table.plain(spec.name)} at {h}x{w}: {overall.params:,} parameters, "
        f"{overall.macs:,} MACs",
        ", ".join(_body(spec)), "",
    ]  # fmt: skip
    for i, (stage, (rows, cols)) in enumerate(zip(spec.stages, spec.grids(img_size), strict=True)):
        bar = "=" * max(1, round(WIDEST * stage.dim / widest))
        blocks = "".join(letters[config] for config, _ in stage.blocks())
        share, beside = sizes[i].macs / overall.macs, stage.tokens_beside(rows, cols)
        blocks += f", and {beside} beside the map" if beside else ""
        lines.append(
            f"stage {i + 1}  {f'{rows}x{cols}':>9}  {bar:<{WIDEST}}  {stage.dim:>5} channels  "
            f"{stage.heads:>3} heads  {share:>4.0%} of MACs  blocks {blocks}"
        )
    return "\n".join([*lines, "", *(f"{letters[c]} = {c}" for c in configs)])


def _body(spec: BackboneSpec) -> Iterator[str]:
    """What all stages share."""
    yield f"{spec.stem} stem /{spec.patch_size}"
    if len(spec.stages) > 1 or spec.first_downsample:
        yield f"{spec.downsample} downsampling"
    yield f"{spec.norm} norm"
    yield f"{spec.position} position"
    if spec.pool != "mean":
        yield f"{spec.pool} pooling"


def _letter(i: int) -> str:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    return letters[i] if i < len(letters) else f"({i})"


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("backbones.show", __doc__, EPILOG)
    parser.add_argument("spec", help="a notation, a variant, an alias or a .toml file")
    parser.add_argument("--img-size", type=cli.image_size, metavar="SIZE", help="default: own")
    parser.add_argument("--save", metavar="NAME", help="keep it as an alias in ./transom.toml")
    cli.add_output(parser, ("strip", "toml", "json"))
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    cli.load_plugins(args.plugin)
    spec = parse(args.spec)
    size = args.img_size or spec.img_size
    if args.save is not None:
        if variants.known(args.save):
            raise SpecError(f"--save {args.save}: a variant has this name")
        aliases.save(args.save, args.spec)
    spec = spec.resolve(size)
    endings = {".toml": "toml", ".json": "json"}
    style = args.format or (endings.get(args.out.suffix, "strip") if args.out else "strip")
    if style == "toml":
        text = to_toml(spec).rstrip()
    else:
        text = table.as_json(spec.to_dict()) if style == "json" else strip(spec, size)
    cli.emit(text, args)
    return cli.AGREED


if __name__ == "__main__":
    cli.run(main)
