"""The token mixers, one file per family."""
