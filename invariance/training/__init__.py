"""Training one network, or many at once."""
