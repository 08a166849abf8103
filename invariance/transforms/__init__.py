"""Function-preserving maps of modules."""
