"""The threads' equations against dense elimination.

Would catch: a free factor that is lost or counted twice, an exponent of the wrong sign, a
sign equation that is solved over the rationals.
"""

from __future__ import annotations

import numpy as np
import pytest
import sympy

from invariance.symmetry.analysis._solve import null_space, solve
from invariance.symmetry.analysis._threads import Equations, unique_rows


def random_equations(seed, modulo_two):
    """Return a few blocks of equations over twelve threads, and their dense matrix."""
    rng = np.random.default_rng(seed)
    count, blocks, lines = 12, [], []
    for _ in range(rng.integers(1, 6)):
        width, rows = rng.integers(2, 5), rng.integers(1, 4)
        threads = rng.integers(-1 if width > 2 else 0, count, (rows, width))
        coefficients = tuple(int(c) for c in rng.choice([1, -1, 2, -2, 3], width))
        if width == 2 and rng.random() < 0.7:
            coefficients = (1, -1)
        blocks.append(Equations(threads, coefficients))
        for row in threads:
            line = np.zeros(count, dtype=int)
            for thread, coefficient in zip(row, coefficients, strict=True):
                if thread >= 0:
                    line[thread] += coefficient
            lines.append(line % 2 if modulo_two else line)
    pins = rng.choice(count, 2, replace=False)
    for pin in pins:
        lines.append(np.eye(count, dtype=int)[pin])
    return count, blocks, pins, np.array(lines)


def rank_modulo_two(matrix):
    rows = [int("".join(map(str, row)), 2) for row in matrix % 2]
    rank = 0
    while rows:
        pivot = max(rows)
        rows.remove(pivot)
        if pivot:
            rank += 1
            rows = [min(row, row ^ pivot) for row in rows]
    return rank


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("modulo_two", [False, True])
def test_the_general_solution_is_the_null_space(seed, modulo_two):
    count, blocks, pins, matrix = random_equations(seed, modulo_two)
    solution = solve(count, blocks, [pins], modulo_two=modulo_two)
    basis = np.zeros((count, solution.count), dtype=int)
    for slot in range(solution.column.shape[1]):
        for thread in range(count):
            if solution.column[thread, slot] >= 0:
                basis[thread, solution.column[thread, slot]] += solution.exponent[thread, slot]
    product = matrix @ basis
    assert not (product % 2 if modulo_two else product).any()
    if modulo_two:
        assert solution.count == count - rank_modulo_two(matrix)
        assert rank_modulo_two(basis.T) == solution.count
    else:
        assert solution.count == count - sympy.Matrix(matrix).rank()
        assert sympy.Matrix(basis).rank() == solution.count


def test_early_unknowns_stay_free():
    assert null_space([{0: 1, 1: 1, 2: -1}], modulo_two=False) == {2: {0: 1, 1: 1}}
    assert null_space([{0: 1, 1: 1, 2: 1}], modulo_two=True) == {2: {0: 1, 1: 1}}
    # a = 2 b halves a: the factor that stays free is taken to the power that makes both whole
    found = solve(3, [Equations(np.array([[1, 2]]), (1, -2))], [[0]], modulo_two=False)
    assert found.exponent[1:, 0].tolist() == [2, 1]


@pytest.mark.parametrize("span", [3, 2**40, 2**62])
def test_unique_rows_are_those_of_numpy(span):
    rng = np.random.default_rng(0)
    table = rng.integers(-span, span, (5, 2))[rng.integers(0, 5, 40)]
    table[:, 1] = rng.integers(0, 2, 40)
    unique, inverse = unique_rows(table)
    assert np.array_equal(unique, np.unique(table, axis=0))
    assert np.array_equal(unique[inverse], table)
