"""Private: exact curvature without probes, by one sweep over rows."""
