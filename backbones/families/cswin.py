"""CSWin Transformer."""

from __future__ import annotations

from backbones.families.family import B_HEADS, Family

CSWIN = "CSWin Transformer, Dong et al. 2022, arXiv 2107.00652; models/cswin.py"


def _cross(last: int) -> list[str]:
    return ["cross:size=1", "cross:size=2", f"cross:size={last}", "full:position=lepe"]


# fmt: off
_cswin = Family(CSWIN, stem="overlap", downsample="conv_norm")
_C_TINY, _C_BASE = (1, 2, 21, 1), (2, 4, 32, 2)
_L24 = "heads of the last stage are 24, not 48"
_cswin("cswin_t", 224, 64, _C_TINY, (2, 4, 8, 16), _cross(7), 22320552, 4324203008,
       official="CSWin_64_12211_tiny_224", drop_path=0.2)
_cswin("cswin_s", 224, 64, _C_BASE, (2, 4, 8, 16), _cross(7), 34643304, 6800714752,
       official="CSWin_64_24322_small_224", drop_path=0.4)
_cswin("cswin_b", 224, 96, _C_BASE, B_HEADS, _cross(7), 77382184, 14955348480,
       official="CSWin_96_24322_base_224", drop_path=0.5)
_cswin("cswin_b_384", 384, 96, _C_BASE, B_HEADS, _cross(12), 77382184, 46963660800,
       official="CSWin_96_24322_base_384", drop_path=0.7)
_cswin("cswin_l", 224, 144, _C_BASE, (6, 12, 24, 24), _cross(7), 173262664, 33130144512,
       official="CSWin_144_24322_large_224", drop_path=0.2, note=_L24)
_cswin("cswin_l_384", 384, 144, _C_BASE, (6, 12, 24, 24), _cross(12), 173262664, 101881930752,
       official="CSWin_144_24322_large_384", note=_L24 + "; drop path not published here")
# fmt: on
ROWS = _cswin.rows
