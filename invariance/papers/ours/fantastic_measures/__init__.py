"""Which of the famous correlations survive the symmetry group."""
