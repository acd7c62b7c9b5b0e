"""Masks, attention, biases and receptive fields of modules, as arrays on the map.

No mixer is computed a second time here: a hook takes the groups, queries, keys and mask that a
branch passes to its attention, and the weights are torch's attention applied to the identity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.configs.config import MixerConfig
from attention.factory import build
from attention.geometry.groups import Groups
from attention.softmax.branch import Branch
from attention.softmax.position import relative_index
from transom.errors import SpecError

Grid = tuple[int, int]


# -- recording -------------------------------------------------------------------------------


class Call(NamedTuple):
    """Inputs of one attention: q, k (b, groups * heads, l, d); mask (groups * heads, l, l).

    tokens: of each group beside the map, which stand first among the l.
    """

    branch: Branch
    groups: Groups
    tokens: int
    q: Tensor
    k: Tensor
    mask: Tensor | None
    scale: float | None


@contextmanager
def record_attention(module: nn.Module) -> Iterator[list[Call]]:
    """A context whose list receives the inputs of every softmax attention of `module`."""
    calls: list[Call] = []
    entered: list[tuple[Branch, Groups, int]] = []

    def enter(branch: nn.Module, args: tuple[Any, ...]) -> None:
        entered[:] = [(cast("Branch", branch), args[3], 0)]

    def with_tokens(branch: Branch) -> Callable[..., Tensor]:
        inner = branch.with_tokens

        def enter_with(qkv: Any, groups: Groups, tokens: int, *args: Any) -> Tensor:
            entered[:] = [(branch, groups, tokens)]
            return inner(qkv, groups, tokens, *args)

        return enter_with

    def attends(_: nn.Module, args: tuple[Any, ...]) -> None:
        (branch, groups, tokens), (q, k, _, mask, scale) = entered[0], args
        q, k = (t.transpose(2, 3).flatten(1, 2) for t in (q, k))
        if mask is not None:
            mask = mask.expand(groups.n, branch.heads, -1, -1).flatten(0, 1)
        calls.append(Call(branch, groups, tokens, q, k, mask, scale))

    hooks = []
    branches = [part for part in module.modules() if isinstance(part, Branch)]
    for branch in branches:
        hooks.append(branch.register_forward_pre_hook(enter))
        hooks.append(branch.attention.register_forward_pre_hook(attends))
        vars(branch)["with_tokens"] = with_tokens(branch)  # no forward, which has hooks
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
        for branch in branches:
            del vars(branch)["with_tokens"]


def calls_of(model: nn.Module, x: Tensor, stage: int, block: int) -> list[Call]:
    """Attention inputs of one block of our backbone on images x (b, c, H, W).

    stage, block: from 1.  Raises SpecError.
    """
    stages = cast("Any", model).stages
    if not 1 <= stage <= len(stages):
        raise SpecError(f"--stage {stage}: this backbone has stages 1 to {len(stages)}")
    blocks = stages[stage - 1].blocks
    if not 1 <= block <= len(blocks):
        raise SpecError(f"--block {block}: stage {stage} has blocks 1 to {len(blocks)}")
    mixer = blocks[block - 1].mixer
    with torch.no_grad(), record_attention(mixer) as calls:
        cast("Any", model).features(x)
    if not calls:
        place = f"stage {stage}, block {block}"
        raise SpecError(
            f"{place}: {mixer.config} computes no softmax inside groups; choose the --stage and "
            "--block of a mixer that does, such as window"
        )
    return calls


# -- masks -----------------------------------------------------------------------------------


class Masks(NamedTuple):
    """Masks of one branch on the padded map (H, W) after the cyclic shift.

    masked: (groups, l, l) bool, pairs that do not attend.  ids: (H, W) int; two tokens have equal
    numbers iff they may attend to each other, and masked pads have the largest.  wrapped_from:
    (H, W) int; 1 for tokens that the shift moved round from the top, 2 from the left, 3 from both.
    pad: (H, W) bool.
    """

    groups: Groups
    masked: Tensor
    ids: Tensor
    wrapped_from: Tensor
    pad: Tensor


def masks(config: MixerConfig, grid: Grid, index: int = 1) -> list[Masks]:
    """The masks that block `index` of a mixer uses, one item per branch."""
    # what leaves the mask alone
    position = {"position": "none", "pretrained_window": None, "region": 1}
    names = {field.name for field in dataclasses.fields(config)}
    bare = dataclasses.replace(config, **{k: v for k, v in position.items() if k in names})
    mixer = build(bare, dim=8, heads=2, index=index)
    with torch.no_grad(), record_attention(mixer) as calls:
        mixer(torch.zeros(1, *grid, 8))
    if not calls:
        raise SpecError(
            f"{config}: no softmax inside groups of tokens, and so no mask; choose a mixer that "
            "has them, such as window"
        )
    return [_masks(call) for call in calls]


def _masks(call: Call) -> Masks:
    groups, length = call.groups, call.q.shape[2]
    masked = torch.zeros(groups.n, length, length, dtype=torch.bool)
    if call.mask is not None:  # equal for all heads, as there is no bias
        masked = call.mask.unflatten(0, (groups.n, -1))[:, 0] < 0
    real = token_ids(groups) > 0
    leader = (~masked).int().argmax(-1) + length * torch.arange(groups.n)[:, None]
    isolated = ~torch.isin(leader, leader[real])
    ids = torch.unique(leader + isolated * leader.numel(), return_inverse=True)[1]
    rows, cols = groups.rows, groups.cols
    at = torch.stack(
        torch.meshgrid(torch.arange(rows.padded), torch.arange(cols.padded), indexing="ij"), -1
    )
    origin = groups.roll(at[None])[0]
    wrapped_from = (origin < at).int() @ torch.tensor([1, 2], dtype=torch.int32)
    ids, pad = (groups.merge(t[None, ..., None])[0, :, :, 0] for t in (ids, ~real))
    return Masks(groups, masked, ids, wrapped_from, pad)


# -- attention -------------------------------------------------------------------------------


def token_ids(groups: Groups) -> Tensor:
    """(groups, l) int: 1 + row * w + column of the token at each position, 0 for a pad."""
    h, w = groups.rows.length, groups.cols.length
    ids = torch.arange(1, h * w + 1).view(1, h, w, 1)
    return groups.partition(ids)[0, :, :, 0]


def attention_of(call: Call, query: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Attention weights of one query: (heads, h, w) for the tokens, (heads,) for the pads and
    (heads,) for the tokens beside the map, which sum to 1 per head."""
    h, w = call.groups.rows.length, call.groups.cols.length
    if not (0 <= query[0] < h and 0 <= query[1] < w):
        raise SpecError(f"query {query[0]},{query[1]}: outside the {h}x{w} map, counted from 0,0")
    ids, heads = token_ids(call.groups), call.branch.heads
    ids = F.pad(ids, (call.tokens, 0), value=h * w + 1)
    group, position = (ids == 1 + query[0] * w + query[1]).nonzero()[0].tolist()
    heads_of_group, row = slice(group * heads, (group + 1) * heads), slice(position, position + 1)
    values = torch.eye(ids.shape[1], dtype=call.q.dtype).expand(1, heads, -1, -1)
    mask = None if call.mask is None else call.mask[heads_of_group, row]
    weights = F.scaled_dot_product_attention(
        call.q[:1, heads_of_group, row], call.k[:1, heads_of_group], values, attn_mask=mask,
        scale=call.scale,
    )[0, :, 0]
    out = weights.new_zeros(heads, h * w + 2).index_add_(1, ids[group], weights)
    return out[:, 1:-1].unflatten(1, (h, w)), out[:, 0], out[:, -1]


