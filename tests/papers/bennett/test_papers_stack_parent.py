"""Surviving further demands is not being correct in the parent task."""

from __future__ import annotations

from fractions import Fraction

from invariance.papers.bennett.stack_theory import (
    StackTask,
    Vocabulary,
    correct_in_parent_by_enumeration,
    survival_probability,
)


def test_correct_in_the_parent_by_hand_and_never_more_than_surviving():
    # One program: the statements are {} and {a}; nothing is asked yet.
    language = Vocabulary(1, (1,), ("a",)).language
    task = StackTask(language, 0, 0)
    # Ext({}) is both statements. D = {}, {{a}}: correct. D = {{}} forces {a} too: only the
    # whole of Ext({}) is correct. So three sets of four, and all four survive.
    assert survival_probability(task, 0) == 1
    assert correct_in_parent_by_enumeration(task, 0) == Fraction(3, 4)
    # Ext({a}) is {a} itself: D = {} and {{a}} of four, which are those that it survives.
    assert survival_probability(task, 1) == Fraction(1, 2)
    assert correct_in_parent_by_enumeration(task, 1) == Fraction(1, 2)


def test_every_task_of_a_small_vocabulary():
    language = Vocabulary(2, (3, 1), ("a", "b")).language
    gaps = 0
    for inputs in range(1 << len(language)):
        for policy in language.statements:
            reach = language.extension_of_set(inputs)
            task = StackTask(language, inputs, reach & language.extension(policy))
            correct = correct_in_parent_by_enumeration(task, policy)
            assert 0 < correct <= survival_probability(task, policy)
            gaps += correct < survival_probability(task, policy)
    assert gaps > 0
