"""What stands after the pooled features: the classifier, and a layer before it."""

from __future__ import annotations

from torch import Tensor, nn

from attention.softmax.branch import projection as linear
from backbones.specs.spec import BackboneSpec


class TanhLayer(nn.Module):
    """A linear layer and tanh, (b, c) to (b, c) (MaxViT's code)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc = linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).tanh()  # (b, c)

    def cost(self) -> int:
        """Multiply-adds for one image."""
        return self.fc.weight.numel()


def make_pre_head(spec: BackboneSpec, dim: int) -> TanhLayer | nn.Identity:
    """The layer before the classifier, whose output are the features of a model without one."""
    return TanhLayer(dim) if spec.head == "tanh" else nn.Identity()


def make_head(spec: BackboneSpec, dim: int) -> nn.Module:
    """The classifier; without classes, the pooled features are returned as they are."""
    if not spec.num_classes:
        return nn.Identity()
    return linear(dim, spec.num_classes, bias=spec.head_bias)
