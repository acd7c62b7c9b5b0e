"""Properties that must hold of any mixer or network, and the subjects that are checked."""
