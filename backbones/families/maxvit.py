"""MaxViT: the authors' models as timm has them from TensorFlow, and torchvision's.

A block of MaxViT is two of ours, windows and then a grid, behind an inverted bottleneck; so depths
are twice the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence

from backbones.families.family import Family

MAXVIT = (
    "MaxViT, Tu et al. 2022, arXiv 2204.01697, table 1; timm/models/maxxvit.py, maxvit_*_tf, with "
    "weights of google-research/maxvit"
)
TORCHVISION = "MaxViT, Tu et al. 2022, arXiv 2204.01697; torchvision/models/maxvit.py, maxvit_t"
_TINY, _BASE = (4, 4, 10, 4), (4, 12, 28, 4)
_SHARED = {"patch_norm": False, "norm_after_pool": True, "head": "tanh"}


def _heads(first: int) -> list[int]:
    """Heads of 32 channels, of every stage."""
    return [first * 2**i // 32 for i in range(4)]


def _scaled(first: int) -> Sequence[str]:
    """torchvision divides by the root of the channels, not of those of a head."""
    return [f"shuffle:size=7,qk_scale={(first * 2**i) ** -0.5!r}" for i in range(4)]


# fmt: off
_maxvit = Family(MAXVIT, stem="conv_bn", downsample="mbconv", mlp="gelu_tanh", **_SHARED)
_MIXERS = ["shuffle:size=7"] * 4
_maxvit("maxvit_t", 224, 64, _TINY, _heads(64), _MIXERS, 30916528, 5545201664, stem_dim=64,
        official="MaxViT-T")
_maxvit("maxvit_s", 224, 96, _TINY, _heads(96), _MIXERS, 68927956, 11579172864, stem_dim=64,
        official="MaxViT-S")
_maxvit("maxvit_b", 224, 96, _BASE, _heads(96), _MIXERS, 119467708, 23901935616, stem_dim=64,
        official="MaxViT-B")
_maxvit("maxvit_l", 224, 128, _BASE, _heads(128), _MIXERS, 211785560, 43492564992, stem_dim=128,
        official="MaxViT-L")

_torchvision = Family(TORCHVISION, stem="conv_bn_even", downsample="mbconv_even", head_bias=False,
                      **_SHARED)
_torchvision("maxvit_t_torchvision", 224, 64, _TINY, _heads(64), _scaled(64), 30919624, 5558046720,
             stem_dim=64, official="maxvit_t", drop_path=0.2, note="torchvision's own training")
# fmt: on
ROWS = [*_maxvit.rows, *_torchvision.rows]
