"""Rank correlations with intervals, and tests, on SciPy."""
