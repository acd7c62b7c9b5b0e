"""The named variants: one row each, with exact parameters and MACs and their source.

params and macs (multiply-adds of convolutions, linear layers and matrix products, one image at
img_size) are stated here and counted by the tests; drop_path is the rate of the paper's training,
which the spec leaves at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backbones.specs.spec import BackboneSpec, StageSpec, read_pattern
from transom.errors import SpecError, nearest, one_line

SWIN = "Swin Transformer, Liu et al. 2021, arXiv 2103.14030; configs/swin of its repository"
SWIN_V2 = "Swin Transformer V2, Liu et al. 2022, arXiv 2111.09883; configs/swinv2"
SWIN_MLP = "Swin-MLP, configs/swinmlp of microsoft/Swin-Transformer"
CSWIN = "CSWin Transformer, Dong et al. 2022, arXiv 2107.00652; models/cswin.py"
PALE = "Pale Transformer, Wu et al. 2022, arXiv 2112.14000; a reconstruction, no code published"
OURS = "ours: the Swin-T body with only the mixer changed; not a paper's model"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A named spec with its exact parameters and MACs, and its source.

    official: name of its config in the authors' repository.  drop_path: rate of the paper's
    training.
    """

    spec: BackboneSpec
    params: int
    macs: int
    source: str
    official: str | None = None
    drop_path: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for field in ("params", "macs"):
            value = getattr(self, field)
            if type(value) is not int or value < 1:
                raise ValueError(f"{self.spec.name}: {field}={value!r}: expected the exact count")
        if not self.source.strip():
            raise ValueError(f"{self.spec.name}: source={self.source!r}: expected where it is from")


ALIASES = {
    "swinv2_t": "swinv2_t_w8",
    "swinv2_s": "swinv2_s_w8",
    "swinv2_b": "swinv2_b_w8",
    "swinv2_l": "swinv2_l_w12to16",
    "swin_mlp_t": "swin_mlp_t_c24",
}

_rows: dict[str, Variant] = {}


def _stages(
    dim: int, depths: Sequence[int], heads: Sequence[int], mixers: Sequence[str],
    mlp_ratio: float,
) -> tuple[StageSpec, ...]:  # fmt: skip
    return tuple(
        StageSpec(
            dim=dim * 2**i, depth=depth, heads=h, mixers=read_pattern(mixer), mlp_ratio=mlp_ratio
        )
        for i, (depth, h, mixer) in enumerate(zip(depths, heads, mixers, strict=True))
    )


def _family(source: str, **body):
    """A function that adds rows which share their source and all fields but size and stages."""

    def add(
        name: str, size: int, dim: int, depths: Sequence[int], heads: Sequence[int],
        mixers: Sequence[str], params: int, macs: int, *, official: str | None = None,
        drop_path: float | None = None, note: str = "", mlp_ratio: float = 4.0,
    ) -> None:  # fmt: skip
        stages = _stages(dim, depths, heads, mixers, mlp_ratio)
        spec = BackboneSpec(name=name, stages=stages, img_size=(size, size), **body)
        _rows[name] = Variant(
            spec=spec, params=params, macs=macs, source=source, official=official,
            drop_path=drop_path, note=note,
        )  # fmt: skip

    return add


TINY, SMALL = (2, 2, 6, 2), (2, 2, 18, 2)
T_HEADS, B_HEADS, L_HEADS = (3, 6, 12, 24), (4, 8, 16, 32), (6, 12, 24, 48)


def _window(size: int) -> list[str]:
    return [f"window:size={size}"] * 4


def _cosine(*sizes: int, pretrained: Sequence[int] = ()) -> list[str]:
    """Swin V2's mixers, with the mask value -100 that the published weights were trained with."""
    given = [f",pretrained_window={size}" for size in pretrained] or [""] * 4
    return [f"cosine:size={s},mask_value=-100{p}" for s, p in zip(sizes, given, strict=True)]


def _cross(last: int) -> list[str]:
    return ["cross:size=1", "cross:size=2", f"cross:size={last}", "full:position=lepe"]


def _token_mlp(size: int) -> list[str]:
    return [f"token_mlp:size={size}"] * 4


