"""Names, options and notation of mixers, in plain Python: no torch is imported here."""
