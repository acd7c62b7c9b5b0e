"""The rows of a count: by stage, child, block and operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from torch import nn

from analysis.counting import counters
from analysis.counting.counters import Tally
from backbones.model.backbone import HierarchicalBackbone
from backbones.parts.macs import Macs

COLUMNS = ("projection", "mixing", "position", "mlp", "resample", "head")


def _tabulate(parts: Iterable[Macs], **labels: Any) -> dict[str, Any]:
    """One row of the breakdown: its labels, the sum, and every column of `COLUMNS`."""
    parts = list(parts)
    columns = {c: sum(part.macs for part in parts if part.column == c) for c in COLUMNS}
    padding = sum(part.padding for part in parts)
    macs = sum(columns.values())
    share = round(100 * padding / macs, 3) if macs else 0.0
    return {**labels, "macs": macs, **columns, "padding_macs": padding, "padding_%": share}


def by_stage(
    model: HierarchicalBackbone, parts: list[Macs] | None, tally: Tally, img_size: tuple[int, int]
) -> list[dict[str, Any]]:
    """A row per stage (the stem is in the first), one for the final norm and head, the total."""
    params, rows = counters.parameters(model), []
    grids = model.spec.grids(img_size)
    for i, (stage, (h, w)) in enumerate(zip(model.spec.stages, grids, strict=True)):
        modules = [f"stages.{i}", f"out_norms.{i}", *(["stem"] if i == 0 else [])]
        rows.append(_row(str(i + 1), modules, parts, tally, params))
        rows[-1] |= {
            "grid": f"{h}x{w}", "dim": stage.dim, "depth": stage.depth, "heads": stage.heads,
            "mixers": stage.pattern(),
        }  # fmt: skip
    rows.append(_row("head", ["norm", "pre_head", "head"], parts, tally, params))
    rows.append(_row("total", [""], parts, tally, params))
    return rows


def _row(
    label: str, modules: list[str], parts: list[Macs] | None, tally: Tally, params: dict[str, int]
) -> dict[str, Any]:
    labels = {
        "stage": label, "grid": "", "dim": None, "depth": None, "heads": None, "mixers": "",
        "params": sum(params[m] for m in modules),
    }  # fmt: skip
    if parts is None:
        counts = {"macs": sum(tally.macs[m] for m in modules)}
    else:
        counts = _tabulate(part for part in parts if _inside(part.module, modules))
    return {**labels, **counts, "norm_elements": sum(tally.norms[m] for m in modules)}


def _inside(module: str, modules: list[str]) -> bool:
    return any(not m or module == m or module.startswith(m + ".") for m in modules)


def by_child(model: nn.Module, tally: Tally) -> list[dict[str, Any]]:
    """A row per child of a foreign model, the elements of its lists one by one."""
    names: list[str] = []
    for name, child in model.named_children():
        inner = [f"{name}.{key}" for key, _ in child.named_children()]
        names += inner if isinstance(child, (nn.Sequential, nn.ModuleList)) and inner else [name]
    params = counters.parameters(model)
    rows = [_row(name, [name], None, tally, params) for name in names]
    return [*rows, _row("total", [""], None, tally, params)]


def by_block(model: nn.Module, parts: list[Macs] | None, tally: Tally) -> list[dict[str, Any]]:
    """A row per block, stem, downsampling and head of ours."""
    if parts is None:
        return [
            {"block": name, "macs": tally.macs[name], "norm_elements": tally.norms[name]}
            for name, module in model.named_modules()
            if name and tally.macs[name] and name.count(".") <= 3
        ]
    grouped: defaultdict[str, list[Macs]] = defaultdict(list)
    for part in parts:
        words = part.module.split(".")
        grouped[".".join(words[:4] if "blocks" in words else words[:3])].append(part)
    rows = []
    for block, block_parts in grouped.items():
        norms = tally.norms[block] + (tally.norms["norm"] if block == "head" else 0)
        rows.append({**_tabulate(block_parts, block=block), "norm_elements": norms})
    return rows


def by_module(model: nn.Module, tally: Tally) -> list[dict[str, Any]]:
    """A row per module that ran or holds parameters, in the order of the model, itself first."""
    params = counters.parameters(model)
    return [
        {
            "module": name, "class": type(module).__name__,
            "output": "x".join(map(str, tally.shapes.get(name, ()))), "params": params[name],
            # a list of modules does not run itself
            "macs": tally.macs[name] if name in tally.shapes else None,
            "norm_elements": tally.norms[name],
        }
        for name, module in model.named_modules()
        if (name in tally.shapes or params[name]) and not isinstance(module, nn.Identity)
    ]  # fmt: skip


def by_operator(tally: Tally) -> list[dict[str, Any]]:
    total = max(tally.macs[""], 1)
    rows = [
        {"operator": operator, "macs": macs, "share_%": round(100 * macs / total, 3)}
        for operator, macs in tally.operators.most_common()
    ]
    norms = {"operator": "norm (elements, no MACs)", "macs": None, "norm_elements": tally.norms[""]}
    return [*rows, norms]


def differing_module(
    model: HierarchicalBackbone, parts: list[Macs] | None, tallies: list[Tally]
) -> str:
    """The first module whose counts differ although the totals agree."""
    for name in ("stem", *(f"stages.{i}" for i in range(len(model.stages))), "pre_head", "head"):
        counts = {tally.macs[name] for tally in tallies}
        if parts is not None:
            counts.add(sum(part.macs for part in parts if _inside(part.module, [name])))
        if len(counts) > 1:
            return name
    return ""
