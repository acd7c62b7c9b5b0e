"""Parts of a batch, each on a core of its own.

Torch splits every operator over the cores, and after each one they wait for the slowest.  Here
every core takes part after part through all operators, with what it works on in its own cache,
and they wait for each other once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch

MOST = 4  # cores at work like this: the more, the longer they wait for Python's lock

Part = TypeVar("Part")


def threads() -> int:
    """Over how many threads `spread` deals the parts out: those torch may use here, or 1."""
    own = torch.get_num_threads()
    return 1 if own > MOST or torch.autograd._profiler_enabled() else own


def spread(parts: Sequence[Part], run: Callable[[Part], None]) -> None:
    """`run` of every part: as many on each of the threads, and those left over here, where every
    operator has all cores.  What `run` raises is raised when all of them have stopped."""
    n = threads()
    dealt = len(parts) // n * n if n > 1 else 0
    queue = iter(parts[:dealt])
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def walk() -> None:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            for part in queue:
                run(part)

    if dealt:
        walks = [_pool(n).submit(copy_context().run, walk) for _ in range(n)]
        wait(walks)
        for done in walks:
            done.result()
    for part in parts[dealt:]:
        run(part)


@lru_cache
def _pool(n: int) -> ThreadPoolExecutor:
    """Threads in which torch uses no further ones, kept for the life of the process."""
    pool, started = ThreadPoolExecutor(n, "transom"), Barrier(n)

    def start() -> None:
        torch.get_num_threads()  # the first question sets what all have; then this thread's own
        torch.set_num_threads(1)
        started.wait()

    wait([pool.submit(start) for _ in range(n)])
    torch.set_num_threads(n)  # what threads of the user's start with, too
    return pool


if hasattr(os, "register_at_fork"):  # a forked child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
