"""Private: questions of our own, that no paper asks."""
