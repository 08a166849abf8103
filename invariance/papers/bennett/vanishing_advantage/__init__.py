"""Small against large batches, as data grows."""
