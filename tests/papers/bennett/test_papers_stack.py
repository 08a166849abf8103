"""Finite Stack Theory against frozensets, and every theorem by trying every case.

The module packs sets into integers; the reference here uses Python sets throughout, so a
wrong shift, a wrong complement or a lost statement shows.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest

from invariance.core._errors import MeasureError, UsageError
from invariance.papers.bennett.stack_theory._arithmetic import (
    SCORES,
    Arithmetic,
    arithmetic_experiment,
    irredundant_covers,
    score,
)
from invariance.papers.bennett.stack_theory._tasks import (
    StackTask,
    information_bits,
    learnable_tasks,
    pac_bayes_bound,
    shortest_policies,
    survival_by_enumeration,
    survival_given_size,
    survival_probability,
    weakest_policies,
)
from invariance.papers.bennett.stack_theory._vocabulary import Vocabulary, bits

VOCABULARIES = {
    "chain": Vocabulary(4, (0b0001, 0b0011, 0b0111)),
    "disjoint": Vocabulary(3, (0b001, 0b010, 0b100)),
    "mixed": Vocabulary(5, (0b00111, 0b01100, 0b10001, 0b11110)),
    "with empty program": Vocabulary(3, (0b000, 0b011, 0b110)),
    "literals": Vocabulary.of(
        4, {"a": lambda s: bool(s & 1), "not a": lambda s: not s & 1, "b": lambda s: bool(s & 2)}
    ),
    "none": Vocabulary(2, ()),
    # p alone rules out s, as q and r do together; but p also rules out t and u.
    "scalpel": Vocabulary(
        4, (0b0001, 0b0111, 0b1011, 0b1100, 0b0010, 0b1010), ("p", "q", "r", "s", "t", "u")
    ),
}


def reference_language(vocabulary):
    programs = [frozenset(bits(program)) for program in vocabulary.programs]
    everything = frozenset(range(vocabulary.states))
    return [
        frozenset(chosen)
        for size in range(len(programs) + 1)
        for chosen in itertools.combinations(range(len(programs)), size)
        if everything.intersection(*(programs[i] for i in chosen))
    ]


def as_set(statement):
    return frozenset(bits(statement))


@pytest.fixture(params=VOCABULARIES.values(), ids=VOCABULARIES)
def vocabulary(request):
    return request.param


def test_language_and_extensions_equal_the_definition(vocabulary):
    expected = reference_language(vocabulary)
    language = vocabulary.language
    assert sorted(map(as_set, language.statements), key=sorted) == sorted(expected, key=sorted)
    for statement in language.statements:
        supersets = {other for other in expected if other >= as_set(statement)}
        assert set(map(as_set, language.members(language.extension(statement)))) == supersets
        assert language.weakness(statement) == len(supersets)


def test_closed_forms_of_weakness():
    free = Vocabulary(1, (1,))  # one state, one program: {} and {p}
    assert len(free.language) == 2
    assert free.language.weakness(0) == 2
    # Eight programs that share state 0: every subset is a statement, w = 2^(8 - length).
    cube = Vocabulary(9, tuple(1 | 2 << i for i in range(8))).language
    assert len(cube) == 256
    assert all(cube.weakness(s) == 2 ** (8 - s.bit_count()) for s in cube.statements)
    # Literals of n bits: 3^n statements, and w = 3^(n - length).
    rules = {f"{v}{i}": lambda s, i=i, v=v: (s >> i & 1) == v for i in range(4) for v in (0, 1)}
    literals = Vocabulary.of(16, rules).language
    assert len(literals) == 81
    assert all(literals.weakness(s) == 3 ** (4 - s.bit_count()) for s in literals.statements)


def all_tasks(vocabulary, most_inputs=2):
    language = vocabulary.language
    for size in range(most_inputs + 1):
        for chosen in itertools.combinations(range(len(language)), size):
            yield from learnable_tasks(language, sum(1 << i for i in chosen))


def test_correct_policies_equal_the_definition(vocabulary):
    expected = reference_language(vocabulary)
    for task in all_tasks(vocabulary):
        inputs = [as_set(s) for s in task.language.members(task.inputs)]
        outputs = {as_set(s) for s in task.language.members(task.outputs)}
        reach = {s for s in expected if any(s >= entry for entry in inputs)}
        correct = {p for p in expected if {s for s in reach if s >= p} == outputs}
        assert {as_set(p) for p in task.correct_policies()} == correct
        assert correct  # learnable_tasks yields no task without a policy
        assert {as_set(s) for s in task.language.members(task.open)} == set(expected) - reach


def test_finite_sufficiency_by_trying_all_demands(vocabulary):
    checked = 0
    for task in all_tasks(vocabulary, 1):
        if task.open.bit_count() > 12:
            continue  # the scalpel's language has 25 statements: too many subsets
        for policy in task.correct_policies():
            formula = survival_probability(task, policy)
            assert survival_by_enumeration(task, policy) == formula
            size = task.open.bit_count()
            for m in {0, 1, 2, size} & set(range(size + 1)):
                assert survival_by_enumeration(task, policy, m) == survival_given_size(
                    task, policy, m
                )
            checked += 1
    assert checked >= 10 or len(vocabulary.language) < 4


def test_weakness_orders_survival_and_pac_bayes_and_length_does_not():
    """For every task of every vocabulary; and only weakness does: length is caught out."""
    length_disagrees = ties = 0
    for vocabulary in VOCABULARIES.values():
        language = vocabulary.language
        for task in all_tasks(vocabulary):
            policies = task.correct_policies()
            for one, two in itertools.combinations(policies, 2):
                gap = language.weakness(one) - language.weakness(two)
                survival = survival_probability(task, one) - survival_probability(task, two)
                information = information_bits(task, one) - information_bits(task, two)
                bound = pac_bayes_bound(information_bits(task, one) * math.log(2), 50)
                other = pac_bayes_bound(information_bits(task, two) * math.log(2), 50)
                sign = (gap > 0) - (gap < 0)
                assert (survival > 0) - (survival < 0) == sign
                assert (information > 0) - (information < 0) == -sign
                assert (bound > other) - (bound < other) == -sign
                for m in (1, task.open.bit_count() // 2, task.open.bit_count() - 1):
                    if m < 1:
                        continue
                    at_size = survival_given_size(task, one, m) - survival_given_size(task, two, m)
                    assert at_size * sign >= 0
                ties += sign == 0
                shorter = two.bit_count() - one.bit_count()
                length_disagrees += shorter * sign < 0
            best = max(survival_probability(task, policy) for policy in policies)
            assert {p for p in policies if survival_probability(task, p) == best} == set(
                weakest_policies(task)
            )
            assert all(
                p.bit_count() == shortest_policies(task)[0].bit_count()
                for p in shortest_policies(task)
            )
    assert ties
    assert length_disagrees


def test_information_is_the_divergence_summed_over_all_demand_sets():
    task = next(t for t in all_tasks(VOCABULARIES["mixed"]) if 4 <= t.open.bit_count() <= 10)
    for policy in task.correct_policies():
        size, allowed = task.open.bit_count(), task.free_choices(policy).bit_count()
        prior, posterior = Fraction(1, 2**size), Fraction(1, 2**allowed)
        total = sum(float(posterior) * math.log2(posterior / prior) for _ in range(2**allowed))
        assert total == pytest.approx(information_bits(task, policy), abs=1e-12)
        assert survival_probability(task, policy) == Fraction(
            1, 2 ** information_bits(task, policy)
        )


def test_the_shortest_policy_can_be_the_wrong_choice():
    """A scalpel: one strong program does the work of two weak ones, and survives less."""
    vocabulary = VOCABULARIES["scalpel"]
    language = vocabulary.language
    p, q, r, s = 1, 2, 4, 8
    task = StackTask(language, language.collect([p | q | r, s]), language.extension(p | q | r))
    assert set(task.correct_policies()) == {p, p | q, p | r, q | r, p | q | r}
    assert shortest_policies(task) == (p,)
    assert weakest_policies(task) == (q | r,)
    assert language.weakness(p) == 4  # with any of q, r
    assert language.weakness(q | r) == 5  # alone, with p, t, u, or both t and u
    ratio = survival_probability(task, q | r) / survival_probability(task, p)
    assert ratio == 2


def test_children_of_tasks():
    language = VOCABULARIES["mixed"].language
    whole = StackTask(language, language.everything, language.everything)
    policies = [p for p in language.statements if whole.is_correct(p)]
    assert policies == [0]
    child = next(t for t in all_tasks(VOCABULARIES["mixed"]) if t.outputs)
    assert child.is_child_of(whole)
    assert not whole.is_child_of(child)
    assert child.is_child_of(child)


def test_bad_stack_theory_input_is_refused():
    with pytest.raises(MeasureError, match="not a set of states"):
        Vocabulary(2, (8,))
    with pytest.raises(MeasureError, match="two of its programs are the same"):
        Vocabulary(2, (1, 1))
    with pytest.raises(MeasureError, match="its own name"):
        Vocabulary(2, (1, 2), ("p", "p"))
    with pytest.raises(MeasureError, match="more than 16384 statements"):
        _ = Vocabulary(20, tuple(1 | 2 << i for i in range(15))).language
    language = VOCABULARIES["disjoint"].language
    with pytest.raises(MeasureError, match=r"\{p0, p1\} is not a statement"):
        language.weakness(0b11)
    with pytest.raises(MeasureError, match="outputs must lie in"):
        StackTask(language, language.collect([1]), language.everything)
    task = StackTask(language, language.collect([1]), language.collect([1]))
    with pytest.raises(MeasureError, match=r"\{p1\} is not a correct policy"):
        survival_probability(task, 2)
    with pytest.raises(MeasureError, match="demands must be between"):
        survival_given_size(task, 1, 99)
    with pytest.raises(MeasureError, match="delta"):
        pac_bayes_bound(1.0, 10, delta=0.0)


# The arithmetic experiment.


def brute_force(problem, shown, rule):
    """All rule lists of every output bit, scored by walking over every input."""
    everything = set(range(problem.inputs))
    held = everything - shown
    cubes = [(frozenset(bits(cube)), size + 1) for cube, size in problem.cubes]
    best_sides = []
    for ones in problem.columns:
        truth = {x: ones >> x & 1 for x in everything}
        for value in (1, 0):  # deny the other value where the right one is `value`
            right = {x for x in everything if truth[x] == value}
            options = {}
            for choice in itertools.product((False, True), repeat=len(cubes)):
                union = frozenset().union(
                    *(c for (c, _), on in zip(cubes, choice, strict=True) if on)
                )
                if not (shown & right <= union and not union & (shown - right)):
                    continue
                length = sum(cost for (_, cost), on in zip(cubes, choice, strict=True) if on)
                cost = length if rule == "shortest" else len(union)
                options[union] = min(cost, options.get(union, cost))
            if not options:
                return None
            least = min(options.values())
            best_sides.append([u for u, cost in options.items() if cost == least])
    totals = dict.fromkeys(SCORES, Fraction(0))
    count = 0
    for policy in itertools.product(*best_sides):
        count += 1
        outcomes = []
        for x in held:
            permitted = only = True
            chance = Fraction(1)
            for j, ones in enumerate(problem.columns):
                denies_zero, denies_one = x in policy[2 * j], x in policy[2 * j + 1]
                truth = ones >> x & 1
                wrong, right = (denies_zero, denies_one) if truth else (denies_one, denies_zero)
                permitted &= not right
                only &= wrong and not right
                chance *= Fraction(1, 2) if wrong == right else Fraction(int(wrong))
            outcomes.append((permitted, only, chance))
        totals["survives"] += all(p for p, _, _ in outcomes)
        totals["exact"] += all(o for _, o, _ in outcomes)
        totals["extent"] += Fraction(sum(p for p, _, _ in outcomes), len(held))
        totals["decided"] += Fraction(sum(o for _, o, _ in outcomes), len(held))
        totals["accuracy"] += sum(c for _, _, c in outcomes) / len(held)
    return {name: value / count for name, value in totals.items()}


@pytest.mark.parametrize("operation", ["addition", "multiplication"])
@pytest.mark.parametrize("literals", [1, 2])
@pytest.mark.parametrize("rule", ["weakest", "shortest"])
def test_scores_equal_brute_force_over_all_rule_lists(operation, literals, rule):
    problem = Arithmetic(operation, width=1, max_literals=literals)
    compared = 0
    for size in (1, 2, 3):
        for shown in itertools.combinations(range(4), size):
            mask = sum(1 << x for x in shown)
            expected = brute_force(problem, set(shown), rule)
            assert score(problem, mask, rule) == expected
            compared += expected is not None
    assert compared > 4


def test_truth_tables_are_binary_arithmetic():
    for operation, width in itertools.product(("addition", "multiplication"), (1, 2)):
        problem = Arithmetic(operation, width, max_literals=2)
        for left, right in itertools.product(range(1 << width), repeat=2):
            x = left << width | right
            value = sum((ones >> x & 1) << j for j, ones in enumerate(problem.columns))
            assert value == (left + right if operation == "addition" else left * right)


def test_a_memoriser_survives_everything_and_decides_nothing():
    problem = Arithmetic("addition", 2, max_literals=4)
    weak = score(problem, 0b0110_1001_0110_1101, "weakest")
    assert weak["survives"] == weak["extent"] == 1
    assert weak["decided"] == weak["exact"] == 0
    assert weak["accuracy"] == Fraction(1, 8)  # three fair coins


def test_covers_are_irredundant_unions():
    problem = Arithmetic("addition", 2, 2)
    covers = irredundant_covers(problem, 0b11, 0b1_0001_0000)
    assert covers
    assert all(u & 0b11 == 0b11 and not u & 0b1_0001_0000 for u in covers)
    # Inputs 0 and 1 against 4 and 8: bits 2 and 3 must both be zero, two literals plus one.
    assert covers[0b1111] == min(covers.values()) == 3


@pytest.mark.parametrize(
    ("wanted", "forbidden"),
    [(0b11, 0), (0b1001_0001, 0b100), (0x2011, 0x1C0), (0x1012, 0x8300)],
)
def test_covers_and_their_lengths_equal_a_search_over_all_small_rule_lists(wanted, forbidden):
    """A cover of at most three inputs is irredundant only if it has at most three cubes."""
    problem = Arithmetic("addition", 2, 2)
    cubes = [(cube, size + 1) for cube, size in problem.cubes if not cube & forbidden]
    expected = {}
    for count in range(1, wanted.bit_count() + 1):
        for chosen in itertools.combinations(cubes, count):
            sets = [cube for cube, _ in chosen]
            joined = [
                [cube for j, cube in enumerate(sets) if j != left] for left in range(len(sets))
            ]
            covers = all(any(cube >> x & 1 for cube in sets) for x in bits(wanted))
            spare = any(
                all(any(cube >> x & 1 for cube in rest) for x in bits(wanted)) for rest in joined
            )
            if covers and not spare:
                key = 0
                for cube in sets:
                    key |= cube
                length = sum(cost for _, cost in chosen)
                expected[key] = min(length, expected.get(key, length))
    found = irredundant_covers(problem, wanted, forbidden)
    # The search may also pass through redundant lists; irredundant ones must all be there.
    assert expected
    assert expected.keys() <= found.keys()
    assert all(found[key] <= length for key, length in expected.items())
    assert min(found.values()) == min(expected.values())
    fewest = min(key.bit_count() for key in expected)
    assert min(key.bit_count() for key in found) == fewest


def test_experiment_is_exact_when_enumerated_and_seeded_otherwise():
    problem = Arithmetic("multiplication", 2, 3)
    whole = arithmetic_experiment(problem, 14, tasks=120)
    assert whole.enumerated
    assert whole.tasks + whole.unrepresentable == math.comb(16, 14)
    assert whole.half_width["extent"] == 0
    drawn = arithmetic_experiment(problem, 14, tasks=60, seed=1)
    assert not drawn.enumerated
    assert drawn == arithmetic_experiment(problem, 14, tasks=60, seed=1)
    assert drawn != arithmetic_experiment(problem, 14, tasks=60, seed=2)
    assert drawn.half_width["extent"] > 0
    # The theory's criterion: the weakest hypothesis is met by more of the parent.
    assert whole.difference["extent"] > 0
    assert whole.difference["survives"] > 0
    # And what it does not promise: that the weakest says more.
    assert whole.difference["decided"] < 0


@pytest.mark.slow
def test_confidence_intervals_cover_the_enumerated_mean():
    problem = Arithmetic("multiplication", 2, 4)
    truth = arithmetic_experiment(problem, 13, tasks=600).difference["extent"]
    hits = 0
    for seed in range(60):
        drawn = arithmetic_experiment(problem, 13, tasks=60, seed=seed)
        gap = abs(drawn.difference["extent"] - truth)
        hits += float(gap) <= drawn.half_width["extent"]
    assert hits >= 51  # 57 expected; fewer than 51 of 60 has probability below 0.01


def test_bad_arithmetic_is_refused():
    with pytest.raises(UsageError, match="operation 'division'"):
        Arithmetic("division")
    with pytest.raises(MeasureError, match="width must be 1 or 2"):
        Arithmetic("addition", 3)
    with pytest.raises(MeasureError, match="max_literals"):
        Arithmetic("addition", 2, 5)
    with pytest.raises(MeasureError, match="hold out at least one"):
        score(Arithmetic(), 0xFFFF, "weakest")
    with pytest.raises(UsageError, match="rule 'longest'"):
        score(Arithmetic(), 1, "longest")
    with pytest.raises(MeasureError, match="Raise max_literals"):
        arithmetic_experiment(Arithmetic("addition", 2, 1), 15)
