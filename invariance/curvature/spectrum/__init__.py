"""Private: eigenvalues, density and norms, from products alone."""
