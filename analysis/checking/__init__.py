"""Properties that must hold of any mixer or network, and what they are judged on."""
