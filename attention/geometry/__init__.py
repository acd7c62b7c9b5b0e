"""Which tokens attend to each other: the partition of a map, and all that follows from it."""
