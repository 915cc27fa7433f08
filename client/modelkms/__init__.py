"""Encrypted machine-learning models: publish, open, run."""

__version__ = "0.1.0"
