"""Tasks: real data sets, verified, split deterministically."""

from invariance.data.load import TASKS, load_task
from invariance.data.task import Task

__all__ = ["TASKS", "Task", "load_task"]
