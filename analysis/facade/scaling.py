"""How costs grow: formulas, and sweeps of size, width and depth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fractions import Fraction

from analysis.facade.arguments import MEMORY, Size, one_of, pair_of, shown, size_of, texts, whole
from transom.answer import Table
from transom.errors import SpecError
from transom.fields import read_number


def sweep(
    *backbones: str, mixers: Sequence[str] = (), over: str = "resolution",
    values: Sequence[int | float | str | Fraction] | None = None, img_size: Size | None = None,
    policy: str | Sequence[str] = "fixed", base_img: Size | None = None, times: float = 1.0,
    dim: int = 96, heads: int = 4,
) -> Table:  # fmt: skip
    """Cost against image size, window size, width or depth, as ``transom sweep``.

    Source: the formulas of the papers are in analysis/counting/paper_formulas.py, each with its
    paper.

    Args:
        backbones: variants or notations of ours.
        mixers: single mixers, such as "pale:size=7", on a grid of image / 4 tokens.
        over: resolution, size, width or depth.
        values: pixels, sizes, or factors such as 0.5; by default as the command has them.
        img_size: pixels, where the resolution is not swept.
        policy: fixed, or scale for groups in proportion to the image; or both.
        base_img: pixels of the image that the stated sizes are for.
        times: the factor of cost at which two series cross.
        dim: channels of a mixer.
        heads: heads of a mixer.

    Returns:
        A row per point; ``extra["exponents"]`` and ``extra["crossings"]`` hold what is fitted, and
        the notes say it in words.

    Raises:
        SpecError: something cannot be read or built.

    Example:
        >>> import transom
        >>> table = transom.sweep(mixers=["window", "full"], values=[56, 112])
        >>> table["tokens"], table["mixing"][:2]
        ([196, 784, 196, 784], [1843968, 7375872])
        >>> [round(fit["mixing"], 3) for fit in table.extra["exponents"]]
        [1.0, 2.0]
    """
    from analysis import sweep as command
    from analysis.counting.report import CONVENTION
    from analysis.counting.scaling import AXES

    policies = [policy] if isinstance(policy, str) else list(policy)
    try:
        factor = read_number(times)
    except ValueError:
        factor = 0.0
    if not 1 <= factor < 1e6:
        raise SpecError(f"times={shown(times)}: expected a factor from 1")
    for name in policies:
        one_of(name, ("fixed", "scale"), "policy")
    request = command.read_request(argparse.Namespace(
        backbone=texts(backbones, "backbones"), mixer=texts(mixers, "mixers"),
        over=one_of(over, AXES, "over"), values=None if values is None else list(map(str, values)),
        img_size=size_of(img_size), policy=policies, base_img=size_of(base_img, "base_img"),
        times=factor, dim=whole(dim, "dim"), heads=whole(heads, "heads"),
    ))  # fmt: skip
    answer = command.compute(request)
    return Table(
        tuple(answer.rows), notes=(*answer.sentences, CONVENTION),
        title="Cost of " + ", ".join(series.name for series in request.series),
        extra={
            "convention": CONVENTION, "exponents": answer.fits, "crossings": answer.crossings,
        },
    )  # fmt: skip


def complexity(
    *mixers: str, sizes: Sequence[Size] | None = None, every_option: bool = False, dim: int = 96,
    heads: int = 4, max_memory: int = MEMORY,
) -> Table:  # fmt: skip
    """The papers' complexity formulas beside what mixers execute, as ``transom complexity``.

    Source: analysis/counting/paper_formulas.py, where each formula has its paper.

    Args:
        mixers: with options, such as "pale:size=7"; by default every mixer.
        sizes: grids in tokens, 56 or (height, width); by default 56, and four grids where mixers
            are named or every_option is True.
        every_option: varies each option of every mixer.
        dim: channels.
        heads: heads.
        max_memory: bytes of a real forward beyond which it is refused.

    Returns:
        A row per mixer, grid and, where they differ, even and odd block.

    Raises:
        SpecError: a mixer or a size cannot be read, or a forward needs more memory.

    Example:
        >>> import transom
        >>> table = transom.complexity("full", sizes=[14])
        >>> table["formula"], table["exact"], table["agree"]
        ([14601216], [14601216], [True])
    """
    from analysis import complexity as command

    if mixers and every_option:
        raise SpecError("mixers and every_option: choose one of the two")
    rows = command.rows_of(
        texts(mixers, "mixers"), [pair_of(size, "sizes") for size in sizes or ()],
        every_option=every_option, dim=whole(dim, "dim"), heads=whole(heads, "heads"),
        max_memory=max_memory,
    )  # fmt: skip
    return Table(
        tuple(rows), notes=tuple(command.example()), title="Formulas and counts of mixers",
        look=command.LOOK,
    )  # fmt: skip
