"""The names that users call say what they take, give and raise, with an example that runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re

import pytest
from strategies import BUILT_IN

from attention.configs import catalogue, registry

PUBLIC = {  # by the module that a user imports
    "attention": None,  # all of __all__
    "attention.fast": None,
    "attention.fused": None,
    "backbones": None,
    "backbones.weights": None,
    "backbones.rates": ("groups",),
    "analysis": None,
    "training.judge": None,
    "transom": None,
    "transom.errors": ("SpecError",),
    "transom.progress": ("Bar",),
    "transom.table": ("render",),
}
NAMES = [
    (module, name)
    for module, names in PUBLIC.items()
    for name in names or importlib.import_module(module).__all__
]
WITHOUT_EXAMPLE = {"MixerConfig", "TokenMixer"}  # which are subclassed, as README shows
WITHOUT_SOURCE = {  # what comes from no paper; every other name gives its source
    "an error": ("SpecError", "WeightsError"),
    "a base class; each mixer's config has a source": ("MixerConfig", "TokenMixer"),
    "the registry and the notation, ours": (
        "build", "create", "from_dict", "make_config", "names", "option", "parse", "register",
    ),
    "plain data that BackboneSpec holds": ("StageSpec",),
    "the rule of verdicts, which is ours; its tests give their sources": (
        "Comparison", "Interval", "Runs", "compare", "judge", "pairing",
    ),
    "how something is computed, not what": ("backend", "backend_of", "bounded", "plain"),
    "reading, matching and writing of files": (
        "Loaded", "convert", "export", "from_pretrained", "load", "load_weights", "plan", "read",
        "read_weights", "save", "save_pretrained",
    ),
    "a table or a progress bar": ("Table", "Bar", "render"),
}  # fmt: skip
EXEMPT = {name for names in WITHOUT_SOURCE.values() for name in names}
# a paper, a file, or a paper that is older than arXiv
REFERENCE = r"arXiv \d{4}\.\d{5}|[\w./]+ of [\w-]+/[\w-]+|\w+(/\w+)+\.py|[A-Z]\w+ \d{4}, [A-Z]"


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
    if name not in EXEMPT and not sources(text):
        wrong.append("no source")
    return wrong


def sources(text: str) -> list[str]:
    """The papers, by arXiv number, and files that the paragraph "Source:" of a docstring gives."""
    paragraph = re.search(r"^ *Sources?: (.*?)(\n\s*\n|\Z)", text, re.DOTALL | re.MULTILINE)
    found = re.finditer(REFERENCE, " ".join(paragraph[1].split()) if paragraph else "")
    return [match[0] for match in found]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_public_name_says_what_it_is(module, name):
    assert faults(getattr(importlib.import_module(module), name), name) == []


def test_each_name_is_told_its_reason_once():
    reasons = [name for names in WITHOUT_SOURCE.values() for name in names]
    assert len(reasons) == len(EXEMPT) and {name for _, name in NAMES} >= EXEMPT


@pytest.mark.parametrize(("mixer", "config", "source"), catalogue.BUILT_IN)
def test_a_mixers_options_give_its_source(mixer, config, source):
    """The paper of `python -m attention`, or the authors' file."""
    papers = re.findall(r"arXiv [\d.]+|\w+\.py", source)
    said = " ".join(sources(config.__doc__ or ""))
    assert papers and all(paper in said for paper in papers)


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_its_example_runs(module, name, monkeypatch):
    for mixer in BUILT_IN:
        registry.class_of(registry.config_class(mixer))  # a class registers once a process
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

    assert faults(bare, "bare") == ["no summary sentence", "no Args", "no example", "no source"]
    assert faults(half, "half") == [
        "nothing of size", "no Returns", "no Raises", "no example", "no source",
    ]  # fmt: skip
    assert "no source" not in faults(half, "Bar")  # the name of one that needs none


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Merges.\n\nSource: Swin (arXiv 2103.14030),\nsection 3.1.", ["arXiv 2103.14030"]),
        ("Merges.\n\n    Sources: models/a.py of o/R;\n    timm/b/c.py.\n\n    Args:\n",
         ["models/a.py of o/R", "timm/b/c.py"]),
        ("Merges (Swin, arXiv 2103.14030).", []),
        ("Merges.\n\nSource: the paper.\n\nArgs:\n    x: as in arXiv 2103.14030.", []),
        ("Merges.\n\nSource: Swin, section 3.1.", []),
    ],
)  # fmt: skip
def test_a_source_is_a_paper_or_a_file(text, found):
    assert sources(text) == found
