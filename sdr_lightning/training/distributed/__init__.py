"""Several processes: collectives that keep the gradient, and the assignment of GPUs."""
