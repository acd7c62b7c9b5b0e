"""Costs: three counters, the operators they know, the papers' formulas, and how cost grows."""
