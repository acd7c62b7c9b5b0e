"""Windows that exchange tokens: Shuffle Transformer, CrossFormer and MSG-Transformer."""

from __future__ import annotations

from backbones.families.family import B_HEADS, SMALL, T_HEADS, TINY, Family

SHUFFLE = "Shuffle Transformer, Huang et al. 2021, arXiv 2106.03650; models/shuffle_transformer.py"
CROSSFORMER = "CrossFormer, Wang et al. 2021, arXiv 2108.00154; models/crossformer.py"
MSG = "MSG-Transformer, Fang et al. 2022, arXiv 2105.15168; models/msg_transformer.py"


# fmt: off
_shuffle = Family(SHUFFLE, stem="conv_relu6", stem_dim=32, patch_norm=False, downsample="norm_conv",
                  norm_layer="batch", mlp="relu6", local=7, final_norm=False)
_MIXERS = ["shuffle:size=7,qkv_bias=false"] * 4
_NOTE = "the authors' rate of stochastic depth grows from stage to stage, ours from block to block"
_shuffle("shuffletransformer_t", 224, 96, TINY, T_HEADS, _MIXERS, 28532482, 4672630272,
         official="shuffle_vit_tiny_patch4_window7_224", drop_path=0.1, note=_NOTE)
_shuffle("shuffletransformer_s", 224, 96, SMALL, T_HEADS, _MIXERS, 50076178, 8967194112,
         official="shuffle_vit_small_patch4_window7_224", drop_path=0.3, note=_NOTE)
_shuffle("shuffletransformer_b", 224, 128, SMALL, B_HEADS, _MIXERS, 88398560, 15741937664,
         official="shuffle_vit_base_patch4_window7_224", drop_path=0.5, note=_NOTE)

_crossformer = Family(CROSSFORMER, stem="cross_scale", downsample="cross_scale")
_LONG = [  # at 224 pixels the groups of odd blocks reach over the whole map
    f"shuffle:size=7,interval={interval},position=dpb,mask_padding=true"
    for interval in (8, 4, 2, 1)
]
_crossformer("crossformer_t", 224, 64, (1, 1, 8, 6), (2, 4, 8, 16), _LONG, 27776794, 2857427552,
             official="cros_tiny_patch4_group7_224", drop_path=0.1)
_crossformer("crossformer_s", 224, 96, TINY, T_HEADS, _LONG, 30657394, 4906063692,
             official="cros_small_patch4_group7_224", drop_path=0.2)
_crossformer("crossformer_b", 224, 96, SMALL, T_HEADS, _LONG, 51971554, 9159389964,
             official="cros_base_patch4_group7_224", drop_path=0.3)
_crossformer("crossformer_l", 224, 128, SMALL, B_HEADS, _LONG, 91971184, 16107451680,
             official="cros_large_patch4_group7_224", drop_path=0.5)

_msg = Family(MSG, stem="overlap", downsample="conv_norm", pool="token")
_REGIONS = [f"messenger:size=7,region={region}" for region in (4, 4, 2, 1)]
_msg("msg_t", 224, 64, (2, 4, 12, 4), (2, 4, 8, 16), _REGIONS, 25086116, 3820863488,
     official="msg_tiny_p4_win7_224")
_msg("msg_s", 224, 96, (2, 4, 12, 4), T_HEADS, _REGIONS, 55968514, 8459231232,
     official="msg_small_p4_win7_224")
_msg("msg_b", 224, 96, (2, 4, 28, 4), T_HEADS, _REGIONS, 84392770, 14244421632,
     official="msg_base_p4_win7_224")
# fmt: on
ROWS = [*_shuffle.rows, *_crossformer.rows, *_msg.rows]
