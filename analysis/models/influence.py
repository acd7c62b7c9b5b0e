"""Tokens that an output depends on, measured: the support of its gradient in float64.

    influence(module, x, queries)     (queries, h, w) bool, for any module on a (1, h, w, c) map
    probes(model, x)                  the mixers or first blocks inside a network, on their maps
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attention.mixer import TokenMixer

Token = tuple[int, int]
THRESHOLD = 1e-12  # of the largest gradient of a query; masked tokens have exactly 0


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draws every parameter and batch norm statistic, and sets evaluation mode.

    At initialisation biases, tables and some norms are 0, so that their effect is not observable.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            last = name.rpartition(".")[2]
            if last == "logit_scale":
                value = 2.3 + 0.3 * normal(parameter)
            elif "table" in name:
                value = 0.5 * normal(parameter)
            elif parameter.ndim <= 1:
                value = 0.2 * normal(parameter) + float(last == "weight")
            else:
                value = normal(parameter) * max(parameter[0].numel(), 1) ** -0.5
            parameter.copy_(value)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.2 * normal(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(normal(buffer).abs() + 0.5)
    return module.eval()


def sample_tokens(h: int, w: int, most: int) -> list[Token]:
    """All tokens of a map, or `most` of them: corners, edges, the centre and random ones."""
    every = [(i, j) for i in range(h) for j in range(w)]
    if len(every) <= most:
        return every
    first = {(i, j) for i in (0, h - 1, h // 2) for j in (0, w - 1, w // 2)}
    rest = [token for token in every if token not in first]
    return sorted([*first, *random.Random(0).sample(rest, max(0, most - len(first)))])


def influence(module: Callable[[Tensor], Tensor], x: Tensor, queries: Sequence[Token]) -> Tensor:
    """(queries, h, w) bool: the tokens of x (1, h, w, c) that the output at each query depends on.

    One image and one backward pass per query, so that no other output contributes.
    """
    x = x.detach().clone().requires_grad_()
    return support(module(x), x, queries)


def support(y: Tensor, x: Tensor, queries: Sequence[Token]) -> Tensor:
    """(queries, h, w) bool: the tokens of the map x that a map y, computed from x, depends on."""
    weights = torch.randn(y.shape[-1], generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    gradients = []
    for i, j in queries:
        out = (y[0, i, j] * weights).sum()
        (grad,) = torch.autograd.grad(out, x, retain_graph=True, materialize_grads=True)
        gradients.append(grad[0].abs().amax(-1).nan_to_num(nan=torch.inf, posinf=torch.inf))
    sizes = torch.stack(gradients)
    # a NaN or Inf is an influence, and must not raise the threshold
    finite = sizes.where(sizes.isfinite(), 0)
    return sizes > THRESHOLD * finite.amax((1, 2), keepdim=True)


# -- descriptions --------------------------------------------------------------------------------


def count_runs(line: Tensor) -> int:
    """Number of intervals of True along an axis."""
    return int(line[0]) + int((line[1:] & ~line[:-1]).sum())


def wraps(reach: Tensor) -> bool:
    """True if an (h, w) influence set joins opposite edges: broken on the map, but one interval
    on the map closed to a ring.  (Interlaced sets are broken on the ring too.)"""
    return any(
        count_runs(line) == 2 and bool(line[0] and line[-1])
        for line in (reach.any(1), reach.any(0))
    )


def extent(reach: Tensor) -> tuple[int, int]:
    """Numbers of rows and of columns in which an (h, w) set has tokens."""
    return int(reach.any(1).sum()), int(reach.any(0).sum())


def span(reach: Tensor) -> tuple[int, int]:
    """Rows and columns of the smallest box around an (h, w) set that is not empty."""
    rows, cols = (line.nonzero().flatten().tolist() for line in (reach.any(1), reach.any(0)))
    return rows[-1] - rows[0] + 1, cols[-1] - cols[0] + 1


def describe(queries: Sequence[Token], found: Tensor) -> str:
    """One line about a measured influence: its sizes, and whether it joins opposite edges."""
    sides = [extent(reach) for reach in found]
    sizes = [int(reach.sum()) for reach in found]
    h, w = found.shape[1:]
    around = sum(wraps(reach) for reach in found)
    n = len(queries)
    if min(sizes) == h * w:
        return f"every token reaches each of {n} queries"
    rows, cols = max(side[0] for side in sides), max(side[1] for side in sides)
    low, high = min(sizes), max(sizes)
    count = str(high) if low == high else f"{low} to {high}"
    text = f"{count} of {h * w} tokens reach a query, in at most {rows} rows and {cols} columns; "
    if not around:
        return text + f"none of {n} queries is reached across opposite edges"
    return text + f"{around} of {n} queries are reached ACROSS OPPOSITE EDGES"


def picture(query: Token, found: Tensor, stated: Tensor | None = None) -> str:
    """A text map of one query: Q the query, # a token that reaches it, ! one that reaches it and
    may not, ? one that may and does not, . any other."""
    stated = found if stated is None else stated
    marks = {(True, True): "#", (True, False): "!", (False, True): "?", (False, False): "."}
    lines = [
        "".join(marks[bool(a), bool(b)] for a, b in zip(row, allowed, strict=True))
        for row, allowed in zip(found, stated, strict=True)
    ]
    i, j = query
    lines[i] = lines[i][:j] + "Q" + lines[i][j + 1 :]
    return "\n".join(lines)


# -- inside a network ------------------------------------------------------------------------


class Probe(NamedTuple):
    """A module inside a network and its input map; run: (1, h, w, c) -> (1, h, w, c).

    tokens: beside the map, which `run` leaves as they were in the network.
    """

    name: str
    module: nn.Module
    x: Tensor
    run: Callable[[Tensor], Tensor]
    tokens: int = 0


def probes(model: nn.Module, x: Tensor) -> list[Probe]:
    """Modules inside a network with their input maps.

    Our mixers, one per config, parity of index and map size; in a network without any, the first
    two blocks on each map size: innermost members of a list whose output has the input's shape.
    """
    names = {module: name for name, module in model.named_modules()}
    mixers: list[nn.Module] = [module for module in names if isinstance(module, TokenMixer)]
    calls = _record(model, x, mixers or list(_members(model)))
    if not mixers:
        inner = {module: name + "." for module, name in names.items()}
        calls = [
            call for call in calls
            if not any(inner[other[0]].startswith(inner[call[0]]) for other in calls
                       if other is not call)
        ]  # fmt: skip
    chosen: list[Probe] = []
    seen: dict[Any, int] = {}
    for module, args, kwargs in calls:
        shape = tuple(args[0].shape[1:])
        key: Any = shape
        if isinstance(module, TokenMixer):
            key = (module.config, module.index % 2, shape)
        if seen.setdefault(key, 0) < (1 if mixers else 2):
            seen[key] += 1
            chosen.append(_as_map(names[module], module, args, kwargs))
    return chosen


def _members(model: nn.Module) -> Iterator[nn.Module]:
    for parent in model.modules():
        if isinstance(parent, (nn.ModuleList, nn.Sequential)):
            for child in parent.children():
                plain = not isinstance(child, (nn.ModuleList, nn.Sequential))
                if plain and any(True for _ in child.parameters()):
                    yield child


def _record(model: nn.Module, x: Tensor, modules: list[nn.Module]) -> list[Any]:
    """(module, args, kwargs) of each module's first call whose output has the input's shape; of a
    mixer with tokens beside its map, the map's."""
    calls: dict[nn.Module, Any] = {}

    def note(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        first = args[0] if args else None
        if isinstance(module, TokenMixer) and len(args) > 1:
            out = out[0]
        if not isinstance(first, Tensor) or not isinstance(out, Tensor):
            return
        if first.ndim in (3, 4) and first.shape == out.shape:
            calls.setdefault(module, (module, tuple(args), kwargs))

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return list(calls.values())


def _as_map(name: str, module: nn.Module, args: Any, kwargs: Any) -> Probe:
    """A module on NHWC maps: sequences (b, n, c) become maps of one column, NCHW is permuted.

    NCHW is recognised by its equal last two sides, unless the module is one of our mixers.
    """
    x, rest = args[0].detach().clone(), args[1:]

    def run(t: Tensor) -> Tensor:
        return module(t, *rest, **kwargs)

    if isinstance(module, TokenMixer):
        if rest:  # the tokens beside the map, and the map comes first out of both
            return Probe(name, module, x, lambda t: run(t)[0], rest[0].shape[1])
        return Probe(name, module, x, run)
    if x.ndim == 3:
        return Probe(name, module, x[:, :, None], lambda t: run(t[:, :, 0])[:, :, None])
    square = x.shape[2] == x.shape[3] and x.shape[1] != x.shape[2]
    if square:
        return Probe(
            name, module, x.permute(0, 2, 3, 1),
            lambda t: run(t.permute(0, 3, 1, 2)).permute(0, 2, 3, 1),
        )  # fmt: skip
    return Probe(name, module, x, run)
