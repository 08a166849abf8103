"""Choosing among networks that were trained alike."""
