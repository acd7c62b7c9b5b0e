"""Base of all packages: errors, fields of specs, command lines, tables, pages, progress.

No module here knows of attention or imports torch.
"""
