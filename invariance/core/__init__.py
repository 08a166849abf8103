"""The nouns that every other folder shares: errors, estimates, groups, module helpers.

Nothing in here knows about a particular measure, transform or data set, and
nothing in here imports from the rest of the package.
"""
