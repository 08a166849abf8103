"""Private: elements of symmetry groups, what they do to a module, and orbits."""
