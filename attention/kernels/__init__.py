"""The GPU's own operator: grouped attention without a copy."""
