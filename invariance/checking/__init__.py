"""Measures x transforms: before, after, what theory says, and the verdict."""
