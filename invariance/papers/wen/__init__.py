"""Wen, Li, Ma, "Sharpness Minimization Algorithms Do Not Only Minimize Sharpness" (2307.11007)."""
