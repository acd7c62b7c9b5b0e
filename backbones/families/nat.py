"""Neighborhood Attention Transformers: NAT, and DiNAT with dilations."""

from __future__ import annotations

from collections.abc import Sequence

from backbones.families.family import B_HEADS, L_HEADS, T_HEADS, Family

NAT = "Neighborhood Attention Transformer, Hassani et al. 2023, arXiv 2204.07143; classification/"
DINAT = "Dilated Neighborhood Attention, Hassani and Shi 2022, arXiv 2209.15001; classification/"


def _near() -> list[str]:
    return ["neighbourhood:kernel=7"] * 4


def _dilated(dilations: Sequence[int], kernel: int = 7) -> list[str]:
    """Blocks of a level alternate between neighbours and neighbours at a distance."""
    near = f"neighbourhood:kernel={kernel}"
    return [near if d == 1 else f"{near}+{near},dilation={d}" for d in dilations]


# fmt: off
_BODY = {"stem": "two_convs", "downsample": "conv_norm", "downsample_bias": False}
_MINI, _DEEP, _HEADS = (3, 4, 6, 5), (3, 4, 18, 5), (2, 4, 8, 16)
_AT_224, _AT_384 = (8, 4, 2, 1), (13, 6, 3, 1)
_nat, _dinat = Family(NAT + "nat.py", **_BODY), Family(DINAT + "dinat.py", **_BODY)
for _start, _family, _mixers in (("nat", _nat, _near()), ("dinat", _dinat, _dilated(_AT_224))):
    _family(f"{_start}_mini", 224, 64, _MINI, _HEADS, _mixers, 19984174, 2694812672,
            mlp_ratio=3.0, official=f"{_start}_mini", drop_path=0.2)
    _family(f"{_start}_tiny", 224, 64, _DEEP, _HEADS, _mixers, 27901582, 4295226368,
            mlp_ratio=3.0, official=f"{_start}_tiny", drop_path=0.2)
    _family(f"{_start}_small", 224, 96, _DEEP, T_HEADS, _mixers, 50719681, 7772302848,
            mlp_ratio=2.0, official=f"{_start}_small", drop_path=0.3)
    _family(f"{_start}_base", 224, 128, _DEEP, B_HEADS, _mixers, 89769652, 13677094912,
            mlp_ratio=2.0, layer_scale=1e-5, official=f"{_start}_base", drop_path=0.5)
_dinat("dinat_large", 224, 192, _DEEP, L_HEADS, _dilated(_AT_224), 200943514, 30457715712,
       mlp_ratio=2.0, official="dinat_large", drop_path=0.35)
_dinat("dinat_large_384", 384, 192, _DEEP, L_HEADS, _dilated(_AT_384), 200943514, 89505411072,
       mlp_ratio=2.0, official="dinat_large_384", drop_path=0.35)
_dinat("dinat_large_384_k11", 384, 192, _DEEP, L_HEADS, _dilated(_AT_224, 11), 201144250,
       92085301248, mlp_ratio=2.0, official="dinat_large_384_11x11", drop_path=0.35)
# fmt: on
ROWS = [*_nat.rows, *_dinat.rows]
