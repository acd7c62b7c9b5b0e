"""Pale Transformer: a reconstruction, because the authors published no code."""

from __future__ import annotations

from backbones.families.family import B_HEADS, Family

PALE = "Pale Transformer, Wu et al. 2022, arXiv 2112.14000; a reconstruction, no code published"


# fmt: off
_pale = Family(PALE, stem="overlap_same", patch_norm=False, downsample="conv", position="cpe",
                final_norm=False)
_P_DEPTHS, _P_MIXERS = (2, 2, 16, 2), ["pale:size=7"] * 4
_OPEN = "inferred from the published sizes; heads are not decided by them"
_pale("pale_t", 224, 64, _P_DEPTHS, (2, 4, 8, 16), _P_MIXERS, 21745768, 4202551296, note=_OPEN)
_pale("pale_s", 224, 96, _P_DEPTHS, (2, 4, 8, 16), _P_MIXERS, 48303784, 8977204224, note=_OPEN)
_pale("pale_b", 224, 128, _P_DEPTHS, B_HEADS, _P_MIXERS, 85318888, 15534108672, note=_OPEN)
# fmt: on
ROWS = _pale.rows
