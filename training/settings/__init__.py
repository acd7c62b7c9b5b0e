"""What a run is to do, as plain data: recipe, budget, configuration, identity; no torch."""