# -- biases ----------------------------------------------------------------------------------


def bias_of(call: Call) -> Tensor:
    """(heads, 2 gh - 1, 2 gw - 1): the bias of each head by offset, query minus key."""
    if call.branch.bias is None:
        raise SpecError(f"{call.branch.config}: no bias; choose position=bias or log_cpb")
    gh, gw = call.groups.extent
    with torch.no_grad():
        values = call.branch.bias(call.groups)
    table = values.new_zeros(len(values), (2 * gh - 1) * (2 * gw - 1))
    table[:, relative_index(gh, gw, table.device)] = values
    return table.unflatten(1, (2 * gh - 1, 2 * gw - 1))


# -- effective receptive field ---------------------------------------------------------------


def wake_norms(model: nn.Module) -> int:
    """Sets the weights of norms that start at 0 to 1 (Swin V2's residual norms, the last norm of a
    ResNet's branch), since such blocks are the identity; returns how many."""
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)
    norms = [m for m in model.modules() if isinstance(m, kinds) and m.weight is not None]
    zero_norms = [m for m in norms if not m.weight.any()]
    for norm in zero_norms:
        nn.init.ones_(norm.weight)
    return len(zero_norms)


def maps_of(model: nn.Module, x: Tensor) -> list[Tensor]:
    """(b, h, w, c) maps of any model, one per resolution from 1/4 of the image down, by hooks.

    x: images (b, c, H, W).
    """
    height, width = x.shape[2:]
    maps_by_grid: dict[Grid, Tensor] = {}
    wanted = [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32, 64)]
    wanted = [size for size in wanted if size != (1, 1)]

    def record(module: nn.Module, args: Any, out: Any) -> None:
        if not isinstance(out, Tensor) or out.ndim not in (3, 4) or len(out) != len(x):
            return
        if out.ndim == 3:  # a sequence of tokens, with or without a class token in front
            for h, w in wanted:
                if out.shape[1] in (h * w, h * w + 1):
                    maps_by_grid[h, w] = out[:, -h * w :].unflatten(1, (h, w))
        elif (size := (out.shape[2], out.shape[3])) in wanted:
            maps_by_grid[size] = out.permute(0, 2, 3, 1)
        elif (size := (out.shape[1], out.shape[2])) in wanted:
            maps_by_grid[size] = out

    hooks = [module.register_forward_hook(record) for module in model.modules()]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [maps_by_grid[size] for size in dict.fromkeys(wanted) if size in maps_by_grid]


def field(
    features: Callable[[Tensor], Sequence[Tensor]], x: Tensor, stage: int | None, name: str
) -> Tensor:
    """Effective receptive field (Luo et al. 2016) of the centre of a map.

    The centre unit is projected on a random direction: the sum over a layer norm is constant.

    Args:
        features: maps images to (b, h, w, c) maps, finest first.
        x: one image (1, c, H, W) in pixels.
        stage: number of the map, from 1; None for the last.
        name: of the model, for errors.

    Returns:
        (H, W): |d centre / d pixel| summed over channels.

    Raises:
        SpecError: if the model has no such map.
    """
    x = x.clone().requires_grad_()
    maps = features(x)
    if not maps or not 1 <= (stage or len(maps)) <= len(maps):
        raise SpecError(f"{name}: --stage {stage}: it shows {len(maps)} maps of the image")
    chosen = maps[(stage or len(maps)) - 1]
    centre = chosen[0, chosen.shape[1] // 2, chosen.shape[2] // 2]
    (centre @ torch.randn_like(centre)).backward()
    assert x.grad is not None
    return x.grad[0].abs().sum(0)
