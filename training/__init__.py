"""Training comparisons: which backbone learns better under one budget."""

from __future__ import annotations

from transom import packages

packages.require("transom", "attention", "backbones", "analysis")
