"""What the authors published, and the dense heads that their tables count."""
