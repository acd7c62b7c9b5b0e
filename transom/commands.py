"""All commands by name: the module of each, and the question that it answers."""

from __future__ import annotations

from typing import NamedTuple


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
