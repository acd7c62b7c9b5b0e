"""Measurements: configuration, environment, sessions, storage, summaries, comparisons."""
