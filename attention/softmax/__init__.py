"""Shared by all mixers of softmax attention: projections, branches, positions, the formula."""
