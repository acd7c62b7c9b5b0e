"""The published backbones and ours, a file a family: plain rows that `specs.variants` reads."""
