"""Costs: counters, cost rules of operators, the papers' formulas, growth and crossings."""
