"""Configuration of one run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from training.settings.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run of a comparison: a backbone, a seed and a learning rate.

    Args:
        backbone: our notation, ``timm:NAME``, ``torchvision:NAME`` or ``my_module:Class``.
        seed: of the start, the order, augmentation and stochastic depth.
        lr: in place of the recipe's; None: the recipe's.
        tuning: train on nine tenths of the training images and evaluate on the rest.
        data: name or path of the dataset.
        size: (height, width) of the images in pixels; None: the data's.
        recipe: the hyperparameters.
        budget: text of a `Budget`.
        batch: images of a step, on all devices together.
        dtype: fp32, or bf16 or fp16 for autocast.
        device: cpu, cuda or cuda:1.
        threads: of torch on a CPU.
        backend: of our mixers; auto would measure, and so differ from run to run.
        evaluations: equally spaced over the budget, the last at its end.
        weights: a file or a hub id that the run starts from; None: the drawn start.
        weights_digest: SHA-256 of that file.
        partial: none, replaced or fitting, as `backbones.weights.load` takes them.
        eval_sizes: (height, width) of images that the trained model is evaluated at besides.
        compile: train through torch.compile; its arithmetic differs in the last digits.
        workers: processes that make the batches; the results are the same for any number.
        keep_weights: write the trained weights beside the store.
    """

    backbone: str
    seed: int
    lr: float | None = None
    tuning: bool = False
    data: str = "order"
    size: tuple[int, int] | None = None
    recipe: Recipe
    budget: str
    batch: int
    dtype: str = "fp32"
    device: str = "cpu"
    threads: int = 1
    backend: str = "cpu"
    evaluations: int = 20
    weights: str | None = None
    weights_digest: str | None = None
    partial: str | None = None
    eval_sizes: tuple[tuple[int, int], ...] = ()
    compile: bool = False
    workers: int = 0
    keep_weights: bool = False

    @property
    def slot(self) -> str:
        """Name of the run inside its plan."""
        role = " tuning" if self.tuning else ""
        rate = "" if self.lr is None else f" lr {self.lr:g}"
        return f"{self.backbone} seed {self.seed}{rate}{role}"

    def to_dict(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        found["size"] = list(self.size) if self.size else None
        found["eval_sizes"] = [list(size) for size in self.eval_sizes]
        return found

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> RunConfig:
        size = content["size"]
        recipe = Recipe(**content["recipe"])
        sizes = tuple(tuple(each) for each in content.get("eval_sizes", ()))
        return cls(**{
            **content, "size": tuple(size) if size else None, "recipe": recipe,
            "eval_sizes": sizes,
        })  # fmt: skip
