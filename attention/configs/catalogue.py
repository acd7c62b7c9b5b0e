"""The built-in mixers: their names, configs and papers."""

from __future__ import annotations

from attention.configs.config import MixerConfig
from attention.configs.lines import AxialConfig, CrossConfig, FullConfig, PaleConfig
from attention.configs.registry import declare, name_of
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


BUILT_IN = (  # name, config, source; attention/mixers/NAME.py defines the class
    ("window", WindowConfig, "Swin Transformer (Liu et al. 2021, arXiv 2103.14030)"),
    ("cosine", CosineConfig, "Swin Transformer V2 (Liu et al. 2022, arXiv 2111.09883)"),
    ("axial", AxialConfig, "after Axial-DeepLab (Wang et al. 2020, arXiv 2003.07853)"),
    ("cross", CrossConfig, "CSWin Transformer (Dong et al. 2022, arXiv 2107.00652)"),
    ("pale", PaleConfig, "reconstruction of Pale (Wu et al. 2022, arXiv 2112.14000)"),
    ("shuffle", ShuffleConfig, "after Shuffle Transformer (Huang et al., arXiv 2106.03650)"),
    ("token_mlp", TokenMLPConfig, "Swin-MLP (microsoft/Swin-Transformer, swin_mlp.py)"),
    ("full", FullConfig, "global self-attention (Vaswani et al. 2017, arXiv 1706.03762)"),
)
for _name, _config, _source in BUILT_IN:
    declare(_name, _config, _source, f"attention.mixers.{_name}")
