"""Private: activation patterns and the regions that they mark."""
