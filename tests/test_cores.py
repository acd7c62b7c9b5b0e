"""Parts of a batch on threads of their own: each part once, in the caller's modes, the same map."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from contextvars import ContextVar

import pytest
import torch
from tiny import FAMILIES, create, images

from attention import cores, fast, products

word: ContextVar[str] = ContextVar("word", default="outside")


@pytest.mark.parametrize("number", range(8))
def test_every_part_runs_once_and_what_is_left_over_runs_here(number, two_or_three):
    met, seen = threading.Barrier(two_or_three), []

    def run(part):
        alone = threading.current_thread() is not threading.main_thread()
        if alone:
            met.wait(timeout=20)  # all of them at work at once
        seen.append((part, alone, torch.get_num_threads()))

    cores.spread(range(number), run)

    assert sorted(part for part, _, _ in seen) == list(range(number))
    dealt = number - number % two_or_three
    for part, alone, count in seen:
        assert alone == (part < dealt) and count == (1 if alone else two_or_three)
    assert torch.get_num_threads() == two_or_three


def test_a_thread_of_the_user_starts_with_all_cores(two_or_three):
    cores._pool.cache_clear()
    cores.spread(range(two_or_three), lambda part: None)
    counts = []
    user = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    user.start()
    user.join()
    assert counts == [two_or_three]


@pytest.mark.parametrize("n", range(10))
@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_a_batch_is_cut_into_equal_parts_as_many_for_every_core(n, most, two_or_three, monkeypatch):
    monkeypatch.setattr(fast, "MAPS", most * 16)
    parts = fast.images(torch.zeros(n, 4))
    sizes = [part.stop - part.start for part in parts]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(n))
    assert max(sizes) <= most and max(sizes) - min(sizes) <= 1
    assert len(parts) % two_or_three == 0 or len(parts) == max(n, 1)


def test_parts_run_in_the_modes_of_the_caller(two_or_three):
    seen = set()

    def run(part):
        seen.add((torch.is_inference_mode_enabled(), torch.is_grad_enabled(), word.get()))

    for mode, wanted in (
        (torch.inference_mode(), (True, False)), (torch.no_grad(), (False, False)),
        (torch.enable_grad(), (False, True)),
    ):  # fmt: skip
        token = word.set(str(wanted))
        with mode:
            cores.spread(range(two_or_three), run)
        word.reset(token)
        assert seen == {(*wanted, str(wanted))}
        seen.clear()


def test_an_error_in_a_part_is_raised(two_or_three):
    def run(part):
        if part == 1:
            raise KeyError("of part 1")

    with pytest.raises(KeyError, match="of part 1"):
        cores.spread(range(6), run)
    cores.spread(range(6), lambda part: None)  # and the threads live on


def test_parts_of_parts_stay_on_their_thread(two_or_three):
    def run(part):
        own = threading.current_thread()
        cores.spread(range(3), lambda inner: seen.append(threading.current_thread() is own))

    seen = []
    cores.spread(range(two_or_three), run)
    assert seen == [True] * 3 * two_or_three


def test_with_one_thread_or_too_many_or_a_profiler_all_runs_here(two_or_three):
    def here():
        seen = set()
        cores.spread(range(2 * cores.MOST + 2), lambda part: seen.add(threading.current_thread()))
        return seen == {threading.current_thread()}

    assert not here()
    with torch.profiler.profile():
        assert here()
    for count in (1, cores.MOST + 1):
        torch.set_num_threads(count)
        assert here()


def _in_a_child(queue):
    seen = []
    cores.spread(range(4), seen.append)
    queue.put(sorted(seen))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_child_has_threads_of_its_own(two_or_three):
    cores.spread(range(4), lambda part: None)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_child, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=20) == [0, 1, 2, 3]
    finally:
        child.kill()
        child.join()


def test_a_system_without_fork():
    """As on Windows."""
    code = """
import os, torch
del os.register_at_fork
from attention import cores
torch.set_num_threads(2)
seen = []
cores.spread(range(4), seen.append)
print(sorted(seen))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[0, 1, 2, 3]\n", done.stderr


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [2, 5])
def test_a_spread_batch_has_the_maps_of_the_plain_path(family, batch, two_or_three, monkeypatch):
    model, x = create(family, in_channels=3).double(), images(batch, 3, 61, 100).double()
    used = set()
    real = products.linear

    def spy(*args, **options):
        used.add(threading.current_thread().name)
        return real(*args, **options)

    monkeypatch.setattr(products, "linear", spy)
    with torch.inference_mode():
        maps = model.features(x)
        with fast.plain():
            plain = model.features(x)
    assert sum(name.startswith("transom") for name in used) == (
        two_or_three if batch >= two_or_three else 0
    )
    for found, wanted in zip(maps, plain, strict=True):
        assert float((found - wanted).abs().max()) <= 1e-10 * float(wanted.abs().max())
