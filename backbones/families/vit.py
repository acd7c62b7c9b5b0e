"""One map from the stem to the head: ViT, DeiT and DeiT III, and MLP-Mixer."""

from __future__ import annotations

from backbones.families.family import Family

VIT = "ViT, Dosovitskiy et al. 2021, arXiv 2010.11929; timm/models/vision_transformer.py"
DEIT = "DeiT, Touvron et al. 2021, arXiv 2012.12877; timm/models/deit.py"
DEIT3 = "DeiT III, Touvron et al. 2022, arXiv 2204.07118; timm/models/deit.py"
MIXER = "MLP-Mixer, Tolstikhin et al. 2021, arXiv 2105.01601; timm/models/mlp_mixer.py"
WIDTHS = {  # channels, blocks and heads
    "tiny": (192, 12, 3), "small": (384, 12, 6), "medium": (512, 12, 8), "base": (768, 12, 12),
    "large": (1024, 24, 16), "huge": (1280, 32, 16),
}  # fmt: skip
_BODY = {"patch_norm": False, "eps": 1e-6, "position": "absolute", "pool": "token"}

# fmt: off
_vit, _deit = Family(VIT, **_BODY), Family(DEIT, **_BODY)
_deit3 = Family(DEIT3, **_BODY, token_position=False, layer_scale=1e-6)
for _family, _name, _width, _patch, _size, _params, _macs in (
    (_vit, "vit", "tiny", 16, 224, 5717416, 1253683200),
    (_vit, "vit", "tiny", 16, 384, 5790376, 4682219520),
    (_vit, "vit", "small", 32, 224, 22878952, 1142909952),
    (_vit, "vit", "small", 32, 384, 22915432, 3442900992),
    (_vit, "vit", "small", 16, 224, 22050664, 4598882304),
    (_vit, "vit", "small", 16, 384, 22196584, 15490351104),
    (_vit, "vit", "base", 32, 224, 88224232, 4409186304),
    (_vit, "vit", "base", 32, 384, 88297192, 13043564544),
    (_vit, "vit", "base", 16, 224, 86567656, 17563828224),
    (_vit, "vit", "base", 16, 384, 86859496, 55484350464),
    (_vit, "vit", "base", 8, 224, 86576872, 78148337664),
    (_vit, "vit", "large", 32, 224, 306535400, 15377539072),
    (_vit, "vit", "large", 32, 384, 306632680, 45275963392),
    (_vit, "vit", "large", 16, 224, 304326632, 61554712576),
    (_vit, "vit", "large", 16, 384, 304715752, 191066300416),
    (_deit, "deit", "tiny", 16, 224, 5717416, 1253683200),
    (_deit, "deit", "small", 16, 224, 22050664, 4598882304),
    (_deit, "deit", "base", 16, 224, 86567656, 17563828224),
    (_deit, "deit", "base", 16, 384, 86859496, 55484350464),
    (_deit3, "deit3", "small", 16, 224, 22059496, 4598882304),
    (_deit3, "deit3", "small", 16, 384, 22205416, 15490351104),
    (_deit3, "deit3", "medium", 16, 224, 38849512, 7990968320),
    (_deit3, "deit3", "base", 16, 224, 86585320, 17563828224),
    (_deit3, "deit3", "base", 16, 384, 86877160, 55484350464),
    (_deit3, "deit3", "large", 16, 224, 304374760, 61554712576),
    (_deit3, "deit3", "large", 16, 384, 304763880, 191066300416),
    (_deit3, "deit3", "huge", 14, 224, 632126440, 167295109120),
):
    _dim, _depth, _heads = WIDTHS[_width]
    _official = f"{_name}_{_width}_patch{_patch}_{_size}"
    _family(_official, _size, _dim, [_depth], [_heads], ["full"], _params, _macs, tokens=1,
            patch_size=_patch, official=_official)

_mixer = Family(MIXER, patch_norm=False, eps=1e-6)
for _width, _patch, _params, _macs in (
    ("s", 32, 19104624, 1002426368), ("s", 16, 18528264, 3776958464),
    ("b", 32, 60293428, 3237722112), ("b", 16, 59880472, 12601767936),
    ("l", 32, 206939264, 11253293056), ("l", 16, 208196168, 44547678208),
):
    _dim, _depth = {"s": (512, 8), "b": (768, 12), "l": (1024, 24)}[_width]
    _tokens = f"token_mlp:size={224 // _patch},shift=false,hidden={_dim // 2}"
    _mixer(f"mixer_{_width}{_patch}_224", 224, _dim, [_depth], [1], [_tokens], _params, _macs,
           patch_size=_patch, official=f"mixer_{_width}{_patch}_224")
# fmt: on
ROWS = [*_vit.rows, *_deit.rows, *_deit3.rows, *_mixer.rows]
