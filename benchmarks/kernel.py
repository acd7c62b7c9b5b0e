"""The fused attention kernel alone, on a GPU, beside SDPA and FlexAttention.

The others receive queries, keys and values that are rolled and partitioned already, and SDPA a
prepared mask, so that only their attention is timed.  Time is of a captured CUDA graph, after the
cache was overwritten; kernels are interleaved, and the median of the rounds is reported.  The
limit is the longer of two times: the bytes that must move (every tensor once, over the bandwidth
of a large copy in this run), and the products (over the rate of a large product in this run).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import options
from benchmarks.graphs import captured, interleaved
from transom import cli, table
from transom.errors import SpecError, cause_of, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from attention.geometry.groups import Groups

EPILOG = """examples:
  python -m benchmarks.kernel --case swin_t/1 swin_t/1-shifted --mode infer train
  python -m benchmarks.kernel --case swin_t/1 --tune --format csv --out tune.csv

exit code: 0 measured, 1 a kernel failed or its result is another, 2 no GPU or a bad request"""

SIZES = {  # name: map, extent of a group, channels, heads, the map shifted, cosine scores
    "swin_t/1": ((56, 56), (7, 7), 96, 3, False, False),
    "swin_t/1-shifted": ((56, 56), (7, 7), 96, 3, True, False),
    "swin_t/3-shifted": ((14, 14), (7, 7), 384, 12, True, False),
    "swin_b/1-shifted": ((56, 56), (7, 7), 128, 4, True, False),
    "swinv2_t/1-shifted": ((64, 64), (8, 8), 96, 3, True, True),
    "swinv2_t_w16/1-shifted": ((64, 64), (16, 16), 96, 3, True, True),
    "swin_b_384/1-shifted": ((96, 96), (12, 12), 128, 4, True, False),
    "cswin_t/3": ((14, 14), (14, 7), 128, 4, False, False),
}
MODES, DTYPES = ("infer", "train"), ("bfloat16", "float16", "float32")


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("benchmarks.kernel", __doc__, EPILOG)
    add = parser.add_argument
    add("--case", nargs="+", default=list(SIZES), metavar="CASE", help=f"of {', '.join(SIZES)}")
    add("--mode", nargs="+", choices=MODES, default=["infer"], help="train: with gradients")
    add("--dtype", choices=DTYPES, default="bfloat16")
    add("--batch", type=cli.count_from_one, default=128)
    add("--rounds", type=cli.count_from_one, default=30, help="timings of each kernel")
    add("--tune", action="store_true", help="the fused kernel alone, under many launch numbers")
    options.add_no_wait(parser)
    cli.add_output(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = options.read(build_parser(), argv)
    cli.load_plugins(args.plugin)
    for name in args.case:
        if name not in SIZES:
            raise SpecError(f"--case: no case {name!r}{nearest(name, SIZES)}")
    import torch

    if not torch.cuda.is_available():
        raise SpecError("benchmarks.kernel: no CUDA GPU here; the kernel runs on nothing else")
    from transom.progress import Bar

    jobs = [(name, mode) for name in args.case for mode in args.mode]
    with options.alone(args):
        machine = measure_machine(args.dtype)
        progress = Bar(jobs, unit="case")
        rows = [row for name, mode in progress for row in measure(args, machine, name, mode)]
    title = f"{torch.cuda.get_device_name()}, {args.dtype}, batch {args.batch}"
    note = f"torch {torch.__version__}; copy {machine.bytes / 1e12:.3g} TB/s, "
    note += f"product {machine.flops / 1e12:.4g} TFLOP/s; median of {args.rounds}"
    style = cli.chosen_format(args)
    cli.emit(table.render(rows, style, title=title, note=note), args)
    wrong = any(row["note"] for row in rows if not args.tune or row["kernel"] == "fused")
    return cli.DIFFER if wrong else cli.AGREED


class Machine(NamedTuple):
    """Rates of this GPU in this run: bytes copied and FLOPs of a matrix product, a second."""

    bytes: float
    flops: float


def measure_machine(dtype: str) -> Machine:
    import torch

    kind = getattr(torch, dtype)
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=kind) for _ in range(2))
    times = interleaved({"copy": lambda: target.copy_(source), "product": lambda: a @ b}, 10)
    copy, product = (statistics.median(times[name]) for name in ("copy", "product"))
    return Machine(2 * source.nbytes / copy, 2 * 8192**3 / product)


class Problem(NamedTuple):
    """Inputs of one case.

    maps: (b, h, w, 3 c) for the fused kernel.  split: q, k, v of the same values for the others,
    (b, groups * heads, l, d).  mask: (groups * heads, l, l).
    """

    groups: Groups
    heads: int
    scale: float
    maps: Tensor
    bias: Tensor
    gain: Tensor | None
    split: list[Tensor]
    mask: Tensor


def problem(name: str, batch: int, dtype: str, device: str = "cuda") -> Problem:
    import torch

    from attention.geometry.axis import axis
    from attention.geometry.groups import Groups
    from attention.softmax.position import cosine_normalize

    (h, w), (gh, gw), dim, heads, shifted, cosine = SIZES[name]
    shift = (gh // 2, gw // 2) if shifted else (0, 0)
    groups = Groups(axis(h, gh, shift=shift[0]), axis(w, gw, shift=shift[1]))
    torch.manual_seed(0)
    like: dict[str, Any] = {"device": device, "dtype": getattr(torch, dtype)}
    maps = torch.randn(batch, h, w, 3 * dim, **like)
    bias = torch.randn(heads, gh * gw, gh * gw, **like)
    gain = 1 + 4 * torch.rand(heads, device=device) if cosine else None
    q, k, v = (by_heads(groups, t, heads) for t in maps.chunk(3, -1))
    scale = 1.0 if cosine else (dim // heads) ** -0.5
    if gain is not None:
        q = cosine_normalize(q) * gain.to(q.dtype).repeat(groups.n)[:, None, None]
        k = cosine_normalize(k)
    separated = groups.separated(maps.device)
    mask = bias.repeat(groups.n, 1, 1)
    if separated is not None:
        mask = mask.masked_fill(separated.repeat_interleave(heads, 0), -math.inf)
    return Problem(groups, heads, scale, maps, bias, gain, [q, k, v], mask)


def kernel_calls(
    p: Problem, mode: str, flex: Callable[..., Tensor]
) -> dict[str, Callable[[], Any]]:
    """Each kernel as a call without arguments, which returns its result and, in training, the
    gradients of q, k, v and the bias or mask."""
    import torch
    import torch.nn.functional as F

    from attention.kernels import fused

    train, leaves = mode == "train", [t.detach().contiguous() for t in p.split]
    maps, mask, bias = p.maps.detach(), p.mask.detach(), p.bias.detach().clone()
    for leaf in (maps, mask, bias, *leaves):
        leaf.requires_grad_(train)

    def with_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
        weight = out.detach()  # a gradient that differs from token to token
        return [out, *(torch.autograd.grad(out, inputs, weight) if train else ())]

    def fused_kernel() -> list[Tensor]:
        out = fused.attend_packed(
            maps, p.groups, heads=p.heads, scale=p.scale, bias=bias, logit_scale=p.gain
        )
        return with_gradients(out, [maps, bias])

    def sdpa() -> list[Tensor]:
        q, k, v = leaves
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=p.scale)
        return with_gradients(out, [*leaves, mask])

    separated = p.groups.separated(maps.device)

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        s = s + bias[h % p.heads, i, j]
        return s if separated is None else torch.where(separated[h // p.heads, i, j], -math.inf, s)

    def flexible() -> list[Tensor]:
        return with_gradients(flex(*leaves, score_mod=score, scale=p.scale), [*leaves, bias])

    return {"fused": fused_kernel, "sdpa": sdpa, "flex": flexible}


def by_heads(groups: Groups, x: Tensor, heads: int) -> Tensor:
    """The padded map (b, hp, wp, c) -> (b, groups * heads, tokens of a group, c / heads)."""
    tokens = groups.split(groups.roll(x)).unflatten(-1, (heads, -1))
    return tokens.transpose(2, 3).flatten(1, 2).contiguous()


def in_groups(p: Problem, name: str, out: Tensor) -> Tensor:
    """A kernel's result in the layout (b, groups * heads, l, d), for comparison."""
    return by_heads(p.groups, out, p.heads) if name == "fused" else out


