"""Small networks, built deterministically from a seed."""
