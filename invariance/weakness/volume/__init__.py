"""Private: the volume of the version space."""
