"""Private: balanced representatives of orbits, by convex minimisation."""
