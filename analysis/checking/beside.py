"""A mixer that takes tokens beside its map, as a function of the map alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from attention.configs.beside import MessengerConfig
from backbones.parts.tokens import make_tokens
from backbones.specs.spec import BackboneSpec
from backbones.specs.stage import StageSpec

TOKENS = 2  # of a mixer without windows: a class token and a register


def takes_tokens(module: nn.Module) -> bool:
    return bool(getattr(getattr(module, "config", None), "takes_tokens", False))


class Beside(nn.Module):
    """A mixer with learned tokens beside its map: a messenger for each window, or class tokens.

    It maps (b, h, w, c) to (b, h, w, c), and has no config: it is no registered mixer.
    """

    def __init__(self, mixer: Any) -> None:
        super().__init__()
        tokens = 0 if isinstance(mixer.config, MessengerConfig) else TOKENS
        self.stage = StageSpec(
            dim=mixer.dim, depth=1, heads=mixer.heads, mixers=(mixer.config,), tokens=tokens
        )
        self.mixer = mixer
        self.beside: Any = make_tokens(BackboneSpec(stages=(self.stage,)), 0)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map (b, h, w, c) and the tokens (b, t, c) of a map."""
        return self.mixer(x, self.beside(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.both(x)[0]

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        """That of the map, and the query, which decides between the tokens and a single key."""
        seen: Tensor = self.mixer.region(h, w, query).clone()
        seen[query] = True
        return seen

    def cost(self, h: int, w: int) -> Any:
        return self.mixer.cost(h, w, self.stage.tokens_beside(h, w))


def outputs(module: nn.Module, x: Tensor) -> list[Tensor]:
    """More outputs of a module, which parameters may be there for: of a mixer with tokens beside
    its map, and the last map of a backbone whose head reads the tokens beside it."""
    if takes_tokens(module):
        module = Beside(module)
    if isinstance(module, Beside):
        return [*module.both(x)]
    if getattr(getattr(module, "spec", None), "pool", "mean") == "token":
        return [module.features(x)[-1]]  # type: ignore[operator]
    return []
