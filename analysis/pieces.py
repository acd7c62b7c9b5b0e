"""The pieces of the CPU engine that can be switched off one by one, each by what replaces it.

`off(name)` is a context in which the piece is gone and everything else stays, so that what it
brings can be measured (`python -m benchmarks.ablation`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attention import branch, cores, fast, learning, position, products, scores

Replacement = tuple[Any, str, Any]  # an object, the name of its attribute, the other value
WHOLE = 1 << 60  # bytes: everything in one part


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def _mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return learning.linear(F.gelu(learning.linear(x, w1, b1)), w2, b2)


def _attend(qkv: Tensor, mask: Tensor | None, scale: float, gain: Tensor | None = None) -> Tensor:
    q, k, v = qkv.transpose(1, 3).unbind(2)
    if gain is not None:
        q = position.cosine_normalize(q, gain[:, None, None])
        k = position.cosine_normalize(k)
    if mask is not None and len(mask) not in (1, len(q)):
        mask = mask.repeat(len(q) // len(mask), 1, 1, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).flatten(2)


def _inside(self: Any, q: Tensor, k: Tensor, v: Tensor, groups: Any, mask: Any) -> Tensor:
    if self.logit_scale is not None:
        q = position.cosine_normalize(q, self.learned_scale(q)[:, 0])
        k = position.cosine_normalize(k)
    out = fast.attend(q, k, v, mask, self.scale).flatten(2)
    return out if self.lepe is None else out + self.lepe.inside(v.transpose(1, 2), groups)


def _one() -> int:
    return 1


def _unpacked(weight: Tensor) -> Tensor:
    return weight


REAL = fast.unseen


def _eager_only(x: Tensor, module: Any, *layers: Any) -> bool:
    return not torch.compiler.is_compiling() and REAL(x, module, *layers)


PIECES: dict[str, list[Replacement]] = {
    "oneDNN products": [(products, "_ONEDNN", ())],
    "packed weights": [(products, "pack", _unpacked)],
    "linear Function": [(learning, "linear", _linear)],
    "recomputed GELU": [(learning, "mlp", _mlp)],
    "recomputed softmax": [(scores, "attend", _attend)],
    "custom operators": [(fast, "unseen", _eager_only)],
    "threads per image": [(cores, "threads", _one)],
    "in-place cosine": [(branch.Branch, "inside", _inside)],
    "chunks": [(fast, "CACHE", WHOLE), (fast, "MAPS", WHOLE)],
    "threads and chunks": [
        (cores, "threads", _one), (fast, "CACHE", WHOLE), (fast, "MAPS", WHOLE),
    ],
}  # fmt: skip
IN = {  # where a piece is at work: infer, train, compile, or folded (inference of a folded model)
    "oneDNN products": ("infer", "train", "compile"), "packed weights": ("folded",),
    "linear Function": ("train",), "recomputed GELU": ("train",), "recomputed softmax": ("train",),
    "custom operators": ("compile",), "threads per image": ("infer",),
    "in-place cosine": ("infer",), "chunks": ("infer", "train"), "threads and chunks": ("infer",),
}  # fmt: skip


def off(name: str) -> AbstractContextManager[Any]:
    """A context without the piece of this name; for "" one in which nothing is missing."""
    return _replaced(PIECES[name]) if name else nullcontext()


@contextmanager
def _replaced(replacements: list[Replacement]) -> Iterator[None]:
    with ExitStack() as stack:
        for place, name, value in replacements:
            stack.callback(_setter(place, name, getattr(place, name)))
            setattr(place, name, value)
        yield


def _setter(place: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(place, name, value)
