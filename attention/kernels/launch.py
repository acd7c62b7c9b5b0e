"""How the fused kernels are launched: tiles, programs, and the integers of a cut."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attention.geometry.axis import Axis
from attention.geometry.groups import Groups

WHOLE = 64  # tokens that one tile holds, scores and their gradient included
# Of float32 products.  tf32x3 is float32 to its last bits on the matrix units.
PRECISION = {"highest": "tf32x3", "high": "tf32x3", "medium": "tf32"}


class Plan(NamedTuple):
    """How a group is cut into tiles and launched."""

    block: int  # tokens of a tile, a power of two
    warps: int
    stages: int  # loads in flight
    programs: int  # per multiprocessor, where a program takes several groups
    registers: int | None = None  # of a thread, at most: more programs at a time


def plan(length: int, *, d: int, wide: bool, backward: bool) -> Plan:
    """The one place of launch numbers.  length: tokens of a group; wide: float32."""
    block = max(16, 1 << (min(length, WHOLE) - 1).bit_length())
    if wide:  # a tile is twice as large, and the products take three operands for one
        return Plan(block if length <= WHOLE else 32, 4, 1, 4)
    if length <= WHOLE and not backward and d <= 32:
        return Plan(block, 4, 2, 4, registers=128)
    return Plan(block, 4, 2, 4)


def groups_of(axes: Sequence[int]) -> Groups:
    """A cut from its twelve numbers."""
    (*rows, row_laced), (*cols, col_laced) = axes[:6], axes[6:]
    return Groups(Axis._make([*rows, bool(row_laced)]), Axis._make([*cols, bool(col_laced)]))


class Call:
    """The arguments that all kernels share."""

    def __init__(
        self, parts: Sequence[Tensor], bias: Tensor | None, gain: Tensor | None,
        axes: Sequence[int], heads: int, scale: float, mask_value: float | None, hidden: bool,
    ) -> None:  # fmt: skip
        q, k, v = _same_layout(*(parts[0].chunk(3, -1) if len(parts) == 1 else parts))
        groups = groups_of(axes)
        self.q, self.heads, self.length = q, heads, math.prod(groups.extent)
        self.items = q.shape[0] * groups.n if q.numel() else 0
        d = q.shape[-1] // heads
        self.tensors = {
            "q": q, "k": k, "v": v,
            "bias": None if bias is None else bias.contiguous(),
            "gain": None if gain is None else gain.contiguous(),
        }  # fmt: skip
        parted = any(axis.shift for axis in groups)
        self.common = {
            "heads": heads, "L": self.length, "items": self.items, "groups": groups.n,
            "scale": float(scale), "penalty": float(mask_value or 0.0),
            **_strides("in", q), "width": groups.cols.extent, "across": groups.cols.n,
            **_along("row", groups.rows), **_along("col", groups.cols),
            "D": d, "DP": max(16, 1 << (d - 1).bit_length()),
            "BIAS": bias is not None, "COSINE": gain is not None,
            "SHIFT": 0 if not parted else 1 if mask_value is None else 2,
            "HIDDEN": hidden and groups.padded,
            "FAR": max(q.stride(0), q.shape[1] * q.stride(1)) >= 2**31,
            "PRECISION": PRECISION[torch.get_float32_matmul_precision()],
        }  # fmt: skip

    def forward(self, out: Tensor, lse: Tensor) -> None:
        chosen = self._plan(backward=False)
        outputs = _strides("out", out)
        if self.length <= WHOLE:
            from attention.kernels.one_tile import forward_whole

            steps = self._steps(chosen, self.heads)
            self._launch(forward_whole, steps, chosen, out=out, steps=steps, **outputs)
        else:
            from attention.kernels.many_tiles import forward_tiled

            count = self.items * self._tiles(chosen)
            self._launch(forward_tiled, count, chosen, out=out, lse=lse, **outputs)

    def backward(self, gout: Tensor, out: Tensor, lse: Tensor, grads: list[Tensor]) -> None:
        """Fills grads, which `_gradients` made."""
        chosen = self._plan(backward=True)
        bias, gain = self.tensors["bias"], self.tensors["gain"]
        tables = list(grads[len(grads) - (bias is not None) - (gain is not None) :])
        gbias = tables.pop(0) if bias is not None else None
        ggain = tables.pop(0) if gain is not None else None
        packed = grads[0].shape[-1] == 3 * gout.shape[-1]
        gq, gk, gv = grads[0].chunk(3, -1) if packed else grads[:3]
        layout = {**_strides("out", gout), **_strides("grad", gq)}
        if self.length <= WHOLE:
            from attention.kernels.one_tile import backward_whole

            steps = self._steps(chosen, self.heads)
            bias_sums, gain_sums = self._sums(gbias, steps), self._gains(ggain, steps)
            self._launch(
                backward_whole, steps, chosen, gout=gout, gq=gq, gk=gk, gv=gv, gbias=bias_sums,
                ggain=gain_sums, steps=steps, **layout,
            )  # fmt: skip
        else:
            bias_sums, gain_sums = self._backward_tiled(
                chosen, gout, out, lse, (gq, gk, gv), gbias, ggain, layout
            )
        for grad, sums in ((gbias, bias_sums), (ggain, gain_sums)):
            if grad is not None and sums is not None:
                grad.copy_(sums.sum(0))

    def _backward_tiled(
        self, chosen: Plan, gout: Tensor, out: Tensor, lse: Tensor,
        grads: tuple[Tensor, Tensor, Tensor], gbias: Tensor | None, ggain: Tensor | None,
        layout: dict[str, int],
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        from attention.kernels import many_tiles as kernels

        tiles = self._tiles(chosen)
        count, delta = self.items * tiles, torch.empty_like(lse)
        shared = {"lse": lse, "delta": delta, "gout": gout}
        gain_sums = self._gains(ggain, count)
        self._launch(
            kernels.backward_queries, count, chosen, **shared, out=out, gq=grads[0],
            ggain=gain_sums, **layout,
        )  # fmt: skip
        self._launch(
            kernels.backward_keys, count, chosen, **shared, gk=grads[1], gv=grads[2], **layout
        )
        if gbias is None:
            return None, gain_sums
        steps = self._steps(chosen, self.heads * tiles**2)
        bias_sums = self._sums(gbias, steps)
        self._launch(
            kernels.backward_bias, steps * tiles**2, chosen, **shared, gbias=bias_sums,
            steps=steps, **_strides("out", gout),
        )  # fmt: skip
        return bias_sums, gain_sums

    def _launch(self, kernel, count: int, chosen: Plan, **arguments) -> None:
        """`count` programs a head."""
        cuda = self.q.device.type == "cuda"
        with torch.cuda.device(self.q.device) if cuda else contextlib.nullcontext():
            kernel[(count * self.heads,)](
                **self.tensors, **self.common, **arguments, BLOCK=chosen.block,
                num_warps=chosen.warps, num_stages=chosen.stages,
                **({"maxnreg": chosen.registers} if chosen.registers else {}),
            )  # fmt: skip

    def _plan(self, *, backward: bool) -> Plan:
        d, wide = self.q.shape[-1] // self.heads, self.q.dtype == torch.float32
        return plan(self.length, d=d, wide=wide, backward=backward)

    def _tiles(self, chosen: Plan) -> int:
        return -(-self.length // chosen.block)

    def _steps(self, chosen: Plan, each: int) -> int:
        """Programs that share all groups, where every one of them is `each` programs."""
        cores = 2  # of the interpreter's, so that a program takes several groups there too
        if self.q.device.type == "cuda":
            cores = torch.cuda.get_device_properties(self.q.device).multi_processor_count
        return min(self.items, max(1, cores * chosen.programs // each))

    def _sums(self, like: Tensor | None, steps: int) -> Tensor | None:
        shape = (steps, self.heads, self.length, self.length)
        return None if like is None else like.new_empty(shape, dtype=torch.float32)

    def _gains(self, like: Tensor | None, count: int) -> Tensor | None:
        return None if like is None else like.new_empty((count, self.heads), dtype=torch.float32)


def _same_layout(*parts: Tensor) -> list[Tensor]:
    """q, k and v with one set of strides and channels side by side: as they are, or copied."""
    first = parts[0].stride()
    if first[-1] == 1 and all(t.stride() == first for t in parts):
        return list(parts)
    return [t.contiguous() for t in parts]


def _strides(name: str, x: Tensor) -> dict[str, int]:
    return {f"{name}_{axis}": step for axis, step in zip("bhw", x.stride()[:3], strict=True)}


def _along(name: str, axis: Axis) -> dict[str, int]:
    """One axis as the kernels read it."""
    group, token = (1, axis.n) if axis.interlaced else (axis.extent, 1)
    return {
        f"{name}_group": group, f"{name}_token": token, f"{name}_padded": axis.padded,
        f"{name}_shift": axis.shift, f"{name}_first": axis.before,
        f"{name}_end": axis.before + axis.length,
    }  # fmt: skip
