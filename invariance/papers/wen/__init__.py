"""Wen, Li and Ma, "Sharpness Minimization Algorithms Do Not Only Minimize Sharpness" (arXiv 2307.11007)."""
