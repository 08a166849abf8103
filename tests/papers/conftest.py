"""Studies and networks that several files look at, run or trained once."""

import pytest
from bennett_cases import context, tiny

from invariance.papers.recipes._measure_perceptrons import measured_task
from invariance.papers.recipes._perceptrons import network
from invariance.studies import run_study


@pytest.fixture(scope="session")
def bennett_outcomes(tmp_path_factory):
    """Every study, run once at its tiniest size."""
    found = {}

    def run(name):
        if name not in found:
            study, options = tiny(name)
            found[name] = run_study(study, options, out=tmp_path_factory.mktemp(name), workers=1)
        return found[name]

    return run


@pytest.fixture(scope="session")
def small_digits():
    """A small trained network on digits, with its task in float64."""
    study, options = tiny("pair-proxy")
    config = study.grid(options)[0]
    trained = study.train([config], context(options))[0]
    return network(config, trained), measured_task(config, context(options), n_unseen=40)
