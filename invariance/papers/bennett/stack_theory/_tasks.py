"""Tasks of Finite Stack Theory, their correct policies, and why weak ones survive.

A task is a set of inputs I and a set of outputs O within Ext(I), all statements. A
policy (a statement) is correct if ``Ext(I) & Ext(policy) == O``. A task is the child of
another if its inputs and its outputs are subsets of the other's.

Write ``U = L_v - Ext(I)`` for what a task leaves open and ``B = Ext(policy) & U``.
Since ``Ext(policy)`` is the disjoint union of O and B, ``|B| = w(policy) - |O|`` for every
correct policy, so the orders by weakness and by |B| are the same. Each quantity below is
an exact fraction, with a version by exhaustive enumeration beside the closed form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from invariance.core._errors import MeasureError
from invariance.papers.bennett.stack_theory._vocabulary import Language

#: Enumerations over all subsets of U are refused above this size of U.
MAX_OPEN = 20


@dataclass(frozen=True)
class StackTask:
    """A task: inputs and the outputs that are demanded for them.

    Attributes:
        language: The language of both.
        inputs: Set of statements I (an integer over the language).
        outputs: Set of statements O, within Ext(I).
    """

    language: Language
    inputs: int
    outputs: int

    def __post_init__(self) -> None:
        if not 0 <= self.inputs <= self.language.everything:
            raise MeasureError("inputs is not a set of statements of this language.")
        stray = self.outputs & ~self.reach
        if self.outputs < 0 or stray:
            raise MeasureError(
                "outputs must lie in Ext(inputs), the statements that contain an input. "
                f"{max(1, stray.bit_count())} of them do not."
            )

    @cached_property
    def reach(self) -> int:
        """Ext(I): every statement that contains an input."""
        return self.language.extension_of_set(self.inputs)

    @property
    def open(self) -> int:
        """U: the statements that this task says nothing about."""
        return self.language.everything & ~self.reach

    def is_correct(self, policy: int) -> bool:
        """Whether ``Ext(I) & Ext(policy) == O``."""
        return self.reach & self.language.extension(policy) == self.outputs

    def correct_policies(self) -> tuple[int, ...]:
        """Return every correct policy, by enumeration, shortest first."""
        reach, language = self.reach, self.language
        return tuple(
            statement
            for statement in language.statements
            if reach & language.extension(statement) == self.outputs
        )

    def is_child_of(self, parent: StackTask) -> bool:
        """Whether this task's inputs and outputs are subsets of ``parent``'s."""
        return (
            self.language == parent.language
            and not self.inputs & ~parent.inputs
            and not self.outputs & ~parent.outputs
        )

    def free_choices(self, policy: int) -> int:
        """B: what ``policy`` allows among the statements that this task leaves open.

        Raises:
            MeasureError: If the policy is not correct here.
        """
        if not self.is_correct(policy):
            raise MeasureError(
                f"{self.language.vocabulary.spell(policy)} is not a correct policy of this task."
            )
        return self.language.extension(policy) & self.open


def learnable_tasks(language: Language, inputs: int) -> Iterator[StackTask]:
    """Yield every task with these inputs that has a correct policy, once each."""
    reach = language.extension_of_set(inputs)
    seen = {reach & language.extension(statement) for statement in language.statements}
    for outputs in sorted(seen):
        yield StackTask(language, inputs, outputs)


def weakest_policies(task: StackTask) -> tuple[int, ...]:
    """Return the correct policies of the largest weakness (all ties)."""
    policies = task.correct_policies()
    best = max((task.language.weakness(policy) for policy in policies), default=0)
    return tuple(policy for policy in policies if task.language.weakness(policy) == best)


def shortest_policies(task: StackTask) -> tuple[int, ...]:
    """Return the correct policies with the fewest programs (all ties)."""
    policies = task.correct_policies()
    best = min((policy.bit_count() for policy in policies), default=0)
    return tuple(policy for policy in policies if policy.bit_count() == best)


def survival_probability(task: StackTask, policy: int) -> Fraction:
    """Probability that a correct policy meets a uniformly drawn set of further demands.

    Finite sufficiency: if the parent's extra demands D are a uniform subset of U, then D
    is allowed by the policy exactly if D is a subset of B: ``2^|B| / 2^|U|``.

    Args:
        task: The child task.
        policy: One of its correct policies.

    Returns:
        The exact probability.

    Raises:
        MeasureError: If the policy is not correct.
    """
    return Fraction(1 << task.free_choices(policy).bit_count(), 1 << task.open.bit_count())


def survival_given_size(task: StackTask, policy: int, demands: int) -> Fraction:
    """Survival under exchangeable demands: a uniform subset of U of a given size.

    Any distribution of demands that is invariant under permutations of U is a mixture of
    these, and each is non-decreasing in |B|: ``C(|B|, m) / C(|U|, m)``.

    Args:
        task: The child task.
        policy: One of its correct policies.
        demands: The number m of extra demands, from 0 to |U|.

    Raises:
        MeasureError: If the policy is not correct or ``demands`` is out of range.
    """
    allowed, size = task.free_choices(policy).bit_count(), task.open.bit_count()
    if not 0 <= demands <= size:
        raise MeasureError(f"demands must be between 0 and |U| = {size}. Got {demands}.")
    return Fraction(math.comb(allowed, demands), math.comb(size, demands))


def survival_by_enumeration(task: StackTask, policy: int, demands: int | None = None) -> Fraction:
    """Like the closed forms, by trying every set of extra demands.

    For each D within U the parent task ``(I + D, O + D)`` demands each statement of D; the
    policy survives if it allows all of D.

    Args:
        task: The child task.
        policy: One of its correct policies.
        demands: Only sets of this size; ``None`` for all sets.

    Raises:
        MeasureError: If |U| exceeds ``MAX_OPEN``, or the policy is not correct.
    """
    open_, allowed = task.open, task.language.extension(policy)
    task.free_choices(policy)  # refuses an incorrect policy
    if open_.bit_count() > MAX_OPEN:
        raise MeasureError(
            f"|U| = {open_.bit_count()} statements have too many subsets to enumerate "
            f"(at most {MAX_OPEN}). Use survival_probability."
        )
    survived = total = 0
    extra = open_
    while True:  # walks through every subset of U, from U itself down to the empty set
        if demands is None or extra.bit_count() == demands:
            total += 1
            survived += not extra & ~allowed
        if not extra:
            return Fraction(survived, total)
        extra = (extra - 1) & open_


def correct_in_parent_by_enumeration(task: StackTask, policy: int) -> Fraction:
    """Share of the sets D of further demands for which ``policy`` is correct in the parent.

    Surviving asks that the policy allows D. Being correct in the parent ``(I + D, O + D)``
    also asks that it allows nothing else that contains a statement of D, so it is rarer.

    Args:
        task: The child task.
        policy: One of its correct policies.

    Raises:
        MeasureError: If |U| exceeds ``MAX_OPEN``, or the policy is not correct.
    """
    open_ = task.open
    task.free_choices(policy)  # refuses an incorrect policy
    if open_.bit_count() > MAX_OPEN:
        raise MeasureError(
            f"|U| = {open_.bit_count()} statements have too many subsets to enumerate "
            f"(at most {MAX_OPEN})."
        )
    correct, extra = 0, open_
    while True:
        parent = StackTask(task.language, task.inputs | extra, task.outputs | extra)
        correct += parent.is_correct(policy)
        if not extra:
            return Fraction(correct, 1 << open_.bit_count())
        extra = (extra - 1) & open_


def information_bits(task: StackTask, policy: int) -> int:
    """KL divergence in bits from "any demands" to "demands that the policy allows".

    With the prior P uniform over subsets of U and the posterior Q uniform over subsets
    of B, ``KL(Q || P) = |U| - |B|`` bits: minus the log of the survival probability. It is
    the complexity term of a PAC-Bayes bound, and smallest for the weakest policy.
    """
    return task.open.bit_count() - task.free_choices(policy).bit_count()


def pac_bayes_bound(
    kl_nats: float, samples: int, *, empirical_risk: float = 0.0, delta: float = 0.05
) -> float:
    """McAllester's PAC-Bayes bound in Maurer's form, through Pinsker's inequality.

    ``risk + sqrt((KL + log(2 sqrt(n) / delta)) / (2 n))``, strictly increasing in KL. So of
    two policies with the same empirical risk (0 for correct ones) the weaker one has the
    smaller bound: the order of the bounds is the order of weakness, reversed. Source:
    Maurer, "A note on the PAC-Bayesian theorem", cs/0411099, theorem 5.

    Args:
        kl_nats: KL divergence in nats.
        samples: Number n of training examples, at least 1.
        empirical_risk: Risk on them.
        delta: Probability that the bound fails.

    Raises:
        MeasureError: If an argument is out of range.
    """
    if kl_nats < 0 or samples < 1 or not 0 < delta < 1 or not 0 <= empirical_risk <= 1:
        raise MeasureError(
            "Need kl_nats >= 0, samples >= 1, 0 < delta < 1 and 0 <= empirical_risk <= 1. "
            f"Got {kl_nats}, {samples}, {delta}, {empirical_risk}."
        )
    slack = (kl_nats + math.log(2 * math.sqrt(samples) / delta)) / (2 * samples)
    return empirical_risk + math.sqrt(slack)
