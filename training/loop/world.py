"""The processes of one run: alone, or as torchrun started them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from transom.errors import SpecError


@dataclass(frozen=True)
class World:
    """Place of this process among those of the run, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes the checkpoints and the rows."""
        return self.rank == 0

    def share(self, batch: int) -> tuple[int, int]:
        """(first, count) of this process's images in a global batch.

        Raises:
            SpecError: the batch cannot be divided equally.
        """
        if batch % self.size:
            raise SpecError(
                f"--batch {batch}: {self.size} processes cannot share it equally; give a multiple "
                f"of {self.size}"
            )
        count = batch // self.size
        return self.rank * count, count

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor


def join(device: str) -> World:
    """Joins the processes that torchrun (or accelerate launch) started, or stands alone.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        SpecError: the device is missing.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SpecError(f"--device {device}: torch sees no GPU; use --device cpu")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(f"cuda:{local}" if size > 1 and device == "cuda" else device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    return World(rank, size, place)


def leave() -> None:
    """Ends the group of processes, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
