"""The ``invariance`` command."""
