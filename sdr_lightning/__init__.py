"""Image-text retrieval when one modality is poor: structure-aware distillation from unimodal teachers.

The package is layered; a module imports only from its own layer or from layers to its left:

``types`` → ``functional`` → ``losses`` | ``encoders`` | ``metrics`` → ``features`` → ``data`` → ``training``
→ ``configure`` → ``reporting`` → ``study`` → ``cli``
"""

__version__ = "0.1.0"
