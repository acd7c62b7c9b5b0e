"""Channels taken for an axis of the map: a pooling without its permute fails, whatever stands
around it, and no honest way to mix channels does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from strategies import BUILT_IN
from torch import nn

import attention
from analysis.checking import subjects
from analysis.checking.axes import axes


class Then(nn.Module):
    """A function of maps, and linear layers around it; images: on channels first."""

    def __init__(self, function, dim=16, images=False, before=False):
        super().__init__()
        self.function, self.images = function, images
        self.before = nn.Linear(dim, dim) if before else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        x = self.before(x)
        if self.images:
            return self.proj(self.function(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return self.proj(self.function(x))


def pool(x):
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def heads(x, of):
    """Channels of one head meet, in a row's tokens and those beside them."""
    return (x + x.roll(1, 2)) @ (of[:, None] == of).to(x.dtype)


MISSING = {  # no permute
    "pool": Then(pool),
    "pool by 5": Then(lambda x: F.avg_pool2d(x, 5, 1, 2)),
    "pool by 3x5": Then(lambda x: F.avg_pool2d(x, (3, 5), 1, (1, 2))),
    "maximum": Then(lambda x: F.max_pool2d(x, 3, 1, 1)),
    "behind a layer": Then(pool, before=True),
    "less itself": Then(lambda x: pool(x) - x),
    "along the height": Then(lambda x: pool(x.transpose(1, 2)).transpose(1, 2)),
    "of a sequence": Then(lambda x: F.avg_pool1d(x.flatten(1, 2), 3, 1, 1).view_as(x)),
}
MEANT = {
    "pool": Then(pool, images=True),
    "pool along the width": Then(lambda x: F.avg_pool2d(x, (1, 3), 1, (0, 1)), images=True),
    "pool of a norm": Then(
        lambda x: F.avg_pool2d(F.layer_norm(x, (16,)).permute(0, 3, 1, 2), (1, 3), 1, (0, 1))
        .permute(0, 2, 3, 1)
    ),
    "pool, width in front": Then(lambda x: pool(x.transpose(1, 3)).transpose(1, 3)),
    "shifted channels": Then(
        lambda x: torch.cat([g.roll(s, 2) for s, g in enumerate(x.chunk(4, -1))], -1)
    ),
    "heads side by side": Then(lambda x: heads(x, torch.arange(16) // 4)),
    "heads apart": Then(lambda x: heads(x, torch.arange(16) % 3)),
    "attention in a row": Then(lambda x: (x @ x.mT).softmax(-1) @ x),
    "channel attention": Then(
        lambda x: x * F.avg_pool1d(x.mean((1, 2))[:, None], 3, 1, 1)[:, :, None].sigmoid()
    ),
    "response norm": Then(lambda x: pool(F.local_response_norm(x, 3)), images=True),
    "depthwise": Then(nn.Conv2d(16, 16, (1, 3), padding=(0, 1), groups=16), images=True),
    "groups of channels": Then(nn.Conv2d(16, 16, (1, 3), padding=(0, 1), groups=2), images=True),
    "a spectrum": Then(lambda x: torch.fft.fft2(x, dim=(2, 3)).real),
    "no mixing": Then(lambda x: x),
}  # fmt: skip


@pytest.mark.parametrize("name", MISSING)
def test_channels_taken_for_an_axis_fail(name):
    found = axes(subjects.mixer(MISSING[name], 16))
    assert found.verdict == "FAIL" and found.case == "9x11"
    assert "is a permute to (b, c, h, w) missing?" in found.detail and "region()" in found.detail


@pytest.mark.parametrize("name", MEANT)
def test_channels_that_are_mixed_as_channels_pass(name):
    assert axes(subjects.mixer(MEANT[name], 16)).verdict == "pass"


@pytest.mark.parametrize("name", BUILT_IN)
def test_no_built_in_mixer_takes_channels_for_an_axis(name):
    """Even where its region is not known."""
    mixer = attention.create(name, dim=16, heads=2, index=1)
    made = subjects.mixer(Then(mixer), 16)
    assert made.region is None and axes(made).verdict == "pass"


def test_a_stated_region_allows_a_pool_along_channels():
    module = Then(pool)
    module.region = lambda h, w, query: torch.ones(h, w, dtype=torch.bool)
    assert axes(subjects.mixer(module, 16)).verdict == "pass"
