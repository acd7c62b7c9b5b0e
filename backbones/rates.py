"""Learning rates and weight decay of every parameter, for backbones of ours inside any module.

Two rules exempt parameters from weight decay.

  authors  the dense recipes of Swin and CSWin (custom_keys with decay_mult 0): relative position
           tables, absolute positions and whatever has "norm" in its name.  The batch norms of
           their heads are called bn there, so batch norms outside a backbone are decayed under
           any name, and so are biases
  timm     what has one axis or is a bias, everywhere

With both, a backbone's `is_position` parameters are not decayed: log-CPB and logit scales stand
beside the tables, as in the authors' classification code.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from backbones.model.decay import LAST, is_position, matcher
from backbones.parts.stem import Stem
from transom.errors import SpecError, nearest

RULES = ("authors", "timm")


def groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float | None = None,
    undecayed: str = "authors",
) -> list[dict[str, Any]]:
    """Groups the parameters of a model with backbones of ours inside by learning rate and decay.

    A backbone is found by its stem, also where timm's features_only wrappers have taken it apart.

    Sources: configs/swin of SwinTransformer/Swin-Transformer-Semantic-Segmentation and
    segmentation/configs of microsoft/CSWin-Transformer (authors); timm/optim/_param_groups.py (timm
    and layer_decay).

    Args:
        model: any module; frozen parameters are left out, every other is in one group.
        lr: learning rate of everything outside the backbones.
        weight_decay: weight decay of the parameters that the rule decays; of all others it is 0.
        layer_decay: a factor in (0, 1].  The last block and the final norm have lr times the
            factor, every block before it once more, the stem most often; heads and norms per
            level have lr.  None: lr everywhere.
        undecayed: the rule, "authors" or "timm", of this module's docstring.

    Returns:
        Dicts with params, lr and weight_decay, for any optimizer of torch or timm.

    Raises:
        SpecError: the model has no backbone of ours inside, the rule is unknown, or layer_decay is
            out of range.

    Example:
        >>> import backbones, torch
        >>> from backbones import rates
        >>> body = backbones.create("swin_t/stages=2", num_classes=0)
        >>> detector = torch.nn.ModuleDict({"body": body, "head": torch.nn.Conv2d(192, 5, 1)})
        >>> groups = rates.groups(detector, lr=1e-4, weight_decay=0.05)
        >>> [(group["weight_decay"], len(group["params"])) for group in groups]
        [(0.05, 37), (0.0, 26)]
        >>> optimizer = torch.optim.AdamW(groups)
    """
    if undecayed not in RULES:
        raise SpecError(f"undecayed={undecayed!r} is no rule{nearest(str(undecayed), RULES)}")
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise SpecError(f"layer_decay={layer_decay}: expected a factor above 0, at most 1, or None")
    layer_by_name = _backbone_parameters(model)
    exponents = _decay_exponents(layer_by_name)
    grouped: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        in_backbone = name in layer_by_name
        if undecayed == "timm":
            exempt = parameter.ndim <= 1 or name.endswith(".bias")
        else:
            exempt = "norm" in name and (in_backbone or not isinstance(owner, _BatchNorm))
        decay = 0.0 if exempt or (in_backbone and is_position(name)) else weight_decay
        rate = lr if layer_decay is None else lr * layer_decay ** exponents.get(name, 0)
        grouped.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": params, "lr": rate, "weight_decay": decay}
        for (rate, decay), params in grouped.items()
    ]


def _backbone_parameters(model: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(prefix of its backbone, layer inside it) of every parameter of a backbone, by name."""
    stems = [name for name, part in model.named_modules() if isinstance(part, Stem)]
    roots = [name.removesuffix("stem") for name in stems if re.search(r"(^|\.)stem$", name)]
    if not roots:
        raise SpecError(
            f"rates.groups: a {type(model).__name__} has no backbone of ours inside; give the "
            "optimizer its parameters()"
        )
    layers = {}
    for root in roots:
        for name, _ in model.named_parameters():
            if name.startswith(root) and (layer := _layer_of(name[len(root) :])):
                layers[name] = root, layer
    return layers


def _layer_of(name: str) -> tuple[int, ...]:
    """Layer of a parameter, which sorts as timm sorts `matcher`'s layers; () outside them."""
    for number, patterns in enumerate(matcher().values()):
        for pattern, end in [(patterns, None)] if isinstance(patterns, str) else patterns:
            if found := re.match(pattern, name):
                return (number, *map(int, found.groups()), *(end or ()))
    return ()


def _decay_exponents(layer_by_name: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """Exponent of layer_decay by name: 1 for a backbone's last block, the largest for its stem."""
    layers: dict[str, list[tuple[int, ...]]] = {}
    for root, layer in sorted(set(layer_by_name.values())):
        if layer[-1:] != LAST:
            layers.setdefault(root, []).append(layer)
    return {
        name: len(layers[root]) - bisect_right(layers[root], layer) + 1
        for name, (root, layer) in layer_by_name.items()
    }
