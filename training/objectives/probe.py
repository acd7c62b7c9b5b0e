"""A linear probe: how well one linear layer tells the classes from frozen features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DECAY = 1e-4  # of the squared weights, per image
STEPS = 200  # at most


def answers(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
    """Classes that multinomial logistic regression gives test images.

    The features are standardised by the training images.  The fit is LBFGS in float64 from zero,
    so it draws nothing and ends at the same weights for the same features.

    Args:
        train: features (n, c).
        labels: (n,) from 0 to classes - 1.
        test: features (m, c).
        classes: number of classes.

    Returns:
        (m,) int64.

    Example:
        >>> import torch
        >>> from training.objectives import probe
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> probe.answers(x, torch.tensor([0, 0, 1, 1]), x, classes=2).tolist()
        [0, 0, 1, 1]
    """
    with torch.enable_grad():
        train, test = train.double(), test.double()
        mean, deviation = train.mean(0), train.std(0, correction=0)
        scale = torch.where(deviation > 0, deviation, 1)  # a feature that is constant says nothing
        train, test = (train - mean) / scale, (test - mean) / scale
        weight = torch.zeros(classes, train.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
        search = torch.optim.LBFGS(
            [weight, bias], max_iter=STEPS, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            search.zero_grad()
            value = F.cross_entropy(train @ weight.T + bias, labels) + DECAY * weight.square().sum()
            value.backward()
            return value

        search.step(loss)
    return (test @ weight.T + bias).argmax(-1)
