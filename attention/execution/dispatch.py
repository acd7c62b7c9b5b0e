"""Which backend computes a stage or a mixer, by rules in order; where rules leave several, the
fastest, by measurement.

`execute(module, x)` is how a module with several backends computes.  It gives x to
`module.run(x, backend)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from attention.execution import autotune, backends, chunks, torch_private
from attention.execution.backends import CPU, KERNEL, REFERENCE, Choice, Reference

OURS = "torch.nn.modules.", "attention.", "backbones."  # whose modules do as they are named
TRIED_ON = ("cuda",)  # devices whose mixers try the kernel without being asked

_record: ContextVar[list[tuple[nn.Module, Choice]] | None] = ContextVar("record", default=None)


class Executable(nn.Module):
    """A module that several backends can compute.

    backend: auto, or the name of the one that computes this module wherever it can.
    """

    backend: str = "auto"

    def forward(self, x: Tensor) -> Tensor:
        return execute(self, x)

    def run(self, x: Tensor, backend: Reference) -> Tensor:
        """The body, executed by `backend`."""
        raise NotImplementedError

    def is_cut(self, x: Tensor) -> bool:
        """True if the cpu backend would take x in more than one part."""
        raise NotImplementedError

    def kernel_refusal(self, x: Tensor) -> str | None:
        """Why the GPU kernel cannot compute this module, None if it can; "" where the modules
        inside are asked one by one."""
        return ""

    def signature(self) -> str:
        """The module's kind, apart from the numbers in it."""
        raise NotImplementedError


def execute(module: Executable, x: Tensor) -> Tensor:
    choice = choose(module, x)
    if torch.compiler.is_compiling():
        return module.run(x, choice.backend)
    with backends.running(choice):
        return module.run(x, choice.backend)


def choose(module: Executable, x: Tensor) -> Choice:
    """The rules, in order."""
    if (choice := backends.chosen()) is not None:
        return choice
    choice = _rules(module, x, backends.asked(module.backend))
    if not torch.compiler.is_compiling() and (record := _record.get()) is not None:
        record.append((module, choice))
    return choice


def _rules(module: Executable, x: Tensor, asked: str) -> Choice:
    if asked == "reference":
        return Choice(REFERENCE, "asked for")
    if asked == "kernel":
        return _kernel_asked(module, x)
    if torch.compiler.is_compiling():
        return Choice(REFERENCE, "a traced graph holds torch's operators")
    gpu = x.device.type != "cpu" and chunks.bound() is None
    if not gpu:  # the cheapest questions first: most calls end here
        if torch.is_grad_enabled() and _learns(module, x):
            return Choice(REFERENCE, "with gradients; set_grad_checkpointing saves memory")
        if module.training:
            return Choice(REFERENCE, "in training mode")
        if asked == "auto" and chunks.bound() is None and not module.is_cut(x):
            return Choice(REFERENCE, "small enough for one part")
    if reason := observer(module, x):
        return Choice(REFERENCE, reason)
    if gpu:
        return _on_gpu(module, x)
    if asked == "cpu":
        return Choice(CPU, "asked for")
    if chunks.bound() is not None:
        return Choice(CPU, "its memory is bounded")
    return autotune.fastest(_key(module, x), (REFERENCE, CPU), module.run, x, ())


def _kernel_asked(module: Executable, x: Tensor) -> Choice:
    """Raises ValueError, in one line, where the kernel was asked for by name and cannot run."""
    if not torch.compiler.is_compiling() and (reason := observer(module, x)):
        return Choice(REFERENCE, reason)
    refusal = module.kernel_refusal(x)
    if refusal:
        raise ValueError(f"fused attention: {refusal}; the reference backend runs anywhere")
    if refusal is None:
        return Choice(KERNEL, "asked for")
    return Choice(REFERENCE, "each mixer is asked", final=False)


def _on_gpu(module: Executable, x: Tensor) -> Choice:
    """The kernel may stand in for torch's where torch may choose among kernels itself, and is not
    held to one order of sums."""
    if x.device.type not in TRIED_ON:
        return Choice(REFERENCE, f"no other backend is tried on {x.device.type}")
    cuda = torch.backends.cuda
    if not (cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled()):
        return Choice(REFERENCE, "torch is held to its math kernel")
    if torch.are_deterministic_algorithms_enabled():
        return Choice(REFERENCE, "deterministic algorithms are asked for")
    if refusal := module.kernel_refusal(x):
        return Choice(REFERENCE, refusal)
    if refusal == "":
        return Choice(REFERENCE, "each mixer chooses", final=False)
    parameters = list(module.parameters())
    return autotune.fastest(_key(module, x), (REFERENCE, KERNEL), module.run, x, parameters)


def _key(module: Executable, x: Tensor) -> str:
    """The kind of a call, which is another one where the numbers of the input double."""
    kind = x.device.type
    cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    learns = torch.is_grad_enabled() and _learns(module, x)
    mode = f"train input={x.requires_grad}" if learns else "infer"
    batch = "one" if x.shape[0] == 1 else "many"
    threads = f" threads={torch.get_num_threads()}" if kind == "cpu" else ""
    where = f"{kind} {mode} {cast} batch={batch} numbers<2^{x.numel().bit_length()}"
    return f"{module.signature()} {where}{threads}"


def _learns(module: nn.Module, x: Tensor) -> bool:
    return x.requires_grad or any(p.requires_grad for p in module.parameters())


def observer(module: nn.Module, x: Tensor) -> str | None:
    """What could observe a difference between backends, or None: hooks, modes, tracers, tensor
    subclasses, modules of another kind."""
    if torch.jit.is_tracing():
        return "its operators are observed"
    if type(x) is not Tensor or not x.numel() or x.device.type == "meta":
        return "no plain tensor of numbers is given"
    if torch_private.function_modes() or torch_private.dispatch_modes():
        return "its operators are observed"
    if torch_private.transforms():
        return "inside a transform of torch.func"
    if torch_private.all_hooked():
        return "every module has a hook"
    for name, part in module.named_modules():
        if not type(part).__module__.startswith(OURS):
            return f"{name or 'it'} is a {type(part).__name__}, of another package"
        if part is not module and torch_private.hooked(part):  # its own sees it whole
            return f"{name} has a hook"
    return None


# -- what was chosen ---------------------------------------------------------------------------


@contextmanager
def recorded() -> Iterator[list[tuple[nn.Module, Choice]]]:
    """Inside, the list grows by every module that chooses, and its choice."""
    found: list[tuple[nn.Module, Choice]] = []
    token = _record.set(found)
    try:
        yield found
    finally:
        _record.reset(token)


def backend_of(model: nn.Module, x: Tensor) -> dict[str, Choice]:
    """The backend that computes each stage or mixer of a model on one input.

    Args:
        model: a backbone or mixer, or a model that holds one; it is called once.
        x: the model's input: (b, c, h, w) for a backbone, (b, h, w, c) for a mixer.

    Returns:
        A choice with `name` and `reason` for each stage or mixer, by the module's name in the
        model; the model itself is called "".

    Example:
        >>> import attention, torch
        >>> mixer = attention.create("window:size=7", dim=32, heads=2).eval()
        >>> attention.backend_of(mixer, torch.zeros(1, 9, 9, 32, requires_grad=True))[""].name
        'reference'
    """
    names = {part: name for name, part in model.named_modules()}
    with recorded() as found:
        model(x)
    return {names[part]: choice for part, choice in found if part in names and choice.final}