# fmt: off
_swin = _family(SWIN)
_swin("swin_t", 224, 96, TINY, T_HEADS, _window(7), 28288354, 4490566656,
      official="swin_tiny_patch4_window7_224", drop_path=0.2)
_swin("swin_s", 224, 96, SMALL, T_HEADS, _window(7), 49606258, 8740875264,
      official="swin_small_patch4_window7_224", drop_path=0.3)
_swin("swin_b", 224, 128, SMALL, B_HEADS, _window(7), 87768224, 15430946816,
      official="swin_base_patch4_window7_224", drop_path=0.5)
_swin("swin_l", 224, 192, SMALL, L_HEADS, _window(7), 196532476, 34475759616,
      official="swin_large_patch4_window7_224_22kto1k_finetune", drop_path=0.2)
_swin("swin_t_c24", 256, 96, TINY, B_HEADS, _window(8), 28306432, 5921028096,
      official="swin_tiny_c24_patch4_window8_256", drop_path=0.2)
_swin("swin_b_384", 384, 128, SMALL, B_HEADS, _window(12), 87903584, 47083134976,
      official="swin_base_patch4_window12_384_finetune", drop_path=0.5)
_swin("swin_l_384", 384, 192, SMALL, L_HEADS, _window(12), 196735516, 103919087616,
      official="swin_large_patch4_window12_384_22kto1k_finetune", drop_path=0.2)

_v2 = _family(SWIN_V2, downsample="merge_post", norm="res_post")
_W16 = "last window 16 shrunk to its 8x8 map by the authors"
_v2("swinv2_t_w8", 256, 96, TINY, T_HEADS, _cosine(8, 8, 8, 8), 28347154, 5939690496,
    official="swinv2_tiny_patch4_window8_256", drop_path=0.2)
_v2("swinv2_t_w16", 256, 96, TINY, T_HEADS, _cosine(16, 16, 16, 8), 28347154, 6660619264,
    official="swinv2_tiny_patch4_window16_256", drop_path=0.2, note=_W16)
_v2("swinv2_s_w8", 256, 96, SMALL, T_HEADS, _cosine(8, 8, 8, 8), 49728418, 11545857024,
    official="swinv2_small_patch4_window8_256", drop_path=0.3)
_v2("swinv2_s_w16", 256, 96, SMALL, T_HEADS, _cosine(16, 16, 16, 8), 49728418, 12783078400,
    official="swinv2_small_patch4_window16_256", drop_path=0.3, note=_W16)
_v2("swinv2_b_w8", 256, 128, SMALL, B_HEADS, _cosine(8, 8, 8, 8), 87918816, 20325134336,
    official="swinv2_base_patch4_window8_256", drop_path=0.5)
_v2("swinv2_b_w16", 256, 128, SMALL, B_HEADS, _cosine(16, 16, 16, 8), 87918816, 21969235968,
    official="swinv2_base_patch4_window16_256", drop_path=0.5, note=_W16)
_TO16 = _cosine(16, 16, 16, 8, pretrained=(12, 12, 12, 6))
_TO24 = _cosine(24, 24, 24, 12, pretrained=(12, 12, 12, 6))
_v2("swinv2_b_w12to16", 256, 128, SMALL, B_HEADS, _TO16, 87918816, 21969235968,
    official="swinv2_base_patch4_window12to16_192to256_22kto1k_ft", drop_path=0.2)
_v2("swinv2_b_w12to24", 384, 128, SMALL, B_HEADS, _TO24, 87918816, 55148310528,
    official="swinv2_base_patch4_window12to24_192to384_22kto1k_ft", drop_path=0.2)
_v2("swinv2_l_w12to16", 256, 192, SMALL, L_HEADS, _TO16, 196739932, 47740303360,
    official="swinv2_large_patch4_window12to16_192to256_22kto1k_ft", drop_path=0.2)
_v2("swinv2_l_w12to24", 384, 192, SMALL, L_HEADS, _TO24, 196739932, 115991427072,
    official="swinv2_large_patch4_window12to24_192to384_22kto1k_ft", drop_path=0.2)

_mlp = _family(SWIN_MLP)
_mlp("swin_mlp_t_c6", 256, 96, TINY, (16, 32, 64, 128), _token_mlp(8), 22682952, 4026906624,
     official="swin_mlp_tiny_c6_patch4_window8_256", drop_path=0.2)
