"""Re-runs a paper's comparison in small and prints the paper's figures beside ours.

A study is a TOML file: what the paper claims and with which figures, the backbones, the settings of
training.compare, and what a run at this scale allows to conclude.  Without a name, the studies are
listed.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import compare, options
from transom import cli, table
from transom.errors import SpecError, nearest, one_line, printable

EPILOG = """examples:
  python -m training.study
  python -m training.study swin-table4 --store table4.jsonl
  python -m training.study swin-table4 --store table4.jsonl --resume --figure table4.svg
  python -m training.study --show swin-table4 > mine.toml
  python -m training.study mine.toml --data IMAGENET --recipe swin --budget 300epochs \\
      --batch 1024 --img-size 224 --device cuda

An option that is given takes the place of the study's setting.

exit code: 0 every run is done, 1 a run diverged or failed, 2 the request cannot be answered,
130 interrupted: give --resume to go on"""

FOLDER = Path(__file__).parent / "studies"
TEXTS = ("title", "claim", "source", "scale")
TABLES = ("backbones", "figures", "settings")
SETTINGS = (  # options of training.compare that a study may set
    "data", "img-size", "recipe", "budget", "batch", "seeds", "target", "eval-size", "baseline",
    "lr", "evaluations", "dtype",
)  # fmt: skip
SCALE = ("data", "img_size", "recipe", "budget", "batch", "dtype")  # what its sentence is about


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison of a paper and how it is made here.

    Args:
        name: of the file.
        title, claim, source: of the paper's comparison.
        scale: a sentence that says what a run with these settings allows to conclude.
        backbones: notation by label, two or more.
        metric: of the paper's figures, such as "top-1, %".
        figures: the paper's, by label; empty where none are known.
        settings: values by the name of an option of training.compare; the baseline is a label.
    """

    name: str
    title: str
    claim: str
    source: str
    scale: str
    backbones: Mapping[str, str]
    metric: str
    figures: Mapping[str, float]
    settings: Mapping[str, Any]

    def arguments(self) -> list[str]:
        """The settings as options of a command line."""
        lists, single = [], []
        for key, value in self.settings.items():
            if isinstance(value, list):
                lists += [f"--{key}", *map(str, value)]
            else:
                single.append(f"--{key}={value}")
        return [*lists, *single]


def path_of(name: str) -> Path:
    """The file of a study of ours, or of the user's, whose name ends in .toml.

    Args:
        name: ``swin-table4`` or ``mine.toml``.

    Raises:
        SpecError: no study has the name.
    """
    if name.endswith(".toml"):
        return Path(name)
    if name not in names():
        raise SpecError(f"no study is called {one_line(name)!r}{nearest(name, names())}")
    return FOLDER / f"{name}.toml"


