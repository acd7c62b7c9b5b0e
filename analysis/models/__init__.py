"""Models by name, ours and foreign, and their influence, receptive fields, masks and maps."""
