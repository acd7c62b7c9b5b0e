"""Drawings: regions, maps, curves."""
