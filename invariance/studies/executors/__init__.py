"""Where the batches run: in this process, in a pool of processes, or on a cluster.

An executor takes jobs in the order in which it has room for them and gives events back; it
decides nothing about results. Each is one file here.
"""

from invariance.studies.executors._base import Done, Event, Executor, Told, Work

__all__ = ["Done", "Event", "Executor", "Told", "Work"]
