"""Every private name of torch that this package reads, each with what holds where torch lacks it.

A missing name never raises: what cannot be asked is answered on the side of caution, so that the
reference backend computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)


def _ask(path: str, otherwise: Any) -> Any:
    """The answer of the function `torch.<path>`, or `otherwise` where there is none."""
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name, None)
    return found() if isinstance(found, Callable) else otherwise  # type: ignore[arg-type]


def function_modes() -> bool:
    """True if a TorchFunctionMode is active, or it cannot be known."""
    return bool(_ask("overrides._get_current_function_mode_stack", True))


def dispatch_modes() -> bool:
    """True if a TorchDispatchMode is active (counters, fake tensors), or it cannot be known."""
    return bool(_ask("utils._python_dispatch._get_current_dispatch_mode", True))


def transforms() -> bool:
    """True inside torch.func's transforms (vmap, grad), or where it cannot be known."""
    return _ask("_C._functorch.peek_interpreter_stack", True) is not None


def hooked(module: nn.Module) -> bool:
    """True if this very module has a hook that is called around its forward or backward."""
    return any(getattr(module, name, True) for name in _HOOKS)


def all_hooked() -> bool:
    """True if a hook is registered for every module."""
    return any(getattr(nn.modules.module, name, True) for name in _GLOBAL_HOOKS)


def tensor_hooked(t: Tensor) -> bool:
    """True if a hook is called with the gradient of `t`."""
    return bool(getattr(t, "_backward_hooks", True))
