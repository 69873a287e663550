"""Benchmarks: each prints a table of ratios against a peer that was measured in the same run."""
