"""What a module makes from its parameters and the size of a map, made once.

Permutations, biases, masks and weights in the order a product reads them are made once in a
forward (`fast.forward`), for all its images and blocks.  A folded module keeps them for later
forwards as well: until it trains, moves or loads, and only as long as what they were made from
is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from attention import fast, products

Made = TypeVar("Made")

_keeping: ContextVar[bool] = ContextVar("keeping", default=False)


@contextmanager
def keeping(model: nn.Module) -> Iterator[None]:
    """What the parts of `model` make inside, they keep."""
    for part in parts(model):
        part.kept = {}
    token = _keeping.set(True)
    try:
        yield
    finally:
        _keeping.reset(token)


def parts(model: nn.Module) -> Iterator[Keeper]:
    return (part for part in model.modules() if isinstance(part, Keeper))


def unfold(model: nn.Module) -> None:
    for part in parts(model):
        part.kept = None


def _state(sources: tuple[Tensor, ...]) -> list[tuple[int, int]]:
    return [products.state(t) for t in sources]


class Keeper(nn.Module):
    """kept: by key, what was made, from which tensors, and the state they were in; None unless
    folded.  It is no part of the state, of a copy or of a pickle."""

    kept: dict[Hashable, tuple[Any, tuple[Tensor, ...], list[tuple[int, int]]]] | None = None

    def once(self, key: Hashable, make: Callable[[], Made], *sources: Tensor | None) -> Made:
        """`make()`, or what it gave before.  `key` names it and everything it depends on but
        `sources`; what has none is the same in all modules."""
        if torch.compiler.is_compiling():
            return make()
        tensors = tuple(t for t in sources if t is not None)
        keeps = self.kept is not None and not fast.watched() and not _learns(tensors)
        if keeps and self.kept is not None and key in self.kept:
            made, _, state = self.kept[key]
            if state == _state(tensors):
                return made
        own = bool(tensors)
        made = fast.remember((id(self) if own else None, key), make, own=own)
        if keeps and self.kept is not None and _keeping.get():
            self.kept[key] = made, tensors, _state(tensors)
        return made

    def packed(self, key: Hashable, weight: Tensor) -> Tensor:
        """The weight as `products.linear` reads it fastest, if folded."""
        if self.kept is None:
            return weight
        return self.once(("packed", key, weight.dtype), lambda: products.pack(weight), weight)

    @property
    def current(self) -> bool:
        """Is it folded, and all it keeps made from what its parameters are now?"""
        return self.kept is not None and all(
            state == _state(tensors) for _, tensors, state in self.kept.values()
        )

    def train(self, mode: bool = True) -> Keeper:
        if mode:
            self.kept = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.kept = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.kept = None
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "kept"}


def _learns(tensors: tuple[Tensor, ...]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
