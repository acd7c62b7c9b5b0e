"""Which tokens meet: axes cut into groups, and what follows from the cut."""
