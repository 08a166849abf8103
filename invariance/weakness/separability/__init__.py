"""Private: which labels of unseen points a last layer can still take, each verdict certified."""
