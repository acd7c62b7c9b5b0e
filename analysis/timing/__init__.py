"""Seconds and bytes of one call, measured in a fresh process."""
