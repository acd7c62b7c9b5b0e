"""Resizes relative bias tables by timm's function."""

from __future__ import annotations

from torch import Tensor

from backbones.files.storage import WeightsError

Size = tuple[int, int]


def timm_table(tensor: Tensor, old: Size, new: Size) -> Tensor:
    """Resizes a relative bias table as timm does (after BEiT); `resize.table` has the shapes.

    Raises WeightsError where timm is too old for windows that are not square.
    """
    from timm.layers import resize_rel_pos_bias_table

    shape = ((2 * new[0] - 1) * (2 * new[1] - 1), tensor.shape[1])
    if old[0] == old[1]:  # all that timm before 1.0.31 takes
        return resize_rel_pos_bias_table(tensor, new, shape)
    try:
        return resize_rel_pos_bias_table(tensor, new, shape, old)
    except TypeError:
        raise WeightsError(
            "resize=timm: a window that is not square needs timm >= 1.0.31; use resize=bicubic"
        ) from None
