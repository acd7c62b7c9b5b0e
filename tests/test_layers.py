"""Stems and downsampling on odd maps: what is missing is added at the bottom and right."""

import pytest
import torch
from tiny import create, images

from backbones import parse
from transom.errors import SpecError

STEMS = ["stem=patch", "stem=overlap", "stem=overlap_same", "stem=conv_relu6", "stem=cross_scale"]
DOWNSAMPLES = ["merge", "merge_post", "conv_norm", "conv"]


def filled(x, multiple):
    """x in the upper left corner of zeros, whose sides are whole multiples."""
    h, w = (-(-side // multiple) * multiple for side in x.shape[2:])
    out = x.new_zeros(*x.shape[:2], h, w)
    out[:, :, : x.shape[2], : x.shape[3]] = x
    return out


@torch.no_grad()
@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("size", [(33, 46), (30, 32), (32, 29), (1, 3)])
def test_a_stem_pads_an_odd_image_at_the_bottom_and_right(stem, size):
    layer, x = create("swin", stem).stem, images(2, 3, *size)
    wanted = layer(filled(x, 4))
    assert wanted.shape[2:] == (-(-size[0] // 4), -(-size[1] // 4))
    assert torch.equal(layer(x), wanted)


@torch.no_grad()
@pytest.mark.parametrize("kind", DOWNSAMPLES)
@pytest.mark.parametrize("size", [(5, 8), (4, 7), (3, 3), (1, 1)])
def test_downsampling_pads_an_odd_map_at_the_bottom_and_right(kind, size):
    layer, x = create("swin", f"downsample={kind}").stages[1].downsample, images(2, 8, *size)
    wanted = layer(filled(x, 2))
    assert wanted.shape == (2, 16, -(-size[0] // 2), -(-size[1] // 2))
    assert torch.equal(layer(x), wanted)


@torch.no_grad()
def test_merging_takes_neighbours_column_by_column():
    """The four of a 2x2 square: left column downwards, then the right one (Swin's code)."""
    merge, x = create("swin").stages[1].downsample, images(1, 8, 4, 6)
    parts = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    joined = torch.cat(parts, 1).permute(0, 2, 3, 1)
    wanted = merge.reduction(merge.norm(joined)).permute(0, 3, 1, 2)
    torch.testing.assert_close(merge(x), wanted)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_norm_before_a_convolution_counts_no_pads(norm):
    """Zeros stand beside the normed map; batch statistics in training are those of the tokens."""
    model = create("swin", "downsample=norm_conv", f"norm_layer={norm}")
    layer, x = model.stages[1].downsample, images(2, 8, 5, 7)
    normed = layer.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.conv2d(filled(normed, 2), layer.conv.weight, stride=2)
    torch.testing.assert_close(layer(x), wanted)
    assert layer.conv.bias is None


@torch.no_grad()
@pytest.mark.parametrize("norm", ["pre", "res_post"])
@pytest.mark.parametrize("size", [(5, 8), (1, 1), (2, 9)])
def test_a_local_convolution_stands_between_mixer_and_mlp(norm, size):
    """By its definition: every token adds a weighted sum of the normed tokens around it."""
    block = create("swin", "local=5", f"norm={norm}").stages[0].blocks[1]
    (h, w), local = size, block.local

    def around(x):
        wide = torch.nn.functional.pad(x, (0, 0, 2, 2, 2, 2))
        out = local.conv.bias.expand_as(x).clone()
        for i in range(5):
            for j in range(5):
                out += wide[:, i : i + h, j : j + w] * local.conv.weight[:, 0, i, j]
        return out

    x = wanted = images(2, h, w, 8)
    for norm1, f in ((block.norm1, block.mixer), (local.norm, around), (block.norm2, block.mlp)):
        wanted = wanted + (f(norm1(wanted)) if norm == "pre" else norm1(f(wanted)))
    torch.testing.assert_close(block(x), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", ["2", "-1", "33", "x", "1.5", "true"])
def test_a_local_convolution_has_an_odd_side(value):
    with pytest.raises(SpecError, match="0 or an odd number up to 31"):
        parse(f"swin_t/local={value}")


@pytest.mark.parametrize("patch", [2, 3, 8])
def test_a_stem_of_two_strides_has_stride_4(patch):
    with pytest.raises(SpecError, match="add patch_size=4"):
        parse(f"swin_t/stem=conv_relu6/patch_size={patch}")


@torch.no_grad()
def test_a_deep_stem_by_its_definition():
    """Convolution, batch norm and ReLU6 twice, then 1x1; stem_dim channels in between."""
    stem, x = create("shuffletransformer", "stem_dim=5").stem, images(2, 3, 32, 24)
    conv2d = torch.nn.functional.conv2d
    first, second, last = (part for part in stem.modules() if isinstance(part, torch.nn.Conv2d))
    for conv, norm in ((first, stem.inner[0]), (second, stem.inner[3])):
        x = conv2d(x, conv.weight, conv.bias, stride=2, padding=1)
        mean, var = norm.running_mean[:, None, None], norm.running_var[:, None, None]
        x = (x - mean) / (var + 1e-5).sqrt()
        x = (x * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(0, 6)
    assert first.out_channels == 5
    wanted = conv2d(x, last.weight, last.bias)
    torch.testing.assert_close(stem(images(2, 3, 32, 24)), wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_mlps_activation_is_the_specs():
    """Two linear layers; relu6 is between 0 and 6."""
    for word, between in (
        ("gelu", torch.nn.functional.gelu), ("relu6", lambda x: x.clamp(0, 6)),
    ):  # fmt: skip
        mlp, x = create("swin", f"mlp={word}").stages[0].blocks[0].mlp, 9 * images(2, 3, 4, 8)
        assert torch.equal(mlp(x), mlp.fc2(between(mlp.fc1(x))))
