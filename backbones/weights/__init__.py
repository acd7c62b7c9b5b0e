"""Weights into a backbone and out of it: whose they are, what they are of, where they go.

    weights.load("swin_t", "swin.pth").model
    weights.load("swin_t/3=pale", "swin.pth", partial="replaced").model
"""

from typing import TYPE_CHECKING

from transom.packages import lazy

if TYPE_CHECKING:
    from backbones.files.reading import read
    from backbones.files.storage import WeightsError
    from backbones.weights.loading import Loaded, load
    from backbones.weights.match import convert, plan
    from backbones.weights.resize import Adapt
    from backbones.weights.saving import export, from_pretrained, save, save_pretrained
    from backbones.weights.source import read_weights

__all__ = [
    "Adapt", "Loaded", "WeightsError", "convert", "export", "from_pretrained", "load", "plan",
    "read", "read_weights", "save", "save_pretrained",
]  # fmt: skip
__getattr__ = lazy(
    __name__,
    {
        "Adapt": "backbones.weights.resize", "WeightsError": "backbones.files.storage",
        "read": "backbones.files.reading", "read_weights": "backbones.weights.source",
        **dict.fromkeys(("Loaded", "load"), "backbones.weights.loading"),
        **dict.fromkeys(("convert", "plan"), "backbones.weights.match"),
        **dict.fromkeys(
            ("export", "from_pretrained", "save", "save_pretrained"), "backbones.weights.saving"
        ),
    },
)  # fmt: skip
