"""Private: the assertions, and how one cell of measure x map is examined."""
