"""Would catch: a false alarm, that is a correct measure that the gate rejects on some case.

The whole suite at full size: ``python -m invariance.testing.soak --cases 500 --runs 20``.
"""

from __future__ import annotations

import pytest

import invariance.measures  # noqa: F401 - importing fills the registry
from invariance.core.groups import Group
from invariance.measures.registry import all_measures, as_measure, get_measure
from invariance.testing import soak

QUICK_CASES, SLOW_CASES = 2, 60

#: Only estimates, or nothing to compare on random networks: a statistical test's business.
MEASURES = [n for n in all_measures() if get_measure(n).cost != "sampling"]


@pytest.mark.parametrize("name", MEASURES)
def test_no_false_alarm_on_random_cases(name, request):
    seed = request.config.getoption("--invariance-seed")
    cases = max(QUICK_CASES, request.config.getoption("--invariance-examples"))
    tally = soak.soak(get_measure(name), cases, seed)
    assert not tally.alarms, tally.alarms[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
def test_no_false_alarm_on_more_cases(name):
    tally = soak.soak(get_measure(name), SLOW_CASES, 100)
    assert not tally.alarms, tally.alarms[0]


def test_the_alarm_can_go_off():
    """A measure that declares too much is caught within a few cases."""

    def boastful(model, x, y):
        return float(sum(p.detach().square().sum() for p in model.parameters()))

    declared = as_measure(boastful, invariant_under=[Group.PERMUTATION, Group.NEURON_SCALING])
    tally = soak.soak(declared, 12, 0)
    assert tally.alarms


def test_command_line(capsys):
    assert soak.main(["parameter_norm", "--cases", "3", "--runs", "2"]) == 0
    assert "6 cases compared, 0 alarms" in capsys.readouterr().out
