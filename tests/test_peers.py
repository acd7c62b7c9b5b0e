"""timm and torchvision in this process, every parameter drawn anew: the same weights under our
names give the same logits.  (At initialisation Swin V2's blocks are the identity, and parity
would say nothing.)"""

from __future__ import annotations

import functools

import pytest
import torch
from tiny import error, images, randomise, state_hash

import backbones
from backbones.names.key_rules import SOURCES, find
from backbones.weights import WeightsError, load

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")


def timm_swin(size, **fields):
    name = "swin_tiny_patch4_window7_224"
    return timm.create_model(name, pretrained=False, img_size=size, **fields)


def timm_swinv2(size, **fields):
    name = "swinv2_tiny_window8_256"
    return timm.create_model(name, pretrained=False, img_size=size, **fields)


def torchvision_swin(size, **fields):
    return torchvision.models.swin_t(weights=None, **fields)


def torchvision_swinv2(size, **fields):
    return torchvision.models.swin_v2_t(weights=None, **fields)


PEERS = {
    ("timm", "swin_t"): timm_swin,
    ("timm", "swinv2_t_w8"): timm_swinv2,
    ("torchvision", "swin_t"): torchvision_swin,
    ("torchvision", "swinv2_t_w8"): torchvision_swinv2,
}
SIZES = {"swin_t": [(224, 224), (224, 448)], "swinv2_t_w8": [(256, 256), (256, 512)]}
FULL = [
    pytest.param(source, name, size, id=f"{source}-{name}-{size[0]}x{size[1]}")
    for source, name in PEERS
    for size in SIZES[name]
]


def theirs(model, *, split: bool = False) -> dict[str, torch.Tensor]:
    """A peer's state dict after drawing everything anew.  torchvision's Swin V2 has a key bias
    that it sets to zero in every forward: here it is zero before."""
    randomise(model.eval())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if split and name.endswith("attn.qkv.bias"):
                parameter.chunk(3)[1].zero_()
    return model.state_dict()


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """In units of the tolerance: 1e-5 of the largest logit, or of 1."""
    return error(found, wanted) / (1e-5 * max(1.0, float(wanted.abs().amax())))


@pytest.mark.parametrize(("source", "name", "size"), FULL)
def test_equals_the_peer(source, name, size):
    """The official widths and depths, square and 1:2, wherever every stage divides."""
    peer = PEERS[source, name](size)
    state = theirs(peer, split=(source, name) == ("torchvision", "swinv2_t_w8"))
    ours = backbones.create(name, img_size=size).eval()
    load(ours, state, source=source)
    x = images(1, 3, *size)
    with torch.no_grad():
        assert distance(ours(x), peer(x)) <= 1


SMALL = {
    "swin": ("window:size={}", {}),
    "swinv2": ("cosine:size={},mask_value=-100", {"norm": "res_post", "downsample": "merge_post"}),
}
WIDTH, DEPTHS, HEADS = 16, (2, 2, 2, 2), (1, 2, 4, 8)


def small(family: str, size, window: int, rule: str, **fields):
    mixer, body = SMALL[family]
    stages = [
        {"dim": WIDTH * 2**i, "depth": d, "heads": h, "mixers": [mixer.format(window)]}
        for i, (d, h) in enumerate(zip(DEPTHS, HEADS, strict=True))
    ]
    spec = {"stages": stages, "img_size": size, "num_classes": 10, "small_maps": rule}
    return backbones.create({**spec, **body, **fields}).eval()


def small_timm(family: str, size, window: int):
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    cls = SwinTransformer if family == "swin" else SwinTransformerV2
    return cls(
        img_size=size, window_size=window, embed_dim=WIDTH, depths=DEPTHS, num_heads=HEADS,
        num_classes=10,
    )  # fmt: skip


def small_torchvision(family: str, size, window: int):
    from torchvision.models.swin_transformer import (
        PatchMergingV2,
        SwinTransformer,
        SwinTransformerBlockV2,
    )  # fmt: skip

    v2 = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    return SwinTransformer(
        patch_size=[4, 4], embed_dim=WIDTH, depths=list(DEPTHS), num_heads=list(HEADS),
        window_size=[window, window], num_classes=10, **(v2 if family == "swinv2" else {}),
    )  # fmt: skip


def small_distance(source, family, size, rule, *, window=4, batch=2, **fields) -> float:
    make = {"timm": small_timm, "torchvision": small_torchvision}[source]
    peer = make(family, size, window)
    state = theirs(peer, split=(source, family) == ("torchvision", "swinv2"))
    ours = small(family, size, window, rule, **fields)
    load(ours, state, source=source)
    x = images(batch, 3, *size)
    with torch.no_grad():
        return distance(ours(x), peer(x))


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("size", [(64, 64), (64, 128), (128, 64), (32, 64)])
def test_timm_shrinks_each_axis(family, size):
    """Maps smaller than the window: small_maps=shrink_axis is timm's rule."""
    old = tuple(map(int, timm.__version__.split(".")[:3])) < (1, 0, 31)
    if old and family == "swinv2" and size == (32, 64):
        pytest.skip("this timm divides by 0 in windows of one row")
    assert small_distance("timm", family, size, "shrink_axis") <= 1


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("size", [(64, 64), (64, 128), (32, 64), (60, 100)])
def test_torchvision_pads(family, size):
    """Maps smaller than the window, or not divided by it: small_maps=pad is torchvision's rule."""
    assert small_distance("torchvision", family, size, "pad") <= 1


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_wrong_rules_are_seen(source):
    """Swin V2's weights fit every rule; the wrong one moves the logits."""
    right = {"timm": "shrink_axis", "torchvision": "pad"}[source]
    for rule in {"pad", "shrink_axis", "shrink_both"} - {right}:
        assert small_distance(source, "swinv2", (64, 128), rule) > 100


