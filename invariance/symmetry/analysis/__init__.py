"""Private: from one watched forward pass to the symmetry groups of a module."""