_mlp("swin_mlp_t_c12", 256, 96, TINY, (8, 16, 32, 64), _token_mlp(8), 21152072, 4026906624,
     official="swin_mlp_tiny_c12_patch4_window8_256", drop_path=0.2)
_mlp("swin_mlp_t_c24", 256, 96, TINY, B_HEADS, _token_mlp(8), 20386632, 4026906624,
     official="swin_mlp_tiny_c24_patch4_window8_256", drop_path=0.2)
_mlp("swin_mlp_b", 224, 128, SMALL, B_HEADS, _token_mlp(7), 60659416, 10412086144,
     official="swin_mlp_base_patch4_window7_224", drop_path=0.5)

_cswin = _family(CSWIN, stem="overlap", downsample="conv_norm")
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

_pale = _family(PALE, stem="overlap_same", patch_norm=False, downsample="conv", position="cpe",
                final_norm=False)
_P_DEPTHS, _P_MIXERS = (2, 2, 16, 2), ["pale:size=7"] * 4
_OPEN = "inferred from the published sizes; heads are not decided by them"
_pale("pale_t", 224, 64, _P_DEPTHS, (2, 4, 8, 16), _P_MIXERS, 21745768, 4202551296, note=_OPEN)
_pale("pale_s", 224, 96, _P_DEPTHS, (2, 4, 8, 16), _P_MIXERS, 48303784, 8977204224, note=_OPEN)
_pale("pale_b", 224, 128, _P_DEPTHS, B_HEADS, _P_MIXERS, 85318888, 15534108672, note=_OPEN)

_ours = _family(OURS)
_ours("axial_t", 224, 96, TINY, (4, 6, 12, 24), ["axial"] * 4, 28265032, 4448418816,
      drop_path=0.2, note="heads 4 in stage 1, since two branches need an even number")
_ours("shuffle_t", 224, 96, TINY, T_HEADS, ["shuffle:size=7"] * 4, 28288354, 4490566656,
      drop_path=0.2)
_ours("full_t", 224, 96, TINY, T_HEADS, ["full"] * 4, 28265032, 8783324160, drop_path=0.2)

# For images of 28 to 64 pixels: one body, in which the MLPs take what a mixer leaves of 1 MMACs.
_micro = _family(OURS, num_classes=10)
_HEADS2 = "one body; the MLP's ratio makes the MACs of all micro variants equal within 3%"
for _name, _mixers, _ratio, _params, _macs in (
    ("window", ("window:size=4", "window:size=2"), 4.75, 39498, 1040704),
    ("cosine", ("cosine:size=4", "cosine:size=2"), 3.0, 40290, 1048896),
    ("token_mlp", ("token_mlp:size=4", "token_mlp:size=2"), 6.75, 40242, 1026880),
    ("cross", ("cross:size=2", "cross:size=1"), 4.5, 38922, 1035584),
    ("pale", ("pale:size=2", "pale:size=2"), 4.0, 38522, 1033536),
    ("axial", ("axial", "axial"), 5.0, 40570, 1040704),
    ("shuffle", ("shuffle:size=4", "shuffle:size=2"), 4.75, 39498, 1040704),
    ("full", ("full:position=lepe", "full:position=lepe"), 2.75, 29794, 1027392),
):
    _micro(f"micro_{_name}", 32, 16, (2, 2), (2, 2), _mixers, _params, _macs,
           mlp_ratio=_ratio, note=_HEADS2)
# fmt: on


def names() -> tuple[str, ...]:
    """Names of all variants, in the order of the families."""
    return tuple(_rows)


def known(name: str) -> bool:
    return name in _rows or name in ALIASES


def get(name: str, also: Sequence[str] = ()) -> Variant:
    """The row of a variant or an alias.

    also: more names that an error may suggest.  Raises SpecError for an unknown name.
    """
    key = ALIASES.get(name, name)
    if key not in _rows:
        hint = nearest(name, (*_rows, *ALIASES, *also))
        raise SpecError(f"no backbone is called {one_line(name)!r}{hint}", name)
    return _rows[key]
