"""Budget of a run in one of four units, and what was spent of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from transom.errors import SpecError, one_line

UNITS = ("macs", "steps", "epochs", "seconds")
_SUFFIXES = {
    "macs": ("macs", 1.0), "steps": ("steps", 1.0), "epochs": ("epochs", 1.0),
    "h": ("seconds", 3600.0), "min": ("seconds", 60.0), "s": ("seconds", 1.0),
}  # fmt: skip
BACKWARD = 3  # a training step costs three forwards: one forward, two products per backward


@dataclass(frozen=True)
class Budget:
    """Amount that a run may spend in one unit.

    Args:
        amount: multiply-adds of training, optimizer steps, passes over the training images, or
            seconds of training without evaluation.
        unit: one of `UNITS`.

    Example:
        >>> from training.settings.budget import Budget
        >>> Budget.parse("2e9macs").steps(macs=1_000_000, images=1000, batch=10)
        67
    """

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads ``2e15macs``, ``500steps``, ``10epochs``, ``0.5h``, ``30min`` or ``90s``.

        Raises:
            SpecError: the text is no amount with a unit.
        """
        match = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?)([a-z]+)", text.strip().lower())
        try:
            unit, scale = _SUFFIXES[match[2]] if match else ("", 0.0)
            amount = float(match[1]) * scale if match else 0.0
        except (KeyError, ValueError):
            unit, amount = "", 0.0
        whole = unit != "steps" or amount == int(amount)
        if not (unit and 0 < amount < 1e30 and whole):
            raise SpecError(
                f"--budget {one_line(text)}: expected an amount such as 2e15macs, 500steps, "
                "10epochs, 0.5h or 90s"
            )
        return cls(amount, unit)

    def __str__(self) -> str:
        if self.unit == "seconds":
            return f"{self.amount:g}s"
        number = f"{self.amount:g}"
        return f"{number if float(number) == self.amount else repr(self.amount)}{self.unit}"

    def steps(self, *, macs: int, images: int, batch: int) -> int | None:
        """Steps that come nearest to the budget, one at least; None for a budget of time.

        Args:
            macs: multiply-adds of one forward of one image.
            images: number of training images.
            batch: images of a step, on all devices together.
        """
        if self.unit == "seconds":
            return None
        step = {"macs": macs * BACKWARD * batch, "epochs": batch / images, "steps": 1}[self.unit]
        return max(1, round(self.amount / step))
