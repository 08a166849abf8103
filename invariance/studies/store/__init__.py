"""Private: a study's folder: records, weights, lock."""
