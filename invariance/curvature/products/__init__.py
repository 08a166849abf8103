"""Private: products with curvature matrices that are never formed."""
