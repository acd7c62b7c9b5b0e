"""Weights for other channels and windows: which numbers go where."""

import pytest
import torch
from tiny import notation

import backbones
from backbones.weights import resize
from transom.errors import SpecError


@pytest.mark.parametrize("channels", [2, 4, 5, 6, 7])
def test_more_channels_repeat_the_stem_in_order(channels):
    """Channel i is channel i modulo 3 of before, so that RGBRGB is seen as RGB twice."""
    kernel = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    found = resize.inputs(kernel, channels)
    assert found.shape == (4, channels, 2, 2)
    for i in range(channels):
        torch.testing.assert_close(found[:, i], kernel[:, i % 3] * 3 / channels)


def test_one_channel_is_the_sum_and_equal_channels_answer_as_before():
    kernel = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(resize.inputs(kernel, 1), kernel.sum(1, keepdim=True))
    for channels in (3, 6, 9):
        torch.testing.assert_close(resize.inputs(kernel, channels).sum(1), kernel.sum(1))


@pytest.mark.parametrize("axis", ["rows", "columns"])
@pytest.mark.parametrize(("old", "new"), [((2, 3), (4, 3)), ((3, 2), (5, 4)), ((1, 4), (2, 4))])
def test_a_table_that_varies_along_one_axis_still_does(axis, old, new):
    """Height first, before and after; the other axis stays constant, and the order rises."""
    (h, w), (tall, wide) = ([2 * side - 1 for side in extent] for extent in (old, new))
    column, row = torch.arange(h)[:, None].expand(h, w), torch.arange(w).expand(h, w)
    values = (column if axis == "rows" else row).flatten().double()
    found = resize.table(torch.stack([values, -values], 1), old, new)
    assert found.shape == (tall * wide, 2)
    picture = found[:, 0].unflatten(0, (tall, wide))
    picture = picture if axis == "rows" else picture.T
    assert torch.allclose(picture, picture[:, :1], atol=1e-12)
    assert (picture.diff(dim=0) >= 0).all() and torch.equal(found[:, 1], -found[:, 0])


def pretrained(spec):
    return [[mixer.pretrained_window for mixer in stage.mixers] for stage in spec.stages]


def test_a_stated_pretrained_window_outlives_another_window():
    """Coordinates stay those of the first training, however often a model is fine-tuned."""
    spec = backbones.parse(notation(
        "swinv2", *(f"{i}=cosine:size=4,pretrained_window={w}" for i, w in enumerate("6543", 1)),
    ))  # fmt: skip
    found = resize.retarget(spec, window=(8, 8), img_size=(128, 128))
    assert pretrained(found) == [[(6, 6)], [(5, 5)], [(4, 4)], [(3, 3)]]
    assert all(stage.mixers[0].size == (8, 8) for stage in found.stages)
    again = resize.retarget(found, window=(16, 16))
    assert pretrained(again) == pretrained(found)


def test_without_one_it_becomes_the_window_of_before_as_it_was_shrunk():
    spec = backbones.parse(notation(
        "swinv2", *(f"{i}=cosine:size=8" for i in range(1, 5)), "small_maps=shrink_both"
    ))  # fmt: skip
    found = resize.retarget(spec, window=(16, 16), img_size=(128, 128))
    assert pretrained(found) == [[(8, 8)], [(8, 8)], [(4, 4)], [(2, 2)]]  # maps of 16, 8, 4, 2


def test_only_log_cpb_has_a_pretrained_window():
    found = resize.retarget(backbones.parse("swin_t"), window=(12, 12), img_size=(384, 384))
    assert pretrained(found) == [[None]] * 4
    assert (found.img_size, found.small_maps) == ((384, 384), "shrink_both")
    with pytest.raises(SpecError, match="full has no window"):
        resize.retarget(backbones.parse("swin_t/3=full"), window=(12, 12))
