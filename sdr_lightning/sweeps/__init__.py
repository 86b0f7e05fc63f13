"""Sweeps in W&B's format: the same file for its agents and for this machine."""
