"""Tasks: real data sets, verified, split deterministically."""

from invariance.data.task import Task

__all__ = ["Task"]
