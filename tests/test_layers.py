"""Stems and downsampling on odd maps: what is missing is added at the bottom and right."""

import pytest
import torch
from tiny import create, images

STEMS = ["stem=patch", "stem=overlap", "stem=overlap_same"]
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
