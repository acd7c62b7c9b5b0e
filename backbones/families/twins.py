"""Twins: SVT, windows and spatial reduction in turn, and PCPVT, spatial reduction alone."""

from __future__ import annotations

from backbones.families.family import B_HEADS, SMALL, T_HEADS, Family
from backbones.families.pvt import RATIOS, SRA

TWINS = "Twins, Chu et al. 2021, arXiv 2104.13840; gvt.py of Meituan-AutoML/Twins"
_LOCAL = "window:size=7,shift=false,position=none"

# fmt: off
_twins = Family(TWINS, downsample="patch_norm", eps=1e-6, position="cpe_once")
_SVT = [f"{_LOCAL}+{sra}" for sra in SRA]
_twins("twins_svt_s", 224, 64, (2, 2, 10, 4), (2, 4, 8, 16), _SVT, 24060776, 2927353344,
       official="alt_gvt_small")
_twins("twins_svt_b", 224, 96, SMALL, T_HEADS, _SVT, 56070952, 8562612480,
       official="alt_gvt_base", drop_path=0.3)
_twins("twins_svt_l", 224, 128, SMALL, B_HEADS, _SVT, 99271400, 15111777280,
       official="alt_gvt_large")
_DIMS, _HEADS = (64, 128, 320, 512), (1, 2, 5, 8)
_twins("twins_pcpvt_s", 224, _DIMS, (3, 4, 6, 3), _HEADS, SRA, 24106216, 3809459968,
       mlp_ratio=RATIOS, official="pcpvt_small_v0")
_twins("twins_pcpvt_b", 224, _DIMS, (3, 4, 18, 3), _HEADS, SRA, 43828456, 6652933888,
       mlp_ratio=RATIOS, official="pcpvt_base_v0")
_twins("twins_pcpvt_l", 224, _DIMS, (3, 8, 27, 3), _HEADS, SRA, 60989672, 9807524096,
       mlp_ratio=RATIOS, official="pcpvt_large_v0")
# fmt: on
ROWS = _twins.rows
