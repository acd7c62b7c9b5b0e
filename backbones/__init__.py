"""Hierarchical backbones: one spec, one model class, named variants as rows.

    model = backbones.create("swin_t/3=pale:size=7/4=full")    # images -> logits
    model.features(images)                                     # one NCHW map per stage

Specs and names are plain Python; torch is imported when a model is built.
"""

from typing import TYPE_CHECKING

from transom.packages import lazy as _lazy
from transom.packages import require as _require

_require("attention")

from backbones.specs.construct import from_dict  # noqa: E402
from backbones.specs.notation import parse  # noqa: E402
from backbones.specs.spec import BackboneSpec  # noqa: E402
from backbones.specs.stage import StageSpec  # noqa: E402
from transom.errors import SpecError  # noqa: E402

if TYPE_CHECKING:
    from attention.execution.dispatch import backend_of
    from backbones.factory import create
    from backbones.model.backbone import HierarchicalBackbone

__all__ = [
    "BackboneSpec", "HierarchicalBackbone", "SpecError", "StageSpec", "backend_of", "create",
    "from_dict", "parse",
]  # fmt: skip

__getattr__ = _lazy(
    __name__,
    {
        "HierarchicalBackbone": "backbones.model.backbone", "create": "backbones.factory",
        "backend_of": "attention.execution.dispatch",
    },
)  # fmt: skip
