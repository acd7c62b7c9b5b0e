"""Every private name of torch that this package reads, each with a default where torch lacks it.

A missing name never raises; the defaults are cautious, so that the reference backend computes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)


def _ask(path: str, default: Any) -> Any:
    """The result of the function `torch.<path>`, or `default` if torch has none."""
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name, None)
    return found() if isinstance(found, Callable) else default  # type: ignore[arg-type]


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
    """True if the module itself has a hook that is called around its forward or backward."""
    return any(getattr(module, name, True) for name in _HOOKS)


def all_hooked() -> bool:
    """True if a hook is registered for every module."""
    return any(getattr(nn.modules.module, name, True) for name in _GLOBAL_HOOKS)


def tensor_hooked(t: Tensor) -> bool:
    """True if a hook is called with the gradient of `t`."""
    return bool(getattr(t, "_backward_hooks", True))


_CHECKS = ("_check_set_item_target", "_check_append_target")


@contextmanager
def fillable(kind: type) -> Iterator[None]:
    """Context in which torch's restricted unpickler fills instances of `kind` like dicts and lists.

    Where torch lacks the names, nothing changes, and torch refuses files with such instances.
    """
    try:
        module = importlib.import_module("torch._weights_only_unpickler")
        unpickler = module.Unpickler
        checks = {name: getattr(unpickler, name) for name in _CHECKS}
    except (ImportError, AttributeError):
        yield
        return

    def set_item(self: Any, opcode: str) -> None:
        if not isinstance(self.stack[-1], kind):
            checks[_CHECKS[0]](self, opcode)

    def append(self: Any, target: Any) -> None:
        if not isinstance(target, kind):
            checks[_CHECKS[1]](self, target)

    methods = dict(zip(_CHECKS, (set_item, append), strict=True))
    module.Unpickler = type("Unpickler", (unpickler,), methods)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.Unpickler = unpickler  # type: ignore[attr-defined]
