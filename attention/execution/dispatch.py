"""The choice of the backend of a stage or a mixer: rules in order, and autotuning where they leave
several backends.

`execute(module, x)` chooses the backend and calls `module.run(x, backend)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from attention.execution import autotune, backends, chunks, torch_private
from attention.execution.backends import CPU, KERNEL, REFERENCE, Choice, Reference

OURS = "torch.nn.modules.", "attention.", "backbones."  # packages whose modules are known
TRIED_ON = ("cuda",)  # devices on which the kernel is tried without a request

_record: ContextVar[list[tuple[nn.Module, Choice]] | None] = ContextVar("record", default=None)


class Executable(nn.Module):
    """A module that several backends can execute.

    backend: auto, or the name of the backend that executes this module wherever it can.
    """

    backend: str = "auto"

    def _execute(self, x: Tensor, *tokens: Tensor) -> Any:
        """Map (b, h, w, c) -> (b, h, w, c); with tokens beside the map, a pair of both."""
        return execute(self, x, *tokens)

    forward: Callable[..., Any] = _execute  # a subclass may take fewer arguments

    def run(self, x: Tensor, backend: Reference) -> Tensor:
        """The computation of the module, executed by `backend`.

        A module that takes tokens beside its map has a third argument for them.
        """
        raise NotImplementedError

    def in_parts(self, x: Tensor) -> bool:
        """True if the cpu backend takes x in more than one part."""
        raise NotImplementedError

    def kernel_refusal(self, x: Tensor) -> str | None:
        """Why the GPU kernel cannot execute this module, None if it can; "" if the modules
        inside answer for themselves."""
        return ""

    def signature(self) -> str:
        """A text that equal configurations of the module share, whatever their parameters."""
        raise NotImplementedError


def execute(module: Executable, x: Tensor, *tokens: Tensor) -> Any:
    """The output of `module.run` by the backend that `choose` gives.

    tokens: (b, t, c), beside the map, if there are any.
    """
    choice = choose(module, x, *tokens)
    if torch.compiler.is_compiling():
        return module.run(x, choice.backend, *tokens)
    with backends.running(choice):
        return module.run(x, choice.backend, *tokens)


def choose(module: Executable, x: Tensor, *tokens: Tensor) -> Choice:
    """The surrounding choice, or the first rule that applies."""
    if (choice := backends.chosen()) is not None:
        return choice
    choice = _rules(module, x, tokens, backends.asked(module.backend))
    if not torch.compiler.is_compiling() and (record := _record.get()) is not None:
        record.append((module, choice))
    return choice


def _rules(module: Executable, x: Tensor, tokens: tuple[Tensor, ...], asked: str) -> Choice:
    if asked == "reference":
        return Choice(REFERENCE, "asked for")
    if asked == "kernel":
        return _kernel_asked(module, x, tokens)
    if torch.compiler.is_compiling():
        return Choice(REFERENCE, "a traced graph holds torch's operators")
    gpu = x.device.type != "cpu" and chunks.bound() is None
    if not gpu:  # the cheapest conditions first: most calls end here
        if torch.is_grad_enabled() and _with_gradients(module, x):
            return Choice(REFERENCE, "with gradients; set_grad_checkpointing saves memory")
        if module.training:
            return Choice(REFERENCE, "in training mode")
        if asked == "auto" and chunks.bound() is None and not module.in_parts(x):
            return Choice(REFERENCE, "small enough for one part")
    if reason := observer(module, x):
        return Choice(REFERENCE, reason)
    if gpu:
        return _on_gpu(module, x, tokens)
    if asked == "cpu":
        return Choice(CPU, "asked for")
    if chunks.bound() is not None:
        return Choice(CPU, "its memory is bounded")

    def run(leaf: Tensor, backend: Reference) -> Any:
        return module.run(leaf, backend, *tokens)

    return autotune.fastest(_key(module, x), (REFERENCE, CPU), run, x, ())


def _kernel_refusal(module: Executable, x: Tensor, tokens: tuple[Tensor, ...]) -> str | None:
    """As `Executable.kernel_refusal`, with tokens beside the map, of which no kernel knows."""
    refusal = module.kernel_refusal(x)
    return "there are tokens beside the map" if tokens and refusal is None else refusal


def _kernel_asked(module: Executable, x: Tensor, tokens: tuple[Tensor, ...]) -> Choice:
    """The choice where the kernel is asked for by name; raises ValueError if it cannot run."""
    if not torch.compiler.is_compiling() and (reason := observer(module, x)):
        return Choice(REFERENCE, reason)
    refusal = _kernel_refusal(module, x, tokens)
    if refusal:
        raise ValueError(f"fused attention: {refusal}; the reference backend runs anywhere")
    if refusal is None:
        return Choice(KERNEL, "asked for")
    return Choice(REFERENCE, "each mixer is asked", final=False)


def _on_gpu(module: Executable, x: Tensor, tokens: tuple[Tensor, ...]) -> Choice:
    """The choice on a GPU: the kernel only where torch itself may choose among several kernels,
    and where no fixed order of sums is asked for."""
    if x.device.type not in TRIED_ON:
        return Choice(REFERENCE, f"no other backend is tried on {x.device.type}")
    cuda = torch.backends.cuda
    if not (cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled()):
        return Choice(REFERENCE, "torch is held to its math kernel")
    if torch.are_deterministic_algorithms_enabled():
        return Choice(REFERENCE, "deterministic algorithms are asked for")
    if refusal := _kernel_refusal(module, x, tokens):
        return Choice(REFERENCE, refusal)
    if refusal == "":
        return Choice(REFERENCE, "each mixer chooses", final=False)
    parameters = list(module.parameters())
    return autotune.fastest(_key(module, x), (REFERENCE, KERNEL), module.run, x, parameters)


def _key(module: Executable, x: Tensor) -> str:
    """The kind of a call, which changes when the size of the input doubles."""
    kind = x.device.type
    cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    with_gradients = torch.is_grad_enabled() and _with_gradients(module, x)
    mode = f"train input={x.requires_grad}" if with_gradients else "infer"
    batch = "one" if x.shape[0] == 1 else "many"
    threads = f" threads={torch.get_num_threads()}" if kind == "cpu" else ""
    where = f"{kind} {mode} {cast} batch={batch} numbers<2^{x.numel().bit_length()}"
    return f"{module.signature()} {where}{threads}"


def _with_gradients(module: nn.Module, x: Tensor) -> bool:
    return x.requires_grad or any(p.requires_grad for p in module.parameters())


def observer(module: nn.Module, x: Tensor) -> str | None:
    """What could observe a difference between backends, None if nothing could.

    Observers are hooks, modes, tracers, tensor subclasses and modules of other packages.
    """
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
        if part is not module and torch_private.hooked(part):  # outside, no difference shows
            return f"{name} has a hook"
    return None


# -- what was chosen ---------------------------------------------------------------------------


@contextmanager
def recorded() -> Iterator[list[tuple[nn.Module, Choice]]]:
    """Context whose list receives every module that chooses, with its choice."""
    choices: list[tuple[nn.Module, Choice]] = []
    token = _record.set(choices)
    try:
        yield choices
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
    with recorded() as choices:
        model(x)
    return {names[part]: choice for part, choice in choices if part in names and choice.final}
