"""The names that users call say what they take, give and raise, with an example that runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re

import pytest
from strategies import BUILT_IN

from attention import registry

PUBLIC = {  # by the module that a user imports
    "attention": None,  # all of __all__
    "attention.fast": None,
    "attention.fused": None,
    "backbones": None,
    "backbones.weights": None,
    "backbones.rates": ("groups",),
    "analysis": None,
    "transom.errors": ("SpecError",),
    "transom.progress": ("bar",),
    "transom.table": ("render",),
}
NAMES = [
    (module, name)
    for module, names in PUBLIC.items()
    for name in names or importlib.import_module(module).__all__
]
WITHOUT_EXAMPLE = {"MixerConfig", "TokenMixer"}  # which are subclassed, as README shows


def faults(thing: object, name: str) -> list[str]:
    """What a public name does not say."""
    text = inspect.getdoc(thing) or ""
    wrong = []
    first = text.split("\n\n")[0]
    if not re.fullmatch(r"[A-Z`\"(].*[.:]", " ".join(first.split())) or first.endswith("?"):
        wrong.append("no summary sentence")
    if inspect.isfunction(thing):
        parameters = inspect.signature(thing).parameters
        if parameters and "Args:" not in text:
            wrong.append("no Args")
        wrong += [
            f"nothing of {parameter}" for parameter in parameters
            if "Args:" in text and not re.search(rf"\b{parameter}\b", text)
        ]  # fmt: skip
        returns = inspect.signature(thing).return_annotation
        if returns not in (None, "None", inspect.Signature.empty) and "Returns:" not in text:
            wrong.append("no Returns")
        if "raise " in inspect.getsource(thing) and "Raises" not in text:
            wrong.append("no Raises")
    if name not in WITHOUT_EXAMPLE and ">>>" not in text:
        wrong.append("no example")
    return wrong


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_public_name_says_what_it_is(module, name):
    assert faults(getattr(importlib.import_module(module), name), name) == []


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_its_example_runs(module, name, monkeypatch):
    for mixer in BUILT_IN:
        importlib.import_module(f"attention.mixers.{mixer}")  # a class registers once a process
    for table in ("_configs", "_classes", "_sources"):  # an example may register a mixer
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    thing = getattr(importlib.import_module(module), name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    globals_ = {name: thing}
    for test in doctest.DocTestFinder(recurse=False).find(thing, name, globs=globals_):
        said: list[str] = []
        runner.run(test, out=said.append)
        assert not runner.summarize(verbose=False).failed, "".join(said)


@pytest.mark.parametrize("module", ["attention", "backbones", "backbones.weights", "analysis"])
def test_what_a_package_has_not(module):
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nothing'"):
        importlib.import_module(module).nothing  # noqa: B018


def test_what_is_not_said_is_seen():
    """Negative controls."""

    def bare(x, size): ...

    def half(x, size) -> int:
        """Counts x.

        Args:
            x: (b, c).
        """
        raise ValueError

    assert faults(bare, "bare") == ["no summary sentence", "no Args", "no example"]
    assert faults(half, "half") == ["nothing of size", "no Returns", "no Raises", "no example"]
