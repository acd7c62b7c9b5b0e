"""Names of the tensors in other repositories, a file of rules a family."""
