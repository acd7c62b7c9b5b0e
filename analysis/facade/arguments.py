"""Values of the functions, read and refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transom.errors import SpecError, nearest, one_line
from transom.fields import read_count, read_size

if TYPE_CHECKING:
    from torch import nn

    from analysis.models.lookup import ModelFactory

Size = int | str | tuple[int, int]  # 224, "512x1024" or (512, 1024), height first
MEMORY = 4 * 2**30  # bytes that a real forward may need


def factory_of(what: str | nn.Module) -> ModelFactory:
    """The factory of a name, or of a model that is there already."""
    from torch import nn

    from analysis.models import lookup
    from backbones.model.backbone import HierarchicalBackbone

    if isinstance(what, str):
        return lookup.find(what)
    if not isinstance(what, nn.Module):
        raise SpecError(f"{shown(what)}: expected the name of a model, or a torch module")
    make: Callable[[tuple[int, int]], nn.Module] = lambda size: what  # noqa: E731
    if isinstance(what, HierarchicalBackbone):
        return lookup.ModelFactory(what.spec.name, make, what.spec.img_size, foreign=False)
    config = getattr(what, "pretrained_cfg", None)  # timm's
    stated = config.get("input_size") if isinstance(config, Mapping) else None
    name = f"{type(what).__module__}:{type(what).__qualname__}"
    return lookup.ModelFactory(name, make, tuple(stated[1:]) if stated else (224, 224))


def jobs_of(
    what: Sequence[str | nn.Module], img_size: Size | list[Size] | None
) -> list[tuple[ModelFactory, tuple[int, int]]]:
    """Every model at every size, in the order of the command."""
    if not what:
        raise SpecError("name a backbone, such as 'swin_t'")
    factories = [factory_of(one) for one in what]
    several = img_size if isinstance(img_size, list) else [img_size]
    sizes = [size_of(size) for size in several]
    return [(factory, size or factory.img_size) for factory in factories for size in sizes]


def refuse_models(what: Sequence[Any]) -> None:
    """Refuses models: processes of their own build what they time, by its name."""
    texts(what, "what is measured")


def texts(words: Sequence[Any], name: str) -> list[str]:
    if isinstance(words, str):
        words = [words]
    for word in words:
        if not isinstance(word, str):
            raise SpecError(f"{name}: {shown(word)} is no name")
    return list(words)


def one_of(word: Any, allowed: Sequence[str], name: str) -> str:
    if word not in allowed:
        raise SpecError(f"{name}={shown(word)}{nearest(str(word), allowed)}")
    return str(word)


def size_of(value: Any, name: str = "img_size") -> tuple[int, int] | None:
    return None if value is None else pair_of(value, name)


def pair_of(value: Any, name: str) -> tuple[int, int]:
    try:
        return read_size(value)
    except ValueError as error:
        raise SpecError(f"{name}={shown(value)}: expected {error}") from None


def whole(value: Any, name: str) -> int:
    try:
        return read_count(value)
    except ValueError as error:
        raise SpecError(f"{name}={shown(value)}: expected {error}") from None


def shown(value: Any) -> str:
    return one_line(repr(value))
