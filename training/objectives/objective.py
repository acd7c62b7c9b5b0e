"""What a run learns, and how a trained model answers.

An objective is three things: the module that is trained, the loss of a part of the batch, and
which test images the trained module gets right.  A run is judged by the last, whatever it learnt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from training.data.images import Images

# what a function of outputs and labels gives for the images of these indices, in their order
Read = Callable[[Images, Tensor, Callable[[Tensor, Tensor], Tensor]], Tensor]


class Objective(Protocol):
    """What a run learns.

    classes: of the backbone's head; 0: it has none.
    probed: classes are told by a probe, which an untrained backbone can have, too.
    """

    classes: int
    probed: bool

    def check(self, backbone: nn.Module, name: str) -> None:
        """Raises SpecError for a backbone that cannot learn it."""

    def wrap(self, backbone: nn.Module) -> nn.Module:
        """The module that is trained."""

    def backbone_of(self, model: nn.Module) -> nn.Module:
        """The backbone of what `wrap` gave; its outputs are what `correct` reads."""

    def loss(
        self, trained: nn.Module, images: Tensor, targets: Tensor, step: int, first: int
    ) -> Tensor:
        """Sum of the losses of images (b, c, h, w) whose first is at a place of the batch."""

    def correct(self, read: Read) -> Tensor:
        """(test images,): 1 where the answer is right, else 0; `read` gives outputs."""
