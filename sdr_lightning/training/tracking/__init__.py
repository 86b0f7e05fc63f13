"""What a run records: metrics by epoch, the environment, and W&B runs."""
