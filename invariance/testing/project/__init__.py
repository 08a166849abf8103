"""Private: a whole project's measures, and a session's report."""
