"""The gate against itself on random cases: ``python -m invariance.testing.soak``."""
