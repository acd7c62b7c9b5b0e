"""Launches of the fused kernels: tiles, programs, and the integers of a partition."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attention.geometry.axis import Axis
from attention.geometry.groups import Groups

TILE_TOKENS = 64  # tokens that one tile holds, with their scores and the scores' gradient
# Triton's precision of float32 products, by torch's.  tf32x3 is float32 to its last bits.
PRECISION = {"highest": "tf32x3", "high": "tf32x3", "medium": "tf32"}


class Plan(NamedTuple):
    """Launch numbers of a kernel."""

    block: int  # tokens of a tile, a power of two
    warps: int
    stages: int  # loads in flight
    programs: int  # per multiprocessor, where a program takes several groups
    registers: int | None = None  # of a thread, at most: more programs at a time


def plan(length: int, *, d: int, wide: bool, backward: bool) -> Plan:
    """Launch numbers for groups of `length` tokens and heads of `d` channels; wide: float32."""
    block = max(16, 1 << (min(length, TILE_TOKENS) - 1).bit_length())
    if wide:  # a tile is twice as large, and the products take three operands for one
        return Plan(block if length <= TILE_TOKENS else 32, 4, 1, 4)
    if length <= TILE_TOKENS and not backward and d <= 32:
        return Plan(block, 4, 2, 4, registers=128)
    return Plan(block, 4, 2, 4)


def groups_of(axes: Sequence[int]) -> Groups:
    """The partition that twelve integers describe."""
    return Groups(Axis._make(axes[:6]), Axis._make(axes[6:]))


class Call:
    """One call of the operator: the arguments that all kernels share, and their launches."""

    def __init__(
        self, parts: Sequence[Tensor], bias: Tensor | None, logit_scale: Tensor | None,
        axes: Sequence[int], heads: int, scale: float, mask_value: float | None, mask_padding: bool,
    ) -> None:  # fmt: skip
        q, k, v = _same_layout(*(parts[0].chunk(3, -1) if len(parts) == 1 else parts))
        groups = groups_of(axes)
        self.q, self.heads, self.length = q, heads, math.prod(groups.extent)
        self.items = q.shape[0] * groups.n if q.numel() else 0
        d = q.shape[-1] // heads
        self.tensors = {
            "q": q, "k": k, "v": v,
            "bias": None if bias is None else bias.contiguous(),
            "logit_scale": None if logit_scale is None else logit_scale.contiguous(),
        }  # fmt: skip
        separated = any(axis.shift for axis in groups)
        self.common = {
            "heads": heads, "L": self.length, "items": self.items, "groups": groups.n,
            "scale": float(scale), "penalty": float(mask_value or 0.0),
            **_strides("in", q), "width": groups.cols.extent, "across": groups.cols.n,
            **_along("row", groups.rows), **_along("col", groups.cols),
            "D": d, "DP": max(16, 1 << (d - 1).bit_length()),
            "BIAS": bias is not None, "COSINE": logit_scale is not None,
            "SHIFT": 0 if not separated else 1 if mask_value is None else 2,
            "MASK_PADDING": mask_padding and groups.padded,
            "FAR": max(q.stride(0), q.shape[1] * q.stride(1)) >= 2**31,
            "PRECISION": PRECISION[torch.get_float32_matmul_precision()],
        }  # fmt: skip

    def forward(self, out: Tensor, lse: Tensor) -> None:
        plan = self._plan(backward=False)
        outputs = _strides("out", out)
        if self.length <= TILE_TOKENS:
            from attention.kernels.one_tile import forward_one_tile

            steps = self._steps(plan, self.heads)
            self._launch(forward_one_tile, steps, plan, out=out, steps=steps, **outputs)
        else:
            from attention.kernels.many_tiles import forward_tiled

            count = self.items * self._tiles(plan)
            self._launch(forward_tiled, count, plan, out=out, lse=lse, **outputs)

    def backward(self, gout: Tensor, out: Tensor, lse: Tensor, grads: list[Tensor]) -> None:
        """Fills `grads`: those of the parts, then of the bias and the logit scale if given."""
        plan = self._plan(backward=True)
        bias, logit_scale = self.tensors["bias"], self.tensors["logit_scale"]
        tables = list(grads[len(grads) - (bias is not None) - (logit_scale is not None) :])
        gbias = tables.pop(0) if bias is not None else None
        gscale = tables.pop(0) if logit_scale is not None else None
        packed = grads[0].shape[-1] == 3 * gout.shape[-1]
        gq, gk, gv = grads[0].chunk(3, -1) if packed else grads[:3]
        layout = {**_strides("out", gout), **_strides("grad", gq)}
        if self.length <= TILE_TOKENS:
            from attention.kernels.one_tile import backward_one_tile

            steps = self._steps(plan, self.heads)
            bias_sums, scale_sums = self._bias_sums(gbias, steps), self._scale_sums(gscale, steps)
            self._launch(
                backward_one_tile, steps, plan, gout=gout, gq=gq, gk=gk, gv=gv, gbias=bias_sums,
                gscale=scale_sums, steps=steps, **layout,
            )  # fmt: skip
        else:
            bias_sums, scale_sums = self._backward_tiled(
                plan, gout, out, lse, (gq, gk, gv), gbias, gscale, layout
            )
        for grad, sums in ((gbias, bias_sums), (gscale, scale_sums)):
            if grad is not None and sums is not None:
                grad.copy_(sums.sum(0))

    def _backward_tiled(
        self, plan: Plan, gout: Tensor, out: Tensor, lse: Tensor,
        grads: tuple[Tensor, Tensor, Tensor], gbias: Tensor | None, gscale: Tensor | None,
        layout: dict[str, int],
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        from attention.kernels import many_tiles as kernels

        tiles = self._tiles(plan)
        count, delta = self.items * tiles, torch.empty_like(lse)
        shared = {"lse": lse, "delta": delta, "gout": gout}
        scale_sums = self._scale_sums(gscale, count)
        self._launch(
            kernels.backward_queries, count, plan, **shared, out=out, gq=grads[0],
            gscale=scale_sums, **layout,
        )  # fmt: skip
        self._launch(
            kernels.backward_keys, count, plan, **shared, gk=grads[1], gv=grads[2], **layout
        )
        if gbias is None:
            return None, scale_sums
        steps = self._steps(plan, self.heads * tiles**2)
        bias_sums = self._bias_sums(gbias, steps)
        self._launch(
            kernels.backward_bias, steps * tiles**2, plan, **shared, gbias=bias_sums,
            steps=steps, **_strides("out", gout),
        )  # fmt: skip
        return bias_sums, scale_sums

    def _launch(self, kernel, count: int, plan: Plan, **arguments) -> None:
        """Launches `count` programs a head."""
        cuda = self.q.device.type == "cuda"
        with torch.cuda.device(self.q.device) if cuda else contextlib.nullcontext():
            kernel[(count * self.heads,)](
                **self.tensors, **self.common, **arguments, BLOCK=plan.block,
                num_warps=plan.warps, num_stages=plan.stages,
                **({"maxnreg": plan.registers} if plan.registers else {}),
            )  # fmt: skip

    def _plan(self, *, backward: bool) -> Plan:
        d, wide = self.q.shape[-1] // self.heads, self.q.dtype == torch.float32
        return plan(self.length, d=d, wide=wide, backward=backward)

    def _tiles(self, plan: Plan) -> int:
        return -(-self.length // plan.block)

    def _steps(self, plan: Plan, each: int) -> int:
        """Steps between the groups of one program, if a step takes `each` programs."""
        cores = 2  # under the interpreter, so that a program takes several groups there too
        if self.q.device.type == "cuda":
            cores = torch.cuda.get_device_properties(self.q.device).multi_processor_count
        return min(self.items, max(1, cores * plan.programs // each))

    def _bias_sums(self, like: Tensor | None, steps: int) -> Tensor | None:
        shape = (steps, self.heads, self.length, self.length)
        return None if like is None else like.new_empty(shape, dtype=torch.float32)

    def _scale_sums(self, like: Tensor | None, count: int) -> Tensor | None:
        return None if like is None else like.new_empty((count, self.heads), dtype=torch.float32)


def _same_layout(*parts: Tensor) -> list[Tensor]:
    """q, k and v with equal strides and contiguous channels, copied if they have others."""
    first = parts[0].stride()
    if first[-1] == 1 and all(t.stride() == first for t in parts):
        return list(parts)
    return [t.contiguous() for t in parts]


def _strides(name: str, x: Tensor) -> dict[str, int]:
    return {f"{name}_{axis}": step for axis, step in zip("bhw", x.stride()[:3], strict=True)}


def _along(name: str, axis: Axis) -> dict[str, int]:
    """The kernels' integers of one axis."""
    return {
        f"{name}_run": axis.interval * axis.extent, f"{name}_token": axis.interval,
        f"{name}_padded": axis.padded, f"{name}_shift": axis.shift,
        f"{name}_first": axis.before, f"{name}_end": axis.before + axis.length,
    }  # fmt: skip
