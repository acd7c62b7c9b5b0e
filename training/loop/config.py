"""Configuration of one run, its identity, and what may not change between two parts of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from training.loop.recipe import Recipe
from transom import packages
from transom.errors import SpecError, printable

MEASURED = ("attention", "backbones")  # packages whose code decides the numbers of a run


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


def identity(config: RunConfig, data_digest: str) -> dict[str, Any]:
    """Everything that decides a run's numbers, flat, by the name an error gives it."""
    from analysis.results.environment import version

    content = config.to_dict()
    for option in ("weights", "workers"):  # where weights lie, and who makes the batches
        content.pop(option)
    for option in ("eval_sizes", "compile"):
        content[option] = content[option] or None  # as in rows that are older than the option
    recipe = {f"recipe.{key}": value for key, value in content.pop("recipe").items()}
    versions = {name: version(name) for name in ("torch", "timm")}
    return {
        **content, **recipe, "content of the data": data_digest, **versions,
        "code": packages.digest(MEASURED),
    }  # fmt: skip


def refuse_changes(slot: str, stored: dict[str, Any], wanted: dict[str, Any], place: Any) -> None:
    """Raises SpecError, with the name of the first field that differs, if a run has changed."""
    for key in sorted({*stored, *wanted}):
        if stored.get(key) != wanted.get(key):
            raise SpecError(
                f"{printable(place)}: {slot}: {key} was {stored.get(key)!r} and is "
                f"{wanted.get(key)!r}; give another --store, or what it was before"
            )
