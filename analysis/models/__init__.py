"""Models by name, ours and others, and what they do: who reaches whom, masks, maps."""
