"""Benchmarks: side by side in one run, medians and ratios. They never fail on time."""
