"""Hooks on parts: whoever listens, of whatever kind, is seen by a stage and by a mixer."""

import pytest
import torch
from tiny import create, images
from torch import nn

import attention
from attention.execution.dispatch import observer

REGISTER = {
    "forward": nn.Module.register_forward_hook,
    "forward pre": nn.Module.register_forward_pre_hook,
    "full backward": nn.Module.register_full_backward_hook,
    "backward pre": nn.Module.register_full_backward_pre_hook,
}


def stage():
    return create("swin").stages[0], images(3, 8, 16, 16)


def mixer():
    return attention.create("window:size=4", dim=8, heads=2).eval(), images(3, 9, 9, 8)


MADE = [
    (stage, "blocks.1"), (stage, "blocks.0.mixer"), (stage, "blocks.1.mixer.qkv"),
    (stage, "blocks.0.norm1"), (stage, "blocks.1.mlp.fc1"),
    (mixer, "qkv"), (mixer, "branch"), (mixer, "branch.attention"), (mixer, "branch.bias"),
    (mixer, "proj"),
]  # fmt: skip


def silent(*args):
    return None


@torch.no_grad()
@pytest.mark.parametrize("kind", REGISTER)
@pytest.mark.parametrize(("make", "part"), MADE)
def test_a_hook_on_a_part_sends_the_whole_to_the_reference(make, part, kind):
    module, x = make()
    with attention.backend("cpu"):
        assert observer(module, x) is None
        assert attention.backend_of(module, x)[""].name == "cpu"
        handle = REGISTER[kind](module.get_submodule(part), silent)
        assert observer(module, x) == f"{part} has a hook"
        choice = attention.backend_of(module, x)[""]
        assert (choice.name, choice.reason) == ("reference", f"{part} has a hook")
        handle.remove()
        assert attention.backend_of(module, x)[""].name == "cpu"


@torch.no_grad()
@pytest.mark.parametrize("make", [stage, mixer])
@pytest.mark.parametrize("kind", ["forward", "forward pre"])
def test_a_hook_on_the_module_itself_sees_it_whole(make, kind):
    module, x = make()
    seen = []
    REGISTER[kind](module, lambda module, args, *out: seen.append(args[0].shape))
    with attention.backend("cpu"):
        assert attention.backend_of(module, x)[""].name == "cpu"
    assert seen == [x.shape]


@torch.no_grad()
def test_a_hook_on_a_part_is_called_once_with_the_whole_batch(monkeypatch):
    """In parts it would be called for each of them, and would see a piece."""
    monkeypatch.setattr("attention.execution.chunks.IMAGES", 1)
    module, x = stage()
    shapes = []
    module.blocks[1].register_forward_pre_hook(lambda block, args: shapes.append(args[0].shape))
    with attention.backend("cpu"):
        module(x)
    assert shapes == [(3, 16, 16, 8)]


@pytest.mark.parametrize("kind", ["full backward", "backward pre"])
def test_a_backward_hook_on_a_part_is_called_with_the_gradient_of_the_whole_batch(kind):
    module, x = stage()
    shapes = []
    REGISTER[kind](
        module.blocks[0].mlp, lambda block, *grads: shapes.append(grads[-1][0].shape)
    )
    with attention.backend("cpu"):
        module(x.requires_grad_()).sum().backward()
    assert shapes == [(3, 16, 16, 8)]
