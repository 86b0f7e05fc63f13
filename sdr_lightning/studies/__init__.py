"""Studies: a grid of methods, corruptions, ratios and seeds from one YAML file; every cell is run once."""
