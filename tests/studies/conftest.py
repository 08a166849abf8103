"""Studies and networks that several files look at, run or trained once."""

import shutil

import pytest
from bennett_cases import context, tiny
from store_cases import fill

from invariance.papers.recipes._measure_perceptrons import measured_task
from invariance.papers.recipes._perceptrons import network
from invariance.studies._engine import run_study
from invariance.studies.store._store import Store


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


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory):
    """A finished study, and one whose last records are not in the main file yet."""
    place = tmp_path_factory.mktemp("finished")
    with Store(place / "closed", "toy") as store:
        store.start_run()
        fill(store)
        shutil.copytree(place / "closed", place / "pending")
    assert (place / "pending" / "study.db-wal").stat().st_size > 0
    assert not (place / "closed" / "study.db-wal").exists()
    return place


@pytest.fixture
def study_folder(finished_study, tmp_path):
    return shutil.copytree(finished_study / "closed", tmp_path / "toy")
