"""Specs of backbones as plain data: written, read, named, edited.  No torch."""
