"""Private: what several measures share; each measure has a file of its own beside this folder."""
