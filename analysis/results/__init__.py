"""Measurements: what is measured, where, how rows are stored, summed up and compared."""
