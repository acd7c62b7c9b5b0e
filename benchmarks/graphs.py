"""Times of a GPU's kernels alone: captured CUDA graphs, interleaved, with a flushed cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FLUSH = 2**28  # bytes, several times the size of a cache


def captured(call: Callable[[], Any]) -> Callable[[], None]:
    """A call as a CUDA graph, without time of the interpreter between its kernels."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call in every round, after a warm-up of as many rounds, at most 5."""
    import torch

    cache = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in calls}
    warm = min(rounds, 5)
    for i in range(warm + rounds):
        for name, call in calls.items():
            cache.fill_(i % 251)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            if i >= warm:
                times[name].append(start.elapsed_time(end) / 1e3)
    return times
