"""Finite Stack Theory (Bennett, arXiv 2605.05209): vocabularies, tasks, arithmetic."""

from invariance.papers.bennett.stack_theory._arithmetic import (
    Arithmetic,
    ArithmeticResult,
    arithmetic_experiment,
)
from invariance.papers.bennett.stack_theory._tasks import (
    StackTask,
    correct_in_parent_by_enumeration,
    information_bits,
    learnable_tasks,
    pac_bayes_bound,
    shortest_policies,
    survival_by_enumeration,
    survival_given_size,
    survival_probability,
    weakest_policies,
)
from invariance.papers.bennett.stack_theory._vocabulary import Language, Vocabulary

__all__ = [
    "Arithmetic",
    "ArithmeticResult",
    "Language",
    "StackTask",
    "Vocabulary",
    "arithmetic_experiment",
    "correct_in_parent_by_enumeration",
    "information_bits",
    "learnable_tasks",
    "pac_bayes_bound",
    "shortest_policies",
    "survival_by_enumeration",
    "survival_given_size",
    "survival_probability",
    "weakest_policies",
]
