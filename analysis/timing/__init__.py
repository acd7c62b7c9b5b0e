"""Seconds and bytes of one call, taken in a process of its own."""
