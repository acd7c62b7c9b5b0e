"""Backbones of ours: one body, in which only the mixer differs."""

from __future__ import annotations

from backbones.families.family import T_HEADS, TINY, Family

OURS = "ours: the Swin-T body with only the mixer changed; not a paper's model"


# fmt: off
_ours = Family(OURS)
_ours("axial_t", 224, 96, TINY, (4, 6, 12, 24), ["axial"] * 4, 28265032, 4448418816,
      drop_path=0.2, note="heads 4 in stage 1, since two branches need an even number")
_ours("shuffle_t", 224, 96, TINY, T_HEADS, ["shuffle:size=7"] * 4, 28288354, 4490566656,
      drop_path=0.2)
_ours("full_t", 224, 96, TINY, T_HEADS, ["full"] * 4, 28265032, 8783324160, drop_path=0.2)

_POINTS = "deformable:stride={},kernel=3,position=bias,table={}"
# For images of 28 to 64 pixels: one body, in which the MLPs take what a mixer leaves of 1 MMACs.
_micro = Family(OURS, num_classes=10)
_HEADS2 = "one body; the MLP's ratio makes the MACs of all micro variants equal within 3%"
for _name, _mixers, _ratio, _params, _macs in (
    ("window", ("window:size=4", "window:size=2"), 4.75, 39498, 1040704),
    ("cosine", ("cosine:size=4", "cosine:size=2"), 3.0, 40290, 1048896),
    ("token_mlp", ("token_mlp:size=4", "token_mlp:size=2"), 6.75, 40242, 1026880),
    ("cross", ("cross:size=2", "cross:size=1"), 4.5, 38922, 1035584),
    ("pale", ("pale:size=2", "pale:size=2"), 4.0, 38522, 1033536),
    ("messenger", ("messenger:size=4,region=2", "messenger:size=4,region=1"), 4.0, 35826, 1030848),
    ("axial", ("axial", "axial"), 5.0, 40570, 1040704),
    ("shuffle", ("shuffle:size=4", "shuffle:size=2"), 4.75, 39498, 1040704),
    ("axial_deeplab", ("axial_deeplab:span=8", "axial_deeplab:span=4"), 4.25, 39762, 1044800),
    ("deformable", (_POINTS.format(2, 8), _POINTS.format(1, 4)), 4.75, 41706, 1033024),
    ("sra", ("sra:ratio=2", "sra:ratio=1"), 4.75, 41410, 1048896),
    ("neighbourhood", ("neighbourhood:kernel=3", "neighbourhood:kernel=3"), 4.75, 39466, 1022272),
    ("halo", ("halo:block=2,radius=1", "halo:block=2,radius=1"), 4.25, 37330, 1042752),
    ("full", ("full:position=lepe", "full:position=lepe"), 2.75, 29794, 1027392),
):
    _micro(f"micro_{_name}", 32, 16, (2, 2), (2, 2), _mixers, _params, _macs,
           mlp_ratio=_ratio, note=_HEADS2)
# fmt: on
ROWS = [*_ours.rows, *_micro.rows]
