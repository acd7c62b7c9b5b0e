"""The ground under all packages: errors, fields of specs, command lines, tables, pages, progress.

Nothing here knows of attention, and nothing here imports torch.
"""
