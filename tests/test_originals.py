"""What other libraries are told of a spec: the window before it shrinks, and each first one."""

import sys
from types import SimpleNamespace

import pytest

import backbones
from backbones.files import hub
from backbones.weights import reference_models


def test_the_window_is_the_one_before_any_shrinks():
    windows_16_16_16_8 = backbones.parse("swinv2_t_w16")
    assert reference_models._nominal_window(windows_16_16_16_8) == (16, 16)
    assert reference_models._nominal_window(backbones.parse("swin_b_384")) == (12, 12)


def test_every_stage_has_its_own_pretrained_window():
    assert reference_models._pretrained(backbones.parse("swinv2_b_w12to24")) == [12, 12, 12, 6]
    assert reference_models._pretrained(backbones.parse("swinv2_t")) == [0, 0, 0, 0]


@pytest.mark.parametrize(("name", "revision"), [
    ("hf:owner/name", None), ("hf:owner/name@v1.0", "v1.0"), ("hf:o/n@refs/pr/2", "refs/pr/2"),
])  # fmt: skip
def test_a_hub_file_is_of_the_revision_that_is_named(name, revision, monkeypatch):
    asked = []

    def download(repo, file, *, revision):
        asked.append((repo, file, revision))
        return "here"

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download)
    )
    assert str(hub.fetch(name)) == "here"
    assert asked == [(name[3:].partition("@")[0], "model.safetensors", revision)]
