"""Private: counting all jointly feasible labelings of unseen points."""
