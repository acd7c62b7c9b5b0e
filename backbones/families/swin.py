"""Swin, Swin V2 and Swin-MLP, with the names of their configs in the authors' repository."""

from __future__ import annotations

from collections.abc import Sequence

from backbones.families.family import B_HEADS, L_HEADS, SMALL, T_HEADS, TINY, Family

SWIN = "Swin Transformer, Liu et al. 2021, arXiv 2103.14030; configs/swin of its repository"
SWIN_V2 = "Swin Transformer V2, Liu et al. 2022, arXiv 2111.09883; configs/swinv2"
SWIN_MLP = "Swin-MLP, configs/swinmlp of microsoft/Swin-Transformer"


def _window(size: int) -> list[str]:
    return [f"window:size={size}"] * 4


def _cosine(*sizes: int, pretrained: Sequence[int] = ()) -> list[str]:
    """Swin V2's mixers, with the mask value -100 that the published weights were trained with."""
    given = [f",pretrained_window={size}" for size in pretrained] or [""] * 4
    return [f"cosine:size={s},mask_value=-100{p}" for s, p in zip(sizes, given, strict=True)]


def _token_mlp(size: int) -> list[str]:
    return [f"token_mlp:size={size}"] * 4


# fmt: off
_swin = Family(SWIN)
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

_v2 = Family(SWIN_V2, downsample="merge_post", norm="res_post")
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

_mlp = Family(SWIN_MLP)
_mlp("swin_mlp_t_c6", 256, 96, TINY, (16, 32, 64, 128), _token_mlp(8), 22682952, 4026906624,
     official="swin_mlp_tiny_c6_patch4_window8_256", drop_path=0.2)
_mlp("swin_mlp_t_c12", 256, 96, TINY, (8, 16, 32, 64), _token_mlp(8), 21152072, 4026906624,
     official="swin_mlp_tiny_c12_patch4_window8_256", drop_path=0.2)
_mlp("swin_mlp_t_c24", 256, 96, TINY, B_HEADS, _token_mlp(8), 20386632, 4026906624,
     official="swin_mlp_tiny_c24_patch4_window8_256", drop_path=0.2)
_mlp("swin_mlp_b", 224, 128, SMALL, B_HEADS, _token_mlp(7), 60659416, 10412086144,
     official="swin_mlp_base_patch4_window7_224", drop_path=0.5)
# fmt: on
ROWS = [*_swin.rows, *_v2.rows, *_mlp.rows]
