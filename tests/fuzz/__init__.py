"""Fuzzing of every decoder of outside bytes: `make fuzz`, or `python -m tests.fuzz --runs N`."""
