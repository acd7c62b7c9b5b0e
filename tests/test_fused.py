"""The fused kernels' tests, in a process where Triton may interpret them, and what needs no Triton:
who is refused, and by what name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import attention
from attention.geometry.axis import axis
from attention.geometry.groups import Groups
from attention.kernels import fused

ROOT = Path(__file__).resolve().parent.parent
WINDOWS = Groups(axis(14, 7, shift=3), axis(14, 7, shift=3))


def run(*command: str, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, *command], env=env, cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize("tier", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels(tier):
    """tests/fused_cases.py: on the GPU where there is one, else under Triton's interpreter."""
    if not fused.HAS_TRITON:
        pytest.skip("Triton is not installed")
    switch = "0" if torch.cuda.is_available() else "1"
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", tier, "tests/fused_cases.py",
               TRITON_INTERPRET=switch)  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout


WITHOUT = """
import sys
sys.modules["triton"] = None  # an import of it is an ImportError
import torch
from attention.kernels import fused
from attention.geometry.axis import axis
from attention.geometry.groups import Groups
assert not [m for m in sys.modules if m.startswith("triton.")]
x, groups = torch.ones(1, 7, 7, 96), Groups(axis(7, 7), axis(7, 7))
op = torch.ops.transom.group_attention
axes = [int(number) for side in groups for number in side]
with torch.device("meta"):
    assert op([x.to("meta")], None, None, axes, 1, 1.0, None, False)[0].shape == (1, 7, 7, 32)
fused.HAS_TRITON = False  # find_spec asks the path, which this process does not hide
print(fused.supported(x, groups, heads=2))
"""


def test_runs_without_triton():
    """The module imports, shapes are known, and the reason has a name."""
    done = run("-c", WITHOUT)
    assert (done.returncode, done.stdout) == (0, "Triton is not installed\n"), done.stderr


@pytest.fixture
def anywhere(monkeypatch):
    monkeypatch.setattr(fused, "HAS_TRITON", True)
    monkeypatch.setattr(fused, "INTERPRETED", True)


@pytest.mark.parametrize(("channels", "side", "dtype", "named"), [
    (64, 7, torch.float64, "torch.float64"),
    (16, 7, torch.float32, "8 channels a head"),
    (256, 7, torch.float32, "128 channels a head"),
    (64, 65, torch.float32, "4225 tokens"),
])  # fmt: skip
def test_unsupported_is_named(anywhere, channels, side, dtype, named):
    groups = Groups(axis(side, side), axis(side, side))
    q = torch.empty(1, side, side, channels, dtype=dtype)
    assert named in fused.supported(q, groups, heads=2)
    with pytest.raises(ValueError, match=named) as refused:
        fused.attend(q, q, q, groups, heads=2)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("d", [16, 24, 32, 48, 64])
@pytest.mark.parametrize("dtype", fused.DTYPES)
def test_supported_is_none(anywhere, d, dtype):
    q = torch.empty(1, 14, 14, 2 * d, dtype=dtype)
    assert fused.supported(q, WINDOWS, heads=2) is None


def test_cpu_is_named(monkeypatch):
    monkeypatch.setattr(fused, "HAS_TRITON", True)
    monkeypatch.setattr(fused, "INTERPRETED", False)
    assert "on cpu" in fused.supported(torch.empty(1, 14, 14, 64), WINDOWS, heads=2)


@pytest.mark.parametrize("name", ["window:size=4", "cross:size=2"])
def test_a_mixer_asked_for_the_kernel_refuses_by_name(name):
    """Where the kernel cannot run, it says so; without being asked, nothing changes."""
    mixer = attention.create(name, dim=8, heads=2)
    x = torch.randn(1, 8, 8, 8)
    assert mixer(x).shape == x.shape
    with fused.kernel(), pytest.raises(ValueError, match=r"fused attention: .*; the refer"):
        mixer(x)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the refusal of machines without a GPU")
def test_benchmark_refuses_without_a_gpu():
    done = run("-m", "benchmarks.kernel", "--case", "swin_t/1")
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1 and "CUDA" in done.stderr
