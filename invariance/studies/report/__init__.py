"""Private: what a finished study leaves: results, tables, figures."""
