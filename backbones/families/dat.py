"""DAT: windows, shifted windows and deformable attention in turn.

The repository holds DAT++ today; these are the models of the paper.  Their shifted windows of 7
move by 4, those of Swin (and ours) by 3, which no count shows.
"""

from __future__ import annotations

from backbones.families.family import B_HEADS, SMALL, T_HEADS, TINY, Family

DAT = "DAT, Xia et al. 2022, arXiv 2201.00520; models/dat.py of LeapLabTHU/DAT"


def _mixers(groups: int) -> list[str]:
    """Of every stage; groups: of the third, the fourth has twice as many."""
    window = "window:size=7"
    point = f"{window},shift=false+deformable:stride=1,position=bias"
    return [
        window, window, f"{point},table=14,groups={groups}",
        f"{point},kernel=3,table=7,groups={2 * groups}",
    ]  # fmt: skip


# fmt: off
_dat = Family(DAT, downsample="patch_norm", downsample_bias=False)
_SHIFT = "shifted windows move by 4, ours by 3"
_dat("dat_t", 224, 96, TINY, T_HEADS, _mixers(3), 28319138, 4563459840, official="dat_tiny",
     drop_path=0.2, note=_SHIFT)
_dat("dat_s", 224, 96, SMALL, T_HEADS, _mixers(3), 49700402, 8958726912, official="dat_small",
     drop_path=0.3, note=_SHIFT)
_dat("dat_b", 224, 128, SMALL, B_HEADS, _mixers(4), 87881632, 15721415680, official="dat_base",
     drop_path=0.5, note=_SHIFT)
# fmt: on
ROWS = _dat.rows
