"""Tasks: real data sets, verified, split deterministically."""

from invariance.data._load import TASKS, load_task
from invariance.data._task import Task, cast_task

__all__ = ["TASKS", "Task", "cast_task", "load_task"]