def limit(p: Problem, mode: str, machine: Machine) -> tuple[float, str]:
    """(least seconds that the machine allows, the limit that binds).

    Forward reads three maps and writes one; backward reads four and writes three.  There are two
    matrix products forward and five backward over the pairs of a group.
    """
    maps, products = (4 + 7, 2 + 5) if mode == "train" else (4, 2)
    copy_seconds = maps * p.maps.nbytes // 3 / machine.bytes
    pairs = p.maps.shape[0] * p.groups.pairs * p.maps.shape[-1] // 3
    product_seconds = 2 * products * pairs / machine.flops
    return max((copy_seconds, "bandwidth"), (product_seconds, "products"))


def measure(args: argparse.Namespace, machine: Machine, name: str, mode: str) -> list[table.Row]:
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    from attention.execution.autotune import LIMITS

    p = problem(name, args.batch, args.dtype)
    calls = kernel_calls(p, mode, torch.compile(flex_attention, dynamic=False))
    scores = p.split[0].double() @ p.split[1].double().mT * p.scale + p.mask.double()
    expected = scores.softmax(-1) @ p.split[2].double()
    del scores
    notes: dict[str, str] = {}
    if args.tune:
        fused = functools.partial(with_plan, calls["fused"])
        calls = {f"fused {plan}": functools.partial(fused, plan) for plan in launch_plans(p)}
    ready, errors = {}, {}
    for kernel, call in calls.items():
        try:
            found = in_groups(p, kernel.split()[0], call()[0].detach()).double()
            errors[kernel] = float((found - expected).norm() / expected.norm())
            if not errors[kernel] <= LIMITS[getattr(torch, args.dtype)]:
                notes[kernel] = "another result"
            ready[kernel] = captured(call)
        except Exception as error:  # errors of a compiler or driver become the row's note
            notes[kernel] = table.plain(cause_of(error, named=True))[:200]
    times = interleaved(ready, args.rounds)
    floor, binds = limit(p, mode, machine)
    medians = {kernel: statistics.median(spent) for kernel, spent in times.items()}
    rows = []
    for kernel in calls:
        others = [medians[other] for other in ("sdpa", "flex") if other in medians]
        median = medians.get(kernel)
        rows.append({
            "case": name, "mode": mode, "group": math.prod(p.groups.extent), "kernel": kernel,
            "us": median and median * 1e6,
            "spread_%": median and 100 * (max(times[kernel]) - min(times[kernel])) / median,
            "share_of_limit": median and floor / median, "limit": binds,
            "x_best_other": median and min(others) / median if others else None,
            "error": errors.get(kernel), "note": notes.get(kernel, ""),
        })  # fmt: skip
    return sorted(rows, key=lambda row: row["us"] or math.inf) if args.tune else rows


def launch_plans(p: Problem) -> list[Any]:
    from attention.kernels.launch import TILE_TOKENS, Plan

    length = math.prod(p.groups.extent)
    one_tile = length <= TILE_TOKENS
    blocks = (max(16, 1 << (length - 1).bit_length()),) if one_tile else (32, 64, 128)
    grid = itertools.product(blocks, (4, 8), (2, 3), (3, 4, 8) if one_tile else (4,), (None, 128))
    return [Plan(*numbers) for numbers in grid]


def with_plan(call: Callable[[], Any], plan: Any) -> Any:
    """Calls the fused kernel with another launch plan, forward and backward."""
    from attention.kernels import launch

    original_plan = launch.plan
    launch.plan = lambda length, **_: plan
    try:
        return call()
    finally:
        launch.plan = original_plan


if __name__ == "__main__":
    cli.run(main)
