"""Legal configs and backbones drawn from a seed: everything that can be written down."""

from __future__ import annotations

import dataclasses
import random

import attention
from attention.configs.registry import config_class
from backbones.specs.spec import (
    DOWNSAMPLES,
    MLPS,
    POSITIONS,
    SMALL_MAPS,
    STEMS,
    BackboneSpec,
    SpecError,
    StageSpec,
)

BUILT_IN = (
    "window", "cosine", "axial", "axial_deeplab", "cross", "pale", "shuffle", "sra", "token_mlp",
    "full", "halo", "neighbourhood", "messenger",
)  # fmt: skip
VALUES = {
    "kernel": [1, 3, 13],
    "dilation": [1, 8],
    "block": [1, 7],
    "radius": [0, 3],
    "size": [1, 7, (2, 5), "3x4", (7, 7)],
    "scores": ["dot", "cosine"],
    "position": ["none", "bias", "log_cpb", "lepe", "dpb"],
    "interval": [None, 1, 8],
    "order": ["parallel", "sequential"],
    "span": [1, 7, 56],
    "ratio": [1, 2, (2, 5), "3x4", 8],
    "pool": [None, 7, "2x3"],
    "remainder": ["drop", "pad"],
    "region": [1, 2, 4],
    "hidden": [None, 3, 384],
    "along": ["both", "height", "width"],
    "qk_scale": [None, 0.125, 1e-7, 3e30, 0.1 + 0.2],
    "pretrained_window": [None, 12, (6, 12)],
    "mask_value": [None, -100, -1e20, -0.1],
}


def draw_mixer(rng: random.Random, *names: str) -> attention.MixerConfig:
    """A legal config of any built-in mixer, or of `names`: what is refused is drawn again."""
    while True:
        name = rng.choice(names or sorted(set(attention.names()) & set(BUILT_IN)))
        fields = dataclasses.fields(config_class(name))
        options = {
            field.name: rng.choice(VALUES.get(field.name, [True, False]))
            for field in fields
            if rng.random() < 0.5
        }
        try:
            return attention.make_config(name, **options)
        except SpecError:
            continue


def draw_spec(rng: random.Random) -> BackboneSpec:
    """A legal spec of any backbone: what is refused is drawn again."""
    while True:
        try:
            return _drawn(rng)
        except SpecError:
            continue


def _drawn_stage(rng: random.Random, *mixers: attention.MixerConfig) -> StageSpec:
    mixers = mixers or tuple(draw_mixer(rng) for _ in range(rng.randint(1, 3)))
    taken = any(mixer.takes_tokens for mixer in mixers)
    return StageSpec(
        dim=8 * rng.randint(1, 64), depth=rng.randint(1, 30), heads=rng.choice([2, 4, 8]),
        mixers=mixers, mlp_ratio=rng.choice([4, 2.5, 1 / 3]),
        tokens=rng.choice([0, 1, 5]) if taken else 0,
    )  # fmt: skip


def _drawn(rng: random.Random) -> BackboneSpec:
    going_on = [draw_mixer(rng, "messenger")] if rng.random() < 0.5 else []
    stages = tuple(_drawn_stage(rng, *going_on) for _ in range(rng.randint(1, 5)))
    return BackboneSpec(
        name=rng.choice(["plain", "", "two words", "\u00e4\n'\"", "a/b=c"]), stages=stages,
        img_size=rng.choice([224, (64, 128), "32x16"]), in_channels=rng.randint(1, 9),
        num_classes=rng.choice([0, 1, 1000]), patch_size=rng.randint(1, 16),
        stem=rng.choice(STEMS), patch_norm=rng.random() < 0.5,
        downsample=rng.choice(DOWNSAMPLES), norm=rng.choice(["pre", "res_post"]),
        stage_norms=rng.random() < 0.5, mlp=rng.choice(MLPS),
        position=rng.choice(POSITIONS), final_norm=rng.random() < 0.5,
        out_norms=rng.random() < 0.5, small_maps=rng.choice(SMALL_MAPS),
        drop_path=rng.choice([0, 0.1, 1 / 3]), norm_after_pool=rng.random() < 0.5,
        head=rng.choice(["linear", "tanh"]), head_bias=rng.random() < 0.5,
        stem_dim=rng.choice([None, 24]), local=rng.choice([0, 0, 3, 7]),
        norm_layer=rng.choice(["layer", "batch"]), pool=rng.choice(["mean", "mean", "token"]),
        token_position=rng.random() < 0.5,
    )  # fmt: skip
