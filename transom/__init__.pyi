# Types of the public names: the packages that hold them stand above this one, so that
# __init__.py imports them by name only.

from analysis.facade.checks import check
from analysis.facade.choices import fit, mixers, variants
from analysis.facade.costs import audit, compare, count, measure
from analysis.facade.scaling import complexity, sweep
from backbones.factory import create
from backbones.weights.loading import load as load_weights
from transom.answer import Table
from transom.errors import SpecError

__all__ = [
    "SpecError", "Table", "audit", "check", "compare", "complexity", "count", "create", "fit",
    "load_weights", "measure", "mixers", "sweep", "variants",
]  # fmt: skip
