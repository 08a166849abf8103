"""Measures of generalization, each with its declared behaviour under every group."""
