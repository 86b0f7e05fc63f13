"""The command line: a module for each command, with its ``parser()``, and ``run(arguments)``, which returns the exit status.

Modules that import torch, which takes seconds, are imported in the functions that use them, after the options are parsed: help,
completion and mistakes in options are answered at once. ``fit``, ``validate`` and ``test`` are those of LightningCLI.
"""
