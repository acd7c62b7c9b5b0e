"""The GPU operator: attention inside groups without a copy."""
