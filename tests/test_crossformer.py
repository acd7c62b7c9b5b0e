"""CrossFormer as a whole by its definition, in the authors' names: no reference outputs exist.

From the paper's sections 3.1 to 3.3 and the numbers of models/crossformer.py; groups are lists of
positions, and every pair of tokens is looked at.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import error, randomise

import backbones
from backbones import weights
from backbones.names.key_rules import find_back
from backbones.parts.resample import CrossScale, NormCrossScale
from backbones.specs import variants
from transom.errors import SpecError

GROUP, INTERVALS, DEPTHS, HEADS, WIDTH = 3, (3, 2, 1, 1), (2, 3, 2, 2), (2, 2, 4, 4), 48
HIDDEN = 1e6  # what the scores of pads lose


def norm(p, name, x):
    return F.layer_norm(x, x.shape[-1:], p[name + ".weight"], p[name + ".bias"])


def linear(p, name, x):
    return F.linear(x, p[name + ".weight"], p[name + ".bias"])


def side_by_side(p, names, x, stride):
    """Convolutions of one stride, each padded by half of what its kernel is longer."""
    maps = []
    for name in names:
        kernel = p[name + ".weight"].shape[-1]
        pads = (kernel - stride) // 2
        maps.append(F.conv2d(x, p[name + ".weight"], p[name + ".bias"], stride, pads))
    return torch.cat(maps, 1)


def groups_along(length, group, interval):
    """Lists of positions, the last of which may be pads: runs of group * interval positions, in
    which every interval-th belongs together."""
    run = group * interval
    return [
        list(range(start + first, start + run, interval))
        for start in range(0, length, run) for first in range(interval)
    ]  # fmt: skip


def bias_of(p, name, row, col):
    """(heads,): of one step, query minus key."""
    x = linear(p, name + "pos_proj", p[name + "pos_proj.weight"].new_tensor([row, col]))
    for n in (1, 2, 3):
        x = linear(p, f"{name}pos{n}.2", norm(p, f"{name}pos{n}.0", x).relu())
    return x


def attention(p, name, x, heads, group, interval):
    """x: (h, w, c), normed."""
    h, w, c = x.shape
    rows, cols = groups_along(h, group, interval), groups_along(w, group, interval)
    wide = x.new_zeros(1 + max(map(max, rows)), 1 + max(map(max, cols)), c)
    wide[:h, :w] = x
    out, d = torch.zeros_like(wide), c // heads
    steps = range(1 - group, group)
    table = {(r, s): bias_of(p, name + "pos.", r, s) for r in steps for s in steps}
    for row in rows:
        for col in cols:
            at = [(i, j) for i in range(group) for j in range(group)]
            r, s = torch.tensor([row[i] for i, _ in at]), torch.tensor([col[j] for _, j in at])
            q, k, v = linear(p, name + "qkv", wide[r, s]).chunk(3, -1)
            bias = torch.stack([
                torch.stack([table[i - a, j - b] for a, b in at]) for i, j in at
            ])  # fmt: skip
            pad = HIDDEN * ((r >= h) | (s >= w)).to(x.dtype)
            for m in range(heads):
                own = slice(m * d, (m + 1) * d)
                scores = q[:, own] @ k[:, own].T / math.sqrt(d) + bias[..., m] - pad
                out[r, s, own] = scores.softmax(-1) @ v[:, own]
    return linear(p, name + "proj", out[:h, :w])


def crossformer(p, image):
    """Logits of an image (3, H, W), and the maps of all stages (h, w, c)."""
    stems = [f"patch_embed.projs.{k}" for k in range(4)]
    x = side_by_side(p, stems, image[None], 4)[0].permute(1, 2, 0)
    x, maps = norm(p, "patch_embed.norm", x), []
    for i, (depth, heads, interval) in enumerate(zip(DEPTHS, HEADS, INTERVALS, strict=True)):
        if i:
            x = norm(p, f"layers.{i - 1}.downsample.norm", x).permute(2, 0, 1)[None]
            names = [f"layers.{i - 1}.downsample.reductions.{k}" for k in range(2)]
            x = side_by_side(p, names, x, 2)[0].permute(1, 2, 0)
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}."
            own = (GROUP, interval if j % 2 else 1)
            if min(x.shape[:2]) <= GROUP:
                own = (min(x.shape[:2]), 1)
            x = x + attention(p, block + "attn.", norm(p, block + "norm1", x), heads, *own)
            hidden = F.gelu(linear(p, block + "mlp.fc1", norm(p, block + "norm2", x)))
            x = x + linear(p, block + "mlp.fc2", hidden)
        maps.append(x)
    return linear(p, "head", norm(p, "norm", x).mean((0, 1))), maps


def spec(**fields):
    options = "position=dpb,mask_padding=true"
    stages = [
        {"dim": WIDTH * 2**i, "depth": depth, "heads": heads, "mlp_ratio": 1.5,
         "mixers": [f"shuffle:size={GROUP},interval={interval},{options}"]}
        for i, (depth, heads, interval) in enumerate(zip(DEPTHS, HEADS, INTERVALS, strict=True))
    ]  # fmt: skip
    return {
        "stages": stages, "stem": "cross_scale", "downsample": "cross_scale", "img_size": (96, 64),
        "num_classes": 7, "small_maps": "shrink_both", **fields,
    }  # fmt: skip


@pytest.fixture(scope="module")
def case():
    """(weights in the authors' names, image, logits, maps), in float64."""
    model = randomise(backbones.create(spec()), 3).double()
    p = {find_back("crossformer", name)[1]: t for name, t in model.state_dict().items()}
    image = torch.randn(3, 96, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with torch.no_grad():
        return p, image, *crossformer(p, image)


def distance(case, **fields) -> float:
    """The largest difference of logits and maps, as a share of the largest value."""
    p, image, logits, maps = case
    model = backbones.create(spec(**fields)).double().eval()
    weights.load(model, p, "crossformer")
    with torch.no_grad():
        levels = model.features(image[None])
        found = [model(image[None])[0], *(level[0].permute(1, 2, 0) for level in levels)]
    return max(
        error(a, b) / float(b.abs().max()) for a, b in zip(found, (logits, *maps), strict=True)
    )


def test_equals_its_definition(case):
    """Windows, groups at a distance inside larger windows, pads, maps that a window covers."""
    assert distance(case) < 1e-12


def edited(old, new):
    stages = spec()["stages"]
    for stage in stages:
        stage["mixers"] = [mixer.replace(old, new) for mixer in stage["mixers"]]
    return {"stages": stages}


@pytest.mark.parametrize(
    ("old", "new"),
    [(",interval=2", ""), ("interval=3", "interval=2"), (",interval=3", ",interval=1"),
     (",mask_padding=true", "")],
)  # fmt: skip
def test_another_cut_is_seen(case, old, new):
    """Negative controls: groups over the whole map, at another distance, neighbours; shown pads."""
    assert distance(case, **edited(old, new)) > 1e-3


def test_another_rule_for_small_maps_is_seen(case):
    assert distance(case, small_maps="pad") > 1e-3


def test_sizes_are_those_of_the_readme():
    """T, S, B and L: parameters and multiply-adds as the README prints them."""
    printed = {"t": "27.8 2.9", "s": "30.7 4.9", "b": "52.0 9.2", "l": "92.0 16.1"}
    for size, wanted in printed.items():
        row = variants.get(f"crossformer_{size}")
        assert f"{row.params / 1e6:.1f} {row.macs / 1e9:.1f}" == wanted


def test_widths_are_halves_of_what_is_left():
    layer = CrossScale(3, 96, (4, 8, 16, 32))
    assert [conv.out_channels for conv in layer.convs] == [48, 24, 12, 12]
    assert [conv.out_channels for conv in CrossScale(3, 10, (2, 4)).convs] == [5, 5]


@torch.no_grad()
def test_merging_pads_what_is_normed():
    """An odd map: zeros beside the normed map, at the bottom and right."""
    layer = NormCrossScale(backbones.parse("swin_t"), 8, 16)
    x = torch.randn(2, 8, 5, 7)
    normed = F.pad(layer.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), (0, 1, 0, 1))
    assert layer(x).shape == (2, 16, 3, 4)
    torch.testing.assert_close(layer(x), layer.scales(normed))


@pytest.mark.parametrize(
    ("edit", "said"),
    [("stem=cross_scale/patch_size=3", "add patch_size=4"), ("stem=cross_scale/1.dim=36/1.heads=2",
      "8 divides"), ("downsample=cross_scale/2.dim=75/2.heads=3", "even widths")],
)  # fmt: skip
def test_what_cannot_be_halved_is_refused(edit, said):
    with pytest.raises(SpecError, match=said):
        backbones.parse(f"swin_t/{edit}")
