"""Which function-preserving maps a module admits, read off its own graph."""
