"""Bennett, "Are Flat Minima an Illusion?" (arXiv 2605.05209): one folder a study."""
