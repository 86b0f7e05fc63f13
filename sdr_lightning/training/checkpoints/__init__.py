"""Checkpoints: which are kept, how training continues from them, and which weights they hold."""