def names() -> list[str]:
    """The studies of ours."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is no text in UTF-8"
        raise SpecError(f"{printable(path)}: cannot be read: {reason}") from None


def read(name: str) -> Study:
    """Reads a study.

    Args:
        name: of ours, or the path of a .toml file.

    Returns:
        The study; its backbones and settings are checked when it is run.

    Raises:
        SpecError: there is no such study, or its file is not one.
    """
    path = path_of(name)
    try:
        content = tomllib.loads(read_text(path))
        return _made(path.stem, content)
    except ValueError as error:  # SpecError is one too
        if str(path) in str(error):
            raise
        raise SpecError(f"{printable(path)}: {one_line(str(error))}") from None


def _made(name: str, content: dict[str, Any]) -> Study:
    _check_keys("a study", content, (*TEXTS, *TABLES))
    for key in TEXTS:
        if not isinstance(content.get(key), str) or not content[key].strip():
            raise SpecError(f"{key} must be a sentence, as of `--show swin-table4`")
    for key in TABLES:
        if not isinstance(content.get(key, {}), dict):
            raise SpecError(f"[{key}] must be a table, as of `--show swin-table4`")
    labels = content.get("backbones", {})
    if len(labels) < 2 or not all(isinstance(value, str) for value in labels.values()):
        raise SpecError("[backbones] must have two or more lines: a label and a notation")
    figures, settings = dict(content.get("figures", {})), content.get("settings", {})
    metric = figures.pop("metric", "")
    if figures and not (isinstance(metric, str) and metric):
        raise SpecError("[figures] lacks its metric, such as metric = 'top-1, %'")
    _check_keys("[figures]", figures, tuple(labels))
    _check_keys("[settings]", settings, SETTINGS)
    for label, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SpecError(f"[figures] {one_line(label)} must be a number")
    return Study(
        name=name, backbones=labels, metric=metric, figures=figures, settings=settings,
        **{key: content[key] for key in TEXTS},
    )  # fmt: skip


def _check_keys(what: str, found: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in found:
        if key not in known:
            raise SpecError(f"{what} has no {one_line(key)!r}{nearest(key, known)}")


# -- the command -----------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("training.study", __doc__, EPILOG)
    parser.add_argument("study", nargs="?", metavar="NAME", help="of a study, or a .toml file")
    parser.add_argument("--show", metavar="NAME", help="print the study's TOML, to be changed")
    parser.add_argument("--baseline", metavar="LABEL", help="compare with this one of the study")
    options.add_settings(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.show:
        cli.emit(read_text(path_of(args.show)).rstrip("\n"), args)
        return cli.AGREED
    if not args.study:
        cli.emit(table.render(listed(), cli.chosen_format(args)), args)
        return cli.AGREED
    study = read(args.study)
    own = parser.parse_args(study.arguments())
    args = parser.parse_args([*study.arguments(), *argv])
    label = args.baseline or next(iter(study.backbones))
    if label not in study.backbones:
        raise SpecError(f"--baseline {one_line(label)}: {study.name} has no such label"
                        f"{nearest(label, list(study.backbones))}")  # fmt: skip
    args.baseline = label
    notations = {"backbone": list(study.backbones.values()), "baseline": study.backbones[label]}
    rows = compare.rows_of(argparse.Namespace(**{**vars(args), **notations}))
    changed = [key for key in SCALE if getattr(own, key) != getattr(args, key)]
    return show(study, rows, args, changed) if rows else cli.AGREED


def listed() -> list[dict[str, Any]]:
    """A row per study of ours."""
    studies = [read(name) for name in names()]
    return [
        {
            "study": study.name, "title": study.title, "backbones": len(study.backbones),
            "paper's figures": len(study.figures) or "none", "data": study.settings["data"],
            "budget": study.settings["budget"], "seeds": study.settings["seeds"],
        }
        for study in studies
    ]  # fmt: skip


def show(
    study: Study, rows: list[dict[str, Any]], args: argparse.Namespace, changed: Sequence[str]
) -> int:
    """Prints the paper's figures beside ours, the verdicts and what they allow to conclude.

    Args:
        study: the study.
        rows: of its runs; those of other backbones are left out.
        args: of the command line; its baseline is a label.
        changed: settings that its sentence about the scale is not about.

    Returns:
        The exit code.

    Raises:
        SpecError: none of the rows is of the study.
    """
    from training import report

    labels = {notation: label for label, notation in study.backbones.items()}
    named = [{"kind": "plan", "backbones": list(study.backbones)}]
    named += [
        {**row, "backbone": labels[row["backbone"]]}
        for row in rows
        if row.get("backbone") in labels
    ]
    if len(named) == 1:
        raise SpecError(f"no run is of a backbone of {study.name}")
    shown = with_figures(study, report.table_rows(named, args.baseline, args.target), args.baseline)
    scale = study.scale
    if changed:
        words = ", ".join(f"{key.replace('_', '-')} {getattr(args, key)}" for key in changed)
        scale = f"as set in the study: {scale} This run has {words}."
    return compare.show(
        named, args, shown, first=[f"{study.title}: {study.claim} ({study.source})"], last=[scale],
        study={"name": study.name, "claim": study.claim, "source": study.source, "scale": scale},
    )  # fmt: skip


def with_figures(
    study: Study, rows: Sequence[dict[str, Any]], baseline: str
) -> list[dict[str, Any]]:
    """Rows of the table with the paper's figures after the label, and both differences.

    Args:
        study: the study.
        rows: one per backbone, of `training.report.table_rows`.
        baseline: label that the differences are taken from.
    """
    if not study.figures:
        return list(rows)
    ours = {row["backbone"]: row["accuracy, %"] for row in rows}
    found = []
    for row in rows:
        label, rest = row["backbone"], dict(row)
        del rest["backbone"]
        figure, base = study.figures.get(label), study.figures.get(baseline)
        theirs = None if figure is None or base is None else round(figure - base, 2)
        mine = None if baseline not in ours else round(ours[label] - ours[baseline], 2)
        found.append({
            "backbone": label, f"paper, {study.metric}": figure, "paper's difference": theirs,
            "our difference": mine, **rest,
        })  # fmt: skip
    return found


if __name__ == "__main__":
    cli.run(main)
