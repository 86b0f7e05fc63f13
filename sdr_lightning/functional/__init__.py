"""Pure functions of losses and metrics: no logging, no collectives; random functions take a seed or a generator."""
