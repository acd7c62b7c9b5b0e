"""The token mixers, one file a family."""
