"""The report of one model: its counts by three counters, and whether they are equal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transom import table
from transom.answer import Table, Tabular
from transom.errors import SpecError, nearest, one_line

CONVENTION = (
    "1 MAC = one multiply-add of a convolution, linear layer or matrix product; FLOPs = 2 x MACs; "
    "one image, one forward; norms separately, in elements; softmax, activations and sums are free"
)
BREAKDOWNS = ("stage", "block", "operator", "module")


@dataclass(repr=False)
class Report(Tabular):
    """Costs of one model for one image: parameters, and MACs by up to three counters.

    `print` shows the stages as a table, a notebook as HTML.

    Source: activations are those of Radosavovic et al. 2020 (arXiv 2003.13678), who count
    convolutions alone.

    Args:
        backbone: name of the model.
        img_size: (height, width) of the image in pixels; of a mixer's map, in tokens.
        params: number of parameters, shared ones once.
        macs: multiply-adds of one forward; torch's count where the counters differ.
        macs_formula: sum of the costs that the modules state; None for a foreign model or a mixer
            without `cost`.
        macs_fvcore: fvcore's count of a traced forward; None where it was skipped.
        macs_torch: torch's count on the meta device.
        norm_elements: elements that norms read, which are no multiply-adds.
        activations: elements that convolutions, linear layers and matrix products write.
        padding_macs: the part of `macs_formula` that is spent on pads.
        uncounted: operators that no counter knows; they make `agree` false.
        agree: whether two or more counts were made and all are equal, module by module.
        note: reasons for missing or unequal counts; "" if there are none.
        stages: a dict per stage with the columns of `COLUMNS`, then the head and the total.
        blocks: a dict per block.
        operators: a dict per operator.
        modules: a dict per module, the model first, by torch's count.
        macs_backward: multiply-adds of the backward pass of all trainable parameters, by torch's
            count of its operators; None where it was not asked for.
        macs_backward_foretold: the same from the forward alone: each of its products once for
            every operand that needs a gradient.

    Example:
        >>> import analysis
        >>> from torch import nn
        >>> report = analysis.count(nn.Conv2d(3, 8, kernel_size=3), (8, 9), trace=False)
        >>> report.params, report.macs, report.flops
        (224, 9072, 18144)
        >>> report.trust.partition(";")[0]
        'one count, no second count to confirm it: torch 9,072 MACs'
    """

    backbone: str
    img_size: tuple[int, int]
    params: int
    macs: int
    macs_formula: int | None
    macs_fvcore: int | None
    macs_torch: int
    norm_elements: int
    activations: int
    padding_macs: int | None
    uncounted: tuple[str, ...]
    agree: bool
    note: str
    stages: list[dict[str, Any]]
    blocks: list[dict[str, Any]] = field(default_factory=list)
    operators: list[dict[str, Any]] = field(default_factory=list)
    modules: list[dict[str, Any]] = field(default_factory=list)
    macs_backward: int | None = None
    macs_backward_foretold: int | None = None

    @property
    def flops(self) -> int:
        """2 x MACs."""
        return 2 * self.macs

    @property
    def trust(self) -> str:
        """One line: the counts that were made, whether they are equal, and what was not counted."""
        by_counter = {
            "formula": self.macs_formula, "fvcore": self.macs_fvcore, "torch": self.macs_torch,
        }  # fmt: skip
        counts = {name: value for name, value in by_counter.items() if value is not None}
        word = {1: "one count", 2: "two counts", 3: "three counts"}[len(counts)]
        if len(counts) == 1:
            line = f"{word}, no second count to confirm it: {' '.join(counts)} {self.macs:,} MACs"
        elif len(set(counts.values())) == 1:
            line = f"{word} agree: {' = '.join(counts)} = {self.macs:,} MACs"
        else:
            parts = [
                f"{name} {value:,} ({(value - self.macs_torch) / max(self.macs_torch, 1):+.3%})"
                for name, value in counts.items()
            ]
            line = "counts differ: " + ", ".join(parts)
        line += f"; uncounted operators: {', '.join(self.uncounted) or 'none'}"
        return line + (f"; {self.note}" if self.note else "")

    @property
    def backward(self) -> str:
        """One line on the backward pass: its MACs, those of a step, and whether two counts agree;
        "" where it was not counted."""
        counted, foretold = self.macs_backward, self.macs_backward_foretold
        if counted is None or foretold is None:
            return ""
        line = f"backward: {counted:,} MACs ({counted / max(self.macs, 1):.4g} x the forward), "
        line += f"a step {self.macs + counted:,} MACs; "
        if counted == foretold:
            return line + "two counts agree: its operators = the forward's operands with gradients"
        return line + f"counts differ: the forward's operands with gradients give {foretold:,}"

    def to_dict(self, by: str = "stage") -> dict[str, Any]:
        """The report as a JSON row.

        Args:
            by: "stage", or "block", "operator" or "module" to add that breakdown.

        Returns:
            The fields by name, and `flops`; tuples as lists.

        Example:
            >>> import analysis
            >>> from torch import nn
            >>> report = analysis.count(nn.Conv2d(3, 8, kernel_size=1), 8, trace=False)
            >>> report.to_dict("operator")["operators"][0]
            {'operator': 'convolution', 'macs': 1536, 'share_%': 100.0}
        """
        data = {
            "backbone": self.backbone, "img_size": list(self.img_size), "params": self.params,
            "macs": self.macs, "flops": self.flops, "macs_formula": self.macs_formula,
            "macs_fvcore": self.macs_fvcore, "macs_torch": self.macs_torch,
            "norm_elements": self.norm_elements, "activations": self.activations,
            "padding_macs": self.padding_macs,
            "uncounted": list(self.uncounted), "agree": self.agree, "note": self.note,
            "stages": self.stages,
        }  # fmt: skip
        if self.macs_backward is not None:
            data["macs_backward"] = self.macs_backward
            data["macs_backward_foretold"] = self.macs_backward_foretold
        return data if by == "stage" else {**data, by + "s": getattr(self, by + "s")}

    def table(self, by: str = "stage") -> Table:
        """The breakdown as a table.

        Args:
            by: "stage", "block" or "operator".

        Returns:
            A row per part; the counts of the model stand below.

        Raises:
            SpecError: there is no such breakdown.

        Example:
            >>> import analysis
            >>> from torch import nn
            >>> report = analysis.count(nn.Conv2d(3, 8, kernel_size=1), 8, trace=False)
            >>> report.table("operator")["macs"][0]
            1536
        """
        if by not in BREAKDOWNS:
            raise SpecError(f"by={one_line(str(by))!r}{nearest(str(by), BREAKDOWNS)}")
        told = f"{self._summary()}, {self.flops:,} FLOPs", self.trust, self.backward, CONVENTION
        notes = tuple(filter(None, told))
        return Table(tuple(getattr(self, by + "s")), notes=notes, title=self.backbone)

    def to_json(self) -> str:
        """The report as ``python -m analysis.flops --format json`` writes it."""
        return table.as_json({"convention": CONVENTION, "rows": [self.to_dict()]})

    def _summary(self) -> str:
        h, w = self.img_size
        return f"{self.backbone} at {h}x{w}: {self.params:,} parameters, {self.macs:,} MACs"

    def __repr__(self) -> str:
        verdict = "counts agree" if self.agree else "not confirmed"
        return f"Report({table.plain(self._summary())}, {verdict})"
