"""Order of the training images, and every other random draw: pure functions of seed and step.

A data loader's iterator has no state here, so a run that is resumed at any step, on any number of
workers and processes, sees the images that the uninterrupted run would have seen.
"""

from __future__ import annotations

import hashlib
import operator
from functools import lru_cache

import torch
from torch import Tensor

from transom.errors import SpecError


def stream(seed: int, *names: int | str) -> torch.Generator:
    """The generator of one purpose: the single place from which randomness of a run comes.

    Its seed is the first 63 bits of the SHA-256 of the repr of the arguments.  torch's CPU
    generator uses the lower 32 of them, so one pair of 100,000 streams is likely to be equal.

    Args:
        seed: of the run.
        names: words and numbers that say what is drawn, such as "order", 3.

    Returns:
        A new generator on the CPU, the same for equal arguments on every machine.

    Raises:
        TypeError: for a name that is neither a whole number nor text.

    Example:
        >>> import torch
        >>> from training.data.batches import stream
        >>> draws = [torch.rand(2, generator=stream(0, "flip", 7)) for _ in range(2)]
        >>> torch.equal(*draws)
        True
    """
    key = tuple(_key(name) for name in (seed, *names))
    digest = hashlib.sha256(repr(key).encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return generator


def _key(name: int | str) -> int | str:
    """A name whose repr is the same for 3, numpy's 3 and True's 1."""
    return str(name) if isinstance(name, str) else int(operator.index(name))


@lru_cache(maxsize=4)  # a batch crosses from one epoch to the next, in training and in its check
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=stream(seed, "order", epoch))


def indices(n: int, seed: int, step: int, batch: int, repeats: int = 1) -> Tensor:
    """Images of one step of training, as a pure function of its arguments.

    The permutations of all epochs stand in one row; a step takes the next `batch` of them, across
    the ends of epochs, and leaves none out.

    Args:
        n: number of training images.
        seed: of the run.
        step: number of the step, from 0.
        batch: images of the global batch; may exceed n.
        repeats: how many times in a row every image stands (repeated augmentation); an epoch is
            then `n * repeats` places long.

    Returns:
        (batch,) int64, indices from 0 to n - 1.

    Raises:
        SpecError: for a count below 1 or a step below 0.

    Example:
        >>> import torch
        >>> from training.data.batches import indices
        >>> epoch = torch.cat([indices(6, seed=0, step=step, batch=2) for step in range(3)])
        >>> epoch.sort().values.tolist()
        [0, 1, 2, 3, 4, 5]
    """
    for name, value, least in (
        ("n", n, 1), ("step", step, 0), ("batch", batch, 1), ("repeats", repeats, 1),
    ):  # fmt: skip
        if value < least:
            raise SpecError(f"{name}={value}: expected a whole number from {least}")
    places = torch.arange(step * batch, (step + 1) * batch) // repeats
    first, last = int(places[0]) // n, int(places[-1]) // n
    rows = [_permutation(n, int(seed), epoch) for epoch in range(first, last + 1)]
    return torch.cat(rows)[places - first * n]
