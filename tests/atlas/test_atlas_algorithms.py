"""Catches: an algorithm's row that its own steps contradict."""

import math

import pytest

from invariance.atlas import _algorithms as algorithms
from invariance.core._groups import Group

ROWS = {entry.name: entry for entry in algorithms.ALGORITHMS}


def test_every_row_has_evidence():
    for entry in algorithms.algorithm_rows():
        assert [cell.group for cell in entry.cells] == [group.value for group in Group]
        assert all(cell.evidence for cell in entry.cells)
        assert {cell.proof for cell in entry.cells} <= {"numerical", "counterexample", None}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_steps_give_what_is_kept(name):
    """One rescaling and one other map each; ``python -m invariance.atlas._algorithms`` does all."""
    for group in (Group.NEURON_SCALING, Group.LOGIT_SHIFT):
        found = algorithms.compare(ROWS[name], group)
        kept = algorithms._stored()[name][group.value]
        assert found["broken"] == kept["broken"] != (group in ROWS[name].equivariant_under)
        assert found["network"] == kept["network"]
        if kept["broken"] and kept["apart"] is not None:
            assert math.isclose(found["apart"], kept["apart"], rel_tol=1e-6)
