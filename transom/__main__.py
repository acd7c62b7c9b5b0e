"""The command ``transom``: finds the command that is named and imports it alone."""

from __future__ import annotations

import argparse
import difflib
import importlib
import shutil
import sys
import textwrap
from typing import Any, NamedTuple

from transom import cli
from transom.errors import SpecError, one_line

SHELLS = ("bash", "zsh", "tcsh")


class Command(NamedTuple):
    """A command.

    name: words behind ``transom``.  module: whose ``main(argv)`` runs it.  what: it answers.
    """

    name: str
    module: str
    what: str


GROUPS: dict[str, tuple[Command, ...]] = {
    "What does it cost?": (
        Command("flops", "analysis.flops", "parameters and MACs, counted three ways"),
        Command("compare", "analysis.compare", "backbones side by side, with published accuracy"),
        Command("complexity", "analysis.complexity", "the papers' formulas and what really runs"),
        Command("sweep", "analysis.sweep", "cost against image size, width or depth"),
        Command("audit", "analysis.audit", "published costs, claimed and counted"),
    ),
    "Which one learns better?": (
        Command("train compare", "training.compare", "train under one budget, with verdicts"),
        Command("train study", "training.study", "a paper's comparison made again in small"),
        Command("certify", "analysis.certify", "what no training can give a backbone"),
    ),
    "Which one is faster?": (
        Command("bench speed", "benchmarks.speed", "backbones against timm's and torchvision's"),
        Command("bench mixers", "benchmarks.mixers", "time per MAC of every mixer"),
        Command("bench shift", "benchmarks.shift", "shifted windows against their rivals"),
        Command("bench ablation", "benchmarks.ablation", "what each fast path brings"),
        Command("bench kernel", "benchmarks.kernel", "the Triton kernel on a GPU"),
        Command("bench loop", "benchmarks.loop", "the training loop against the bare step"),
    ),
    "Is it right, and what does it see?": (
        Command("check", "analysis.check", "properties of a mixer or a network of yours"),
        Command("regions", "analysis.regions", "pictures: footprints, masks, receptive fields"),
        Command("portable", "analysis.portable", "where backbones run without this code"),
    ),
    "Which ones are there, and how do I change one?": (
        Command("variants", "backbones", "the named backbones and their sources"),
        Command("mixers", "attention", "the token mixers and their options"),
        Command("show", "backbones.show", "a notation, drawn or as TOML"),
        Command("diff", "backbones.diff", "two backbones: fields and costs that differ"),
        Command("fit", "backbones.fit", "a backbone scaled to a budget"),
        Command("convert", "backbones.convert", "weights of other libraries"),
        Command("export", "backbones.export", "ONNX and .pt2 files"),
    ),
}

ALL = {command.name: command for group in GROUPS.values() for command in group}


def main(argv: list[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(listing(shutil.get_terminal_size().columns))
        return cli.AGREED
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"transom {version('transom')}")
        return cli.AGREED
    if words[0] == "--completion":
        print(completion(words[1:]))
        return cli.AGREED
    command, rest = find(words)
    code: int = _module(command).main(rest)
    return code


def _module(command: Command) -> Any:
    """The module of a command, whose help then calls it by its name here."""
    module = command.module
    cli.called_as(module, f"transom {command.name}")
    if module in ("attention", "backbones"):  # packages: their command is in __main__
        module += ".__main__"
    return importlib.import_module(module)


def find(words: list[str]) -> tuple[Command, list[str]]:
    """The command that the first words name, and the words behind it.

    Raises:
        SpecError: no command is called so.

    Example:
        >>> from transom.__main__ import find
        >>> find(["train", "compare", "micro_pale"])[0].module
        'training.compare'
    """
    for count in (2, 1):
        if command := ALL.get(" ".join(words[:count])):
            return command, words[count:]
    # `bench speeed` is near `bench speed`; `flop swin_t` is near `flops`
    groups = {name.split()[0] for name in ALL if " " in name}
    if words[0] in groups and (len(words) == 1 or words[1] in ("-h", "--help")):
        inside = ", ".join(name for name in ALL if name.startswith(f"{words[0]} "))
        raise SpecError(f"{words[0]}: expected a command of it: {inside}")
    tried = " ".join(words[:2]) if words[0] in groups else words[0]
    known = [*ALL, *groups]
    close = difflib.get_close_matches(tried[:64], known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise SpecError(f"no command is called '{one_line(tried)}'; {hint}transom --help lists them")


def listing(width: int) -> str:
    """The help: commands by the question that they answer."""
    side = max(map(len, ALL))
    lines = ["usage: transom COMMAND ..., each with a --help of its own", ""]
    for question, commands in GROUPS.items():
        lines.append(question)
        for command in commands:
            start = f"  {command.name:{side}}  "
            lines += textwrap.wrap(
                command.what, max(width, 40), initial_indent=start,
                subsequent_indent=" " * len(start),
            )  # fmt: skip
        lines.append("")
    lines += [
        "examples:",
        "  transom flops swin_t pale_t",
        '  transom compare swin_t cswin_t "swin_t/3=pale:size=7"',
        "  transom train compare micro_pale micro_window --target 0.95",
        "",
        "--completion bash|zsh|tcsh prints a script for the shell, --version the version;",
        "every command is also a module: python -m analysis.flops",
    ]
    return "\n".join(lines)


def completion(shells: list[str]) -> str:
    """A script that completes commands, options and their values in a shell.

    Raises:
        SpecError: for another shell, or without the package shtab.
    """
    if len(shells) != 1 or shells[0] not in SHELLS:
        raise SpecError(f"--completion: expected one of {', '.join(SHELLS)}")
    try:
        import shtab
    except ImportError:
        raise SpecError("--completion: needs the package shtab: pip install shtab") from None
    text: str = shtab.complete(whole_parser(), shell=shells[0])
    return text


def whole_parser() -> argparse.ArgumentParser:
    """One parser of all commands, for completion; it imports every command's module."""
    whole = argparse.ArgumentParser(prog="transom")
    commands = whole.add_subparsers()
    groups: dict[str, Any] = {}
    for name, command in ALL.items():
        *group, last = name.split()
        where = commands
        if group:
            if group[0] not in groups:
                inner = commands.add_parser(group[0], help=f"commands of {group[0]}")
                groups[group[0]] = inner.add_subparsers()
            where = groups[group[0]]
        parent = _module(command).build_parser()
        where.add_parser(last, help=command.what, parents=[parent], add_help=False)
    return whole


def script() -> None:
    """The console script ``transom``."""
    cli.run(main)


if __name__ == "__main__":
    script()
