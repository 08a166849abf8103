"""A study's folder that several files damage, made once."""

import shutil

import pytest
from store_cases import fill

from invariance.studies.store._store import Store


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
