"""Ways to train and to measure that several studies share."""
