"""Tracking of runs: ``metrics.csv``, the environment, and W&B."""
