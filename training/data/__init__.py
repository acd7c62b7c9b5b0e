"""Datasets of a training comparison, with random access, and the order in which a run sees them."""
