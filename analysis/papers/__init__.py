"""Published numbers, and the dense heads that the papers' tables count."""
