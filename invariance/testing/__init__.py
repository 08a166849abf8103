"""Assertions that turn a claim of invariance into a regression test."""
