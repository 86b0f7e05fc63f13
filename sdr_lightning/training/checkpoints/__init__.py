"""Checkpoint selection, contents, resumption and import."""
