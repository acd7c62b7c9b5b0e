"""The built-in mixers: their names, configs and papers."""

from __future__ import annotations

from attention.configs.beside import MessengerConfig
from attention.configs.config import MixerConfig
from attention.configs.lines import (
    AxialConfig,
    AxialDeepLabConfig,
    CrossConfig,
    FullConfig,
    PaleConfig,
)
from attention.configs.neighbours import HaloConfig, NeighbourhoodConfig
from attention.configs.reduced import SRAConfig
from attention.configs.registry import declare, name_of
from attention.configs.sampled import DeformableConfig
from attention.configs.windows import CosineConfig, ShuffleConfig, TokenMLPConfig, WindowConfig


def alternates(config: MixerConfig) -> bool | None:
    """True if odd blocks of a stage differ from even ones; None, which is false, if unknown.

    A config states it as `alternates`; without a statement, an option `shift` implies it.
    """
    if config.alternates is not None:
        return config.alternates
    if getattr(config, "shift", name_of(type(config)) == "shuffle"):
        return True
    return False if type(config).__module__.startswith("attention.configs.") else None


# name, config, source; attention/mixers/NAME.py defines the class, or the file in DEFINED_IN
BUILT_IN = (
    ("window", WindowConfig, "Swin Transformer (Liu et al. 2021, arXiv 2103.14030)"),
    ("cosine", CosineConfig, "Swin Transformer V2 (Liu et al. 2022, arXiv 2111.09883)"),
    ("axial", AxialConfig, "after Axial-DeepLab (Wang et al. 2020, arXiv 2003.07853)"),
    ("axial_deeplab", AxialDeepLabConfig, "Axial-DeepLab (Wang et al. 2020, arXiv 2003.07853)"),
    ("cross", CrossConfig, "CSWin Transformer (Dong et al. 2022, arXiv 2107.00652)"),
    ("pale", PaleConfig, "reconstruction of Pale (Wu et al. 2022, arXiv 2112.14000)"),
    ("shuffle", ShuffleConfig, "after Shuffle Transformer (Huang et al., arXiv 2106.03650)"),
    ("messenger", MessengerConfig, "MSG-Transformer (Fang et al. 2022, arXiv 2105.15168)"),
    ("token_mlp", TokenMLPConfig, "Swin-MLP (microsoft/Swin-Transformer, swin_mlp.py)"),
    ("sra", SRAConfig, "Pyramid Vision Transformer (Wang et al. 2021, arXiv 2102.12122)"),
    ("deformable", DeformableConfig, "DAT (Xia et al. 2022, arXiv 2201.00520)"),
    ("neighbourhood", NeighbourhoodConfig, "NAT (Hassani et al. 2023, arXiv 2204.07143)"),
    ("halo", HaloConfig, "HaloNet (Vaswani et al. 2021, arXiv 2103.12731)"),
    ("full", FullConfig, "global self-attention (Vaswani et al. 2017, arXiv 1706.03762)"),
)
DEFINED_IN = {"cosine": "window", "neighbourhood": "neighbours", "halo": "neighbours"}
for _name, _config, _source in BUILT_IN:
    declare(_name, _config, _source, f"attention.mixers.{DEFINED_IN.get(_name, _name)}")
