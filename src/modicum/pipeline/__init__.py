"""Recipe, run and checkpoint: from a model and an ordered list of methods to a compressed directory."""