@pytest.mark.parametrize(("source", "family"), [(s, f) for s in ("timm", "torchvision")
                                                for f in SMALL])  # fmt: skip
def test_wrong_bodies_are_seen(source, family):
    """The comparison tells a model without shift from the right one."""
    size = (64, 64)
    peer = {"timm": small_timm, "torchvision": small_torchvision}[source](family, size, 4)
    state = theirs(peer, split=(source, family) == ("torchvision", "swinv2"))
    ours = small(family, size, 4, {"timm": "shrink_axis", "torchvision": "pad"}[source])
    load(ours, state, source=source)
    x = images(2, 3, *size)
    ours.stages[0].blocks[1].mixer.index = 0
    with torch.no_grad():
        assert distance(ours(x), peer(x)) > 100


def test_key_bias_is_refused():
    """torchvision's Swin V2 ignores the key part of qkv.bias: one that is not 0 is no
    checkpoint of it."""
    peer = small_torchvision("swinv2", (64, 64), 4)
    state = theirs(peer)
    ours = small("swinv2", (64, 64), 4, "pad")
    before = state_hash(ours)
    with pytest.raises(WeightsError, match="key bias"):
        load(ours, state, source="torchvision")
    assert state_hash(ours) == before


def small_vit(**fields):
    from timm.models.vision_transformer import VisionTransformer

    body = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    return VisionTransformer(**body, num_classes=10, **fields)


def small_mixer():
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(img_size=32, patch_size=8, num_blocks=2, embed_dim=24, num_classes=10)


def small_vit_of_torchvision():
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(32, 8, 2, 3, 24, 96, num_classes=10)


PLAIN = {  # source, peer and fields of a row with one stage of two blocks
    "vit": ("vit", small_vit, "vit_tiny_patch16_224", {}),
    "deit3": (
        "vit", functools.partial(small_vit, no_embed_class=True, init_values=1e-6),
        "deit3_small_patch16_224", {},
    ),
    "registers": ("vit", functools.partial(small_vit, reg_tokens=3), "vit_tiny_patch16_224",
                  {"tokens": 4}),
    "torchvision": ("vit_torchvision", small_vit_of_torchvision, "vit_tiny_patch16_224", {}),
    "mixer": ("mixer", small_mixer, "mixer_s32_224",
              {"mixers": ["token_mlp:size=4,shift=false,hidden=12"], "heads": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", PLAIN)
def test_plain_transformers_equal_the_peer(case):
    """Class tokens and registers beside the map, their positions, and MLP-Mixer's two layers."""
    source, make, name, fields = PLAIN[case]
    peer = make()
    state = theirs(peer)
    spec = backbones.parse(name).to_dict()
    spec["stages"] = [{**spec["stages"][0], "dim": 24, "depth": 2, "heads": 3, **fields}]
    ours = backbones.create(
        {**spec, "name": "", "img_size": (32, 32), "patch_size": 8, "num_classes": 10}
    ).eval()
    load(ours, state, source=source)
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        assert distance(ours(x), peer(x)) <= 1


@functools.cache
def keys_of_peers() -> dict[str, set[str]]:
    keys: dict[str, set[str]] = {"timm": set(), "torchvision": set()}
    with torch.device("meta"):
        for (source, _), make in PEERS.items():
            keys[source] |= set(make((256, 256)).state_dict())
    return keys


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_every_key_has_one_rule_and_every_rule_a_key(source):
    """Of the tables: nothing unmapped; what is mapped twice or never is dead."""
    used = {key: [i for i, rule in enumerate(SOURCES[source])
                  if rule.theirs.values(key) is not None]
            for key in keys_of_peers()[source]}  # fmt: skip
    assert [key for key, rules in used.items() if len(rules) != 1] == []
    never = set(range(len(SOURCES[source]))) - {rules[0] for rules in used.values()}
    # index tables and masks of older files; biases that torchvision keeps whole (detect.prepare)
    shared = ("relative_position_index", "relative_coords_table", "attn_mask")
    shared += ("attn.q_bias", "attn.v_bias") if source == "torchvision" else ()
    left = [SOURCES[source][i].theirs.text for i in never]
    assert [text for text in left if not text.endswith(shared)] == []


@pytest.mark.parametrize("source", ["timm", "torchvision"])
@pytest.mark.parametrize("name", ["swin_t", "swinv2_t_w8"])
def test_names_cover_each_other(source, name):
    """Converted, the keys of a peer are exactly our parameters, each once."""
    make = PEERS[source, name]
    with torch.device("meta"):
        state, ours = make(SIZES[name][0]).state_dict(), backbones.create(name).state_dict()
    named = []
    for key in state:
        named.append(find(source, key)[1])
    named = [n for n in named if n is not None]
    if (source, name) == ("torchvision", "swinv2_t_w8"):  # one bias there, two here
        merged = [n.removesuffix("qkv.bias") for n in named if n.endswith("qkv.bias")]
        named = [n for n in named if not n.endswith("qkv.bias")]
        named += [stem + part for stem in merged for part in ("q_bias", "v_bias")]
    assert sorted(named) == sorted(ours)
