"""Pyramid Vision Transformer, and its second version."""

from __future__ import annotations

from backbones.families.family import Family

PVT = "PVT, Wang et al. 2021, arXiv 2102.12122; classification/pvt.py of whai362/PVT"
PVT_V2 = "PVT v2, Wang et al. 2022, arXiv 2106.13797; classification/pvt_v2.py of whai362/PVT"
SRA = [f"sra:ratio={ratio}" for ratio in (8, 4, 2, 1)]
RATIOS = (8.0, 8.0, 4.0, 4.0)  # of the MLPs

# fmt: off
_v1 = Family(PVT, downsample="patch_norm", eps=1e-6, position="absolute_stages", pool="token")
for _name, _depths, _params, _macs in (
    ("tiny", (2, 2, 2, 2), 13229288, 1932911616),
    ("small", (3, 4, 6, 3), 24485864, 3815701504),
    ("medium", (3, 4, 18, 3), 44208104, 6659175424),
    ("large", (3, 8, 27, 3), 61369320, 9813765632),
):
    _v1(f"pvt_{_name}", 224, (64, 128, 320, 512), _depths, (1, 2, 5, 8), SRA, _params, _macs,
        mlp_ratio=RATIOS, tokens=(0, 0, 0, 1), official=f"pvt_{_name}")

_v2 = Family(PVT_V2, stem="overlap_same", downsample="conv_norm", eps=1e-6, mlp="conv",
             stage_norms=True)
_DIMS, _HEADS, _B2 = (64, 128, 320, 512), (1, 2, 5, 8), (3, 4, 6, 3)
_v2("pvt_v2_b0", 224, (32, 64, 160, 256), (2, 2, 2, 2), _HEADS, SRA, 3666760, 566065664,
    mlp_ratio=RATIOS, official="pvt_v2_b0")
_v2("pvt_v2_b1", 224, _DIMS, (2, 2, 2, 2), _HEADS, SRA, 14009000, 2108355584,
    mlp_ratio=RATIOS, official="pvt_v2_b1")
_v2("pvt_v2_b2", 224, _DIMS, _B2, _HEADS, SRA, 25362856, 4026734592,
    mlp_ratio=RATIOS, official="pvt_v2_b2")
_v2("pvt_v2_b2_li", 224, _DIMS, _B2, _HEADS, ["sra:pool=7"] * 4, 22553512, 3888850944,
    mlp_ratio=RATIOS, official="pvt_v2_b2_li", mlp="relu_conv")
_v2("pvt_v2_b3", 224, _DIMS, (3, 4, 18, 3), _HEADS, SRA, 45238696, 6897303552,
    mlp_ratio=RATIOS, official="pvt_v2_b3")
_v2("pvt_v2_b4", 224, _DIMS, (3, 8, 27, 3), _HEADS, SRA, 62556072, 10101116416,
    mlp_ratio=RATIOS, official="pvt_v2_b4")
_v2("pvt_v2_b5", 224, _DIMS, (3, 6, 40, 3), _HEADS, SRA, 81956008, 11717260288,
    official="pvt_v2_b5")
# fmt: on
ROWS = [*_v1.rows, *_v2.rows]
