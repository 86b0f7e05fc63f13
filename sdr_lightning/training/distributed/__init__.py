"""Distributed training: differentiable collectives, and the assignment of GPUs to jobs."""
