"""Tight decision boundaries on circles."""
