"""Identity of a run: what may not change between two parts of it."""

from __future__ import annotations

from typing import Any

from training.settings.config import RunConfig
from transom import packages
from transom.errors import SpecError, printable

MEASURED = ("attention", "backbones")  # packages whose code decides the numbers of a run


def identity(config: RunConfig, data_digest: str) -> dict[str, Any]:
    """Everything that decides a run's numbers, flat, by the name an error gives it."""
    from analysis.results.environment import version

    content = config.to_dict()
    # where weights lie and are kept, and who makes the batches
    for option in ("weights", "workers", "keep_weights"):
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
